"""Flow models as functions of noisy latents and noise level: what objectives and solvers are written against.

A :data:`Velocity` takes ``x`` and ``sigma`` and gives the flow, noise minus clean (flow matching, arXiv 2210.02747, in
Wan's convention, arXiv 2503.20314: ``x = (1 - sigma) * clean + sigma * noise``). ``sigma`` has the leading dimensions
of ``x``. Everything else (the past, the text, the memory) is inside, so that objectives can be tested on functions
whose answers are known in closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from longtake.training.causal import Layout
from longtake.training.causal_attention import attending_causal

Velocity = Callable[[Tensor, Tensor], Tensor]


def to_chunks(latents: Tensor, chunk: int) -> Tensor:
    """``[batch, frames, channels, h, w]`` as chunks ``[batch, chunks, channels, chunk, h, w]``.

    Raises:
        ValueError: if the frames are not whole chunks.
    """
    if latents.shape[1] % chunk or not latents.shape[1]:
        raise ValueError(f"Sequences must be whole chunks of {chunk} latent frames, not {latents.shape[1]} frames.")
    return latents.unflatten(1, (-1, chunk)).transpose(2, 3)


def grid_of(transformer: Any, latents: Tensor) -> tuple[int, int]:
    """Tokens per frame (height, width) of latents ``[..., h, w]``.

    Raises:
        ValueError: if they do not divide into patches, or a patch is longer than a frame.
    """
    steps, rows, columns = transformer.config.patch_size
    height, width = latents.shape[-2:]
    if steps != 1 or height % rows or width % columns:
        raise ValueError(
            f"Latents of {height} x {width} do not divide into patches of {rows} x {columns}, one frame each (the "
            f"transformer's are {tuple(transformer.config.patch_size)})."
        )
    return height // rows, width // columns


def causal_flows(
    transformer: Any,
    layout: Layout,
    clean: Tensor,
    noisy: Tensor,
    sigma: Tensor,
    text: Tensor,
    texts: Sequence[int] | None = None,
    kernel: str = "auto",
) -> Tensor:
    """One forward over a layout; the flows of its noisy elements, float32 ``[targets, channels, chunk, h, w]``.

    Args:
        transformer, layout, texts, kernel: see ``attending_causal``.
        clean: inputs of the clean elements ``[layout.clean, channels, chunk, h, w]``, run at t = 0.
        noisy, sigma: inputs of the noisy elements, and their levels ``[targets]`` in 0..1.
        text: ``[elements, tokens, dim]``, or the different texts if ``texts`` says which is whose.
    """
    dtype = transformer.dtype
    levels = torch.cat([sigma.new_zeros(layout.clean), sigma])
    inputs = torch.cat([clean, noisy])
    with attending_causal(transformer, layout, grid_of(transformer, inputs), texts, kernel):
        out: Tensor = transformer(inputs.to(dtype), levels * 1000, text.to(dtype), return_dict=False)[0]
    return out[layout.clean :].float()


def teacher_forced(
    transformer: Any, layout: Layout, clean: Tensor, text: Tensor, texts: Sequence[int] | None = None
) -> Velocity:
    """The chunks of a layout given their clean pasts, as a velocity of ``[targets, channels, chunk, h, w]``.

    Arguments as in :func:`causal_flows`. Every call runs the clean elements again, with the weights of the moment.
    """

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        return causal_flows(transformer, layout, clean, x, sigma, text, texts)

    return velocity


def bidirectional(transformer: Any, text: Tensor) -> Velocity:
    """A whole clip at one level, every frame attending to every frame, as a velocity of chunks.

    It takes the chunks of the clips one clip after the other, ``[clips * chunks, channels, chunk, h, w]`` (as
    ``to_chunks(...).flatten(0, 1)`` makes them), with equal levels within a clip; of those the first counts.

    Args:
        transformer: with its own processors.
        text: ``[clips, tokens, dim]``.
    """

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        chunk = x.shape[2]
        clips = x.unflatten(0, (len(text), -1)).transpose(1, 2).flatten(2, 3)
        levels = sigma.view(len(text), -1)[:, 0]
        dtype = transformer.dtype
        out: Tensor = transformer(clips.to(dtype), levels * 1000, text.to(dtype), return_dict=False)[0].float()
        return out.unflatten(2, (-1, chunk)).transpose(1, 2).flatten(0, 1)

    return velocity


def guided(conditional: Velocity, unconditional: Velocity, scale: float) -> Velocity:
    """Classifier-free guidance (arXiv 2207.12598): unconditional + scale * (conditional - unconditional).

    A scale of 1 runs the conditional model alone.
    """
    if scale == 1:
        return conditional

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        without = unconditional(x, sigma)
        return without + scale * (conditional(x, sigma) - without)

    return velocity

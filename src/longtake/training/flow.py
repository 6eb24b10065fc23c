"""Flow matching: the algebra of noisy latents, noise levels to train at, and networks as flow predictors.

Everything follows one convention, Wan's (arXiv 2503.20314, section 4.2.2; flow matching: arXiv 2210.02747, rectified
flow): ``x_t = (1 - sigma) * clean + sigma * noise``, and a network predicts the flow ``noise - clean``. Levels are
sigmas in [0, 1]; a Wan transformer is told ``1000 * sigma``.

A sigma is ``[batch]``, one level per sample, or ``[batch, frames]`` for latents ``[batch, channels, frames, height,
width]``, one per frame. Nothing here draws from the global random state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from longtake.transfer import send

Flow = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
"""A flow predictor: (x_t, sigma, text) to the flow, shaped as x_t. A score network is one; so is a closed form."""


def spread(sigma: Tensor, x: Tensor) -> Tensor:
    """A sigma that broadcasts over ``x``, in at least float32.

    Args:
        sigma: ``[batch]``, or ``[batch, frames]`` if ``x`` has five dimensions.
        x: ``[batch, ...]``, or ``[batch, channels, frames, height, width]``.

    Raises:
        ValueError: if the shapes do not belong together.
    """
    if sigma.ndim == 1 and sigma.shape[0] in (1, x.shape[0]):
        out = sigma.view(-1, *[1] * (x.ndim - 1))
    elif sigma.ndim == 2 and x.ndim == 5 and tuple(sigma.shape) == (x.shape[0], x.shape[2]):
        out = sigma[:, None, :, None, None]
    else:
        raise ValueError(
            f"sigma must be [batch], or [batch, frames] of 5-dimensional latents; {list(sigma.shape)} does not fit "
            f"{list(x.shape)}."
        )
    return out.to(torch.promote_types(sigma.dtype, torch.float32))


def noised(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The noisy latents ``(1 - sigma) * clean + sigma * noise``, computed in at least float32, in the dtype of
    ``clean``."""
    s = spread(sigma, clean)
    return ((1 - s) * clean + s * noise).to(clean.dtype)


def flow_target(clean: Tensor, noise: Tensor) -> Tensor:
    """What a network must predict: ``noise - clean``."""
    return noise - clean


def x0_from_flow(x_t: Tensor, flow: Tensor, sigma: Tensor) -> Tensor:
    """The clean latents that a flow implies: ``x_t - sigma * flow``, in at least float32."""
    return x_t - spread(sigma, x_t) * flow


def flow_from_x0(x_t: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """The flow that clean latents imply: ``(x_t - x0) / sigma``; sigma above 0."""
    return (x_t - x0) / spread(sigma, x_t)


def noise_from_flow(x_t: Tensor, flow: Tensor, sigma: Tensor) -> Tensor:
    """The noise that a flow implies: ``x_t + (1 - sigma) * flow``, in at least float32."""
    return x_t + (1 - spread(sigma, x_t)) * flow


def score_from_x0(x_t: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """The score (gradient of the log density of ``x_t``) that a posterior mean implies, Tweedie's formula:
    ``-(x_t - (1 - sigma) * x0) / sigma**2``; sigma above 0."""
    s = spread(sigma, x_t)
    return ((1 - s) * x0 - x_t) / s.square()


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Move levels towards noise: ``shift * s / (1 + (shift - 1) * s)`` (Wan's schedule; ``sampling.warp`` does the
    same to timesteps on the host). ``shift`` is positive, 1 changes nothing."""
    return shift * sigma / (1 + (shift - 1) * sigma)


@dataclass(frozen=True)
class SigmaSampling:
    """How levels are drawn: in [0, 1] by ``how``, then shifted, then held between ``low`` and ``high``.

    The defaults are those of Self-Forcing (arXiv 2506.08009, released configuration): uniform, shift 5, timesteps held
    between 20 and 980.

    Args:
        how: "uniform"; or "logit-normal", the sigmoid of a normal variable (Stable Diffusion 3, arXiv 2403.03206,
            section 3.1).
        shift: see :func:`shift_sigma`.
        low, high: levels beyond are set to these.
        mean, std: of the normal variable.

    Raises:
        ValueError: if a setting is out of range.
    """

    how: str = "uniform"
    shift: float = 5.0
    low: float = 0.02
    high: float = 0.98
    mean: float = 0.0
    std: float = 1.0

    hows: ClassVar[tuple[str, ...]] = ("uniform", "logit-normal")

    def __post_init__(self) -> None:
        if self.how not in self.hows:
            raise ValueError(f"Levels are drawn {' or '.join(self.hows)}, not {self.how!r}.")
        if not (math.isfinite(self.shift) and self.shift > 0):
            raise ValueError(f"The shift of the levels must be positive, not {self.shift}.")
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"low and high must be 0 <= low <= high <= 1, not {self.low} and {self.high}.")
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std >= 0):
            raise ValueError(f"mean must be a number and std 0 or more, not {self.mean} and {self.std}.")

    def sample(
        self, shape: int | Sequence[int], generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Levels of this distribution.

        Args:
            shape: ``batch`` or ``(batch,)`` for one level per clip, ``(batch, frames)`` for one per frame.
            generator: of the host; the same on every device.
            device: of the result.

        Returns:
            float32 ``shape``, between ``low`` and ``high``.
        """
        size = (shape,) if isinstance(shape, int) else tuple(shape)
        if self.how == "uniform":
            sigma = torch.rand(size, generator=generator)
        else:
            sigma = torch.sigmoid(self.mean + self.std * torch.randn(size, generator=generator))
        return send(shift_sigma(sigma, self.shift).clamp(self.low, self.high), device)


def gaussian(like: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise of the shape and on the device of ``like``, float32, drawn on the host."""
    return send(torch.randn(like.shape, generator=generator), like.device)


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598): ``unconditional + scale * (conditional - unconditional)``. 1 is the
    conditional prediction. Released distillation code writes ``conditional + w * (conditional - unconditional)``:
    its ``real_guidance_scale`` of 3 is a scale of 4 here."""
    return unconditional + scale * (conditional - unconditional)


class WanFlow:
    """A ``WanTransformer3DModel`` as a flow predictor, bidirectional, with or without classifier-free guidance.

    Both halves of a guided prediction are one forward of twice the batch.

    Args:
        transformer: the model, with no memory bound to it.
        guidance: see :func:`guided`; 1 asks for the conditional prediction only.
        negative: embedding of the negative (or empty) prompt, ``[1 or batch, tokens, dim]``, shaped as the texts.

    Raises:
        ValueError: if there is guidance and no negative prompt.
    """

    def __init__(self, transformer: Any, guidance: float = 1.0, negative: Tensor | None = None) -> None:
        if guidance != 1.0 and negative is None:
            raise ValueError(f"Guidance of {guidance} needs the embedding of a negative prompt; 1.0 needs none.")
        self.transformer, self.guidance, self.negative = transformer, float(guidance), negative

    def __call__(self, x_t: Tensor, sigma: Tensor, text: Tensor | None) -> Tensor:
        """The flow, at least float32.

        Args:
            x_t: ``[batch, channels, frames, height, width]``.
            sigma: ``[batch]``, or ``[batch, frames]`` (every token is then told its frame's level).
            text: ``[1 or batch, tokens, dim]``.

        Raises:
            ValueError: if a shape does not fit, or there is no text.
        """
        if text is None:
            raise ValueError("A Wan transformer needs a text embedding [batch, tokens, dim].")
        spread(sigma, x_t)  # refuses what does not fit
        batch, dtype = x_t.shape[0], self.transformer.dtype
        x, texts, levels = x_t.to(dtype), text.expand(batch, -1, -1).to(dtype), sigma.expand(batch, *sigma.shape[1:])
        if self.guidance != 1.0:
            assert self.negative is not None
            negative = self.negative.to(device=texts.device, dtype=dtype).expand(batch, -1, -1)
            if negative.shape != texts.shape:
                raise ValueError(
                    f"The negative prompt's embedding is {list(negative.shape)}, the text's {list(texts.shape)}; "
                    "they must have the same shape."
                )
            x, texts, levels = torch.cat([x, x]), torch.cat([texts, negative]), torch.cat([levels, levels])
        out = self.transformer(x, self._timesteps(levels, x), texts, return_dict=False)[0]
        flow: Tensor = out.to(torch.promote_types(out.dtype, torch.float32))
        if self.guidance == 1.0:
            return flow
        conditional, unconditional = flow.chunk(2)
        return guided(conditional, unconditional, self.guidance)

    def _timesteps(self, sigma: Tensor, x: Tensor) -> Tensor:
        """``1000 * sigma``: ``[batch]``, or per token ``[batch, tokens]``."""
        if sigma.ndim == 1:
            return 1000 * sigma
        steps, rows, columns = self.transformer.config.patch_size
        tokens = (x.shape[3] // rows) * (x.shape[4] // columns)
        # Frames in one patch have one token: the level of the first of them.
        return 1000 * sigma[:, ::steps].repeat_interleave(tokens, 1)

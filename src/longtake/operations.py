"""How many operations a chunk needs, from configurations alone. Imports no torch.

Counted are the multiplications and additions of matrix products and convolutions, a product of [n, k] and [k, m] as
2 n k m, which is what ``torch.utils.flop_counter`` counts and what peaks of processors are stated in. Everything else
(norms, activations, rotations) is bound by memory and not counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from longtake.sizes import Config, TransformerSize, decoder_levels


@dataclass(frozen=True)
class Forward:
    """Operations of one forward of a chunk, by what they are for.

    Attributes:
        projections: queries, keys, values and output of self-attention; ``attention``: self-attention itself.
        cross: queries and output of cross-attention, and the attention to the prompt.
        feed_forward: of all blocks.
        edges: of patches in, and of the head out.
    """

    projections: float
    attention: float
    cross: float
    feed_forward: float
    edges: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.projections + self.attention + self.cross + self.feed_forward + self.edges


def forward_operations(
    config: Config, queries: int, keys: int, text_tokens: int, *, commit: bool = False, batch: int = 1
) -> Forward:
    """One forward that has the prompt's keys and values, and the conditions of its timestep, already.

    Args:
        config: of a ``WanTransformer3DModel``.
        queries: tokens of the chunk; ``keys``: tokens it attends to, its own included.
        text_tokens: of the prompt, padding included.
        commit: whether the forward ends with the keys and values of the last layer, as that of a commit may.
        batch: takes side by side.
    """
    size = TransformerSize.of(config)
    dim, tokens = size.dim, batch * queries
    layers = size.layers - commit
    inputs = int(config.get("in_channels", 16))
    outputs = 0 if commit else int(config.get("out_channels") or inputs)
    return Forward(
        projections=8 * layers * tokens * dim**2 + (4 * tokens * dim**2 if commit else 0),
        attention=4 * layers * tokens * keys * dim,
        cross=layers * tokens * dim * (4 * dim + 4 * text_tokens),
        feed_forward=4 * layers * tokens * dim * size.ffn,
        edges=2 * tokens * dim * math.prod(size.patch) * (inputs + outputs),
    )


def condition_operations(config: Config, batch: int = 1) -> float:
    """What a timestep needs once, whatever the chunk: its embedding and the modulation of all blocks."""
    size = TransformerSize.of(config)
    return 2 * batch * size.dim * (int(config.get("freq_dim", 256)) + size.dim + 6 * size.dim)


def prompt_operations(config: Config, text_tokens: int, batch: int = 1) -> float:
    """What a prompt needs once: its embedding, and keys and values in every layer. The text encoder is not in it."""
    size = TransformerSize.of(config)
    return 2 * batch * text_tokens * size.dim * (size.text_dim + size.dim + 2 * size.layers * size.dim)


def decoder_operations(config: Config, height: int, width: int, latents: int = 1) -> float:
    """What ``latents`` latents after the first one need of the decoder of an ``AutoencoderKLWan``.

    Args:
        config: of the autoencoder.
        height, width: of the video, in pixels.
        latents: in latent frames.
    """
    spatial = int(config.get("scale_factor_spatial", 8))
    levels = list(decoder_levels(config))
    latent, middle = int(config.get("z_dim", 16)), levels[0].inputs
    pixels, frames = (height // spatial) * (width // spatial), 1
    macs = pixels * (latent**2 + 27 * latent * middle)  # the convolution after sampling, and the first one
    macs += pixels * (4 * 27 * middle**2 + 4 * middle**2 + 2 * pixels * middle)  # two blocks around an attention
    for level in levels:
        here = frames * pixels
        macs += here * 27 * (level.inputs + level.outputs * (2 * level.blocks - 1)) * level.outputs
        macs += here * level.inputs * level.outputs if level.inputs != level.outputs else 0
        if level.up == "3d":
            macs += here * 3 * level.outputs * 2 * level.outputs
            frames *= 2
        if level.up:
            pixels *= 4
            macs += frames * pixels * 9 * level.outputs * level.up_outputs
    macs += frames * pixels * 27 * levels[-1].outputs * int(config.get("out_channels", 3))
    return 2.0 * latents * macs

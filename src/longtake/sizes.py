"""How many bytes the parts of a Wan model take, from their configurations alone. Imports no torch.

Weights, caches and the memory are exact. What a forward takes at its peak follows the tensors that diffusers' code
holds at the same time; what libraries take for themselves (workspaces of convolutions, an allocator's blocks) is not in
it. Configurations are mappings as in ``config.json``; ``width`` is always the bytes of one number in the model's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from longtake.memory.deep_forcing import DeepForcing
from longtake.memory.echo import Echo
from longtake.memory.memrope import MemRoPE
from longtake.memory.policy import MemoryPolicy

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_KEPT = 4  # bytes of what diffusers keeps in float32
_ROTATED_AT_ONCE = 1 << 25  # elements: `memory.turning` rotates its slots in groups of about this size

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Numbers:
    """How many numbers a part of a transformer has, by how they are kept.

    Attributes:
        linear: weights of Linear layers in blocks, which can be quantised; ``rows``: output channels of these.
        kept: what diffusers keeps in float32 whatever the dtype (modulation, time embedding, norms before layers).
        other: everything else.
    """

    linear: int = 0
    rows: int = 0
    kept: int = 0
    other: int = 0

    def total(self) -> int:
        """All of them."""
        return self.linear + self.kept + self.other

    def bytes(self, width: int, quantize: str | None = None) -> int:
        """Bytes, with ``linear`` in one byte each and a scale per row if quantised."""
        linear = self.linear + self.rows * width if quantize else self.linear * width
        return linear + self.kept * _KEPT + self.other * width


@dataclass(frozen=True)
class TransformerSize:
    """Sizes of a ``WanTransformer3DModel``.

    Attributes:
        layers, heads, head_dim, ffn, text_dim, patch: from the configuration.
        block: numbers of one block; ``first``: of the embeddings; ``last``: of the head.
    """

    layers: int
    heads: int
    head_dim: int
    ffn: int
    text_dim: int
    patch: tuple[int, int, int]
    tables: int
    block: Numbers
    first: Numbers
    last: Numbers

    @classmethod
    def of(cls, config: Config) -> TransformerSize:
        """From ``transformer/config.json``."""
        heads, head_dim = int(config.get("num_attention_heads", 40)), int(config.get("attention_head_dim", 128))
        dim, ffn = heads * head_dim, int(config.get("ffn_dim", 13824))
        text, freq = int(config.get("text_dim", 4096)), int(config.get("freq_dim", 256))
        inputs = int(config.get("in_channels", 16))
        outputs = int(config.get("out_channels") or inputs)
        steps, rows, columns = (int(n) for n in config.get("patch_size", (1, 2, 2)))
        volume = steps * rows * columns
        picture = int(config.get("added_kv_proj_dim") or 0)  # keys and values of a reference picture, in newer models
        block = Numbers(
            linear=8 * dim**2 + 2 * dim * ffn + 2 * dim * picture,
            rows=9 * dim + ffn + (2 * dim if picture else 0),
            kept=6 * dim + (2 * dim if config.get("cross_attn_norm", True) else 0),
            other=(8 * dim + ffn + dim) + 4 * dim + (3 * dim if picture else 0),  # biases, norms of queries and keys
        )
        other = (inputs * volume + 1) * dim + (dim + 1) * 6 * dim + (text + 1) * dim + (dim + 1) * dim
        image = int(config.get("image_dim") or 0)
        kept = (freq + 1) * dim + (dim + 1) * dim
        if image:
            kept += 2 * image + 2 * dim  # norms
            other += (image + 1) * image + (image + 1) * dim + int(config.get("pos_embed_seq_len") or 0) * image
        return cls(
            int(config.get("num_layers", 40)),
            heads,
            head_dim,
            ffn,
            text,
            (steps, rows, columns),
            2 * int(config.get("rope_max_seq_len", 1024)) * head_dim * 4,
            block,
            Numbers(kept=kept + 2 * dim, other=other),
            Numbers(other=(dim + 1) * outputs * volume),
        )

    @property
    def dim(self) -> int:
        """Channels of the hidden states."""
        return self.heads * self.head_dim

    def numbers(self) -> int:
        """Of the whole model."""
        return self.first.total() + self.layers * self.block.total() + self.last.total()

    def weights(
        self, width: int, layers: int, first: bool = True, last: bool = True, quantize: str | None = None
    ) -> int:
        """Bytes of ``layers`` blocks, with the embeddings (and their tables) and the head if they are there too."""
        edges = (self.first.bytes(width) + self.tables if first else 0) + (self.last.bytes(width) if last else 0)
        return layers * self.block.bytes(width, quantize) + edges

    def pinned(self, width: int, quantize: str | None = None) -> int:
        """Bytes of a pinned copy of all blocks, as group offloading to CUDA makes it: PyTorch rounds each tensor
        up to a power of two."""
        linear = [self.dim**2] * 8 + [self.dim * self.ffn] * 2
        bytes_each = [numbers * (1 if quantize else width) for numbers in linear]
        rounded = sum(1 << (count - 1).bit_length() for count in bytes_each)
        return self.layers * (rounded + self.block.bytes(width, quantize) - sum(bytes_each))

    def prompt(self, width: int, layers: int, text_tokens: int) -> int:
        """Bytes of the prompt's keys and values in ``layers`` layers."""
        return 2 * layers * text_tokens * self.dim * width

    def forward(self, width: int, tokens: int, text_tokens: int, quantize: str | None = None) -> int:
        """Bytes that a forward of a chunk takes at its peak beside weights and memory.

        The most is held inside a feed-forward layer (its hidden states before and after the activation) or, if that
        layer is narrow, where float32 copies of the hidden states are added or rotated.
        """
        states = tokens * self.dim
        # Three copies beside six tensors; in float32, where a copy to float32 is none, seven in all.
        copies = states * (3 * 4 + 6 * width if width < 4 else 7 * width)
        wide = tokens * self.ffn
        inside = 2 * wide
        if quantize:  # a weight, brought back to the dtype, beside what goes in and what comes out
            inside = max(inside, wide + self.dim * self.ffn + states)
        inside = (inside + 4 * states) * width
        shared = 2 * tokens * self.head_dim * 4 + text_tokens * (self.dim + self.text_dim) * width
        return max(inside, copies) + shared


def memory_bytes(
    policy: MemoryPolicy, layers: int, heads: int, head_dim: int, tokens: int, chunk: int, width: int
) -> int:
    """Bytes that a memory holds all the time: keys as stored, keys as rotated, values, and running averages, the state
    of a learned memory, or what one that chooses has seen.

    Args:
        policy: which frames stay.
        layers, heads, head_dim: of the transformer, or of the part of it on one device.
        tokens: per latent frame; ``chunk``: latent frames per chunk, after patching.
        width: bytes of a number.
    """
    per_token = layers * heads * head_dim
    count = 3 * policy.capacity(chunk) * tokens * per_token * width
    if isinstance(policy, MemRoPE):
        count += len(policy.kept) * 2 * (tokens if _per_position(policy) else 1) * per_token * 4
    if isinstance(policy, Echo):
        count += policy.frames * tokens * heads * head_dim * 4
    if isinstance(policy, DeepForcing):
        count += policy.capacity(chunk) * per_token * 4  # queries, added up
        count += policy.chosen * tokens * layers * 4 if policy.reuse else 0
    return count


def encoder_numbers(policy: MemoryPolicy, heads: int, head_dim: int, tokens: int) -> int:
    """Weights of a learned memory with one group, the published shape; 0 for other policies.

    Args:
        heads, head_dim: of the transformer; ``tokens``: per latent frame.
    """
    if not isinstance(policy, Echo):
        return 0
    width = heads * head_dim
    attention = 10 * width**2 + 10 * width  # queries, output and feed-forward of a layer, and three norms
    # Initial queries; two layers; connector, gate, keys and values, and two norms.
    return policy.frames * tokens * width + 2 * attention + 6 * width**2 + 7 * width


def _per_position(policy: MemRoPE) -> bool:
    return policy.pooling == "position" or policy.adaptive


def begin_bytes(
    policy: MemoryPolicy, layers: int, heads: int, head_dim: int, tokens: int, chunk: int, width: int
) -> int:
    """Bytes that the beginning of a chunk takes at its peak beside the memory: to average what leaves, to rotate."""
    layer = max(0, policy.capacity(chunk) - chunk) * tokens * heads * head_dim
    rotation = 8 * min(layers * layer, max(_ROTATED_AT_ONCE, layer))
    pooling = 0
    if isinstance(policy, MemRoPE):
        frame = layers * tokens * heads * head_dim * 4
        # Averages by position make float32 copies of the frames that leave, two and the two before them, and sums.
        pooling = 8 * frame if _per_position(policy) else 0
        if policy.ids == "absolute":  # keys in float32, and rotated
            pooling += 2 * frame
    return max(rotation, pooling)


# The text encoder


def text_numbers(config: Config) -> int:
    """Numbers of a ``UMT5EncoderModel``; the table of words counts once."""
    dim, ff, heads = (int(config[name]) for name in ("d_model", "d_ff", "num_heads"))
    inner = heads * int(config.get("d_kv", 64))
    gated = "gated" in str(config.get("feed_forward_proj", "gated-gelu"))
    buckets = int(config.get("relative_attention_num_buckets", 32))
    layer = 4 * dim * inner + (3 if gated else 2) * dim * ff + buckets * heads + 2 * dim
    return int(config["vocab_size"]) * dim + int(config["num_layers"]) * layer + dim


def encoding_bytes(config: Config, width: int, text_tokens: int = 512) -> int:
    """Bytes that encoding one prompt takes at its peak beside the weights.

    The most is held where a layer's table of relative positions [heads, tokens, tokens] is made and masked.
    """
    dim, ff, heads = (int(config[name]) for name in ("d_model", "d_ff", "num_heads"))
    positions = 3 * heads * text_tokens**2 * width
    return max(positions + 6 * text_tokens * dim * width, text_tokens * (3 * ff + 6 * dim) * width)


# The autoencoder


class Level(NamedTuple):
    """A level of the decoder: channels in and out, residual blocks, and how it ends ("2d", "3d" or "")."""

    inputs: int
    outputs: int
    blocks: int
    up: str
    up_outputs: int


def decoder_levels(config: Config) -> Iterator[Level]:
    """Of the decoder of an ``AutoencoderKLWan``, from the latents up."""
    residual = bool(config.get("is_residual", False))
    base = int(config.get("decoder_base_dim") or config.get("base_dim", 96))
    multiples = [int(n) for n in config.get("dim_mult", (1, 2, 4, 4))]
    dims = [base * n for n in (multiples[-1], *reversed(multiples))]
    doubles = [*reversed(config.get("temperal_downsample", (False, True, True)))]
    for index, (inputs, outputs) in enumerate(pairwise(dims)):
        last = index == len(multiples) - 1
        up = "" if last else "3d" if doubles[index] else "2d"
        halved = inputs // 2 if index and not residual else inputs
        yield Level(
            halved,
            outputs,
            int(config.get("num_res_blocks", 2)) + 1,
            up,
            outputs if residual else outputs // 2,
        )


def _residual_numbers(inputs: int, outputs: int) -> int:
    count = inputs + outputs + 27 * (inputs + outputs) * outputs + 2 * outputs
    return count + ((inputs + 1) * outputs if inputs != outputs else 0)


def _middle_numbers(dim: int) -> int:
    return 2 * _residual_numbers(dim, dim) + dim + 3 * (dim + 1) * dim + (dim + 1) * dim


def vae_numbers(config: Config) -> int:
    """Numbers of an ``AutoencoderKLWan``, encoder and decoder."""
    latent = int(config.get("z_dim", 16))
    total = (2 * latent + 1) * 2 * latent + (latent + 1) * latent
    # The decoder
    levels = list(decoder_levels(config))
    total += 27 * latent * levels[0].inputs + levels[0].inputs + _middle_numbers(levels[0].inputs)
    for level in levels:
        total += _residual_numbers(level.inputs, level.outputs)
        total += (level.blocks - 1) * _residual_numbers(level.outputs, level.outputs)
        if level.up:
            total += (9 * level.outputs + 1) * level.up_outputs
        if level.up == "3d":
            total += (3 * level.outputs + 1) * 2 * level.outputs
    pictures = int(config.get("out_channels", 3))
    total += levels[-1].outputs + 27 * levels[-1].outputs * pictures + pictures
    # The encoder
    base = int(config.get("base_dim", 96))
    multiples = [int(n) for n in config.get("dim_mult", (1, 2, 4, 4))]
    halves = config.get("temperal_downsample", (False, True, True))
    scales = [float(s) for s in config.get("attn_scales") or ()]
    dims = [base, *(base * n for n in multiples)]
    total += 27 * int(config.get("in_channels", 3)) * base + base
    for index, (inputs, outputs) in enumerate(pairwise(dims)):
        blocks = int(config.get("num_res_blocks", 2))
        total += _residual_numbers(inputs, outputs) + (blocks - 1) * _residual_numbers(outputs, outputs)
        if not config.get("is_residual", False) and 2.0**-index in scales:
            total += blocks * (outputs + 3 * (outputs + 1) * outputs + (outputs + 1) * outputs)
        if index < len(multiples) - 1:
            total += (9 * outputs + 1) * outputs + ((3 * outputs + 1) * outputs if halves[index] else 0)
    total += _middle_numbers(dims[-1]) + dims[-1]
    return total + 27 * dims[-1] * 2 * latent + 2 * latent


def decoder_cache(config: Config, height: int, width_pixels: int) -> int:
    """Numbers that the decoder keeps between latents: the last two frames before every convolution over time."""
    levels = list(decoder_levels(config))
    spatial = int(config.get("scale_factor_spatial", 8))
    pixels = (height // spatial) * (width_pixels // spatial)
    total = 2 * pixels * (int(config.get("z_dim", 16)) + 4 * levels[0].inputs)
    for level in levels:
        total += 2 * pixels * (level.inputs + (2 * level.blocks - 1) * level.outputs)
        total += 2 * pixels * level.outputs if level.up == "3d" else 0
        pixels *= 4 if level.up else 1
    return total + 2 * pixels * levels[-1].outputs


def decoding_bytes(config: Config, height: int, width_pixels: int, width: int, latents: int) -> int:
    """Bytes that decoding ``latents`` latents takes at its peak beside weights and cache.

    A walk through the decoder: at every level, what its norms (in float32), its convolutions over time (joined with the
    cache, then padded) and its upsampling hold at the same time.
    """
    spatial = int(config.get("scale_factor_spatial", 8))
    levels = list(decoder_levels(config))
    pixels = (height // spatial) * (width_pixels // spatial)
    small = width < 4
    frames, most = 1, 0
    frame = 3 * height * width_pixels  # numbers of a picture
    per_latent = int(config.get("scale_factor_temporal", 4))
    made = (latents - 1) * per_latent * frame * width  # pictures waiting for the last latent's

    def norm(channels: int) -> int:
        numbers = channels * frames * pixels
        return numbers * (8 if small else 3 * width)

    def convolution(channels: int, outputs: int) -> int:
        joined = channels * (frames + 2) * pixels * width
        out = outputs * frames * pixels * width
        return channels * frames * pixels * width + joined + max(joined, out) + 2 * channels * pixels * width

    for level in levels:
        x = level.inputs * frames * pixels * width  # held by the decoder's loop all the time
        out = level.outputs * frames * pixels * width
        shortcut = out if level.inputs != level.outputs else 0
        most = max(most, x + shortcut + max(norm(level.inputs), convolution(level.inputs, level.outputs)))
        most = max(most, x + shortcut + out + max(norm(level.outputs), convolution(level.outputs, level.outputs)))
        if level.blocks > 1:  # the block before's result is held beside
            most = max(most, x + 2 * out + norm(level.outputs), x + out + convolution(level.outputs, level.outputs))
        if not level.up:
            continue
        if level.up == "3d":
            frames *= 2
        flat = level.outputs * frames * pixels
        # Enlarged in float32; brought back to the dtype; convolved.
        enlarged = 16 * flat + (4 * flat if small else 0)
        returned = 16 * flat + 4 * flat * width if small else 0
        after = 4 * flat * width + 4 * level.up_outputs * frames * pixels * width
        most = max(most, x + out + flat * width + max(enlarged, returned, after))
        pixels *= 4
    top = levels[-1].outputs
    most = max(most, top * frames * pixels * width * 2 + max(norm(top), convolution(top, 3)))
    shown = latents * per_latent * frame
    return max(most + made, shown * (width + 2 * 4))  # at last all pictures, and in float32 on their way into [0, 1]


def tokens_of(config: Config, vae: Config, height: int, width_pixels: int) -> int:
    """Tokens of a latent frame."""
    spatial = int(vae.get("scale_factor_spatial", 8))
    _, rows, columns = (int(n) for n in config.get("patch_size", (1, 2, 2)))
    return math.prod((height // spatial // rows, width_pixels // spatial // columns))

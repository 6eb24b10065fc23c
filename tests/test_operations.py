"""Counts of operations against PyTorch's own counter on the real modules, and against a sum by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from longtake.attention import attending, memory_for
from longtake.checkpoints.registry import bases
from longtake.decode import StreamingDecoder
from longtake.memory import parse_memory
from longtake.operations import (
    condition_operations,
    decoder_operations,
    forward_operations,
    prompt_operations,
)

SMALL: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 6,
    "text_dim": 10,
    "freq_dim": 16,
    "ffn_dim": 40,
    "num_layers": 3,
}
TEXT, HEIGHT, WIDTH = 7, 4, 6


def counted(call: Any) -> float:
    # PyTorch counts attention as the products it is made of, and knows no fused one of a CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("memory", ["memrope", "sliding:window=9"])
def test_a_forward(memory: str, batch: int) -> None:
    model = WanTransformer3DModel(**SMALL).eval()
    held = memory_for(model, parse_memory(memory), HEIGHT, WIDTH, batch=batch)
    x, text = torch.randn(batch, 4, 3, HEIGHT, WIDTH), torch.randn(batch, TEXT, 10)

    def forward() -> None:
        with attending(model, held):
            model(x, torch.zeros(1), text, return_dict=False)

    held.begin_chunk()
    first = counted(forward)
    keys = held.used * held.tokens
    plain = forward_operations(SMALL, 3 * held.tokens, keys, TEXT, batch=batch).total
    conditions, prompt = condition_operations(SMALL), prompt_operations(SMALL, TEXT, batch)
    assert first == plain + conditions + prompt
    # The prompt's keys and values are kept; diffusers embeds its text and its timestep anew each time.
    again = 2 * batch * TEXT * 24 * (10 + 24)
    assert counted(forward) == plain + conditions + again


def test_a_commit_ends_with_the_last_keys_and_values() -> None:
    queries, keys, dim = 18, 72, 24
    whole, commit = (forward_operations(SMALL, queries, keys, TEXT, commit=c) for c in (False, True))
    last = 2 * queries * (dim * dim * 4 + 2 * keys * dim + 2 * dim * dim + 2 * TEXT * dim + 2 * dim * 40)
    head = 2 * queries * dim * 6 * 4
    assert whole.total - commit.total == last + head - 2 * queries * dim * dim * 2


def test_the_published_shape_by_hand() -> None:
    """Wan 1.3B at 480x832 with 12 attended frames: 30 layers of width 1536, 4,680 queries, 18,720 keys."""
    made = forward_operations(bases()["wan-1.3b"].transformer, 4680, 18720, 512)
    layer = 4680 * (4 * 1536**2 + 2 * 18720 * 1536 + 2 * 1536**2 + 2 * 512 * 1536 + 2 * 1536 * 8960)
    edges = 4680 * 1536 * (64 + 64)
    assert made.total == 2 * (30 * layer + edges)
    assert made.attention == pytest.approx(16.15e12, rel=1e-3)


VAES: list[dict[str, Any]] = [
    {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 2, 2], "num_res_blocks": 1, "temperal_downsample": [True, True]},
    {"base_dim": 2, "decoder_base_dim": 6, "z_dim": 4, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2},
    {
        "base_dim": 4,
        "z_dim": 4,
        "dim_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [True, True],
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
        "is_residual": True,
    },
]


@pytest.mark.parametrize("config", VAES)
def test_a_decoder(config: dict[str, Any]) -> None:
    mean = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    vae = AutoencoderKLWan(**config, **mean).eval()
    scale = vae.config.scale_factor_spatial
    decoder = StreamingDecoder(vae)
    pixels = [2 * scale, 3 * scale]
    # A patch of the autoencoder enlarges what the decoder makes; the levels below work on latents.
    factor = 2 ** (len(config["dim_mult"]) - 1)
    latent = torch.randn(1, 4, 1, *(n // scale for n in pixels))
    frames = decoder.decode(latent)
    assert frames.shape[-1] == latent.shape[-1] * factor * (config.get("patch_size") or 1)
    decoder.decode(latent)
    spare = 2 * latent[0, 0].numel() * 4 * 4  # one of the two latents that the first convolution is always given
    assert counted(lambda: decoder.decode(latent)) == decoder_operations(vae.config, *pixels) + spare


def test_the_published_decoder() -> None:
    made = decoder_operations(bases()["wan-1.3b"].vae, 480, 832, 3)
    assert made == pytest.approx(40.65e12, rel=1e-3)

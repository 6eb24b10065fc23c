"""The streaming encoder: diffusers' own encoding of the whole clip, in any portions."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longtake.decode import StreamingDecoder
from longtake.encode import StreamingEncoder
from tests.test_decode import build

LATENTS = 8
FRAMES = 1 + 4 * (LATENTS - 1)


@cache
def clip(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (FRAMES, 16, 24, 3), dtype=np.uint8)


@cache
@torch.no_grad()
def whole(name: str = "patches", dtype: torch.dtype = torch.float32) -> Tensor:
    """Diffusers' encoding of all frames at once, normalised."""
    vae = build(name, dtype)
    video = torch.from_numpy(clip()).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    latents = vae.encode(video.to(dtype)).latent_dist.mode().float()
    mean, std = (torch.tensor(x).view(1, 4, 1, 1, 1) for x in (vae.config.latents_mean, vae.config.latents_std))
    return (latents - mean) / std


def streamed(encoder: StreamingEncoder, frames: np.ndarray, sizes: list[int]) -> Tensor:
    return torch.cat([encoder.encode(part) for part in np.split(frames, np.cumsum(sizes)[:-1])], 2)


@st.composite
def splits(draw: st.DrawFn) -> list[int]:
    sizes: list[int] = []
    while (left := FRAMES - sum(sizes)) > 0:
        sizes.append(draw(st.integers(1, left)))
    return sizes


@settings(max_examples=12, deadline=None)
@given(splits())
def test_any_split_gives_the_same_bits(sizes: list[int]) -> None:
    assert torch.equal(streamed(StreamingEncoder(build()), clip(), sizes), whole())


@pytest.mark.parametrize("name", ["patches", "wan", "residual"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kind_of_autoencoder(name: str, dtype: torch.dtype) -> None:
    made = streamed(StreamingEncoder(build(name, dtype)), clip(), [9, 12, 8])
    assert made.dtype == torch.float32
    assert made.shape == (1, 4, LATENTS, 2, 3)
    assert made.std() > 0.01
    assert torch.equal(made, whole(name, dtype))


def test_two_frames_per_latent() -> None:
    """Where diffusers itself takes four frames at a time, which is not the same to the last bit."""
    encoder = StreamingEncoder(build("half"))
    made = streamed(encoder, clip(), [1, 5, 6, 17])
    assert made.shape[2] == encoder.latents == 15
    assert torch.allclose(made, whole("half"), atol=1e-5)
    assert StreamingDecoder(build("half")).frames_for(15) == FRAMES


def test_later_latents_depend_on_earlier_frames_and_never_on_later_ones() -> None:
    other = clip().copy()
    other[12] = 255 - other[12]
    made = streamed(StreamingEncoder(build()), other, [FRAMES])
    assert torch.equal(made[:, :, :3], whole()[:, :, :3])  # frames 0 to 8
    assert (made[:, :, 4:] - whole()[:, :, 4:]).abs().max() > 1e-4


def test_incomplete_groups_wait() -> None:
    encoder = StreamingEncoder(build())
    counts = [encoder.encode(clip()[i : i + 1]).shape[2] for i in range(10)]
    assert counts == [1, 0, 0, 0, 1, 0, 0, 0, 1, 0]
    assert encoder.encode(clip()[:0]).shape == (1, 4, 0, 2, 3)


def test_two_encoders_share_an_autoencoder_and_nothing_grows() -> None:
    one, other = StreamingEncoder(build()), StreamingEncoder(build())
    parts = []
    for i in range(0, FRAMES, 7):
        parts.append(one.encode(clip()[i : i + 7]))
        other.encode(clip(3)[i : i + 7])
    assert torch.equal(torch.cat(parts, 2), whole())

    def held() -> tuple[int, int]:
        return len(one._waiting), sum(x.untyped_storage().nbytes() for x in one._cache if x is not None)

    before = held()
    for _ in range(20):
        one.encode(clip()[:8])
        assert held() == before

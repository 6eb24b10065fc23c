"""Streaming decode against diffusers' own decode of the whole."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longtake.decode import StreamingDecoder, decoding_for

LENGTH = 20
CONFIGS: dict[str, dict[str, Any]] = {
    # like the pocket model: patches, four frames per latent
    "patches": {
        "dim_mult": [1, 2, 4],
        "temperal_downsample": [True, True],
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
    },
    # like Wan2.1: four levels, no patches
    "wan": {"dim_mult": [1, 1, 2, 2], "temperal_downsample": [False, True, True]},
    # two frames per latent
    "half": {
        "dim_mult": [1, 1, 2, 2],
        "temperal_downsample": [False, False, True],
        "scale_factor_temporal": 2,
    },
    # like Wan2.2: residual shortcuts around the resampling
    "residual": {
        "dim_mult": [1, 2, 2],
        "temperal_downsample": [True, True],
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
        "is_residual": True,
    },
}


@cache
def build(name: str = "patches", dtype: torch.dtype = torch.float32) -> AutoencoderKLWan:
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=4,
        num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.5, 2.0, 1.0],
        **CONFIGS[name],
    )
    for p in vae.parameters():  # strong enough that a lost cache would show
        p.data.mul_(1.5)
    return vae.eval().to(dtype)


@cache
def latents(count: int = LENGTH, seed: int = 1) -> Tensor:
    return torch.randn(1, 4, count, 2, 3, generator=torch.Generator().manual_seed(seed))


@cache
@torch.no_grad()
def whole(name: str = "patches", dtype: torch.dtype = torch.float32) -> Tensor:
    """Diffusers' decode of all latents at once, as frames in [0, 1]."""
    vae = build(name, dtype)
    mean, std = (torch.tensor(x).view(1, 4, 1, 1, 1) for x in (vae.config.latents_mean, vae.config.latents_std))
    video = vae.decode((latents() * std + mean).to(dtype)).sample[0].float()
    return (video.transpose(0, 1) + 1) / 2


def streamed(decoder: StreamingDecoder, x: Tensor, sizes: list[int]) -> Tensor:
    return torch.cat([decoder.decode(part) for part in x.split(sizes, dim=2)])


@st.composite
def splits(draw: st.DrawFn) -> list[int]:
    """Any way to cut the latents into pieces."""
    sizes: list[int] = []
    while (left := LENGTH - sum(sizes)) > 0:
        sizes.append(draw(st.integers(1, left)))
    return sizes


def test_the_frames_have_something_in_them() -> None:
    """What is compared below is neither flat nor clamped away, and later frames depend on earlier latents."""
    video = whole()
    assert video.std() > 0.05
    assert ((video > 0) & (video < 1)).float().mean() > 0.5
    alone = StreamingDecoder(build()).decode(latents()[:, :, 5:])
    assert (alone[0] - video[20]).abs().max() > 0.01


@settings(max_examples=12, deadline=None)
@given(splits())
def test_any_split_gives_the_same_bits(sizes: list[int]) -> None:
    assert torch.equal(streamed(StreamingDecoder(build()), latents(), sizes), whole())


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("size", [1, 3, LENGTH])
def test_every_kind_of_autoencoder(name: str, size: int) -> None:
    decoder = StreamingDecoder(build(name))
    sizes = [size] * (LENGTH // size) + ([LENGTH % size] if LENGTH % size else [])
    assert torch.equal(streamed(decoder, latents(), sizes), whole(name))


def test_bfloat16() -> None:
    decoder = StreamingDecoder(build("patches", torch.bfloat16))
    out = streamed(decoder, latents(), [3, 3, 3, 1, 10])
    assert out.dtype == torch.float32
    assert torch.equal(out, whole("patches", torch.bfloat16))
    assert not torch.equal(out, whole())


@pytest.mark.parametrize("name", ["patches", "half"])
def test_number_and_range_of_frames(name: str) -> None:
    decoder = StreamingDecoder(build(name))
    temporal = {"patches": 4, "half": 2}[name]
    count = 0
    for n in range(1, 6):
        video = decoder.decode(latents()[:, :, n - 1 : n] * 5)
        count += len(video)
        assert count == 1 + temporal * (n - 1) == decoder.frames_for(n)
        assert video.shape[1:] == (3, 16, 24)
        assert video.min() >= 0 and video.max() <= 1
    assert decoder.frames_for(0) == 0
    assert decoder.latents == 5


def test_resetting_begins_anew() -> None:
    decoder = StreamingDecoder(build())
    first = decoder.decode(latents()[:, :, :4])
    decoder.reset()
    assert torch.equal(decoder.decode(latents()[:, :, :4]), first)


@pytest.mark.parametrize("name", ["patches", "residual"])
def test_the_state_continues_bit_for_bit(name: str) -> None:
    """Saved after every latent, none at all included, and continued by a decoder that never saw the beginning."""
    first = StreamingDecoder(build(name))
    for n in range(6):
        tensors, counters = first.state_dict()
        kept = {k: v.clone() for k, v in tensors.items()}
        second = StreamingDecoder(build(name))
        second.decode(latents(seed=7)[:, :, :3])  # something to forget
        second.load_state_dict(kept, counters)
        rest = second.decode(latents()[:, :, n:9])
        assert torch.equal(rest, whole(name)[first.frames_for(n) : first.frames_for(9)])
        first.decode(latents()[:, :, n : n + 1])


def test_a_state_is_not_changed_by_going_on() -> None:
    decoder = StreamingDecoder(build())
    decoder.decode(latents()[:, :, :4])
    tensors, _ = decoder.state_dict()
    before = {k: v.clone() for k, v in tensors.items()}
    decoder.decode(latents()[:, :, 4:8])
    assert all(torch.equal(before[k], tensors[k]) for k in before)
    assert any(not torch.equal(before[k], v) for k, v in decoder.state_dict()[0].items())


def test_a_state_of_another_autoencoder_is_refused() -> None:
    decoder = StreamingDecoder(build("wan"))
    decoder.decode(latents()[:, :, :2])
    with pytest.raises(ValueError, match="not one of this model's autoencoder"):
        StreamingDecoder(build("patches")).load_state_dict(*decoder.state_dict())
    with pytest.raises(ValueError, match="not one of this model's autoencoder"):
        StreamingDecoder(build("wan")).load_state_dict({}, {"latents": 2, "repeats": []})


def test_memory_does_not_grow() -> None:
    decoder = StreamingDecoder(build())

    def held() -> tuple[int, int]:
        tensors = decoder.state_dict()[0].values()
        return len(tensors), sum(x.untyped_storage().nbytes() for x in tensors)

    decoder.decode(latents()[:, :, :3])
    after_three = held()
    for i in range(3, 40):
        decoder.decode(latents()[:, :, i % LENGTH : i % LENGTH + 1])
        assert held() == after_three


def test_two_decoders_share_an_autoencoder() -> None:
    one, other = StreamingDecoder(build()), StreamingDecoder(build())
    parts = []
    for i in range(0, 9, 3):
        parts.append(one.decode(latents()[:, :, i : i + 3]))
        other.decode(latents(seed=3)[:, :, i : i + 3])
        with torch.no_grad():
            build().decode(latents(seed=4)[:, :, :2])  # diffusers' own use of it, with a cache of its own
    assert torch.equal(torch.cat(parts), whole()[:33])


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_several_at_once_with_channels_innermost(name: str, dtype: torch.dtype) -> None:
    """The same frames up to rounding, and the same state: one decoder can go on where the other stopped."""
    vae = build(name, dtype)
    before = {key: (x.clone(), x.stride()) for key, x in vae.state_dict().items()}

    def off(made: Tensor, expected: Tensor) -> float:
        difference = (made - expected).abs()
        return float(difference.max() / 1e-5 if dtype == torch.float64 else difference.mean() / 0.01)

    for together, channels_last in ((3, False), (1, True), (5, True)):
        decoder = StreamingDecoder(vae, together, channels_last)
        first = streamed(decoder, latents()[:, :, :9], [3, 3, 3])
        assert off(first, whole(name, dtype)[: len(first)]) < 1
        other = StreamingDecoder(vae)
        other.load_state_dict(*decoder.state_dict())
        rest = other.decode(latents()[:, :, 9:])
        assert off(rest, whole(name, dtype)[len(first) :]) < 1
    assert all(torch.equal(x, before[key][0]) and x.stride() == before[key][1] for key, x in vae.state_dict().items())


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize(("dtype", "together", "channels_last"), [(torch.float32, 3, False), (torch.bfloat16, 3, True)])
def test_several_at_once_go_on_bit_for_bit(name: str, dtype: torch.dtype, together: int, channels_last: bool) -> None:
    """A decoder that was restored after any portion, against the one that went on."""
    vae = build(name, dtype)
    decoder, states, made = StreamingDecoder(vae, together, channels_last), [], []
    for begin in range(0, 12, 3):
        made.append(decoder.decode(latents()[:, :, begin : begin + 3]))
        tensors, counters = decoder.state_dict()
        states.append(({key: x.clone(memory_format=torch.contiguous_format) for key, x in tensors.items()}, counters))
    for index, state in enumerate(states[:-1], 1):
        other = StreamingDecoder(vae, together, channels_last)
        other.load_state_dict(*state)
        assert torch.equal(other.decode(latents()[:, :, 3 * index : 3 * index + 3]), made[index])


def test_several_at_once_are_fewer_convolutions() -> None:
    counts = []
    for together in (1, 3):
        vae, calls = build(), []
        decoder = StreamingDecoder(vae, together)
        decoder.decode(latents()[:, :, :1])
        handle = vae.decoder.conv_out.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        decoder.decode(latents()[:, :, 1:7])
        handle.remove()
        counts.append(len(calls))
    assert counts == [6, 2]


def test_weights_that_change_are_seen() -> None:
    vae = copy.deepcopy(build())
    decoder, plain = StreamingDecoder(vae, channels_last=True), StreamingDecoder(vae)
    for factor in (1.0, 1.2):
        with torch.no_grad():
            vae.decoder.conv_in.weight.mul_(factor)
        made = [d.decode(latents()[:, :, :2]) for d in (decoder, plain)]
        assert torch.allclose(*made, atol=1e-5)


def test_what_is_chosen_where() -> None:
    """By the size of the largest tensor, and by what the numbers are."""
    assert decoding_for(build(), 64, 64, 3) == {"together": 3, "channels_last": False}
    assert decoding_for(build("patches", torch.bfloat16), 64, 64, 3)["channels_last"]
    assert decoding_for(build(), 4096, 4096, 3)["together"] == 1

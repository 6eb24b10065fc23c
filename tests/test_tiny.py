"""The tiny decoder against the published network's definition, written out frame by frame."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from longtake.checkpoints.registry import bases
from longtake.cli_prepare import Request, prepare
from longtake.operations import decoder_operations
from longtake.pipeline import LongTakePipeline
from longtake.speed import tiny_file
from longtake.tiny import StreamingTinyDecoder, TinyDecoder
from tests.helpers_pipeline import PROMPT, build, run, same, video

CPU = torch.device("cpu")
WAN = {"channels": 4, "widths": (8, 6, 4, 4), "growth": (1, 2, 2), "patch": 1}  # narrower than Wan 2.1's
KINDS = {"wan": WAN, "patches": {**WAN, "patch": 2}, "other": {**WAN, "growth": (2, 1, 2), "widths": (6, 6, 4, 2)}}


def make(name: str = "wan", seed: int = 0, dtype: torch.dtype = torch.float32) -> TinyDecoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tiny = TinyDecoder(**KINDS[name])  # type: ignore[arg-type]
    return tiny.to(dtype).eval().requires_grad_(False)


def draw(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return 2 * torch.randn(count, 4, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def plain(weights: dict[str, Tensor], latents: list[Tensor], growth: tuple[int, ...]) -> list[list[Tensor]]:
    """The frames [1, width, height, width] after every layer, by the definition of TAEHV."""

    def conv(frames: list[Tensor], name: str) -> list[Tensor]:
        bias = weights.get(f"decoder.{name}.bias")
        return [F.conv2d(x, weights[f"decoder.{name}.weight"], bias, padding=1) for x in frames]

    def each(frames: list[Tensor], function: Callable[[Tensor], Tensor]) -> list[Tensor]:
        return [function(x) for x in frames]

    layers = [each(latents, lambda x: torch.tanh(x / 3) * 3)]
    layers.append(conv(layers[-1], "1"))
    layers.append(each(layers[-1], torch.relu))
    for stage in range(3):
        for block in range(3):
            number, seen = 3 + 6 * stage + block, layers[-1]
            past = [torch.zeros_like(seen[0]), *seen[:-1]]
            inner = [torch.cat(pair, 1) for pair in zip(seen, past, strict=True)]
            inner = each(conv(each(conv(inner, f"{number}.conv.0"), torch.relu), f"{number}.conv.2"), torch.relu)
            inner = conv(inner, f"{number}.conv.4")
            layers.append([torch.relu(a + b) for a, b in zip(inner, seen, strict=True)])
        number = 6 + 6 * stage
        layers.append(each(layers[-1], lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3)))
        kernel = weights[f"decoder.{number + 1}.conv.weight"][:, :, 0, 0]
        mixed = [torch.einsum("oc,bchw->bohw", kernel, x) for x in layers[-1]]
        layers.append([part for x in mixed for part in x.chunk(growth[stage], 1)])
        layers.append(conv(layers[-1], str(number + 2)))
    layers.append(each(layers[-1], torch.relu))
    layers.append(conv(layers[-1], "22"))
    return layers


@pytest.mark.parametrize("name", list(KINDS))
def test_layer_by_layer(name: str) -> None:
    tiny = make(name, dtype=torch.float64)
    latents, made = draw(4), []
    for layer in tiny.decoder:
        layer.register_forward_hook(lambda *args: made.append(args[2]))
    out = tiny(latents, {})
    growth: tuple[int, ...] = KINDS[name]["growth"]  # type: ignore[assignment]
    expected = plain(tiny.state_dict(), list(latents.split(1)), growth)
    assert len(made) == len(expected) == 23
    for ours, theirs in zip(made, expected, strict=True):
        assert torch.allclose(ours, torch.cat(theirs), rtol=0, atol=1e-12)
    patch = tiny.patch
    assert out.shape == (4 * tiny.temporal, 3, 24 * patch, 40 * patch)
    for y, x in ((0, 0), (patch - 1, 0)):  # of the pixels of one place, those of a colour are side by side
        assert torch.allclose(out[:, 1, y::patch, x::patch], torch.cat(expected[-1])[:, patch**2 + y * patch + x])


def test_any_portions_give_the_same_frames() -> None:
    """And what is remembered is one frame per block, whatever came before."""
    latents = draw(9, torch.float32).transpose(0, 1)[None]
    whole = StreamingTinyDecoder(make(), CPU, torch.float32).decode(latents)
    assert whole.shape == (33, 3, 24, 40) and 0 <= whole.min() < whole.max() <= 1
    full = make()(latents[0].transpose(0, 1), {})[3:].clamp(0, 1)
    assert torch.equal(whole, full)
    for portions in ([1] * 9, [3, 3, 3], [2, 7]):
        decoder, parts, sizes = StreamingTinyDecoder(make(), CPU, torch.float32), [], []
        for part in latents.split(portions, dim=2):
            parts.append(decoder.decode(part))
            tensors, counters = decoder.state_dict()
            sizes.append([x.numel() for x in tensors.values()])
            before, decoder = decoder, StreamingTinyDecoder(make(), CPU, torch.float32)
            assert len(torch.cat(parts)) == before.frames_for(before.latents)
            decoder.load_state_dict({key: x.clone() for key, x in tensors.items()}, counters)
        assert len(sizes[0]) == 9 and all(size == sizes[0] for size in sizes)
        assert torch.allclose(torch.cat(parts), whole, atol=1e-6)


@pytest.mark.parametrize("name", list(KINDS))
def test_operations(name: str) -> None:
    tiny = make(name)
    with FlopCounterMode(display=False) as counter:
        made = tiny(draw(3, torch.float32), {})
    assert counter.get_total_flops() == tiny.operations(*made.shape[2:], latents=3)


def test_published_names_and_sizes() -> None:
    """As the published definition makes them for Wan 2.1; and what it saves there."""
    tiny = TinyDecoder()
    exact = decoder_operations(bases()["wan-1.3b"].vae, 480, 832, 3)
    assert exact / tiny.operations(480, 832, latents=3) == pytest.approx(24.9, abs=0.05)
    names = {name: tuple(x.shape) for name, x in tiny.state_dict().items()}
    assert names["decoder.1.weight"] == (256, 16, 3, 3) and names["decoder.22.weight"] == (3, 64, 3, 3)
    assert names["decoder.3.conv.0.weight"] == (256, 512, 3, 3) and names["decoder.7.conv.weight"] == (256, 256, 1, 1)
    assert names["decoder.13.conv.weight"] == (256, 128, 1, 1) and names["decoder.19.conv.weight"] == (128, 64, 1, 1)
    assert names["decoder.20.weight"] == (64, 64, 3, 3) and "decoder.8.bias" not in names


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_files_are_read(name: str, kind: str, tmp_path: Path) -> None:
    path, tiny = tmp_path / f"x.{kind}", make(name)
    weights = {**tiny.state_dict(), "encoder.0.weight": torch.zeros(2)}
    torch.save(weights, path) if kind == "pth" else save_file(weights, path)
    found = TinyDecoder.from_file(path)
    assert (found.channels, found.temporal, found.spatial) == (tiny.channels, tiny.temporal, tiny.spatial)
    assert found.fingerprint() == tiny.fingerprint() != make(name, seed=1).fingerprint()


def test_other_files_are_refused(tmp_path: Path) -> None:
    weights = make().state_dict()
    for wrong, reason in (
        ({"encoder.0.weight": torch.zeros(2)}, "no weights of a tiny decoder"),
        ({**weights, "decoder.23.weight": torch.zeros(2)}, "see decoder.23.weight"),
        ({k: x for k, x in weights.items() if k != "decoder.3.conv.2.bias"}, r"see decoder.3.conv.2.bias"),
        ({**weights, "decoder.9.conv.0.weight": torch.zeros(2)}, r"see decoder.9.conv.0.weight"),
        ({**weights, "decoder.22.weight": torch.zeros(5, 4, 3, 3)}, r"see decoder.22"),
        ({**weights, "decoder.22.weight": torch.zeros(())}, "no weights of a tiny decoder"),
    ):
        save_file(wrong, tmp_path / "x.safetensors")
        with pytest.raises(ValueError, match=reason):
            TinyDecoder.from_file(tmp_path / "x.safetensors")


@pytest.fixture
def pipe(tmp_path: Path) -> LongTakePipeline:
    """One that decodes with a tiny decoder."""
    save_file(make().state_dict(), tmp_path / "tiny.safetensors")
    pipe = build()
    pipe.load_tiny_decoder(tmp_path / "tiny.safetensors")
    pipe.decoding = "tiny"
    return pipe


def test_takes_decode_with_it(pipe: LongTakePipeline, tmp_path: Path) -> None:
    """The same latents, other frames; a continued take goes on bit for bit."""
    take = pipe.start(PROMPT)
    chunks = run(take, 2)
    take.snapshot(tmp_path / "x")
    chunks += run(take, 2)
    assert same(run(pipe.resume(tmp_path / "x"), 2), chunks[2:])
    latents = torch.cat([c.latents for c in chunks], 2)
    tiny = make()
    assert torch.allclose(video(chunks), tiny(latents[0].transpose(0, 1), {})[3:].clamp(0, 1), atol=1e-6)
    pipe.decoding = "exact"
    own = pipe.start(PROMPT)
    others = run(own, 2)
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(others, chunks, strict=False))
    assert others[0].video.shape == chunks[0].video.shape
    with pytest.raises(ValueError, match="made with a tiny decoder"):
        pipe.resume(tmp_path / "x")
    own.snapshot(tmp_path / "y")
    pipe.decoding = "tiny"
    with pytest.raises(ValueError, match="model's own decoder"):
        pipe.resume(tmp_path / "y")
    save_file(make(seed=1).state_dict(), tmp_path / "tiny.safetensors")
    pipe.load_tiny_decoder(tmp_path / "tiny.safetensors")
    with pytest.raises(ValueError, match="another tiny decoder"):
        pipe.resume(tmp_path / "x")


def test_without_one_or_with_another_models(pipe: LongTakePipeline, tmp_path: Path) -> None:
    save_file(make("patches").state_dict(), tmp_path / "patches.safetensors")
    with pytest.raises(ValueError, match=r"16x16 pixels; this model's are 4 channels, 4 frames, 8x8 pixels\.$"):
        pipe.load_tiny_decoder(tmp_path / "patches.safetensors")
    pipe.tiny_decoder = None
    with pytest.raises(ValueError, match="no tiny decoder"):
        pipe.start(PROMPT)


def test_states_of_another_shape_are_refused() -> None:
    decoder = StreamingTinyDecoder(make(), CPU, torch.float32)
    decoder.decode(draw(3, torch.float32).transpose(0, 1)[None])
    tensors, counters = decoder.state_dict()
    for wrong, numbers in (
        ({}, counters),
        (tensors, {**counters, "latents": 0}),
        (tensors, {**counters, "latents": "3"}),
        ({**tensors, "3": tensors["3"][:, :2]}, counters),
        ({**tensors, "4": tensors["4"][0]}, counters),
    ):
        with pytest.raises(ValueError, match="not one of this tiny decoder"):
            decoder.load_state_dict(wrong, numbers)


def test_what_is_typed(tmp_path: Path) -> None:
    """That a video is made and continued so is tested in tests/test_kernels.py."""
    assert tiny_file("tiny:/a:b") == "/a:b" and tiny_file("tiny") is tiny_file("exact") is tiny_file(None) is None
    for decoding, reason in (
        ("tiny", "one of exact, fast, tiny:FILE"),
        ("tiny:nothing", "There is nothing at nothing"),
    ):
        with pytest.raises(ValueError, match=reason):
            prepare(Request(PROMPT, tmp_path / "x.mp4", decoding=decoding))

"""Attention by any kernel, and closed forms of pooled frames, against softmax attention written out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from longtake import kernels
from longtake.attention import attending, choose_kernel, memory_for
from longtake.kernels import Kernel, available, best, by_products, dispatch, kernel_for, obstacle
from longtake.memory import Memory, parse_memory
from longtake.memory.pooled import Pooled, merge, pooled_scores, table_for
from longtake.rope import Rope, rotate
from longtake.snapshot import read_snapshot
from longtake.text import zeros_at_end
from longtake.tiny import TinyDecoder
from tests.conftest import Cli
from tests.helpers_pipeline import PROMPT, SCRIPT, build, latents, run, same
from tests.test_cli import refused

CPU = torch.device("cpu")


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """By the definition; all [batch, tokens, heads, head_dim]."""
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value)


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Exact(Rope):
    """Tables in float64, as far as they are not kept in float32 by what they come from."""

    def _to_device(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        return angles.cos(), angles.sin()


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    half=st.integers(3, 12),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    queries=st.integers(1, 6),
    keys=st.integers(1, 7),
    ids=st.lists(st.one_of(st.none(), st.integers(0, 10**6)), min_size=1, max_size=3),
    seed=st.integers(0, 10**6),
)
def test_pooled_frames_in_closed_form(
    batch: int, heads: int, half: int, height: int, width: int, queries: int, keys: int, ids: list[Any], seed: int
) -> None:
    """Against the frames written out: the key at every position, rotated there, and attended to with all the others."""
    dim = 2 * half
    rope = Exact(dim, (height, width))
    query, key, value = (draw(seed + i, batch, n, heads, dim) for i, n in enumerate((queries, keys, keys)))
    single, values = (draw(seed + i, 1, batch, len(ids), heads, dim) * 2 for i in (3, 4))
    pooled = Pooled(table_for(rope, single, ids)[0], values[0].transpose(1, 2), height, width)

    cos, sin = rope.frames(ids)
    frames = single[0][:, :, None].expand(-1, -1, height * width, -1, -1)
    turned = rotate(frames, cos, sin).flatten(1, 2)
    shown = values[0][:, :, None].expand(-1, -1, height * width, -1, -1).flatten(1, 2)
    expected = attention(query, torch.cat([key, turned], 1), torch.cat([value, shown], 1))

    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(dim)
    merged = merge(attention(query, key, value), scores.logsumexp(-1), pooled_scores(query, pooled), pooled.values)
    assert (merged - expected).abs().max() < 1e-10
    assert (Kernel("products").with_pooled(query, key, value, pooled) - expected).abs().max() < 1e-10
    assert (Kernel("native").with_pooled(query, key, value, pooled) - expected).abs().max() < 1e-10


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    dim=st.integers(1, 12),
    queries=st.integers(1, 6),
    own=st.integers(1, 7),
    count=st.integers(1, 500),
    size=st.floats(0.1, 20),
    seed=st.integers(0, 10**6),
)
def test_padding_as_one_token(
    batch: int, heads: int, dim: int, queries: int, own: int, count: int, size: float, seed: int
) -> None:
    """Against attention to every one of the equal keys."""
    query, key, value = (draw(seed + i, batch, n, heads, dim) for i, n in enumerate((queries, own + 1, own + 1)))
    times = [1] * own + [count]
    key, value = (x.repeat_interleave(torch.tensor(times), dim=1) for x in (key * size, value))
    expected = attention(query, key, value)
    for name in ("products", "native"):
        assert (Kernel(name).with_repeated(query, key, value, count) - expected).abs().max() < 1e-10


@pytest.mark.parametrize(("dtype", "exact"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_kernels_are_attention(dtype: torch.dtype, exact: float) -> None:
    query, key, value = (draw(i, 2, n, 3, 16) for i, n in enumerate((5, 9, 9)))
    expected = attention(query, key, value)
    sums = torch.einsum("bqhd,bkhd->bhqk", query, key).div(4).logsumexp(-1)
    given = [x.to(dtype) for x in (query, key, value)]
    for name in available(CPU, dtype):
        kernel = Kernel(name)
        made = kernel(*given)
        assert made.dtype == dtype and (made.double() - expected).abs().max() < exact
    out, logsumexp = Kernel("native").with_sums(*given)
    assert (out.double() - expected).abs().max() < exact and (logsumexp.double() - sums).abs().max() < exact


def test_products_are_as_exact_as_the_fused_kernel() -> None:
    """In bfloat16, at the pocket model's sizes, and with scores as large as trained models have."""
    query, key, value = (draw(i, 1, n, 4, 64) for i, n in enumerate((48, 192, 192)))
    query, key, value = (x.bfloat16().double() for x in (2 * query, key, value))
    expected = attention(query, key, value)
    given = [x.bfloat16() for x in (query, key, value)]
    errors = [(make(*given).double() - expected).square().mean().sqrt() for make in (by_products, Kernel("native"))]
    assert errors[0] < 1.5 * errors[1]


def test_kernels_of_gpus_are_called_rightly() -> None:
    """On a device without numbers: what PyTorch's operators take, and the shapes that they give."""
    query, key = (torch.empty(1, n, 12, 128, dtype=torch.bfloat16, device="meta") for n in (40, 90))
    for name in ("cudnn", "flash"):
        out, sums = Kernel(name).with_sums(query, key, key)
        assert out.shape == query.shape and sums.shape == (1, 12, 40)


@pytest.mark.parametrize(
    ("memory", "dtype", "collapses"),
    [
        ("memrope", torch.float32, True),
        ("memrope", torch.bfloat16, True),
        ("memrope:recent=2,averages=long", torch.float32, True),
        ("memrope:sink=1,recent=1,long=0.3,short=0.6,pooling=position", torch.float32, False),
        ("memrope:recent=2,adaptive=true,short=0.4", torch.float32, False),
        ("echo", torch.float32, False),
        ("deep-forcing:window=9,sink=2,budget=8", torch.float32, False),
    ],
)
def test_kernels_change_no_video(memory: str, dtype: torch.dtype, collapses: bool) -> None:
    """With every kernel, collapsed where that is possible, against diffusers' own path, until the memory has been full
    for a while.

    In bfloat16 small differences grow from chunk to chunk: the first chunks are all that can be compared closely.
    """
    pipe = build().to(dtype)
    pipe.forward_path = "plain"
    count, compared, close = (9, 9, 1e-5) if dtype == torch.float32 else (6, 2, 0.1)
    expected = latents(pipe.start(SCRIPT, memory), compared)
    pipe.forward_path = "auto"
    for attention_, collapse in (("products", "off"), ("native", "on"), ("products", "on")):
        pipe.attention, pipe.collapse = attention_, collapse
        take = pipe.start(SCRIPT, memory)
        made = latents(take, count)
        assert (take.memory.pooled(0) is not None) == (collapses and collapse == "on")
        assert all(torch.allclose(a, b, atol=close) for a, b in zip(made[:compared], expected, strict=True))


@pytest.mark.parametrize(("change", "attention_"), [("recache", "native"), ("cut", "products")])
def test_collapsed_takes_resume_bit_for_bit(change: str, attention_: str, tmp_path: Path) -> None:
    """Averages move to the last slots, come and go with new prompts, and stand in snapshots like any other frames."""
    pipe = build()
    pipe.attention, pipe.collapse = attention_, "on"
    take = pipe.start(SCRIPT, "memrope:recent=1", on_prompt_change=change)
    chunks = run(take, 4)
    for _ in range(3):
        take.snapshot(tmp_path / "x")
        chunks += run(take, 2)
        assert same(run(pipe.resume(tmp_path / "x"), 2), chunks[-2:])
    take.snapshot(tmp_path / "x")
    pipe.collapse = "off"
    plain = latents(pipe.start(SCRIPT, "memrope:recent=1", on_prompt_change=change), 10)
    assert all(torch.allclose(a.latents, b, atol=1e-5) for a, b in zip(chunks, plain, strict=True))
    resumed = pipe.resume(tmp_path / "x")
    pipe.collapse = "on"
    assert torch.allclose(latents(resumed, 1)[0], latents(take, 1)[0], atol=1e-5)


def test_fewer_keys_are_attended_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of twelve frames two are averages, and of the text all that is padding stands as one token beside the others."""
    seen: list[int] = []
    real = Kernel.with_sums
    monkeypatch.setattr(Kernel, "with_sums", lambda self, q, k, v: (seen.append(k.shape[1]), real(self, q, k, v))[1])
    pipe = build(layers=1)
    pipe.attention, pipe.collapse = "native", "on"
    take = pipe.start(PROMPT)
    latents(take, 6)
    words = len(pipe.tokenizer(PROMPT)["input_ids"])
    assert words < pipe.encode_prompt(PROMPT).shape[1]
    assert {*seen[-2 * 5 :]} == {10 * take.memory.tokens, words}


def test_padding_is_what_is_zero_at_the_end_of_every_text() -> None:
    text = torch.zeros(2, 6, 3)
    assert zeros_at_end(text) == 6
    text[0, 1, 2], text[1, 3, 0] = 1, -1
    assert zeros_at_end(text) == 2
    assert zeros_at_end(text[:1]) == 4
    assert zeros_at_end(text[1:, :4]) == 0


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What diffusers is told here, it forgets."""
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", AttentionBackendName.NATIVE)


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize("path", ["auto", "plain"])
def test_what_another_model_was_told_changes_no_bit(path: str, tmp_path: Path) -> None:
    """A take goes on as it would have, though diffusers now takes another backend for whoever names none."""
    pipe = build()
    pipe.forward_path = path
    take = pipe.start(PROMPT)
    run(take, 2)
    take.snapshot(tmp_path / "x")
    expected = run(take, 2)
    build(seed=1).transformer.set_attention_backend("_native_math")
    query = draw(0, 1, 64, 2, 16, dtype=torch.float32)
    assert not torch.equal(dispatch(query, query, query), Kernel("native")(query, query, query))
    assert same(run(pipe.resume(tmp_path / "x"), 2), expected)


@pytest.mark.usefixtures("told")
def test_a_backend_set_on_the_transformer_comes_first() -> None:
    pipe = build()
    expected = latents(pipe.start(PROMPT), 6)
    pipe.start(PROMPT)  # the processors are there now
    pipe.transformer.set_attention_backend("_native_math")
    pipe.collapse = "off"
    made = latents(pipe.start(PROMPT), 6)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(made, expected, strict=True))
    for attention_, collapse in (("products", "auto"), ("auto", "on")):
        pipe.attention, pipe.collapse = attention_, collapse
        with pytest.raises(ValueError, match=r"another attention backend|gives no sums"):
            pipe.start(PROMPT)


def test_what_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda", 0)
    for name, device, dtype, reason in (
        ("cudnn", CPU, torch.bfloat16, "needs an NVIDIA GPU; what can be used is native, products"),
        ("products", cuda, torch.bfloat16, "for CPUs"),
        ("sage", cuda, torch.float32, "needs bfloat16"),
        ("elephant", CPU, torch.float32, "auto, native, products, cudnn"),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        with pytest.raises(ValueError, match=reason):
            kernel_for(name, device, dtype)
    pipe = build()
    pipe.collapse = "maybe"
    with pytest.raises(ValueError, match="auto, on, off"):
        pipe.start(PROMPT)


def test_the_best_for_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """An H200 is as much a Hopper as an H100: what counts is the capability, not the name."""
    cuda, half = torch.device("cuda", 0), torch.bfloat16
    for capability, dtype, expected in (
        ((9, 0), half, "cudnn"),
        ((10, 0), half, "cudnn"),
        ((8, 9), half, "native"),
        ((9, 0), torch.float32, "native"),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
        assert best(cuda, dtype) == expected
        assert obstacle("flash-attn-3", cuda, half) is not None  # it is not installed here, or not for this GPU
    for units, size, expected in (
        (("avx512_bf16",), 1 << 20, "products"),
        (("avx512_bf16",), 1 << 30, "native"),
        (("amx_bf16", "avx512_bf16"), 1 << 20, "native"),
        ((), 1 << 20, "native"),
    ):
        monkeypatch.setattr(kernels, "_units", lambda units=units: units)
        assert best(CPU, half, size) == expected
        assert best(CPU, torch.float32, size) == "native"


def test_the_environment_may_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """By diffusers' own names: the ones that have a short name, and the others."""
    query, key, value = (draw(i, 2, n, 3, 16) for i, n in enumerate((5, 9, 9)))
    for told, name in (("_native_math", "_native_math"), ("_native_cudnn", "cudnn"), ("_flash_3", "flash-attn-3")):
        monkeypatch.setattr(kernels, "DIFFUSERS_ATTN_BACKEND", told)
        assert kernel_for("auto", CPU, torch.float64) == Kernel(name)
        assert kernel_for("native", CPU, torch.float64) == Kernel("native")
    made = Kernel("_native_math")(query, key, value)
    assert (made - attention(query, key, value)).abs().max() < 1e-12


def test_training_keeps_diffusers_own_attention() -> None:
    pipe = build()
    memory = memory_for(pipe.transformer, parse_memory("memrope"), 4, 6, functional=True)
    assert isinstance(memory, Memory)
    with attending(pipe.transformer, memory):
        choose_kernel(pipe.transformer, memory)
    assert memory.kernel is None and not memory.collapse


def test_the_command_line_takes_a_kernel_and_a_way_of_decoding(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    options = ("generate", PROMPT, "--model", tiny_folder, "--quiet")
    tiny = tmp_path / "tiny.safetensors"
    save_file(TinyDecoder(4, (8, 6, 4, 4)).state_dict(), tiny)
    made = cli(*options, "--seconds", "0.5", "--attention", "products", "--decoding", f"tiny:{tiny.name}")
    assert made.returncode == 0, made.stderr
    again = ("generate", "--resume", "--seconds", "1", "--quiet")
    assert "--decoding exact contradicts" in refused(*again, "--decoding", "exact", cwd=tmp_path)
    impossible = cli(*options, "--out", "other.mp4", "--attention", "cudnn")
    assert impossible.returncode == 2 and "needs an NVIDIA GPU" in impossible.stderr
    assert "Traceback" not in impossible.stderr
    more = cli(*again)
    assert more.returncode == 0, more.stderr
    kept = read_snapshot(tmp_path / "take.mp4.snapshot")[1]["extra"]["settings"]
    assert (kept["attention"], kept["decoding"]) == ("products", f"tiny:{tiny}")

"""Compiled blocks against those that are not: the same latents up to rounding, and nothing compiled twice.

What is compiled is mostly run by PyTorch's own backends for looking at graphs, which need no compiler.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from longtake import compiled
from longtake.compiled import Compiled
from longtake.forward import Fast, Plain
from longtake.pipeline import LongTakePipeline
from longtake.placement import place
from longtake.snapshot import read_snapshot
from tests.conftest import ENVIRONMENT, Cli
from tests.helpers_pipeline import PROMPT, SCRIPT, build, latents, run, same
from tests.test_cli import refused

Counting = Callable[[str], Any]
TRIED = 1  # what is compiled to see whether it is possible


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """What PyTorch keeps of graphs is let go of: tests of others look at all that there is in the process."""
    yield
    compiled.compiled_block.cache_clear()
    compiled._trial.cache_clear()
    torch._dynamo.reset()


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    """Compiles with a backend of that name from now on, and counts in ``frame_count`` how often."""

    def use(name: str) -> Any:
        counter = CompileCounterWithBackend(name)
        monkeypatch.setattr(compiled, "BACKEND", counter)
        return counter

    return use


def blocks(**config: Any) -> LongTakePipeline:
    pipe = build(denoising_steps=[1000, 500], **config)
    pipe.compilation = "blocks"
    return pipe


@pytest.mark.parametrize(
    ("memory", "backend", "collapse", "full", "graphs"),
    [
        ("memrope", "aot_eager", "off", 5, 2),
        ("memrope", "eager", "on", 5, 2),
        ("self-forcing", "eager", "off", 8, 2),
        ("infinity-rope", "eager", "off", 3, 2),
        ("echo", "eager", "off", 6, 2),
        ("echo:past=4,update=after_first_forward,prior=true", "eager", "off", 6, 2),
        ("deep-forcing:window=9,sink=2,budget=8", "eager", "off", 4, 1),
    ],
)
def test_the_same_latents_and_nothing_compiled_twice(
    memory: str, backend: str, collapse: str, full: int, graphs: int, counting: Counting
) -> None:
    """Twelve chunks with new prompts on the way: one graph for denoising and one for commits (which memories that look
    do not have compiled; theirs are one for each number of slots that they come to)."""
    counter, pipe = counting(backend), blocks()
    pipe.attention, pipe.collapse = "native", collapse
    pipe.compilation = "off"
    expected = latents(pipe.start(SCRIPT, memory, on_prompt_change="recache"), 12)
    assert counter.frame_count == 0
    pipe.compilation = "blocks"
    take = pipe.start(SCRIPT, memory, on_prompt_change="recache")
    made, counts = [], []
    for _ in range(12):
        made += latents(take, 1)
        counts.append(counter.frame_count)
    assert type(take._held) is Compiled
    assert counts[0] == TRIED and counts[full:] == [TRIED + graphs] * (12 - full)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(made, expected, strict=True))


def test_bfloat16(counting: Counting) -> None:
    """Small differences grow from chunk to chunk: the first compiled one is all that can be compared closely."""
    counting("aot_eager")
    pipe = blocks().to(torch.bfloat16)
    made = latents(pipe.start(SCRIPT, "infinity-rope"), 4)
    pipe.compilation = "off"
    expected = latents(pipe.start(SCRIPT, "infinity-rope"), 4)
    assert all(torch.allclose(a, b, atol=0.1) for a, b in zip(made, expected, strict=True))


def test_takes_of_one_size_share_what_was_compiled(counting: Counting) -> None:
    counter, pipe = counting("eager"), blocks()
    for memory, seed, size, graphs in (
        ("infinity-rope", 0, (32, 48), 2),
        ("infinity-rope", 1, (32, 48), 2),
        ("infinity-rope", 0, (48, 48), 4),
        ("infinity-rope:window=12", 0, (32, 48), 6),
        ("infinity-rope", 2, (32, 48), 6),
    ):
        latents(pipe.start(PROMPT, memory, seed, *size), 6)
        assert counter.frame_count == TRIED + graphs


def test_more_sizes_than_pytorch_compiles_a_function_for(counting: Counting) -> None:
    counter, pipe = counting("eager"), blocks(layers=1)
    limit = getattr(torch._dynamo.config, "recompile_limit", 8)
    for window in range(6, 6 + limit + 1):
        take = pipe.start(PROMPT, f"sliding:window={window},sink=1")
        latents(take, window // 3 + 2)
    assert counter.frame_count == TRIED + limit + 1  # of one layer, the commit needs no whole block


def test_a_resumed_take_goes_on_bit_for_bit(counting: Counting, tmp_path: Path) -> None:
    counting("aot_eager")
    pipe = blocks()
    take = pipe.start(SCRIPT, "infinity-rope", on_prompt_change="flush")
    run(take, 2)
    for chunks in (1, 2, 3):
        take.snapshot(tmp_path / "x")
        assert same(run(pipe.resume(tmp_path / "x"), chunks), run(take, chunks))


def test_what_cannot_be_compiled_is_refused(counting: Counting) -> None:
    counting("eager")

    def split(pipe: LongTakePipeline) -> None:
        place(pipe, ("cpu", "cpu"))

    def plain(pipe: LongTakePipeline) -> None:
        pipe.forward_path = "plain"

    def fast(pipe: LongTakePipeline) -> None:
        pipe.forward_path, pipe.compilation = "fast", "sometimes"

    for change, reason in (
        (split, "as splitting and"),
        (plain, "plain path is asked for"),
        (fast, "auto, off, blocks"),
    ):
        pipe = blocks()
        change(pipe)
        with pytest.raises(ValueError, match=reason):
            pipe.start(PROMPT)
        pipe.compilation = "auto"
        assert type(pipe.start(PROMPT)._held) in (Plain, Fast)


def test_a_block_with_a_graph_break_is_refused_in_a_sentence(counting: Counting) -> None:
    counting("eager")
    pipe = blocks()
    real = pipe.transformer.blocks[0].ffn.forward
    pipe.transformer.blocks[0].ffn.forward = lambda x: (torch._dynamo.graph_break(), real(x))[1]
    take = pipe.start(PROMPT, "infinity-rope")
    with pytest.raises(ValueError, match=r"blocks cannot be compiled here.*leave compilation off\.$"):
        latents(take, 4)


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no compiler")
def test_with_pytorchs_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    import torch._inductor.config as inductor

    pipe = blocks(layers=1)
    with inductor.patch(compile_threads=1):
        made = latents(pipe.start(PROMPT, "infinity-rope"), 5)
    pipe.compilation = "off"
    expected = latents(pipe.start(PROMPT, "infinity-rope"), 5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(made, expected, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))  # its own kernels


def test_the_command_line(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    """Without a compiler it is refused before anything is loaded; otherwise it is kept beside the video."""
    options = ("generate", PROMPT, "--model", tiny_folder, "--seconds", "0.5", "--quiet")
    assert "auto, off, blocks, not 'maybe'" in refused(*options, "--compile", "maybe", cwd=tmp_path)
    nothing = {"CXX": str(tmp_path / "nothing"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    told = cli(*options, "--compile", "blocks", env={**ENVIRONMENT, **nothing})  # a fresh process: torch reads it once
    assert told.returncode == 2 and not (tmp_path / "take.mp4").exists()
    assert told.stderr.count("\n") == 1 and "cannot be compiled here: PyTorch's compiler says" in told.stderr
    made = cli(*options, "--compile", "off")
    assert made.returncode == 0, made.stderr
    assert read_snapshot(tmp_path / "take.mp4.snapshot")[1]["extra"]["settings"]["compilation"] == "off"
    split = cli(*options, "--compile", "blocks", "--devices", "cpu,cpu", "--overwrite")
    assert split.returncode == 2 and "one device" in split.stderr

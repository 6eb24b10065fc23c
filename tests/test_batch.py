"""Takes side by side against the same takes alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from longtake.batch import Batch
from longtake.pipeline import LongTakePipeline
from tests.helpers_pipeline import ALL_MEMORIES, OTHER, PROMPT, SCRIPT, build, run
from tests.helpers_pipeline import video as video_of

LATE = f"{OTHER} [3s] | {PROMPT} [1h]"


@pytest.fixture(scope="module")
def pipe() -> LongTakePipeline:
    return build(denoising_steps=[1000, 500], layers=2)


def together(batch: Batch, count: int) -> list[list[Tensor]]:
    """Latents per take, not decoded: that is most of the work with models so small."""
    for take in batch.takes:
        take.decoder.decode = lambda latents: latents.new_zeros(12, 3, 2, 2)  # type: ignore[method-assign]
    made = [[chunk.latents for chunk in chunks] for chunks in batch.chunks(count)]
    return [list(row) for row in zip(*made, strict=True)]


@pytest.mark.parametrize(
    ("memory", "path"),
    [(memory, "fast") for memory in ALL_MEMORIES]
    + [(memory, "plain") for memory in ("memrope", "echo", "deep-forcing")],
)
def test_every_take_makes_what_it_makes_alone(memory: str, path: str, pipe: LongTakePipeline) -> None:
    """Other seeds, and other prompts that change at other times, by recaching: the latents up to rounding."""
    pipe.forward_path = path
    made = together(Batch.start(pipe, [SCRIPT, LATE], [3, 4], memory=memory, on_prompt_change="recache"), 10)
    for latents, prompt, seed in zip(made, (SCRIPT, LATE), (3, 4), strict=True):
        alone = together(Batch([pipe.start(prompt, memory, seed, on_prompt_change="recache")]), 10)[0]
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(latents, alone, strict=True))
    assert not torch.allclose(made[0][0], made[1][0], atol=0.1)


def test_different_memories_and_ages(pipe: LongTakePipeline, tmp_path: Path) -> None:
    """One that has run, resumed, beside a new one of another memory: each goes on as it would alone, and may leave."""
    pipe.forward_path = "auto"
    old = pipe.start(PROMPT, "memrope:recent=1", seed=5)
    run(old, 3)
    old.snapshot(tmp_path / "x")
    one, other = pipe.resume(tmp_path / "x"), pipe.start(OTHER, "echo")
    made = [*Batch([one, other]).chunks(3)]
    assert (one.index, other.index) == (6, 3)
    one.snapshot(tmp_path / "y")
    alone, new = [*run(old, 4)], pipe.start(OTHER, "echo")
    mine = [*(chunks[0] for chunks in made), *run(pipe.resume(tmp_path / "y"), 1)]
    assert torch.allclose(video_of(mine), video_of(alone), atol=1e-4)
    assert [chunk.first_frame for chunk in mine] == [chunk.first_frame for chunk in alone]
    assert torch.allclose(video_of([chunks[1] for chunks in made]), video_of(run(new, 3)), atol=1e-4)


def test_videos(pipe: LongTakePipeline) -> None:
    pipe.forward_path = "auto"
    batch = Batch.start(pipe, PROMPT, [0, 1, 2])
    made = batch.videos(1.0)
    assert made.shape == (3, 16, 3, 32, 48)
    assert torch.allclose(made[2], video_of(run(pipe.start(PROMPT, seed=2), 2))[:16], atol=1e-4)
    assert not torch.allclose(made[1], made[2], atol=0.05)


def test_one_that_begins_with_a_picture(pipe: LongTakePipeline) -> None:
    pipe.forward_path = "auto"
    picture = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    batch = Batch([pipe.start(PROMPT, image=picture), pipe.start(OTHER)])
    made = [*batch.chunks(2)]
    for item, alone in enumerate((pipe.start(PROMPT, image=picture), pipe.start(OTHER))):
        assert torch.allclose(video_of([c[item] for c in made]), video_of(run(alone, 2)), atol=1e-4)


def test_what_cannot_be_put_together(pipe: LongTakePipeline) -> None:
    take = pipe.start(PROMPT)
    for takes, reason in (
        ([], "one or more"),
        ([take, take], "once"),
        ([take, pipe.start(PROMPT, height=48)], "same height"),
        ([take, build(denoising_steps=[1000, 500]).start(PROMPT)], "same pipeline"),
    ):
        with pytest.raises(ValueError, match=reason):
            Batch(takes)
    with pytest.raises(ValueError, match="2 prompts and 3 seeds"):
        Batch.start(pipe, [PROMPT, OTHER], [1, 2, 3])
    broken = Batch([take, pipe.start(OTHER)])
    broken.takes[1].say("a green star")
    real, take.decoder.decode = take.decoder.decode, lambda latents: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        broken.next_chunks()
    take.decoder.decode = real  # type: ignore[method-assign]
    for one in broken.takes:
        with pytest.raises(RuntimeError, match="interrupted"):
            one.next_chunk()

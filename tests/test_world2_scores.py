"""Scores of the memory benchmark: a perfect memory, none at all, and a real take with a memory."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from longtake.evaluation.registry import METRICS
from longtake.evaluation.world import SCORES, TASKS, Task, make_tasks, run_task
from longtake.evaluation.world_makers import Rendered, Strangers, Takes, _script, _Told
from longtake.evaluation.world_run import summarise
from longtake.pipeline import LongTakePipeline
from longtake.pocket.world.names import FPS
from tests.conftest import warm
from tests.helpers_pipeline import build

SIZE = 96
SHORT = ["away-2", "occlusion", "aside-5", "elsewhere-2", "pan", "changes", "motion"]


@pytest.fixture(scope="module")
def pipe() -> LongTakePipeline:
    return build()


@pytest.fixture(scope="module")
def scored() -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Means by maker, task and score, of three tasks of each kind."""
    found = {}
    for name, maker in (("truth", Rendered(SIZE)), ("strangers", Strangers(SIZE))):
        rows = [{"task": t.name, "scores": run_task(t, maker)} for t in make_tasks(3, 6, SHORT)]
        found[name] = summarise(rows)
    return found


def test_a_perfect_memory_scores_all(scored: Any) -> None:
    truth = scored["truth"]
    for name, least in (("away-2", 0.95), ("occlusion", 0.9)):
        assert truth[name]["recall"]["mean"] >= least and truth[name]["returned"]["mean"] == 1, truth[name]
        assert truth[name]["radius_error"]["mean"] < 0.06 and truth[name]["shade_error"]["mean"] < 0.06
    for name in ("aside-5", "elsewhere-2", "pan"):
        assert truth[name]["recall_landmark"]["mean"] >= 0.8 and truth[name]["recall_place"]["mean"] > 0.8, truth[name]
    assert truth["changes"]["obeyed"]["mean"] >= 0.9 and truth["changes"]["left_alone"]["mean"] >= 0.95
    assert truth["motion"]["law"]["mean"] >= 0.9 and truth["motion"]["law_error"]["mean"] < 0.1


def test_no_memory_scores_chance(scored: Any) -> None:
    truth, strangers = scored["truth"], scored["strangers"]
    assert strangers["away-2"]["recall"]["mean"] < 0.6
    assert strangers["away-2"]["shade_error"]["mean"] > 3 * truth["away-2"]["shade_error"]["mean"]
    for name in ("aside-5", "elsewhere-2", "pan"):
        assert strangers[name]["recall_place"]["mean"] < 0.5 < truth[name]["recall_place"]["mean"]
    # what prompts tell is there all the same
    assert strangers["away-2"]["told"]["mean"] > 0.9 and strangers["changes"]["obeyed"]["mean"] > 0.8


def test_calm_tasks_tell_a_perfect_memory_from_none() -> None:
    tasks = make_tasks(3, 6, ["away-2", "changes"], "calm")
    truth, strangers = (
        summarise({"task": t.name, "scores": run_task(t, maker)} for t in tasks)
        for maker in (Rendered(SIZE), Strangers(SIZE))
    )
    assert truth["away-2"]["recall"]["mean"] >= 0.9 > 0.7 > strangers["away-2"]["recall"]["mean"]
    assert "recall_pattern" not in truth["away-2"] and "hidden_kept" not in truth["changes"]
    assert strangers["away-2"]["told"]["mean"] > 0.8


def test_every_score_is_described_and_no_name_is_taken(scored: Any) -> None:
    names = {score for maker in scored.values() for task in maker.values() for score in task}
    assert names <= set(SCORES) and not set(SCORES) & set(METRICS)
    for score in SCORES.values():
        assert score.formula and score.source and score.direction in ("higher", "lower", "none")


def test_who_does_not_return_is_not_recalled() -> None:
    (task,) = make_tasks(1, 6, ["away-2"])
    empty = task.render(task.given - 1, task.given, SIZE)[0]
    scores = run_task(task, lambda t: iter([empty] * (t.frames - t.given)))
    assert scores["returned"] == 0 and scores["recall"] == 0 and math.isnan(scores["radius_error"])


def test_whoever_leaves_and_returns_by_law_is_found_whenever_it_does() -> None:
    for task, late in zip(make_tasks(2, 6, ["return"]), (0, 80), strict=True):
        frames = replace(task, clock=task.clock + late).render(0, task.frames, SIZE)
        scores = run_task(task, lambda _, frames=frames: frames)  # type: ignore[misc]
        assert scores["left"] == 1 and scores["returned"] == 1 and scores["recall"] >= 0.75, scores
        stays = frames[:1].expand(task.frames, -1, -1, -1)
        scores = run_task(task, lambda _, stays=stays: stays)  # type: ignore[misc]
        assert scores["left"] == 0 and math.isnan(scores["recall"])


def test_identity_over_time_holds_a_window_at_a_time() -> None:
    """Frames are made when they are asked for, and no more of them live than a window's."""
    (task,) = make_tasks(1, 3, ["identity-60"])
    alive: set[int] = set()
    most = 0

    class Counted(np.ndarray[Any, Any]):
        def __del__(self) -> None:
            alive.discard(id(self))

    other = make_tasks(2, 3, ["identity-60"])[1]
    change = 40 * FPS

    def generate(t: Task) -> Iterator[np.ndarray]:
        nonlocal most
        wanted = sorted({i for w in t.windows.values() for i in range(w.start, w.stop, w.step)})
        blank = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
        for index in range(t.frames):
            frame = blank
            if index in wanted:
                shown = (t if index < change else other).render(index, index + 1, SIZE)[0]
                frame = (shown.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
            counted = frame.copy().view(Counted)
            alive.add(id(counted))
            most = max(most, len(alive))
            yield counted
            del counted

    scores = run_task(task, generate)
    assert most <= 4
    assert scores["in_sight"] > 0.9
    assert 0.5 < scores["identity"] < 1 and scores["identity_60s"] < 0.9
    assert 35 <= scores["identity_seconds"] <= 45
    assert 0.6 < scores["world_sharpness"] < 1.5 and 0.6 < scores["world_saturation"] < 1.5


@pytest.mark.parametrize(
    "frames",
    [
        [np.zeros((SIZE, SIZE, 3), dtype=np.uint8)] * 5,
        [np.zeros((SIZE, SIZE), dtype=np.uint8)] * 500,
        [torch.zeros(SIZE, SIZE, 3, dtype=torch.uint8)] * 500,
    ],
)
def test_what_are_no_frames_is_refused(frames: list[np.ndarray | Tensor]) -> None:
    (task,) = make_tasks(1, 0, ["away-2"])
    with pytest.raises(ValueError, match=r"wants 72 frames, and there were 5\.|A frame is a uint8 array"):
        run_task(task, lambda _: frames)


# A pipeline with a memory


@pytest.mark.parametrize("memory", ["memrope:recent=2", "deep-forcing:window=9,sink=2,budget=8"])
def test_a_take_goes_on_from_what_is_given(pipe: LongTakePipeline, memory: str) -> None:
    """... exactly as a take that is given the same video."""
    (task,) = make_tasks(1, 0, ["occlusion"])
    made = [*Takes(pipe, memory, seed=3)(task)]
    given = (task.render(0, task.given, (32, 48)).permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    take = pipe.start(task.script[0][1], memory, 3, video=given)
    expected = [*take.frames(task.frames - task.given)]
    assert len(made) == len(expected) == task.frames - task.given
    assert all(np.array_equal(a, b) for a, b in zip(made, expected, strict=True))
    assert 0 <= run_task(task, Takes(pipe, memory, seed=3))["told"] <= 1


def test_what_is_said_while_a_video_is_given_is_heard(pipe: LongTakePipeline) -> None:
    (task,) = make_tasks(1, 0, ["elsewhere-2"])
    plain = pipe.start(_script(task, task.given), "memrope")
    take = _Told(pipe, plain.script, plain.policy, 0, plain.height, plain.width, "keep")
    take.before, take.chunks_given = _script(task, 0), 1 + (task.given - 9) // 12
    for chunk in range(take.chunks_given + 3):
        first = max(0, 9 + 12 * (chunk - 1))
        said = next(prompt for begin, prompt in reversed(task.script) if begin <= first + 4)
        take.skip = task.given
        assert take.segment_at(chunk).prompt == said
    # and it matters: the same take with the first prompt only is another
    silent = pipe.start(task.script[0][1], "memrope", 0, video=_frames(task))
    made = [*Takes(pipe, "memrope")(task)]
    assert not all(np.array_equal(a, b) for a, b in zip(made, silent.frames(len(made)), strict=True))


def _frames(task: Task) -> np.ndarray:
    return (task.render(0, task.given, (32, 48)).permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()


def test_models_with_other_chunks_are_refused() -> None:
    (task,) = make_tasks(1, 0, ["occlusion"])
    with pytest.raises(ValueError, match=r"chunks have 12 frames, 16 a second, not 4 and 16\.$"):
        Takes(build(chunk_frames=1), "sliding")(task)


# The command


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return warm.run("longtake.evaluation.world_run", *arguments, cwd=cwd)


def test_the_command_writes_scores_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "truth.json"
    common = ["--truth", "--size", "64", "--count", "1", "--out", str(out)]
    done = run(*common, "--only", "occlusion", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first = json.loads(out.read_text())
    assert [row["task"] for row in first["rows"]] == ["occlusion"] and first["model"] == "truth"
    done = run(*common, "--only", "occlusion,away-2", cwd=tmp_path)
    assert done.returncode == 0 and "occlusion" not in done.stdout
    both = json.loads(out.read_text())
    assert both["rows"][0] == first["rows"][0] and both["rows"][1]["away"] == 2.0
    assert both["means"]["away-2"]["recall"]["count"] == 1
    done = run(*common, "--only", "occlusion", "--seed", "1", cwd=tmp_path)
    assert done.returncode == 2 and "another model, memory, seed or level" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--truth", "--out", "nowhere/x.json"),
        ("--truth", "--strangers", "--out", "x.json"),
        ("--truth", "--only", "sleep", "--out", "x.json"),
        ("--truth", "--level", "full", "--out", "x.json"),
        ("--truth", "--level", "calm", "--only", "occlusion", "--out", "x.json"),
        ("--memory", "elephant", "--out", "x.json"),
        ("--count", "0", "--out", "x.json"),
    ],
)
def test_bad_input_ends_in_a_sentence(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.rstrip().endswith(".")
    assert not list(tmp_path.iterdir())


def test_all_kinds_have_scores() -> None:
    from longtake.evaluation.world import _SCORERS

    assert {make_tasks(1, 0, [name])[0].kind for name in TASKS} == set(_SCORERS)

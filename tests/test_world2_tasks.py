"""Tasks of the memory benchmark, held against the world's laws: what is lost, for how long, and what prompts say."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from longtake.pocket.world import camera_x, daylight, make_tasks, pose, sample_scenes, truth
from longtake.pocket.world.names import FPS, LANDMARKS, MOTIONS, PLACES, SHORT
from longtake.pocket.world.places import SPOTS
from longtake.pocket.world.tasks import TASKS, Task, tasks_of
from longtake.pocket.world.words import understand, unknown_words

LONG = ("identity-600", "identity-3600")
REACH = 0.56 + 0.16  # of a landmark, from the middle of its spot


def whole_chunks(frames: int) -> bool:
    return frames == 0 or (frames - 9) % 12 == 0


@pytest.mark.parametrize("name", TASKS)
def test_tasks_say_what_they_give_and_hide_what_they_ask(name: str) -> None:
    for task in make_tasks(3, 5, [name]):
        assert task.name == name and whole_chunks(task.given) and task.given < task.frames
        assert all(window.stop <= task.frames for window in task.windows.values())
        assert any(window.start >= task.given for window in task.windows.values())
        starts = [first for first, _ in task.script]
        assert starts[0] == task.shots[0][0] == 0 and starts == sorted(starts)
        for first, prompt in task.script:
            assert not unknown_words(prompt)
            said = understand(prompt)
            scene = next(s for begin, s in reversed(task.shots) if begin <= first)
            assert said["shape"] == task.truth.get("shape", said["shape"])
            assert said["motion"] == MOTIONS[int(scene.motion[0, 0])] and said["place"] == PLACES[int(scene.place[0])]
            # what is asked must not be told
            assert not {*said} & {*task.asked} - {"motion"}
        assert set(task.asked) - {"motion"} <= set(task.truth)


def test_the_same_seed_gives_the_same_tasks_and_longer_absences_the_same_scenes() -> None:
    short, again, long = (make_tasks(2, seed, [n]) for seed, n in ((3, "away-2"), (3, "away-2"), (3, "away-60")))
    for one, same, other in zip(short, again, long, strict=True):
        assert torch.equal(one.clock, same.clock) and one.script == same.script
        assert [p for _, p in one.script] == [p for _, p in other.script] and one.truth == other.truth
        assert other.frames - one.frames == pytest.approx(58 * FPS, abs=12)
        assert torch.equal(one.render(one.given, one.frames, 32), other.render(other.given, other.frames, 32))
    assert make_tasks(2, 4, ["away-2"])[0].script != short[0].script
    with pytest.raises(ValueError, match="away-2, away-5"):
        make_tasks(1, 0, ["forget"])


def sights(task: Task, start: int, stop: int) -> torch.Tensor:
    """Whether any part of the subject is in the picture, frame by frame."""
    shot = max(i for i, (first, _) in enumerate(task.shots) if first <= start)
    return truth(task.scene(shot), task.clock[start:stop], 32).in_picture[0, :, 0]


@pytest.mark.parametrize("seconds", [2, 5, 15])
def test_who_goes_away_is_out_of_sight_for_as_long_as_is_said_and_then_there(seconds: int) -> None:
    for task in make_tasks(4, 7, [f"away-{seconds}"]):
        seen = sights(task, 0, task.given)
        last = int(seen.nonzero().max())
        assert (task.given - 1 - last) / FPS == pytest.approx(seconds, abs=0.1)
        assert task.away == pytest.approx(seconds, abs=0.1)
        before, after = task.windows["before"], task.windows["after"]
        assert seen[before.start : before.stop].all() and before.stop >= 32
        assert sights(task, after.start, after.stop).all()
        assert MOTIONS[int(task.scene(1).motion[0, 0])] in (*SHORT, "walks")
        # nothing jumps before the prompt changes
        x = pose(task.scene(0), task.clock[: task.given]).x[0, :, 0]
        assert x[: last + 1].diff().abs().max() < 0.2


@pytest.mark.parametrize("name", ["aside-5", "aside-15", "pan"])
def test_what_is_asked_of_a_place_cannot_be_seen_while_the_camera_looks_aside(name: str) -> None:
    for task in make_tasks(4, 8, [name]):
        scene = task.scene()
        spot = SPOTS[1 if task.asked == ("landmark2",) else 2]
        view = camera_x(scene, task.clock)[0]
        lost = (spot - view).abs() > 1 + REACH - 0.21  # but for the outermost part of the widest
        away = int(lost.nonzero().max()) - int(lost.nonzero().min())
        assert away / FPS >= task.away == pytest.approx({"aside-5": 4.5, "aside-15": 16.5, "pan": 4.5}[name])
        for window in task.windows.values():
            assert view[window.start : window.stop].abs().max() < 0.02
        if task.given:
            assert lost[task.given - 1]
            # the subject goes on as it would, whole periods later
            steps, usual = (
                torch.stack([at.x[0, :, 0].diff(), at.y[0, :, 0].diff()]).norm(dim=0)
                for at in (pose(scene, task.clock), pose(scene, torch.arange(400)))
            )
            assert steps.max() <= usual.max() + 1e-4


def test_elsewhere_is_elsewhere_and_the_place_is_arranged_as_it_was() -> None:
    for task in make_tasks(4, 9, ["elsewhere-5"]):
        home, other, back = (task.scene(i) for i in range(3))
        assert int(home.place[0]) != int(other.place[0]) and torch.equal(home.landmark, back.landmark)
        begin = task.shots[1][0]
        assert (task.given - begin) / FPS == pytest.approx(5, abs=0.5) and task.shots[2][0] == task.given
        for name, spot in (("landmark2", 1), ("landmark3", 2)):
            assert task.truth[name] == LANDMARKS[PLACES[int(home.place[0])]][int(home.landmark[0, spot])]


def test_other_tasks_are_what_they_say() -> None:
    (hidden,) = make_tasks(1, 2, ["occlusion"])
    covered = truth(hidden.scene(), hidden.clock, 32).occluded[0, :, 0]
    assert covered[hidden.given - 3 : hidden.given + 3].min() > 0.4
    for window in hidden.windows.values():
        assert covered[window.start : window.stop].max() < 0.2
    (night,) = make_tasks(1, 2, ["night"])
    light = daylight(night.scene(), night.clock)[0]
    between = light[night.windows["before"].stop : night.windows["after"].start]
    assert between.min() == 0 and light[night.windows["before"].start : night.windows["before"].stop].min() > 0.99
    for task in make_tasks(6, 2, ["changes"]):
        said = [understand(prompt) for _, prompt in task.script]
        assert len(said) == 5
        for was, now in pairwise(said):
            assert 1 <= len([k for k in {*was, *now} if was.get(k) != now.get(k)]) <= 2
    motions = {understand(t.script[0][1])["motion"] for t in make_tasks(9, 2, ["motion"])}
    assert motions == {*MOTIONS} - {"orbits"}


def test_calm_tasks_have_calm_scenes_and_ask_what_is_hidden_there() -> None:
    """For models that have only seen calm scenes: nobody wears anything, hides, or is looked away from."""
    there = tasks_of("calm")
    assert {name.split("-")[0] for name in there} == {"away", "return", "identity", "changes", "motion"}
    assert set(there) < set(tasks_of("plain")) == set(TASKS)
    always = sample_scenes(1, 0, "calm")
    asked = {"away": {"color"}, "changes": set(), "motion": {"motion"}}
    for task in make_tasks(9, 4, ["away-2", "return", "identity-60", "changes", "motion"], "calm"):
        assert {*task.asked} == asked.get(task.name.split("-")[0], asked["away"]) and task.level == "calm"
        for _, scene in task.shots:
            for field in (
                "accessory",
                "eyes",
                "angle",
                "pattern",
                "landmark",
                "landmark_shift",
                "sun",
                "hills",
                "camera",
            ):
                assert torch.equal(getattr(scene, field), getattr(always, field)), (task.name, field)
            assert not scene.occluder.any() and int(scene.light[0]) < 3
            assert MOTIONS[int(scene.motion[0, 0])] in (*SHORT, "walks", "leaves")
    with pytest.raises(ValueError, match="of level calm is one of away-2"):
        make_tasks(1, 0, ["occlusion"], "calm")
    with pytest.raises(ValueError, match="plain, calm, not full"):
        make_tasks(1, 0, level="full")


def test_an_hour_is_rendered_a_piece_at_a_time() -> None:
    (task,) = make_tasks(1, 1, ["identity-3600"])
    assert task.frames == 3600 * FPS
    late = task.render(57_000, 57_004, 32)
    assert torch.equal(late, torch.stack([*task.rendered(57_000, 57_004, 32)]))
    assert torch.equal(late[1:2], task.render(57_001, 57_002, 32))
    across = make_tasks(1, 1, ["changes"])[0]
    assert torch.equal(across.render(90, 100, 32)[6:], across.render(96, 100, 32))

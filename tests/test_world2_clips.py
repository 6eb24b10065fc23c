"""The networks that read clips, held against rendered scenes whose truth is known, and how they are trained."""

from __future__ import annotations

import io
import json
import re
import subprocess
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

from longtake.pocket.world import Clip, look_at, read_clip, render, sample_scenes, truth
from longtake.pocket.world.check_readers import accuracy
from longtake.pocket.world.clips import CLEAR, LEAST
from longtake.pocket.world.names import MOTIONS, SHAPES
from longtake.pocket.world.networks import (
    HEIGHT,
    OF_SUBJECT,
    WEIGHTS,
    WINDOW,
    Readers,
    load_readers,
    save_readers,
    windows,
)
from longtake.training.world_readers import draw_examples, state_path, train
from tests.conftest import warm


def test_the_shipped_networks_are_small() -> None:
    assert WEIGHTS.stat().st_size < 1_250_000


@pytest.mark.parametrize(("level", "worse", "size"), [("plain", False, 128), ("moving", True, 96)])
def test_what_is_read_of_clips_is_what_is_there(level: str, worse: bool, size: int) -> None:
    found = accuracy(40, 77, level, size, frames=8, worse=worse)
    for name in (*OF_SUBJECT, "place", "light", "landmark2", "landmark3", "present"):
        row = found[name]
        assert row["clips"] >= 15, (name, row)
        assert row["right"] >= 0.9 and row["answered"] >= 0.85, (name, row)
    assert sum(found[name]["right"] for name in OF_SUBJECT) / len(OF_SUBJECT) >= 0.96
    assert found["radius"]["error"] < 0.06


def test_nothing_is_said_of_a_subject_that_is_not_clearly_in_sight() -> None:
    scenes = sample_scenes(12, 19, "plain")
    scenes.motion[:, 0], scenes.phase[:] = MOTIONS.index("leaves"), 0.0
    gone, there = torch.arange(90, 110, 3), torch.arange(0, 20, 3)
    silent = [read_clip(render(scenes.select([i]), gone, 128).video[0]) for i in range(12)]
    for clip in silent:
        assert clip.clear < LEAST or clip.seen < 0.5
    assert sum(all(clip.values[name] is None for name in OF_SUBJECT) for clip in silent) >= 11
    spoken = [read_clip(render(scenes.select([i]), there, 128).video[0]) for i in range(12)]
    assert sum(clip.values["shape"] == SHAPES[int(scenes.shape[i, 0])] for i, clip in enumerate(spoken)) >= 11
    assert all(clip.values["place"] is not None for clip in silent + spoken)


def test_where_a_subject_is_and_how_much_of_it_is_in_sight() -> None:
    scenes = sample_scenes(16, 23, "moving")
    times = torch.arange(0, 190, 19)
    shown, said, off = [], [], []
    for i in range(16):
        scene = scenes.select([i])
        known, looks = truth(scene, times, 96), look_at(render(scene, times, 128).video[0])
        clear = known.shown[0, :, 0] > 0.9
        off.append(torch.hypot(looks.x - known.x[0, :, 0], looks.y - known.y[0, :, 0])[clear])
        shown.append(known.shown[0, :, 0])
        said.append((looks.found > 0.5) & (looks.shown > CLEAR))
    assert torch.cat(off).quantile(0.9) < 0.08
    whole, none = torch.cat(shown) > 0.95, torch.cat(shown) < 0.3
    assert torch.cat(said)[whole].float().mean() > 0.95 and torch.cat(said)[none].float().mean() < 0.05


def test_a_clip_is_the_vote_of_its_frames_in_any_order() -> None:
    video = render(sample_scenes(1, 5, "plain"), torch.arange(0, 24, 2), 64).video[0]
    clip = read_clip(video)
    assert isinstance(clip, Clip) and clip.clear > 4
    assert read_clip(video.flip(0)).values == clip.values
    assert read_clip(video[:1]).clear <= 1 and read_clip(video[:1]).values["color"] is None
    for bad in (torch.rand(0, 3, 64, 64), torch.rand(3, 64, 64), torch.rand(2, 3, 16, 64), torch.rand(2, 1, 64, 64)):
        with pytest.raises(ValueError, match=r"at least one and at least 32 pixels high"):
            read_clip(bad)


def test_windows_are_cut_where_they_are_said_to_be() -> None:
    pictures = torch.rand(3, 3, HEIGHT, 128)
    x, y = torch.tensor([40.2, 3.0, 127.0]), torch.tensor([50.0, 90.0, 40.0])
    cut = windows(pictures, x, y)
    for i in range(3):
        for row, column in ((0, 0), (31, 40), (63, 63)):
            r, c = round(float(y[i])) - WINDOW // 2 + row, round(float(x[i])) - WINDOW // 2 + column
            inside = 0 <= r < HEIGHT and 0 <= c < 128
            expected = pictures[i, :, r, c] if inside else torch.full((3,), 0.5)
            assert torch.equal(cut[i, :, row, column], expected)


def test_examples_are_what_the_world_says() -> None:
    examples = draw_examples(24, 3, 96)
    for which in range(24):
        x, y = float(examples.x[which, 0]), float(examples.y[which, 0])
        if examples.shown[which, 0] < 0.9:
            continue
        # the first subject's colour is there, where it is said to be: the strongest in the picture's part
        part = examples.pictures[which][:, max(0, int(y) - 8) : int(y) + 8, max(0, int(x) - 8) : int(x) + 8]
        assert (part.amax(0) - part.amin(0)).max() > 0.3
    again = draw_examples(24, 3, 96)
    assert torch.equal(examples.pictures, again.pictures) and torch.equal(examples.subject, again.subject)
    assert not torch.equal(examples.pictures, draw_examples(24, 4, 96).pictures)
    assert examples.shown.min() >= 0 and examples.shown.max() <= 1


class Stops(io.StringIO):
    """An output at which a word stops the program, as Ctrl-C does."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word = word

    def write(self, text: str) -> int:
        if self.word in text:
            raise KeyboardInterrupt
        return super().write(text)


def test_training_learns_and_when_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    with redirect_stdout(io.StringIO()) as told:
        networks = train(12, 5, whole, pool=48, save_every=4)
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", told.getvalue())]
    assert len(losses) == 3 and losses[-1] < 0.97 * losses[0]
    with redirect_stdout(Stops("step 8 of 12")), pytest.raises(KeyboardInterrupt):
        train(12, 5, stopped, pool=48, save_every=4)
    assert state_path(stopped).exists() and stopped.read_bytes() != whole.read_bytes()
    with pytest.raises(ValueError, match="of another training"):
        train(12, 6, stopped, pool=48)
    with redirect_stdout(io.StringIO()) as told:
        train(12, 5, stopped, pool=48, save_every=4)
    assert "step 8 of" not in told.getvalue() and not state_path(stopped).exists()
    assert whole.read_bytes() == stopped.read_bytes()
    loaded = load_readers(whole)
    for one, other in zip(networks.state_dict().values(), loaded.state_dict().values(), strict=True):
        assert torch.allclose(one.float(), other.float(), atol=2e-3, rtol=2e-3)


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    networks = Readers()
    networks.looker.head = torch.nn.Linear(96, 3)
    save_readers(networks, tmp_path / "other.safetensors")
    with pytest.raises(RuntimeError):
        load_readers(tmp_path / "other.safetensors")


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return warm.run(module, *arguments, cwd=Path.cwd())


def test_the_command_that_checks(tmp_path: Path) -> None:
    out = tmp_path / "accuracy.json"
    done = run(
        "longtake.pocket.world.check_readers", "--clips", "3", "--frames", "3", "--size", "64", "--json", str(out)
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["settings"]["clips"] == 3 and 0 <= found["found"]["color"]["right"] <= 1
    assert "color" in done.stdout
    for bad in (("--clips", "0"), ("--weights", str(tmp_path / "none")), ("--size", "8")):
        done = run("longtake.pocket.world.check_readers", *bad)
        assert done.returncode == 2 and "Traceback" not in done.stderr


def test_the_command_that_trains_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    for bad in (
        ("--out", "x.bin"),
        ("--out", str(tmp_path / "a" / "b.safetensors")),
        ("--steps", "0", "--out", "x.safetensors"),
    ):
        done = run("longtake.training.world_readers", *bad)
        assert done.returncode == 2 and "Traceback" not in done.stderr

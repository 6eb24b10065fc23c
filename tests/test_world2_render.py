"""Pictures of the pocket world's second edition: what must hold of them whatever they show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from longtake.pocket.world import render, sample_scenes, truth
from longtake.pocket.world.names import GROUND, MOTIONS, PLACES, SHAPES
from longtake.pocket.world.scenes import join


def test_a_picture_does_not_depend_on_what_else_is_asked_for() -> None:
    scenes = sample_scenes(10, 5)
    together = render(scenes, torch.arange(400, 408), 48)
    assert together.video.shape == (10, 8, 3, 48, 48) and together.masks.shape == (10, 8, 2, 48, 48)
    assert together.video.min() >= 0 and together.video.max() <= 1
    for i in range(10):
        alone = render(scenes.select([i]), torch.tensor([403]), 48)
        assert torch.allclose(alone.video[0, 0], together.video[i, 3], atol=1e-5)
        assert torch.allclose(alone.masks[0, 0], together.masks[i, 3], atol=1e-5)
    own = torch.stack([torch.arange(400, 408).roll(i) for i in range(10)])  # every scene its own frames
    shuffled = render(scenes, own, 48).video
    for i in range(10):
        assert torch.allclose(shuffled[i], together.video[i].roll(i, 0), atol=1e-5)


def test_an_hour_in_the_picture_is_that_of_the_first_second() -> None:
    scenes = sample_scenes(6, 6)
    frames = torch.tensor([0, 37])
    assert torch.equal(render(scenes, frames, 48).video, render(scenes, frames + 3600 * 16, 48).video)


def test_a_larger_picture_is_the_same_picture() -> None:
    scenes = sample_scenes(14, 7)
    small, large = render(scenes, torch.tensor([3]), 64).video, render(scenes, torch.tensor([3]), 128).video
    averaged = torch.nn.functional.avg_pool2d(large.flatten(0, 1), 2).view_as(small)
    assert (averaged - small).abs().mean() < 0.012
    wide = render(scenes, torch.tensor([3]), (64, 96)).video
    still = scenes.camera == 0
    assert torch.allclose(wide[still][..., 16:80], small[still], atol=1e-5)  # more to the sides, the middle the same


def test_odd_sizes_are_refused() -> None:
    for size in (8, (64, 200), (200, 64)):
        with pytest.raises(ValueError, match="16:9"):
            render(sample_scenes(1, 0), torch.tensor([0]), size)


def test_without_its_subject_a_picture_changes_under_mask_and_shadow_only() -> None:
    scenes = sample_scenes(24, 8)
    scenes.second[:] = True
    scenes.motion[:, 1] = MOTIONS.index("bounces")
    fewer = scenes.clone()
    fewer.second[:] = False
    frames = torch.tensor([0, 9, 30])
    both, one = render(scenes, frames, 64), render(fewer, frames, 64)
    changed = (both.video - one.video).abs().amax(2) > 1e-4
    masked = both.masks[:, :, 1] > 0
    y = ((torch.arange(64) + 0.5) * 2 - 64) / 64
    ground = ((y - GROUND).abs() < 0.25)[None, None, :, None]
    assert not (changed & ~masked & ~ground).any()
    assert (changed & (both.masks[:, :, 1] > 0.9)).sum() > 0.95 * (both.masks[:, :, 1] > 0.9).sum()
    assert one.masks[:, :, 1].abs().max() == 0


def test_what_is_in_front_hides_what_is_behind() -> None:
    scenes = sample_scenes(30, 9, "moving")
    scenes.motion[:, 0] = MOTIONS.index("hides")
    scenes.occluder[:] = True
    scenes.occluder_at *= 0.25
    scenes.phase.zero_()
    bare = scenes.clone()
    bare.occluder[:] = False
    frames = torch.tensor([0, 24])  # beside the thing in front, and behind it
    seen, free = render(scenes, frames, 64), render(bare, frames, 64)
    assert torch.allclose(seen.whole, free.whole)
    share = seen.masks[:, :, 0].sum((-1, -2)) / seen.whole[:, :, 0].sum((-1, -2))
    assert (share[:, 1] < 0.6).all() and (share[:, 1] < share[:, 0]).all()
    hidden = (seen.whole[:, 1, 0] > 0.99) & (seen.masks[:, 1, 0] < 0.01)
    gone = scenes.clone()
    gone.motion[:, 0] = MOTIONS.index("leaves")
    gone.phase.fill_(0.5)  # away
    empty = render(gone, frames, 64).video[:, 1]
    off = (seen.video[:, 1] - empty).abs().amax(1)
    assert off[hidden].max() < 0.01  # the foreground, and nothing of the subject through it
    assert torch.allclose(truth(scenes, frames, 64).occluded[..., 0], 1 - share, atol=1e-5)


def test_the_first_subject_is_before_the_second() -> None:
    scenes = sample_scenes(40, 10)
    scenes.second[:], scenes.motion[:, 1] = True, MOTIONS.index("circles")
    scenes.occluder[:] = False
    scenes.motion[:, 0], scenes.anchor[:], scenes.camera[:] = MOTIONS.index("circles"), 0.0, 0
    scenes.phase[:, 1] = scenes.phase[:, 0]
    scenes.way[:, 1] = scenes.way[:, 0]
    drawn = render(scenes, torch.tensor([5]), 64)
    assert (drawn.masks.sum(2) <= 1 + 1e-5).all()
    assert torch.allclose(drawn.masks[:, :, 0], drawn.whole[:, :, 0])
    assert (drawn.masks[:, :, 1].sum((-1, -2)) < 0.7 * drawn.whole[:, :, 1].sum((-1, -2))).all()


@pytest.mark.parametrize("place", PLACES)
def test_any_subject_stands_out_at_any_hour(place: str) -> None:
    """Strong colours on pale ground: legibility as a number, for every shape, by day, at dusk and by night."""
    scenes = sample_scenes(60, 11, "plain")
    scenes.place[:], scenes.shape[:, 0] = PLACES.index(place), torch.arange(60) % len(SHAPES)
    scenes.pattern.zero_()
    drawn = render(scenes, torch.tensor([4]), 64)
    video, inside = drawn.video[:, 0], drawn.masks[:, 0, 0] > 0.95
    vivid = (video.amax(1) - video.amin(1)) / video.amax(1).clamp(min=0.05)
    for i in range(60):
        assert vivid[i][inside[i]].median() > vivid[i][~inside[i]].median() + 0.15


def test_types_and_parts_join() -> None:
    scenes = sample_scenes(3, 1)
    half = render(scenes, torch.tensor([0]), 32, dtype=torch.float16)
    assert half.video.dtype == torch.float16 and half.masks.dtype == torch.float16
    twice = join([scenes, scenes])
    video = render(twice, torch.tensor([7]), 32).video
    assert torch.equal(video[:3], video[3:])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_draws_the_same() -> None:
    scenes = sample_scenes(12, 5)
    here, there = (
        render(scenes, torch.tensor([40]), 64).video,
        render(scenes.to("cuda"), torch.tensor([40]), 64, "cuda"),
    )
    assert (here - there.video.cpu()).abs().mean() < 1e-3


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "longtake.pocket.world", *arguments], capture_output=True, text=True)


def test_the_contact_sheet_command(tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    settings = ("--scenes", "3", "--columns", "4", "--size", "32", "--seconds", "6", "--out", str(out))
    done = run(*settings)
    assert done.returncode == 0, done.stderr
    picture = np.asarray(Image.open(out).convert("RGB"))
    assert picture.shape == (3 * 36 + 4, 4 * 36 + 4, 3)
    video = render(sample_scenes(3, 0), torch.tensor([96]), 32).video[2, 0]
    shown = torch.from_numpy(picture[-36:-4, -36:-4].copy()).permute(2, 0, 1) / 255
    assert (shown - video).abs().max() < 0.003
    assert len(done.stdout.splitlines()) == 6
    before = out.read_bytes()
    again = run(*settings)
    assert again.returncode == 2 and "--overwrite" in again.stderr and "Traceback" not in again.stderr
    assert out.read_bytes() == before
    assert run(*settings, "--overwrite", "--seed", "1").returncode == 0
    assert out.read_bytes() != before and [p.name for p in tmp_path.iterdir()] == ["sheet.png"]


def test_bad_input_gets_a_sentence(tmp_path: Path) -> None:
    good = str(tmp_path / "x.png")
    for arguments, said in (
        (("--level", "hard", "--out", good), "plain, moving, full"),
        (("--scenes", "0", "--out", good), "--scenes must be from 1"),
        (("--out", str(tmp_path / "x.jpg")), ".png"),
        (("--out", str(tmp_path / "nowhere" / "x.png")), "no folder"),
    ):
        done = run(*arguments)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())

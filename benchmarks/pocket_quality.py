"""How the pocket model's takes hold up: contact sheets to look at, and readings against the world's ground truth.

    python -m benchmarks.pocket_quality --seconds 60 --memories "memrope;sliding:window=12,sink=3,ids=relative" \
        --out docs/pocket --json benchmarks/results/pocket_quality.json

For every prompt, seed and memory, in windows of ten seconds:

- ``place``: PSNR in dB, against the place asked for, of the pixels that no such subject comes near;
- ``area``: share of the picture that differs from the empty place, and ``area_truth`` of rendered scenes;
- ``colour``: share of frames in which the subject's median hue is nearest to the colour that was asked for;
- ``motion``: mean absolute difference of neighbouring frames, and ``motion_truth``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from longtake import load
from longtake.memory import parse_memory
from longtake.pocket.first.words import COLORS, MOTIONS, PLACES, SHAPES
from longtake.pocket.first.world import COLOR_RGB, FPS, SIZE, backgrounds, render, sample_scenes
from longtake.sheet import contact_sheet, save_animation

PROMPTS = (
    ("a red ball rolls over a meadow", "red", "ball", "rolls", "meadow"),
    ("a yellow star circles at night", "yellow", "star", "circles", "night"),
    ("a striped blue box bounces in the snow", "blue", "box", "bounces", "snow"),
    ("a green triangle grows and shrinks in a room", "green", "triangle", "grows", "room"),
    ("a purple ball swings on a beach", "purple", "ball", "swings", "beach"),
    ("an orange star bounces on the grass", "orange", "star", "bounces", "meadow"),
)
_DIFFERENT = 0.12  # a pixel whose colour is further than this from the empty place belongs to the subject


@dataclass
class Truth:
    """What rendered scenes with the same told attributes show: mean area and motion, and where no subject comes,
    bool ``[height, width]``."""

    area: float
    motion: float
    untouched: torch.Tensor


def truth_of(color: str, shape: str, motion: str, place: str) -> Truth:
    """Measured on 24 scenes over three seconds."""
    scenes = sample_scenes(24, 7)
    scenes.shape[:], scenes.motion[:] = list(SHAPES).index(shape), list(MOTIONS).index(motion)
    scenes.place[:], scenes.color[:] = list(PLACES).index(place), list(COLORS).index(color)
    video, cover = render(scenes, torch.arange(48))  # the longest period
    return Truth(float(cover.mean()), float(video.diff(dim=1).abs().mean()), cover[:, :, 0].amax((0, 1)) == 0)


def read(video: np.ndarray, color: str, place: str, untouched: torch.Tensor) -> dict[str, float]:
    """Readings of one window, uint8 ``[frames, height, width, 3]``; ``untouched`` as in :class:`Truth`."""
    frames = torch.from_numpy(video).permute(0, 3, 1, 2).float() / 255
    empty = backgrounds(SIZE)[list(PLACES).index(place)]
    distance = (frames - empty).abs().amax(1)
    subject = distance > _DIFFERENT
    error = (frames - empty)[:, :, untouched].square().mean()
    right = []
    for frame, mask in zip(frames, subject, strict=True):
        if int(mask.sum()) < 40:
            continue  # out of the picture, or nearly
        pixels = frame[:, mask]
        vivid = pixels.amax(0) - pixels.amin(0)
        middle = pixels[:, vivid >= vivid.median()].median(1).values
        right.append(float(int((COLOR_RGB - middle).square().sum(1).argmin()) == list(COLORS).index(color)))
    return {
        "place": float(-10 * torch.log10(error + 1e-9)),
        "area": float(subject.float().mean()),
        "colour": float(np.mean(right)) if right else 0.0,
        "motion": float(frames.diff(dim=0).abs().mean()),
    }


def side_by_side(videos: list[np.ndarray], start: int, end: int, columns: int = 3, scale: int = 2) -> list[np.ndarray]:
    """Frames of a grid of videos ``[frames, height, width, 3]``, enlarged."""
    frames = []
    for index in range(start, min(end, len(videos[0]))):
        cells = [v[index].repeat(scale, 0).repeat(scale, 1) for v in videos]
        rows = [np.concatenate(cells[i : i + columns], 1) for i in range(0, len(cells), columns)]
        frames.append(np.concatenate(rows, 0))
    return frames


def main() -> None:
    """Command line of this benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--memories", default="memrope", help="separated by semicolons")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--out", type=Path, default=Path("docs/pocket"), help="folder for the contact sheets")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--animation", type=Path, default=None, help="the prompts side by side, from second 20 on")
    args = parser.parse_args()
    memories = args.memories.split(";")
    try:
        for memory in memories:
            parse_memory(memory)
        seeds = [int(seed) for seed in args.seeds.split(",")]
        if not 1 <= args.seconds <= 3600:
            raise ValueError(f"--seconds must be from 1 to 3600, not {args.seconds}.")
        if args.animation and args.seconds < 22:
            raise ValueError("--animation shows second 20 on: it needs --seconds 22 or more.")
        pipe = load(args.model)
        args.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    pipe.set_progress_bar_config(disable=True)
    results: list[dict[str, Any]] = []
    for memory in memories:
        for seed in seeds:
            cells, labels, videos = [], [], []
            for prompt, color, shape, motion, place in PROMPTS:
                take = pipe.start(prompt, memory=memory, seed=seed)
                video = np.stack(list(take.frames(args.seconds * FPS)))
                videos.append(video)
                truth = truth_of(color, shape, motion, place)
                for second in range(0, args.seconds, 10):
                    window = video[second * FPS : (second + 10) * FPS]
                    row = {"memory": memory, "seed": seed, "prompt": prompt, "from_second": second}
                    found = read(window, color, place, truth.untouched)
                    results.append({**row, **found, "area_truth": truth.area, "motion_truth": truth.motion})
                # each row: the first second, then every tenth of the take, with the frames half a second later
                moments = sorted({0, 8, *(int(i * len(video) / 6) + j for i in range(1, 7) for j in (-24, -16, -8))})
                for index in moments:
                    image = Image.fromarray(video[index]).resize((128, 128), Image.Resampling.NEAREST)
                    cells.append(np.asarray(image))
                    labels.append(f"{index / FPS:.1f} s")
                last = [r for r in results if r["prompt"] == prompt and r["memory"] == memory and r["seed"] == seed]
                summary = "; ".join(
                    f"{key} {last[0][key]:.3f} to {last[-1][key]:.3f}" for key in ("area", "place", "colour", "motion")
                )
                print(f"{memory} seed {seed}: {prompt}: {summary}", flush=True)
                print(f"    truth: area {truth.area:.3f}, motion {truth.motion:.4f}", flush=True)
            name = memory.split(":")[0] + (f"-seed{seed}" if seed else "")
            contact_sheet(cells, columns=len(cells) // len(PROMPTS), labels=labels).save(args.out / f"{name}.png")
            if args.animation:
                save_animation(side_by_side(videos, 20 * FPS, 26 * FPS), args.animation, FPS)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"seconds": args.seconds, "model": args.model, "rows": results}, indent=1))


if __name__ == "__main__":
    main()

"""Takes of the pocket model that start from a picture or go on from a video, against the world's ground truth.

    python -m benchmarks.pocket_start --json benchmarks/results/pocket_start.json --out docs/pocket

Scenes of the pocket world are rendered; their first seconds are given as a video, or one frame as a picture, with a
prompt that says everything or one that leaves out the colour. Means over the scenes, for every memory:

- ``next_chunk``: PSNR in dB of the 12 frames after the given video against what the world shows then. Beside it
  ``unrelated``, the same of takes of the same prompt that were given nothing, and ``autoencoder``, the truth encoded
  and decoded: more is not to be had. (A picture tells no velocity, so there is no one truth after it.)
- ``place_error``: distance in pixels of the subject's middle from where the truth has it, over those 12 frames;
  ``unrelated_place_error`` beside it.
- ``seam``: mean absolute difference of the first frame given out to the last one before it (as the autoencoder gives
  that back), divided by that of ordinary neighbours in the same second of the take.
- ``colour`` and ``place``, second by second: share of frames whose subject's hue is nearest to the true one, and
  PSNR in dB, against the true place, of pixels that no such subject comes near.
- ``motion``: mean absolute difference of neighbouring frames relative to the world's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.pocket_quality import read, truth_of
from longtake import LongTakePipeline, load
from longtake.decode import StreamingDecoder
from longtake.encode import StreamingEncoder
from longtake.memory import parse_memory
from longtake.pocket.first.words import COLORS, MOTIONS, PATTERNS, PLACES, SHAPES, caption
from longtake.pocket.first.world import FPS, SIZE, Scenes, backgrounds, render, sample_scenes
from longtake.sheet import contact_sheet

CHUNK = 12  # frames
_DIFFERENT = 0.12  # as in benchmarks.pocket_quality
_WINDOWS = (0, 1, 2, 5, 9)  # seconds at which a second of the take is read


def names(scenes: Scenes, index: int) -> dict[str, str]:
    """What one scene of a batch shows, by the words' names."""
    groups = {"color": COLORS, "shape": SHAPES, "pattern": PATTERNS, "motion": MOTIONS, "place": PLACES}
    return {key: list(group)[int(getattr(scenes, key)[index])] for key, group in groups.items()}


def prompts_of(scene: dict[str, str]) -> dict[str, str]:
    """The plainest caption, and the same without the colour."""
    full = caption(scene["color"], scene["shape"], scene["pattern"], scene["motion"], scene["place"])
    without = "a " + " ".join(full.split()[1:]).replace(COLORS[scene["color"]][0] + " ", "", 1)
    return {"full": full, "no_colour": without}


def frames_of(scenes: Scenes, index: int, start: int, count: int) -> np.ndarray:
    """What the world shows of one scene, uint8 ``[frames, height, width, 3]``."""
    video = render(scenes.select(torch.tensor([index])), torch.arange(start, start + count))[0][0]
    return (video.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()


def through_autoencoder(pipe: LongTakePipeline, frames: np.ndarray) -> np.ndarray:
    """Frames as the autoencoder gives them back."""
    latents = StreamingEncoder(pipe.vae).encode(frames)
    video = StreamingDecoder(pipe.vae).decode(latents)
    return (video * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """In dB."""
    error = np.square(one.astype(float) - other).mean() / 255**2
    return float(-10 * np.log10(error + 1e-9))


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference, in [0, 1]."""
    return float(np.abs(one.astype(float) - other).mean() / 255)


def middles(video: np.ndarray, place: str) -> np.ndarray:
    """The subject's middle in every frame, in pixels ``[frames, 2]``; NaN where hardly anything is to be seen."""
    empty = backgrounds(SIZE)[list(PLACES).index(place)].permute(1, 2, 0).numpy()
    found = []
    for frame in video:
        rows, columns = np.nonzero(np.abs(frame / 255 - empty).max(-1) > _DIFFERENT)
        found.append((rows.mean(), columns.mean()) if len(rows) >= 40 else (np.nan, np.nan))
    return np.array(found)


def place_error(video: np.ndarray, truth: np.ndarray, place: str) -> float:
    """Mean distance of the subject's middles, in pixels, where both show one; NaN where none do."""
    distances = np.linalg.norm(middles(video, place) - middles(truth, place), axis=1)
    return float(np.nanmean(distances)) if np.isfinite(distances).any() else float("nan")


def measure(
    pipe: LongTakePipeline, scenes: Scenes, index: int, memory: str, seed: int, given: int, seconds: int
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """All takes of one scene with one memory: a row each, and their frames."""
    scene = names(scenes, index)
    untouched = truth_of(scene["color"], scene["shape"], scene["motion"], scene["place"]).untouched
    past, truth = (frames_of(scenes, index, s, n) for s, n in ((0, given), (given, seconds * FPS)))
    recovered = through_autoencoder(pipe, np.concatenate([past, truth[:CHUNK]]))
    world_motion = difference(truth[1:], truth[:-1])
    rows, videos = [], {"past": past, "truth": truth}
    for kind, prompt in prompts_of(scene).items():
        takes = {
            "video": pipe.start(prompt, memory, seed, video=past),
            "picture": pipe.start(prompt, memory, seed, image=past[-1]),
            "nothing": pipe.start(prompt, memory, seed),
        }
        made = {start: np.stack(list(take.frames(seconds * FPS))) for start, take in takes.items()}
        # a take's first chunk has 9 frames and looks unfinished: what is compared comes later, in the same phase or not
        unrelated = made["nothing"][given : given + CHUNK]
        for start, video in made.items():
            readings = []
            for second in _WINDOWS:
                window = video[second * FPS : (second + 1) * FPS]
                if len(window):
                    found = read(window, scene["color"], scene["place"], untouched)
                    readings.append({"second": second, "colour": found["colour"], "place": found["place"]})
            row: dict[str, Any] = {"start": start, "prompt": kind, "memory": memory, "scene": prompt, "seed": seed}
            row |= {"windows": readings, "motion": difference(video[1:], video[:-1]) / world_motion}
            if start == "video":
                ordinary = difference(video[1:FPS], video[: FPS - 1])
                row |= {
                    "next_chunk": psnr(video[:CHUNK], truth[:CHUNK]),
                    "unrelated": psnr(unrelated, truth[:CHUNK]),
                    "autoencoder": psnr(recovered[given:], truth[:CHUNK]),
                    "place_error": place_error(video[:CHUNK], truth[:CHUNK], scene["place"]),
                    "unrelated_place_error": place_error(unrelated, truth[:CHUNK], scene["place"]),
                    "seam": difference(video[0], recovered[given - 1]) / max(ordinary, 1e-6),
                }
            elif start == "picture":
                ordinary = difference(video[2 : FPS + 1], video[1:FPS])
                row |= {
                    "first_frame": psnr(video[0], past[-1]),
                    "seam": difference(video[1], video[0]) / max(ordinary, 1e-6),
                }
            rows.append(row)
        videos |= {f"{start} {kind}": video for start, video in made.items()}
    return rows, videos


def means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over the scenes, per start, prompt and memory."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["start"], row["prompt"], row["memory"]), []).append(row)
    result = []
    for (start, prompt, memory), group in groups.items():
        mean: dict[str, Any] = {"start": start, "prompt": prompt, "memory": memory, "scenes": len(group)}
        for key, value in group[0].items():
            if isinstance(value, float):
                mean[key] = round(float(np.nanmean([row[key] for row in group])), 3)
        mean["windows"] = [
            {
                "second": window["second"],
                **{
                    key: round(float(np.mean([row["windows"][i][key] for row in group])), 3)
                    for key in ("colour", "place")
                },
            }
            for i, window in enumerate(group[0]["windows"])
        ]
        result.append(mean)
    return result


def sheet(shown: Sequence[dict[str, np.ndarray]], start: str, path: Path) -> None:
    """Two rows per scene, with and without the colour in the prompt: what was given, what the world shows next, and
    what the take shows."""
    cells, labels = [], []
    for videos in shown:
        for prompt, words in (("full", "colour told"), ("no_colour", "colour not told")):
            made, past, truth = videos[f"{start} {prompt}"], videos["past"], videos["truth"]
            if start == "video":
                picked = [(words, past[-5]), ("given, last", past[-1])]
                picked += [(f"truth {i / FPS:.2f} s", truth[i]) for i in (4, 11)]
                moments = [4, 11, 40, 80, len(made) - 1]
            else:
                picked, moments = [(words, past[-1])], [0, 2, 6, 11, 40, len(made) - 1]
            picked += [(f"take {i / FPS:.2f} s", made[i]) for i in moments]
            for label, frame in picked:
                cells.append(frame.repeat(2, 0).repeat(2, 1))
                labels.append(label)
    contact_sheet(cells, len(cells) // len(shown) // 2, labels).save(path, optimize=True)


def main() -> None:
    """Command line of this benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="of the scenes, and of the takes")
    parser.add_argument("--given", type=int, default=57, help="frames of video that are given, 9 + 12 n")
    parser.add_argument("--seconds", type=int, default=10, help="length of a take")
    parser.add_argument("--memories", default="memrope;sliding:window=12,sink=3,ids=relative")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--out", type=Path, default=None, help="folder for contact sheets of the first memory")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    memories = args.memories.split(";")
    try:
        for memory in memories:
            parse_memory(memory)
        if not (1 <= args.scenes <= 1000 and args.given >= 9 and args.given % CHUNK == 9):
            raise ValueError("--scenes must be from 1 to 1000 and --given 9, 21, 33 and so on.")
        if not max(6, args.given / FPS + 1) <= args.seconds <= 600:
            raise ValueError("--seconds must be from 6 to 600, and a second more than what is given.")
        pipe = load(args.model)
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    scenes = sample_scenes(args.scenes, 1000 + args.seed)
    rows: list[dict[str, Any]] = []
    for memory in memories:
        shown = []
        for index in range(args.scenes):
            found, videos = measure(pipe, scenes, index, memory, args.seed, args.given, args.seconds)
            rows += found
            shown.append(videos)
        if args.out and memory == memories[0]:
            for start in ("video", "picture"):
                sheet(shown[:3], start, args.out / f"start_{start}.png")
    for mean in means(rows):
        print(json.dumps(mean), flush=True)
    if args.json:
        settings = {k: str(v) for k, v in vars(args).items() if k not in ("json", "out")}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**settings, "means": means(rows), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()

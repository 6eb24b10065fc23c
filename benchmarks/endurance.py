"""A day of video in one take: does it stay what it was, at the same cost?

    python -m benchmarks.endurance --out runs/day                                  # 24 hours of video with MemRoPE
    python -m benchmarks.endurance --out runs/day --memory echo --memory-weights FOLDER --hours 24

After every ``--every`` minutes of video one row is written and the take's snapshot is saved; the same command goes on
from there after a kill. A row has, of the last four seconds of video: brightness, saturation, contrast and sharpness
(as `longtake eval` defines them), the mean difference of neighbouring frames, and the distance of the colours'
histogram to that of seconds 2 to 6; of the take: the norm of a learned memory's state and the largest number in what is
remembered; of the process: resident memory and the median time per chunk since the row before.

It stops at the first number that is not finite. ``rows.json`` holds all rows, ``curves/`` a picture of each column over
time, ``frames/`` a picture per row, ``sheet.png`` a choice of them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections import deque
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from benchmarks.machine import machine, resident_mb
from longtake.evaluation.pictures import hellinger, lab_histogram, looks, luma
from longtake.evaluation.plots import chart

if TYPE_CHECKING:
    from longtake.pipeline import LongTakePipeline
    from longtake.take import Take

PROMPT = "a red ball rolls over a meadow"
WINDOW = 4  # seconds of video that a row looks at
OPENING = 2  # where the window that all are compared with begins, in seconds
CURVES = ("brightness", "saturation", "contrast", "sharpness", "moving", "colours", "state", "largest", "ms", "rss_mb")
_LOOKS = ("brightness", "saturation", "contrast", "sharpness")
_SHEET = (6, 8)  # rows and columns


def read_window(frames: list[np.ndarray], opening: np.ndarray | None) -> tuple[dict[str, float], np.ndarray]:
    """What a window looks like.

    Args:
        frames: uint8 RGB ``[height, width, 3]`` each.
        opening: histogram to compare with, ``[512]``.

    Returns:
        Its readings, and its own histogram.
    """
    found = [looks(frame, luma(frame)) for frame in frames]
    colours = np.sum([lab_histogram(frame) for frame in frames], 0)
    row = {name: float(np.mean([look[name] for look in found])) for name in _LOOKS}
    moved = [np.abs(b.astype(np.int16) - a).mean() for a, b in pairwise(frames)]
    row["moving"] = float(np.mean(moved))
    row["colours"] = hellinger(colours if opening is None else opening, colours)
    return row, colours


def remembered(take: Take) -> dict[str, float]:
    """Norm of a learned memory's state (0 without one), and the largest number in what is remembered."""
    tensors, _ = take.memory.state_dict()
    largest = max((float(x.abs().max()) for x in tensors.values() if x.is_floating_point() and x.numel()), default=0.0)
    states = [x for name, x in tensors.items() if name.endswith("learned.state")]
    return {"state": sum(float(x.float().norm()) for x in states), "largest": largest}


class Endurance:
    """A take that is measured as it goes.

    Args:
        pipe: what makes it.
        out: folder of everything; what is there is continued.
        settings: of ``pipe.start``.
        every: frames between rows.
    """

    def __init__(self, pipe: LongTakePipeline, out: Path, settings: dict[str, Any], every: int) -> None:
        self.out, self.every, self.fps = out, every, int(pipe.config.fps)
        self.rows: list[dict[str, float]] = []
        self.opening: np.ndarray | None = None
        (out / "frames").mkdir(parents=True, exist_ok=True)
        if (out / "take.snapshot").exists():
            saved = json.loads((out / "rows.json").read_text())
            if saved["settings"] != settings or saved["every"] != every:
                raise ValueError(f"{out} holds another run, with {saved['settings']}: choose another --out.")
            self.take = pipe.resume(out / "take.snapshot")
            # rows are written first: a kill between the two leaves one too many, never one too few
            self.rows = [row for row in saved["rows"] if row["frame"] <= self.take.frames_done]
            self.opening = np.array(saved["opening"])
        else:
            self.take = pipe.start(**settings)
        self.settings = settings

    def run(self, frames: int, info: dict[str, Any]) -> None:
        """Goes on until there are so many frames.

        Raises:
            FloatingPointError: if something is not a finite number any more.
        """
        window: deque[np.ndarray] = deque(maxlen=WINDOW * self.fps)
        times: list[float] = []
        while self.take.frames_done < frames:
            before = time.perf_counter()
            chunk = self.take.next_chunk()
            times.append(time.perf_counter() - before)
            if not bool(chunk.latents.isfinite().all()):
                raise FloatingPointError(f"Chunk {chunk.index} has numbers that are not finite.")
            window.extend(chunk.to_uint8())
            done = self.take.frames_done
            if self.opening is None and done >= (OPENING + WINDOW) * self.fps:
                self.opening = read_window(list(window), None)[1]
            due = done >= frames or done // self.every > (done - len(chunk.video)) // self.every
            if due and self.opening is not None:
                self._note(list(window), times, info)
                times.clear()

    def _note(self, window: list[np.ndarray], times: list[float], info: dict[str, Any]) -> None:
        assert self.opening is not None
        row = {"frame": self.take.frames_done, "minutes": self.take.seconds_done / 60}
        row |= read_window(window, self.opening)[0] | remembered(self.take)
        row |= {"ms": 1000 * statistics.median(times), "rss_mb": resident_mb()}
        # resident memory is not known everywhere
        strange = [name for name, value in row.items() if not math.isfinite(value) and name != "rss_mb"]
        if strange:
            raise FloatingPointError(f"After frame {self.take.frames_done}, {strange[0]} is not a finite number.")
        self.rows.append(row)
        Image.fromarray(window[-1]).save(self.out / "frames" / f"{len(self.rows) - 1:05d}.png")
        written = {"machine": info, "settings": self.settings, "every": self.every}
        written |= {"opening": self.opening.tolist(), "rows": self.rows}
        part = self.out / "rows.json.part"
        part.write_text(json.dumps(written))
        part.replace(self.out / "rows.json")
        self.take.snapshot(self.out / "take.snapshot")
        shown = ", ".join(f"{name} {row[name]:.4g}" for name in CURVES)
        print(f"{row['minutes']:.1f} min: {shown}", flush=True)

    def draw(self) -> None:
        """Curves and the sheet."""
        (self.out / "curves").mkdir(exist_ok=True)
        minutes = np.array([row["minutes"] for row in self.rows])
        for name in CURVES:
            line = (minutes, np.array([row[name] for row in self.rows]))
            curve = chart([line], [str(self.settings["memory"])], name, "minutes of video")
            if curve is not None:
                (self.out / "curves" / f"{name}.svg").write_text(curve, encoding="utf-8")
        rows, columns = _SHEET
        chosen = np.unique(np.linspace(0, len(self.rows) - 1, min(len(self.rows), rows * columns)).round().astype(int))
        pictures = [Image.open(self.out / "frames" / f"{i:05d}.png") for i in chosen]
        width, height = pictures[0].size
        sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height))
        for i, picture in enumerate(pictures):
            sheet.paste(picture, (i % columns * width, i // columns * height))
        sheet.save(self.out / "sheet.png")


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``python -m benchmarks.endurance``."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endurance", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of everything; what is there is continued")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--memory", default="memrope")
    parser.add_argument("--memory-weights", help="of echo")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hours", type=float, default=24.0, help="of video")
    parser.add_argument("--every", type=float, default=5.0, help="minutes of video between rows")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, help="CPU threads; one per core by default")
    args = parser.parse_args(arguments)
    import torch

    from longtake import load
    from longtake.quiet import quieten_libraries

    quieten_libraries()
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        pipe = load(args.model).to(getattr(torch, args.dtype))
        if args.memory_weights:
            pipe.load_memory(args.memory_weights)
        if args.hours <= 0 or args.every * 60 < OPENING + WINDOW:
            raise ValueError(f"--hours must be above 0, and --every at least {(OPENING + WINDOW) / 60} minutes.")
        settings = {"prompt": args.prompt, "memory": args.memory, "seed": args.seed}
        day = Endurance(pipe, args.out, settings, max(1, round(args.every * 60 * pipe.config.fps)))
        day.run(round(args.hours * 3600 * pipe.config.fps), machine(torch.get_num_threads()))
    except (ValueError, OSError, FloatingPointError) as error:
        parser.error(str(error))
    day.draw()
    print(f"Written to {args.out}")


if __name__ == "__main__":
    main()

"""The official package ``vbench`` on long videos: clips of each, evaluated in an environment of its own, averaged.

The protocol is that of VBench-Long (VBench++, arXiv 2411.13503) for one's own videos: clips of 2 seconds, the last one
as long as the others by beginning earlier, and the mean over clips. Its further comparison of clips with each other
(DreamSim, DINOv2) is not part of the package and is not done.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longtake.evaluation.evaluate import Skipped
from longtake.evaluation.registry import DIMENSIONS, VBENCH
from longtake.evaluation.source import Source
from longtake.evaluation.vbench_env import Note, clean_environment, vbench_python

_WORKER = Path(__file__).with_name("vbench_worker.py")


@dataclass(frozen=True)
class VBenchSettings:
    """What VBench is asked.

    Attributes:
        dimensions: of `registry.DIMENSIONS`.
        seconds: of a clip.
        clips: at most this many per video, spread evenly; None for all.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        ValueError: in one sentence.
    """

    dimensions: tuple[str, ...] = DIMENSIONS
    seconds: float = 2.0
    clips: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in self.dimensions:
            if name not in DIMENSIONS:
                raise ValueError(f"--dimensions are of {', '.join(DIMENSIONS)}; not {name!r}.")
        if not self.dimensions:
            raise ValueError(f"--dimensions names at least one of {', '.join(DIMENSIONS)}.")
        if not 0.5 <= self.seconds <= 600:
            raise ValueError(f"A clip for VBench is from 0.5 seconds to 10 minutes, not {self.seconds:g} seconds.")
        if self.clips is not None and self.clips < 1:
            raise ValueError(f"--clips must be 1 or more, not {self.clips}.")
        if self.device not in ("auto", "cpu", "cuda") and not self.device.removeprefix("cuda:").isdecimal():
            raise ValueError(f"--device must be auto, cpu, cuda or cuda:N, not {self.device!r}.")


@dataclass(frozen=True)
class VBenchFound:
    """What VBench said.

    Attributes:
        scores: one mapping per video, in their order: name in `registry.METRICS` to the mean over clips.
        skipped: dimensions that could not be computed.
        about: versions and settings, for the report.
    """

    scores: list[dict[str, float]]
    skipped: list[Skipped]
    about: dict[str, Any]


def run_vbench(sources: Sequence[Source], settings: VBenchSettings, note: Note) -> VBenchFound:
    """Evaluates videos with VBench, clip by clip.

    Args:
        sources: the videos.
        settings: what is asked.
        note: is told what takes long.

    Raises:
        ValueError: in one sentence: there is no environment and none can be made, or nothing in it works.
    """
    python = vbench_python(note)
    with tempfile.TemporaryDirectory(prefix="longtake-vbench-") as name:
        folder = Path(name)
        (folder / "clips").mkdir()
        numbers = []
        for index, source in enumerate(sources):
            note(f"Cutting {source.path} into clips for VBench ...")
            numbers.append(cut_clips(source, settings, folder / "clips", f"{index:04d}_"))
        request, answer = folder / "request.json", folder / "answer.json"
        asked = {"dimensions": settings.dimensions, "device": settings.device}
        where = {"folder": str(folder / "clips"), "output": str(folder / "output")}
        request.write_text(json.dumps({**asked, **where}), encoding="utf-8")
        note(f"VBench: {', '.join(settings.dimensions)} of {sum(numbers)} clips ...")
        done = subprocess.run(
            # isolated: else the worker's folder, which has a vbench.py of its own, comes first
            [str(python), "-I", str(_WORKER), str(request), str(answer)],
            cwd=folder,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode or not answer.exists():
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
            raise ValueError(f"VBench does not run in {python}: {lines[-1].strip().rstrip('.')[:200]}.")
        found = json.loads(answer.read_text(encoding="utf-8"))
    return VBenchFound(
        [_means(found["scores"], f"{index:04d}_") for index in range(len(sources))],
        [Skipped(VBENCH + name, f"VBench's {name} is left out: {reason}.") for name, reason in found["failed"].items()],
        {
            "versions": found["versions"],
            "device": found["device"],
            "dimensions": list(settings.dimensions),
            "clip_seconds": settings.seconds,
            "clips": dict(zip((str(s.path) for s in sources), numbers, strict=True)),
        },
    )


def _means(scores: Mapping[str, Mapping[str, float]], prefix: str) -> dict[str, float]:
    found = {}
    for dimension, clips in scores.items():
        mine = [score for clip, score in clips.items() if clip.startswith(prefix)]
        found[VBENCH + dimension] = float(np.mean(mine)) if mine else float("nan")
    return found


def cut_clips(source: Source, settings: VBenchSettings, folder: Path, prefix: str) -> int:
    """Cuts a video into clips of one length, as lossless H.264 where that can be written; returns how many.

    A video that is shorter than a clip is one clip. Of an odd height or width the last row or column is left out.

    Raises:
        ValueError: the video is damaged.
        OSError: no room for the clips.
    """
    from longtake.video import VideoWriter

    length = min(source.frames, max(2, round(settings.seconds * source.fps)))
    starts = [*range(0, source.frames - length + 1, length)]
    if source.frames % length:
        starts.append(source.frames - length)
    if settings.clips is not None and settings.clips < len(starts):
        starts = [starts[round(i)] for i in np.linspace(0, len(starts) - 1, settings.clips)]
    height, width = source.height // 2 * 2, source.width // 2 * 2
    ends = {start + length: index for index, start in enumerate(starts)}
    recent: deque[np.ndarray] = deque(maxlen=length)
    for count, frame in enumerate(source, 1):
        recent.append(frame[:height, :width])
        if count in ends:
            path = folder / f"{prefix}{ends[count]:06d}.mp4"
            with VideoWriter(path, width=width, height=height, fps=source.fps, quality=0) as writer:
                writer.write(np.stack(recent))
    return len(starts)

"""One job of ``longtake compare``, in a process of its own: makes a video, or what is missing of it, and measures it.

    python -m longtake.cli_compare_job FOLDER NAME [AT_ONCE]

``FOLDER`` has a ``comparison.json``, ``NAME`` is one of its jobs; ``AT_ONCE`` is how many run side by side, 0 if nobody
knows. What is said goes to a log. Exit code: 0 if the
result is written, 128 and more if it was stopped, else 1 or 2; the last line that begins with ``Error:`` says why.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake import __version__
from longtake.cli_prepare import Request
from longtake.cli_progress import Stop, open_streams, say, settle_streams, warn
from longtake.comparison.definition import Comparison, Job, read_definition
from longtake.comparison.files import read_json_file, write_json_file
from longtake.lock import is_locked
from longtake.plan import frames_in
from longtake.prompts import parse_script

if TYPE_CHECKING:
    from longtake.record import Recording

_WAIT = 60.0  # seconds for the process of a run that was killed to notice that
_SAVE_EVERY = 10.0
_SAMPLES = 1000  # chunks whose times are kept


class _Stop(Stop):
    """Stops as well when the process that started this one is gone: nobody would wait for the result."""

    def __init__(self) -> None:
        super().__init__()
        self._parent = os.getppid()

    def __call__(self) -> bool:
        return super().__call__() or os.getppid() != self._parent


class Clock:
    """How long chunks take, and what the memory holds; kept beside the video, so that it survives being stopped."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self._path = path
        self.data: dict[str, Any] = {"chunk_ms": [], "memory_bytes": None, "attended": None, "made": dict(about)}
        try:
            before = read_json_file(path)
            self.data["chunk_ms"] = [float(t) for t in before["chunk_ms"]]
            self.data |= {name: before[name] for name in ("memory_bytes", "attended")}
        except (ValueError, KeyError, TypeError):
            pass  # the first time
        self._last: float | None = None
        self._saved = time.monotonic()

    def __call__(self, recording: Recording) -> None:
        """Called after every chunk. The first one here, which warms up, and those before the memory is full do not
        count."""
        now = time.perf_counter()
        take = recording.take
        full = take.index * take.memory.chunk > take.memory.capacity
        if full:
            least, most = self.data["attended"] or (take.memory.used,) * 2
            self.data["attended"] = [min(least, take.memory.used), max(most, take.memory.used)]
        if self._last is not None and full:
            times = self.data["chunk_ms"]
            if len(times) >= _SAMPLES:
                del times[1::2]  # every second one: early and late ones stay alike
            times.append(round(1000 * (now - self._last), 3))
        self.data["memory_bytes"] = take.memory.nbytes
        if time.monotonic() - self._saved > _SAVE_EVERY:
            self.save()
        self._last = time.perf_counter()

    def save(self) -> None:
        """To the disk."""
        write_json_file(self._path, self.data)
        self._saved = time.monotonic()


def with_options(request: Request, model: str | None, weights: str | None, options: Mapping[str, Any]) -> Request:
    """A request of ``longtake generate`` with what a comparison keeps of one as JSON."""
    kinds = {f.name: str(f.type) for f in dataclasses.fields(Request)}
    typed: dict[str, Any] = {"model": model, "memory_weights": None if weights is None else Path(weights)}
    for name, value in options.items():
        if isinstance(value, list):
            typed[name] = tuple(value)
        else:
            typed[name] = Path(value) if "Path" in kinds[name] and isinstance(value, str) else value
    return dataclasses.replace(request, **typed)


def request_of(comparison: Comparison, job: Job, folder: Path) -> Request:
    """What ``longtake generate`` would be asked for."""
    seconds = f"{max(comparison.lengths):.3f}"
    bare = Request(job.script, job.video(folder), seconds, memory=job.memory, seed=job.seed)
    return with_options(bare, comparison.model, job.weights, comparison.options)


def command_of(comparison: Comparison, job: Job) -> str:
    """What to type to make the video by itself."""
    words = ["longtake", "generate", job.script, "--seconds", f"{max(comparison.lengths):g}"]
    words += ["--model", comparison.model, "--memory", job.memory, "--seed", str(job.seed)]
    if job.weights is not None:
        words += ["--memory-weights", job.weights]
    return shlex.join([*words, *option_words(comparison.options)])


def option_words(options: Mapping[str, Any]) -> list[str]:
    """Options of a request as they are typed."""
    named = {"every": "--snapshot-every", "loras": "--lora"}
    words: list[str] = []
    for name, value in options.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            if one is not None:
                words += [named.get(name, f"--{name.replace('_', '-')}"), str(one)]
    return words


def make(comparison: Comparison, job: Job, folder: Path, stop: Stop, at_once: int) -> int:
    """Makes what is missing of the video, beside ``at_once`` - 1 others; returns an exit code.

    Raises:
        ValueError: in one sentence, if it cannot be made.
    """
    from longtake.promptfiles import status

    video = job.video(folder)
    until = time.monotonic() + _WAIT
    while is_locked(video) and time.monotonic() < until:
        time.sleep(0.2)
    longest = max(comparison.lengths)
    script = parse_script(job.script, longest)
    state = status(video, frames_in(longest, comparison.fps), script, job.seed, job.memory)
    if state == "done":
        return 0
    from longtake.cli_generate import load_for, record, settled, usable_cores
    from longtake.cli_prepare import prepare

    request = dataclasses.replace(request_of(comparison, job, folder), resume=state == "continue")
    if request.threads is None and at_once > 1:
        request = dataclasses.replace(request, threads=max(1, usable_cores() // at_once))
    plan = prepare(request)
    for warning in plan.warnings:
        warn(warning)
    if plan.done is not None:
        return 0
    plan = settled(plan)
    pipe = load_for(plan)
    import torch

    from longtake.machine import machine

    about = {
        "command": command_of(comparison, job),
        "signature": plan.plan.model.signature(),
        "dtype": plan.dtype,
        "devices": list(plan.devices),
        "machine": machine(torch.get_num_threads()),
        "at_once": at_once,
    }
    clock = Clock(_clock_path(video), about)
    code = record(plan, pipe, stop, "The same command goes on.", clock)
    clock.save()
    return code


def _clock_path(video: Path) -> Path:
    return video.with_name(video.name + ".clock.json")


def judge(comparison: Comparison, job: Job, folder: Path, progress: Callable[[int], None] | None = None) -> None:
    """Measures the video and writes the result.

    Raises:
        ValueError: in one sentence, if it cannot be measured.
        OSError: the result cannot be written.
    """
    from longtake.comparison.measure import measure, strip, strip_times
    from longtake.comparison.result import Result
    from longtake.evaluation.features import load_features
    from longtake.evaluation.report import versions
    from longtake.evaluation.source import look

    path, settings = job.video(folder), comparison.settings
    source = look(path)
    if (source.width, source.height) != (comparison.width, comparison.height):
        raise ValueError(
            f"{path} is {source.width}x{source.height} and the others {comparison.width}x{comparison.height}: videos "
            "of different sizes do not compare."
        )
    times = strip_times(comparison.lengths)
    found = measure(source, comparison.lengths, settings, times, load_features(settings.features), progress)
    longest = found.measured[max(comparison.lengths)]
    target = job.strip(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    strip(found.pictures).save(target, quality=90, subsampling=0)
    clock: Mapping[str, Any] = {}
    if _clock_path(path).exists():
        clock = read_json_file(_clock_path(path))
    Result(
        job,
        {seconds: measured.metrics for seconds, measured in found.measured.items()},
        settings.to_dict(),
        {**source.to_dict(), "path": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size},
        {"seconds": longest.seconds.tolist(), **{name: v.tolist() for name, v in longest.windows.items()}},
        times,
        _cost(clock),
        {**clock.get("made", {}), "versions": {**versions(settings), "longtake": __version__}},
    ).write(folder)


def _cost(clock: Mapping[str, Any]) -> dict[str, Any]:
    times = clock.get("chunk_ms") or []
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else [math.nan] * 3
    return {
        "chunk_ms": None if math.isnan(middle) else round(middle, 2),
        "chunk_ms_quartiles": None if math.isnan(low) else [round(low, 2), round(high, 2)],
        "chunks_timed": len(times),
        "memory_bytes": clock.get("memory_bytes"),
        "attended": clock.get("attended"),
    }


def _plain(error: Exception) -> str:
    """What is wrong, without the options of ``longtake generate`` that would help there."""
    text = re.sub(r"[:;,] [^:;,]*--(overwrite|resume|out)\b.*$", ".", str(error))
    return text if text.endswith(".") else text + "."


def run(folder: Path, name: str, at_once: int = 1) -> int:
    """Does the job; returns the exit code."""
    comparison = read_definition(folder)
    job = None if comparison is None else next((job for job in comparison.jobs() if job.name == name), None)
    if comparison is None or job is None:
        return say(f"{folder} has no job {name}.", 2)
    with _Stop() as stop:
        try:
            job.video(folder).parent.mkdir(parents=True, exist_ok=True)
            if code := make(comparison, job, folder, stop, at_once):
                return code

            def check(_: int) -> None:
                if stop():
                    raise KeyboardInterrupt

            judge(comparison, job, folder, check)
            return 0
        except (ValueError, MemoryError) as error:
            return say(_plain(error), 2)
        except OSError as error:
            return say(f"{error.filename or job.video(folder)}: {error.strerror or error}.", 1)
        except KeyboardInterrupt:
            return 128 + (stop.signal or 2)


def main(arguments: Sequence[str]) -> int:
    """Entry point of ``python -m longtake.cli_compare_job``."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as longtake.cli does
    open_streams()
    try:
        return run(Path(arguments[0]), arguments[1], *map(int, arguments[2:]))
    finally:
        settle_streams()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

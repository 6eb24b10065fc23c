"""``longtake compare``: memories against each other, and a report of it."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longtake import cli_options as typed
from longtake.cli_progress import Stop, say, tell
from longtake.plan import count, format_seconds

if TYPE_CHECKING:
    from longtake.cli_compare_prepare import CompareRequest
    from longtake.comparison.definition import Comparison, Job
    from longtake.comparison.dispatch import Command, Dispatcher

DEFAULT_FOLDER = Path("comparison")
SOME_SKIPPED = 3
"""The exit code where something was measured and something was left out, as that of ``longtake eval``."""

_PROMPTS = "prompts.txt"  # a copy, so that a folder has all that is needed to make it again
_MODULE = "longtake.cli_compare_job"


def compare(
    memories: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B,...",
            help="What is compared, see `longtake memories`: memrope,longlive,sliding:window=12,sink=3. Commas or "
            "semicolons, or several times; ours=memrope:recent=7 calls one 'ours'.",
        ),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A prompt, or a script, per line: each with every memory.")
    ] = None,
    seconds: Annotated[
        str, typer.Option(metavar="A,B,...", help="Lengths to measure at. Videos have the longest; it serves for all.")
    ] = "60",
    seeds: Annotated[str, typer.Option(metavar="N|A,B,...", help="How many seeds per prompt, or which.")] = "1",
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="The memory that others are compared with. Default: the first.")
    ] = None,
    memory_weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]PATH",
            help="Weights of the learned memories (echo), or of one of them; may be given several times.",
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(help="The folder for videos, results and reports. The same command goes on where it stopped."),
    ] = DEFAULT_FOLDER,
    model: typed.Model = None,
    components: typed.Components = None,
    lora: typed.Lora = None,
    height: typed.Pixels = None,
    width: typed.Pixels = None,
    dtype: typed.Dtype = None,
    device: typed.Device = None,
    devices: typed.Devices = None,
    offload: typed.Offload = None,
    quantize: typed.Quantize = None,
    on_change: typed.OnChange = None,
    snapshot_every: typed.SnapshotEvery = None,
    window: typed.Window = "2s",
    features: typed.Features = "fixed",
    jobs: Annotated[int, typer.Option(help="Videos at a time, each in a process of its own.", min=1)] = 1,
    threads: typed.Threads = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Run on a Ray cluster whose nodes share this folder: its address, auto, or local (longtake[ray]).",
        ),
    ] = None,
    sheets: Annotated[
        int | None, typer.Option(help="Pairs of prompt and seed whose pictures are in the report. Default: 12.", min=0)
    ] = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Make nothing, write the report of what is there again.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Compare memories: the same prompts and noise with each, measured, and a report of it; see docs/compare.md.

    Writes report.html, report.md and report.json into the folder, and the path of the first to stdout. Exit code: 0
    if all is in the report, 3 if something was left out, 2 if nothing could be made, 1 if the report could not be
    written.
    """
    from longtake.cli_compare_prepare import CompareRequest, absolute_lora

    options = {
        "components": None if components is None else str(components.expanduser().absolute()),
        "loras": [absolute_lora(text) for text in lora or ()],
        "height": height,
        "width": width,
        "dtype": dtype,
        "device": device,
        "devices": devices,
        "offload": offload,
        "quantize": quantize,
        "on_change": on_change,
        "every": snapshot_every,
        "threads": threads,
    }
    request = CompareRequest(
        out,
        tuple(memories or ()),
        prompts,
        seconds,
        seeds,
        baseline,
        tuple(memory_weights or ()),
        model,
        {name: value for name, value in options.items() if value not in (None, [])},
        window,
        features,
        jobs,
        ray,
        sheets,
        report_only,
        quiet,
    )
    raise typer.Exit(compare_command(request))


def compare_command(request: CompareRequest) -> int:
    """Does what was asked for.

    Returns:
        The exit code: 0, 2 for bad input or if there is no result, 3 if something was left out, 1 if the report cannot
        be written, 128 + n if stopped by signal n.
    """
    from longtake.cli_compare_prepare import define
    from longtake.lock import Lock

    folder = request.out.expanduser().absolute()
    try:
        if request.report_only:
            return _report(_there(request, folder), folder, request)
        with _folder(folder):
            comparison = define(request, folder)
            lock = Lock(folder / "comparison.json")
        try:
            return _run(request, comparison, folder)
        finally:
            lock.release()
    except (ValueError, MemoryError) as error:
        return say(str(error), 2)
    except OSError as error:
        return say(f"{error.strerror or error} ({error.filename}).", 2)
    except KeyboardInterrupt:  # while a model is downloaded, or a report written
        return say("Stopped. The same command goes on.") or 130


@contextlib.contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Makes it, and removes it again if nothing comes of it."""
    from longtake.cli_batch import make_folder, remove_folder

    made = make_folder(folder)
    try:
        yield
    except BaseException:
        if made is not None:
            remove_folder(folder, made)
        raise


def _there(request: CompareRequest, folder: Path) -> Comparison:
    from longtake.cli_compare_prepare import chosen_baseline
    from longtake.comparison.definition import read_definition

    comparison = read_definition(folder)
    if comparison is None:
        raise ValueError(f"There is no comparison in {folder}: leave out --report-only to make one.")
    if request.baseline is not None:
        comparison = replace(comparison, baseline=chosen_baseline(request.baseline, comparison.entries))
    return comparison


def _run(request: CompareRequest, comparison: Comparison, folder: Path) -> int:
    from longtake.comparison.definition import FILE
    from longtake.comparison.dispatch import Command
    from longtake.comparison.files import write_json_file
    from longtake.comparison.report import memories
    from longtake.comparison.result import is_complete
    from longtake.promptfiles import read_lines

    comparison = _downloaded(comparison, request)
    write_json_file(folder / FILE, comparison.to_dict())
    assert request.prompts is not None
    lines = [line for line in read_lines(request.prompts) if line.strip()]
    (folder / _PROMPTS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    jobs = comparison.jobs()
    left = [job for job in jobs if not is_complete(job, comparison, folder)]
    if not request.quiet:
        parts = [memories(len(comparison.entries)), count(len(comparison.scripts), "prompt")]
        parts.append(count(len(comparison.seeds), "seed"))
        before = f"; finished before: {len(jobs) - len(left)}" if len(left) < len(jobs) else ""
        say(f"{count(len(jobs), 'video')} of {format_seconds(comparison.lengths[-1])}: {', '.join(parts)}{before}")
    if left:
        dispatcher = _dispatcher(request, comparison)
        at_once = request.jobs if request.ray is None else 0
        commands = [Command(_MODULE, (str(folder), job.name, str(at_once)), job.log(folder)) for job in left]
        with Stop() as stop:
            try:
                dispatcher.run(commands, _Follow(left, folder, stop, request.quiet), _stopping)
            except KeyboardInterrupt:
                say("Stopped. The same command goes on; with --report-only, it writes the report of what is there.")
                return 128 + (stop.signal or 2)
    return _report(comparison, folder, request)


def _downloaded(comparison: Comparison, request: CompareRequest) -> Comparison:
    """With the model here, before several processes look for it.

    Raises:
        ValueError: if it cannot be downloaded.
    """
    if comparison.signature is not None:
        return comparison
    from longtake.checkpoints.hub import download
    from longtake.cli_compare_job import with_options
    from longtake.cli_prepare import Request, asked_for
    from longtake.facts import ModelFacts

    facts = ModelFacts.read(asked_for(with_options(Request(None), comparison.model, None, comparison.options), {}))
    download(facts.info, say=lambda text: None if request.quiet else _note(text), quiet=request.quiet)
    return replace(comparison, signature=facts.located().signature())


def _note(text: str) -> None:
    say(text)


def _dispatcher(request: CompareRequest, comparison: Comparison) -> Dispatcher:
    from longtake.comparison.dispatch import Local, Ray

    if request.ray is None:
        return Local(request.jobs)
    names = (comparison.options.get("devices") or comparison.options.get("device") or "").split(",")
    gpus = sum(name.strip().startswith("cuda") for name in names)
    return Ray(request.ray, int(comparison.options.get("threads") or 1), gpus)


def _stopping() -> None:
    say("\nStopping after the chunks at hand (once more: at once) ...")


class _Follow:
    """Says of every job that ends how it ended, and writes down why one failed."""

    def __init__(self, jobs: Sequence[Job], folder: Path, stop: Stop, quiet: bool) -> None:
        self._jobs = {job.name: job for job in jobs}
        self._folder, self._stop, self._quiet = folder, stop, quiet
        self._done, self._start = 0, time.monotonic()

    def __call__(self, command: Command, code: int) -> None:
        from longtake.comparison.result import Result
        from longtake.comparison.summary import title_of

        job = self._jobs[command.arguments[1]]
        self._done += 1
        if code and (code >= 128 or self._stop()):  # to be continued
            return
        if code:
            reason = _reason(command.log, code)
            Result(job, error=reason).write(self._folder)
            say(f"{title_of(job)}: {reason}", 2)
            return
        self._tidy(job)
        if not self._quiet:
            passed = time.monotonic() - self._start
            left = passed / self._done * (len(self._jobs) - self._done)
            rest = f", {format_seconds(round(left))} left" if left >= 1 else ""
            say(f"{self._done} of {len(self._jobs)}: {title_of(job)}{rest}")

    def _tidy(self, job: Job) -> None:
        """Large snapshots of finished videos go; small ones stay, so that videos can be made longer."""
        from longtake.cli_compare_prepare import LARGE
        from longtake.record import snapshot_path

        snapshot = snapshot_path(job.video(self._folder))
        with contextlib.suppress(OSError):
            if snapshot.stat().st_size > LARGE:
                snapshot.unlink()


def _reason(log: Path, code: int) -> str:
    """Why a job failed, in one sentence: its own last one, if it had any."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    said = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
    if code in (1, 2) and said:
        return said[-1]
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"Its process {how}; what it said is in {log}."


def _report(comparison: Comparison, folder: Path, request: CompareRequest) -> int:
    from longtake.comparison.report import SHEETS, write_report
    from longtake.comparison.summary import Summary

    summary = Summary.read(comparison, folder)
    if not summary.results:
        why = f" {summary.skipped[0].reason}" if summary.skipped else ""
        return say(f"There is no result in {folder}.{why}", 2)
    try:
        files = write_report(
            summary,
            folder,
            [command_line(comparison, request.out)],
            SHEETS if request.sheets is None else request.sheets,
        )
    except OSError as error:
        return say(f"The report could not be written ({error.strerror or error}: {error.filename}).", 1)
    if summary.skipped:
        say(f"{count(len(summary.results), 'video')} in the report; left out: {len(summary.skipped)}.")
    tell(str(files[0]))
    return SOME_SKIPPED if summary.skipped else 0


def command_line(comparison: Comparison, out: Path) -> str:
    """What to type for the same comparison."""
    from longtake.cli_compare_job import option_words

    memories = [e.memory if e.label == e.memory else f"{e.label}={e.memory}" for e in comparison.entries]
    seeds = list(comparison.seeds)
    words = ["longtake", "compare", "--model", comparison.model, "--memories", ";".join(memories)]
    words += ["--baseline", comparison.baseline, "--prompts", str(out / _PROMPTS)]
    words += ["--seconds", ",".join(f"{seconds:g}" for seconds in comparison.lengths)]
    words += ["--seeds", str(len(seeds)) if seeds == list(range(len(seeds))) else ",".join(map(str, seeds)) + ","]
    for label, path in comparison.weights.items():
        words += ["--memory-weights", f"{label}={path}"]
    words += option_words({k: v for k, v in comparison.options.items() if k != "threads"})
    if comparison.settings.window != 2:
        words += ["--window", f"{comparison.settings.window:g}s"]
    if comparison.settings.features != "fixed":
        words += ["--features", comparison.settings.features]
    return shlex.join([*words, "--out", str(out)])

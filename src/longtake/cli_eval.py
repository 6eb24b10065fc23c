"""``longtake eval``: measures videos, and writes what it found as a table, as JSON and as curves."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longtake.cli_options import Features, Window
from longtake.cli_progress import say, tell, warn
from longtake.evaluation.registry import METRICS
from longtake.evaluation.settings import Settings, parse_boundaries
from longtake.plan import count

if TYPE_CHECKING:
    from longtake.evaluation.evaluate import Result, Skipped
    from longtake.evaluation.source import Source
    from longtake.evaluation.vbench import VBenchSettings

SOME_SKIPPED = 3
"""The exit code where something was measured and something was left out."""

_EVERY = 5.0  # seconds between lines of progress


@dataclass(frozen=True)
class EvalRequest:
    """What was typed."""

    videos: tuple[Path, ...] = ()
    as_json: bool = False
    plots: Path | None = None
    window: str = "2s"
    chunk: str = "9,12"
    decoder: str = "1,4"
    features: str = "fixed"
    vbench: bool = False
    dimensions: str | None = None
    clip: str | None = None
    clips: int | None = None
    device: str | None = None
    listing: bool = False
    quiet: bool = False


def evaluate(
    videos: Annotated[
        list[Path] | None,
        typer.Argument(metavar="VIDEO...", help="Video files of one size.", show_default=False),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; with a name that ends in .json after it, write it there.")
    ] = False,
    plots: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw curves over time into this folder, as SVG.")
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List what is measured: formulas, units, sources.")] = False,
    window: Window = "2s",
    chunk: Annotated[
        str, typer.Option(metavar="FIRST,REST|none", help="Frames of the first chunk and of later ones.")
    ] = "9,12",
    decoder: Annotated[
        str,
        typer.Option(metavar="FIRST,REST|none", help="Frames that the decoder makes of the first latent, of others."),
    ] = "1,4",
    features: Features = "fixed",
    vbench: Annotated[
        bool,
        typer.Option(
            "--vbench",
            help="Ask VBench, too. The first time, its package (several GB) and then its weights are downloaded.",
        ),
    ] = False,
    dimensions: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="VBench: which dimensions. Default: the seven of long video.")
    ] = None,
    clip: Annotated[str | None, typer.Option(help="VBench: length of clips. Default: 2s.")] = None,
    clips: Annotated[int | None, typer.Option(help="VBench: at most so many clips per video. Default: all.")] = None,
    device: Annotated[
        str | None, typer.Option(metavar="auto|cpu|cuda|cuda:N", help="VBench: where to compute. Default: auto.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Measure videos: drift, motion, flicker, seams, loops, identity; see docs/eval.md.

    Exit code: 0 if all was measured, 3 if something was left out, 2 if nothing could be measured, 1 if the results
    could not be written.
    """
    request = EvalRequest(
        tuple(videos or ()),
        as_json,
        plots,
        window,
        chunk,
        decoder,
        features,
        vbench,
        dimensions,
        clip,
        clips,
        device,
        listing,
        quiet,
    )
    raise typer.Exit(eval_command(request))


def eval_command(request: EvalRequest) -> int:
    """Does what was asked for.

    Returns:
        The exit code: 0, 2 for bad input or if nothing could be measured, 3 if something was left out, 1 if the results
        cannot be written.
    """
    if request.listing:
        return _list(request.as_json)
    try:
        paths, file, settings, vbench = _check(request)
    except (ValueError, OSError) as error:
        return say(str(error), 2)
    try:
        return _measure(request, paths, file, settings, vbench)
    except KeyboardInterrupt:
        return say("Stopped; nothing was written.", 130)


def _list(as_json: bool) -> int:
    if as_json:
        tell(json.dumps({name: metric.to_dict() for name, metric in METRICS.items()}, indent=2))
        return 0
    from longtake.evaluation.report import listing

    tell("\n".join(listing()))
    return 0


def _check(request: EvalRequest) -> tuple[list[Path], Path | None, Settings, VBenchSettings | None]:
    """Settings, and the videos and the file to write among the paths that were given.

    Raises:
        ValueError: in one sentence.
    """
    from longtake.evaluation.features import check_features
    from longtake.evaluation.vbench import VBenchSettings
    from longtake.prompts import parse_duration

    # no video ends in .json: this way the file may stand anywhere, and --json may go without one
    files = [path for path in request.videos if path.suffix.lower() == ".json"]
    videos = [path for path in request.videos if path not in files]
    if not videos:
        raise ValueError("Which videos? longtake eval VIDEO..., or longtake eval --list for what is measured.")
    if files and not request.as_json:
        raise ValueError(f"{files[0]} is no video; to write results into it, say --json {files[0]}.")
    if len(files) > 1:
        raise ValueError(f"Results go into one file, not {len(files)}: {', '.join(map(str, files))}.")
    for given, option in ((request.dimensions, "--dimensions"), (request.clip, "--clip"), (request.device, "--device")):
        if given is not None and not request.vbench:
            raise ValueError(f"{option} is for --vbench.")
    if request.clips is not None and not request.vbench:
        raise ValueError("--clips is for --vbench.")
    settings = Settings(
        window=parse_duration(request.window),
        chunk=parse_boundaries(request.chunk, "--chunk"),
        decoder=parse_boundaries(request.decoder, "--decoder"),
        features=request.features,
    )
    check_features(request.features)
    for path in files:
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise ValueError(f"{path} is no place for the results: the folder must exist, and it must be a file.")
    if request.plots is not None and request.plots.exists() and not request.plots.is_dir():
        raise ValueError(f"--plots must be a folder, or one that can be made, and {request.plots} is a file.")
    vbench = None
    if request.vbench:
        default = VBenchSettings()
        names = request.dimensions
        vbench = VBenchSettings(
            default.dimensions if names is None else tuple(n.strip() for n in names.split(",") if n.strip()),
            default.seconds if request.clip is None else parse_duration(request.clip),
            request.clips,
            request.device or default.device,
        )
    return list(dict.fromkeys(videos)), files[0] if files else None, settings, vbench


def _measure(
    request: EvalRequest, paths: list[Path], file: Path | None, settings: Settings, vbench: VBenchSettings | None
) -> int:
    from longtake.evaluation.evaluate import Skipped, evaluate, sources
    from longtake.evaluation.features import load_features
    from longtake.evaluation.report import Report

    good, skipped = sources(paths)
    for one in skipped:
        say(one.reason, 2)
    if not good:
        return 2
    if len({source.fps for source in good}) > 1:
        warn("These videos have different frame rates: flicker, seams and differences of neighbours do not compare.")
    if settings.features != "fixed":
        from longtake.quiet import quieten_libraries

        quieten_libraries()
    try:
        extract = load_features(settings.features)
    except ValueError as error:
        return say(str(error), 2)
    results: list[Result] = []
    for source in good:
        try:
            results.append(evaluate(source, settings, extract, None if request.quiet else _Line()))
        except (ValueError, OSError) as error:
            skipped.append(Skipped(str(source.path), str(error)))
            say(str(error), 2)
    about: Mapping[str, object] = {}
    if vbench is not None and results:
        results, more, about = _ask_vbench(results, vbench, request.quiet)
        skipped += more
    report = Report(results, skipped, settings, command_line(request), dict(about))
    code = (SOME_SKIPPED if skipped else 0) if results else 2
    try:
        text = json.dumps(report.to_dict(), indent=2)
        if file is not None:
            file.write_text(text + "\n", encoding="utf-8")
        if request.plots is not None and results:
            from longtake.evaluation.plots import draw

            draw(results, request.plots)
    except OSError as error:
        return say(f"The results could not be written ({error.strerror or error}: {error.filename}).", 1)
    if results or request.as_json:
        tell(text if request.as_json and file is None else "\n".join(report.lines()))
    if skipped and results:
        say(f"{count(len(results), 'video')} measured; left out: {', '.join(one.what for one in skipped)}.")
    return code


def _ask_vbench(
    results: list[Result], settings: VBenchSettings, quiet: bool
) -> tuple[list[Result], list[Skipped], Mapping[str, object]]:
    """The results with what VBench says; without, and a sentence, where it cannot be asked."""
    from longtake.evaluation.evaluate import Skipped
    from longtake.evaluation.vbench import run_vbench

    try:
        found = run_vbench([r.source for r in results], settings, (lambda text: 0) if quiet else say)
    except (ValueError, OSError) as error:
        say(str(error), 2)
        return results, [Skipped("vbench", str(error))], {}
    for one in found.skipped:
        say(one.reason, 2)
    both = zip(results, found.scores, strict=True)
    return [replace(result, vbench=scores) for result, scores in both], found.skipped, found.about


class _Line:
    """Says every 5 seconds how far the measuring of a video is; nothing if it takes less."""

    def __init__(self) -> None:
        self._shown = time.monotonic()

    def __call__(self, source: Source, done: int) -> None:
        now = time.monotonic()
        if now - self._shown >= _EVERY:
            self._shown = now
            say(f"{source.path}: {done} of {count(source.frames, 'frame')} ({100 * done // source.frames}%)")


def command_line(request: EvalRequest) -> str:
    """What to type for the same results; defaults are left out."""
    words = ["longtake", "eval", *map(str, request.videos)]
    default = EvalRequest()
    for name, option in (
        ("window", "--window"),
        ("chunk", "--chunk"),
        ("decoder", "--decoder"),
        ("features", "--features"),
    ):
        if getattr(request, name) != getattr(default, name):
            words += [option, str(getattr(request, name))]
    if request.vbench:
        words.append("--vbench")
        for name in ("dimensions", "clip", "clips", "device"):
            if getattr(request, name) is not None:
                words += [f"--{name}", str(getattr(request, name))]
    if request.as_json:
        words.append("--json")
    return shlex.join(words)

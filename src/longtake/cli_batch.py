"""``longtake generate`` with ``--prompts`` or ``--config``: a video per line, in a folder; the model is loaded once."""

from __future__ import annotations

import contextlib
import gc
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from longtake.checkpoints.choice import Choice
from longtake.checkpoints.sources import LoraFile, parse_lora
from longtake.cli_generate import load_for, record, settled
from longtake.cli_prepare import DEFAULT_SECONDS, Job, Request, asked_for, check_words, prepare
from longtake.cli_progress import Stop, say, warn
from longtake.configs import Config, read_config, told
from longtake.facts import ModelFacts
from longtake.plan import count, format_bytes, frames_in
from longtake.promptfiles import Item, items, read_lines, read_prompts, status
from longtake.prompts import parse_duration, parse_script
from longtake.record import snapshot_path

if TYPE_CHECKING:
    from longtake.pipeline import LongTakePipeline

DEFAULT_FOLDER = Path("takes")
_LARGE = 10**8  # bytes of a snapshot that is not kept for a finished video


def generate_all(
    request: Request, config: Path | None, prompts: Path | None, start: int | None, end: int | None, out: Path | None
) -> int:
    """Makes all videos that are not finished yet; returns the exit code of the first that fails, else 0.

    Args:
        request: what was typed besides; its ``out`` is not looked at.
        config: a published configuration, see :mod:`longtake.configs`; what was typed takes the place of what it says.
        prompts: a file of prompts, in place of the configuration's.
        start, end: lines.
        out: the folder; None for the configuration's, else ``takes``.
    """
    made: Path | None = None
    try:
        if request.prompt is not None:
            raise ValueError("A prompt on the command line and a file of prompts exclude each other: leave one out.")
        if request.continue_from is not None:
            raise ValueError("--continue-from is for one video: give a prompt instead of --prompts or --config.")
        if request.resume and request.overwrite:
            raise ValueError("--resume continues videos and --overwrite starts over: give one of them.")
        settings = None if config is None else read_config(config)
        if settings is not None:
            request = _with_config(request, settings)
            if not request.quiet:
                for line in told(settings):
                    say(f"Config   {line}")
        wanted = _items(request, settings, prompts, start or 0, end, out)
        facts = ModelFacts.read(asked_for(request, {}))
        folder = wanted[0].path.parent
        made = make_folder(folder)
        jobs = [job for job in (_job(request, item, facts) for item in wanted) if job is not None and job.done is None]
        _check_room(jobs, folder)
        if (done := len(wanted) - len(jobs)) and not request.quiet:
            say(f"Finished before: {done} of {count(len(wanted), 'video')}.")
        for warning in dict.fromkeys(warning for job in jobs for warning in job.warnings):
            warn(warning)
        with Stop() as stop:
            try:
                return _record_all(jobs, stop)
            except KeyboardInterrupt:
                say("Stopped. The same command goes on.")
                return 128 + (stop.signal or 2)
    except (ValueError, MemoryError) as error:
        return say(str(error), 2)
    except OSError as error:
        return say(f"{error.strerror or error} ({error.filename}).", 2)
    finally:
        if made is not None:
            remove_folder(folder, made)


def make_folder(folder: Path) -> Path | None:
    """Makes a folder with those above it; returns the topmost that was made."""
    if folder.suffix.lower() == ".mp4" or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"For several videos --out is the folder, and {folder} is none.")
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[-1] if missing else None


def remove_folder(folder: Path, topmost: Path) -> None:
    """Removes what was made, as far as nothing is in it."""
    with contextlib.suppress(OSError):
        while True:
            folder.rmdir()
            if folder == topmost:
                return
            folder = folder.parent


def _check_room(jobs: list[Job], folder: Path) -> None:
    """Refuses what the disk has no room for in the end. Each job was checked by itself, with its snapshots."""
    needed = sum(job.plan.video_bytes for job in jobs)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"{count(len(jobs), 'video')} need about {format_bytes(needed)} on the disk of {folder}, where "
            f"{format_bytes(free)} are free: choose fewer with --start and --end, or another --out."
        )


def _record_all(jobs: list[Job], stop: Stop) -> int:
    pipes: list[LongTakePipeline] = []  # one, or none
    loaded: tuple[object, ...] | None = None

    def release() -> None:
        pipes.clear()
        gc.collect()

    for number, job in enumerate(jobs, 1):
        if len(jobs) > 1 and not job.request.quiet:
            say(f"\n{number} of {len(jobs)}")
        # Videos that were begun with another model or dtype go on with that.
        job = settled(job, loaded, release)
        if not pipes:
            pipes.append(load_for(job))
            loaded = job.loads
        if code := record(job, pipes[0], stop, "The same command goes on."):
            return code
        snapshot = snapshot_path(job.request.out)
        if job.plan.snapshot_bytes > _LARGE and snapshot.exists():
            snapshot.unlink()
            if not job.request.quiet:
                say(f"Removed the snapshot of the finished video, {format_bytes(job.plan.snapshot_bytes)}.")
    return 0


def _items(
    request: Request, config: Config | None, prompts: Path | None, start: int, end: int | None, out: Path | None
) -> list[Item]:
    if config is not None:
        folder = out or config.output_folder or DEFAULT_FOLDER
        found = config.items(start, end, prompts_file=prompts, folder=folder)
        shift = 0 if request.seed is None else request.seed - config.seed
        return [replace(x, seed=x.seed + shift) for x in found]
    assert prompts is not None
    return items(
        read_prompts(prompts),
        out or DEFAULT_FOLDER,
        start=start,
        end=end,
        seed=request.seed or 0,
        titles=read_lines(prompts),
    )


def _with_config(request: Request, config: Config) -> Request:
    """What was typed, and for all that was not, what the configuration says."""
    loras: tuple[LoraFile, ...] = ()
    if request.model is not None:
        model, components = request.model, request.components
    else:
        config.check_files()
        components = request.components or config.components
        if config.checkpoint is not None:
            model = f"{config.checkpoint}#{config.key}" if config.key else str(config.checkpoint)
        else:
            model = str(config.sources(components).transformer)
        loras = () if config.lora is None else (config.lora,)
    more = tuple(parse_lora(text) for text in request.loras)
    return replace(
        request,
        choice=Choice(model, components, (*loras, *more), config.steps, config.shift, config.chunk),
        seconds=request.seconds or f"{config.seconds:.6f}",
        memory=request.memory or config.memory,
        height=request.height or config.height,
        width=request.width or config.width,
        seed=config.seed if request.seed is None else request.seed,
    )


def _job(request: Request, item: Item, facts: ModelFacts) -> Job | None:
    """What is to be done for one video; None if nothing is."""
    seconds, fps = None if request.seconds is None else parse_duration(request.seconds), facts.fps
    try:
        script = parse_script(item.script, seconds, default_seconds=DEFAULT_SECONDS)
        check_words(script, facts)
    except ValueError as error:
        raise ValueError(f"Line {item.index + 1} of the prompts: {error}") from None
    length = seconds or script.seconds or DEFAULT_SECONDS
    one = replace(request, prompt=item.script, out=item.path, seed=item.seed, resume=False)
    if not request.overwrite:
        state = status(item.path, frames_in(length, fps), script, item.seed, request.memory)
        if state == "done":
            return None
        if state == "continue":
            one = replace(one, resume=True, image=None)
    return prepare(one)

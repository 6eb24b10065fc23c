"""``longtake generate``, the second half: from a plan to a file."""

from __future__ import annotations

import os
import shutil
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

from longtake.checkpoints import MODELS
from longtake.cli_prepare import Job, Request, prepare
from longtake.cli_progress import ProgressLine, Stop, say, tell, warn
from longtake.plan import count, default_dtype, format_bytes, format_seconds
from longtake.quiet import quieten_libraries
from longtake.record import Recorded, Recording, snapshot_path

if TYPE_CHECKING:
    from longtake.pipeline import LongTakePipeline


def describe(job: Job) -> list[str]:
    """The plan, line by line, for people."""
    plan, out = job.plan, job.request.out
    lines = [
        f"Video    {format_seconds(plan.seconds)}, {count(plan.frames, 'frame')} of {plan.width}x{plan.height} pixels "
        f"at {plan.model.fps} per second, in {count(plan.chunks, 'chunk')}"
    ]
    if job.found is not None:
        there = format_seconds(job.found.frames / plan.model.fps)
        lines.append(f"Go on    from {there}, where {snapshot_path(out).name} was taken")
    segments = job.script.segments
    for index, segment in enumerate(segments):
        when = f"from {format_seconds(segment.start)}: " if len(segments) > 1 else ""
        lines.append(f"{'Prompt' if index == 0 else '':8} {when}{segment.prompt}")
    free = shutil.disk_usage(out.parent).free
    return [
        *lines,
        f"Model    {plan.model.name}, {plan.dtype} on {job.device}, seed {job.seed}",
        f"Memory   {plan.policy.spec()}: {plan.layout}, {format_bytes(plan.memory_bytes)}",
        f"File     {out.absolute()}, about {format_bytes(plan.video_bytes)} ({format_bytes(free)} free); "
        f"snapshot every {format_seconds(job.every)} of video, about {format_bytes(plan.snapshot_bytes)}",
        f"Time     {_time(job)}",
    ]


def _time(job: Job) -> str:
    plan, frames = job.plan, 0 if job.found is None else job.found.frames
    if job.device == "auto":
        return "measured while it runs"
    cores = job.request.threads or usable_cores()
    left = replace(plan, seconds=max(1, plan.frames - frames) / plan.model.fps).estimate_seconds(job.device, cores)
    where = f"{count(cores, 'thread')} of this CPU" if job.device == "cpu" else f"this {job.device} device"
    return f"about {format_seconds(float(f'{left:.1g}'))} on {where}, very roughly; measured while it runs"


def usable_cores() -> int:
    """Cores that this process may use, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def generate(request: Request) -> int:
    """Does it all; returns the exit code: 0 done, 1 failed on the way, 2 refused, 128 + n stopped by signal n."""
    try:
        job = prepare(request)
    except (ValueError, MemoryError) as error:
        return say(str(error), 2)
    except OSError as error:
        return say(f"{error.strerror or error} ({error.filename}).", 2)
    for warning in job.warnings:
        warn(warning)
    if job.done is not None:
        seconds = format_seconds(job.done / job.plan.model.fps)
        say(f"{request.out} is {seconds} long already; ask for more with --seconds.", 0)
        tell(str(request.out.absolute()))
        return 0
    with Stop() as stop:
        try:
            return _record(job, stop)
        except KeyboardInterrupt:
            if _resumable(job):
                say(f"Stopped at once. To continue:\n  {job.continue_command()}")
            else:
                say("Stopped before the first frame.")
            return 128 + (stop.signal or 2)


def _resumable(job: Job) -> bool:
    try:
        return Recorded.look(job.request.out) is not None
    except ValueError:
        return False


def _load(job: Job) -> tuple[Job, LongTakePipeline]:
    def announce() -> None:
        if not job.request.quiet:
            say("\n".join(describe(job)) + "\nLoading the model ...")

    known = job.device != "auto"
    if known:  # before torch, which takes its time
        announce()
    import torch

    from longtake.checkpoints import load

    if job.request.threads is not None:
        torch.set_num_threads(job.request.threads)
    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    device = job.device if job.device != "auto" else next(d for d in ("cuda", "mps", "cpu") if has[d])
    if not has[device]:
        there = ", ".join(name for name, yes in has.items() if yes)
        raise ValueError(f"There is no {device} device here that this PyTorch can use; --device can be {there}.")
    dtype = default_dtype(device) if job.dtype == "auto" else job.dtype
    job = replace(job, device=device, dtype=dtype, plan=replace(job.plan, dtype=dtype))
    if not known:
        announce()
    quieten_libraries()
    warnings.filterwarnings("ignore", "Only the first")  # said already, of all prompts and in other words
    try:
        pipe = load(job.plan.model.name, getattr(torch, dtype), device)
    except Exception as error:
        # Whatever diffusers finds wrong with a folder of weights; it has no class of its own for that.
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"The model {job.plan.model.name} cannot be loaded: {reason}") from error
    return job, pipe


def _record(job: Job, stop: Stop) -> int:
    request, plan = job.request, job.plan
    try:
        job, pipe = _load(job)
        settings = {
            "model": plan.model.name if plan.model.name in MODELS else str(plan.model.folder.absolute()),
            "signature": plan.model.signature(),
            "device": job.device,
            "seconds": plan.seconds,
            "every": job.every,
        }
        if job.found is None:
            take = pipe.start(job.script, plan.policy, job.seed, plan.height, plan.width, job.on_change)
            pipe.encode_prompt(job.script.segments[0].prompt)  # refuses a prompt without a known word
            recording = Recording.start(take, request.out, snapshot_every=job.every, settings=settings)
            if request.out.exists() and not request.overwrite:
                raise ValueError(f"Another process has made {request.out} meanwhile: choose another --out.")
        else:
            recording = Recording.resume(pipe, request.out, snapshot_every=job.every, settings=settings)
            if recording.frames != job.found.frames:
                raise ValueError(f"Another process has continued {request.out} meanwhile: try again.")
            recording.take.steer(job.script)
    except (ValueError, FileNotFoundError) as error:
        return say(str(error), 2)
    except OSError as error:
        return say(f"{request.out} cannot be continued: {error.strerror or error}.", 1)

    progress = ProgressLine(request.out.name, recording.frames, quiet=request.quiet)
    try:
        with stop.gently():
            finished = recording.run(plan.seconds, on_chunk=progress.update, should_stop=stop)
    except OSError as error:
        progress.end()
        done = recording.frames / plan.model.fps
        kept = f"{request.out} plays for {format_seconds(done)}; " if recording.frames else ""
        return say(
            f"The take stopped because its files could not be written ({error.strerror or error}): {kept}"
            f"when there is room again, continue with: {job.continue_command()}",
            1,
        )
    progress.end()
    if not finished:
        there = format_seconds(recording.frames / plan.model.fps)
        say(f"Stopped at {there} of {format_seconds(plan.seconds)}. To continue:\n  {job.continue_command()}", 0)
        return 128 + stop.signal
    if not request.quiet:
        say(progress.summary(), 0)
    tell(str(request.out.absolute()))
    return 0

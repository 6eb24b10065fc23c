"""``longtake generate``, the second half: from a plan to a file."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from longtake.cli_prepare import Job, Request, default_offload, other_model, prepare, settle_devices
from longtake.cli_progress import PastLine, ProgressLine, Stop, say, tell, warn
from longtake.plan import count, default_dtype, format_bytes, format_seconds
from longtake.process import keep_freed_memory
from longtake.quiet import quieten_libraries
from longtake.record import Progress, Recorded, Recording, snapshot_path
from longtake.speed import tiny_file

if TYPE_CHECKING:
    from longtake.pipeline import LongTakePipeline


_SMALLER = "ask for a smaller picture, a memory with fewer frames, --offload group or --quantize fp8"


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
        change = f" [{segment.change}]" if segment.change else ""
        when = f"from {format_seconds(segment.start)}{change}: " if len(segments) > 1 else ""
        lines.append(f"{'Prompt' if index == 0 else '':8} {when}{segment.prompt}")
    if job.on_change != "keep" and any(segment.change is None for segment in segments[1:]):
        lines.append(f"Change   {job.on_change}, where a prompt does not say how it takes over")
    if job.request.image is not None:
        lines.append(f"Start    with {job.request.image}")
    if job.request.continue_from is not None:
        lines.append(
            f"Start    after {job.request.continue_from}: "
            f"{format_seconds(job.given / plan.model.fps)} are read into the memory"
        )
    free = shutil.disk_usage(out.parent).free
    how = f"{plan.dtype} on {', '.join(job.devices)}" + (f", blocks kept in {job.quantize}" if job.quantize else "")
    return [
        *lines,
        f"Model    {plan.model.name}, {how}, seed {job.seed}",
        f"Memory   {plan.policy.spec()}: {plan.layout}, {format_bytes(plan.memory_bytes)}",
        f"File     {out.absolute()}, about {format_bytes(plan.video_bytes)} ({format_bytes(free)} free); "
        f"snapshot every {format_seconds(job.every)} of video, about {format_bytes(plan.snapshot_bytes)}",
        f"Time     {_time(job)}",
    ]


def _time(job: Job) -> str:
    plan, frames = job.plan, 0 if job.found is None else job.found.frames
    if job.devices == ("auto",) or len(job.devices) > 1:
        return "measured while it runs"
    kind = job.devices[0].split(":")[0]
    cores = job.request.threads or usable_cores()
    left = replace(plan, seconds=max(1, plan.frames - frames) / plan.model.fps).estimate_seconds(kind, cores)
    where = f"{count(cores, 'thread')} of this CPU" if kind == "cpu" else f"this {kind} device"
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
            try:
                job = settled(job)
                pipe = load_for(job)
            except ValueError as error:
                return say(str(error), 2)
            return record(job, pipe, stop)
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


def settled(job: Job, loaded: tuple[object, ...] | None = None, release: Callable[[], None] | None = None) -> Job:
    """What can only be known now: the devices that "auto" stands for, whether everything fits there, and the files of
    the model, downloaded if need be. Says what will be done.

    Args:
        loaded: of an earlier job whose pipeline is there, what that ``loads``.
        release: lets go of that pipeline; called if it is not one for this job.

    Raises:
        ValueError: in one sentence, if a device or the model cannot be had, or it does not fit.
    """
    from longtake.placement import check_devices, check_offload, present_devices

    devices = (present_devices()[0],) if job.devices == ("auto",) else job.devices
    if devices != ("cpu",):
        check_devices(devices)  # with torch, which takes its time
    offload = job.offload or default_offload(devices)
    check_offload(offload, devices)
    dtype = default_dtype(devices[0]) if job.dtype == "auto" else job.dtype
    job = replace(job, devices=devices, offload=offload, dtype=dtype, plan=replace(job.plan, dtype=dtype))
    _check_ways(job)
    if not job.request.quiet:
        say("\n".join(describe(job)))
    if job.loads != loaded:
        if release is not None:
            release()
        job = replace(job, layers=_layers(job))
    if job.plan.model.sources is None:
        from longtake.checkpoints.hub import download

        quiet = job.request.quiet
        download(job.plan.model.info, say=lambda text: None if quiet else _note(text), quiet=quiet)
        job = replace(job, plan=replace(job.plan, model=job.plan.model.located()))
        kept = {} if job.found is None else job.found.settings
        if kept.get("signature") not in (None, job.plan.model.signature()):
            raise ValueError(other_model(job.request.out, job.plan.model, kept))
    return job


def _check_ways(job: Job) -> None:
    """Refuses ways to compute that are not there on the job's devices, before anything is loaded."""
    if job.attention != "auto":
        import torch

        from longtake.kernels import kernel_for

        for device in job.devices:
            kernel_for(job.attention, torch.device(device), getattr(torch, job.dtype))
    if job.compilation == "blocks":
        if len(job.devices) > 1 or job.offload in ("model", "group"):
            raise ValueError("--compile blocks needs all blocks on one device: give one, or leave --compile out.")
        import torch

        from longtake.compiled import check

        check(torch.device(job.devices[0]))


def _layers(job: Job) -> tuple[int, ...]:
    """Blocks per device, by what has room where. Says what will be held where, by arithmetic.

    Raises:
        ValueError: if it does not fit, in one sentence that says what would.
    """
    from longtake.fit import Fit
    from longtake.placement import free_memory, present_devices

    plan = job.plan
    fit = Fit.of(
        plan.model,
        plan.policy,
        plan.height,
        plan.width,
        dtype=plan.dtype,
        devices=job.devices,
        offload=job.offload,
        quantize=job.quantize,
    )
    if not job.request.quiet:
        first, *rest = fit.lines()
        say("\n".join([f"Needs    {first}", *(f"         {line}" for line in rest)]))
    if not fit.fits:
        alone = settle_devices(None, None) == ("cpu",)  # then there is no need to load torch and ask it
        others = [] if alone else [name for name in present_devices() if name not in job.devices]
        raise ValueError(fit.advice({name: free_memory(name) for name in others}) or "This does not fit.")
    return fit.layers


def _note(text: str) -> None:
    say(text)


def load_for(job: Job) -> LongTakePipeline:
    """Loads the model of a settled job.

    Raises:
        ValueError: in one sentence.
    """
    import torch

    from longtake.checkpoints import load
    from longtake.checkpoints.lora import LoraError

    if not job.request.quiet:
        say("Loading the model ...")
    if job.request.threads is not None:
        torch.set_num_threads(job.request.threads)
    if set(job.devices) == {"cpu"}:
        keep_freed_memory()
    quieten_libraries()
    warnings.filterwarnings("ignore", "Only the first")  # said already, of all prompts and in other words
    model = job.plan.model
    try:
        pipe = load(
            model.choice,
            getattr(torch, job.dtype),
            devices=job.devices,
            layers=job.layers,
            offload=job.offload,
            quantize=job.quantize,
        )
    except LoraError:
        raise
    except Exception as error:
        # Whatever diffusers finds wrong with a folder of weights; it has no class of its own for that.
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"The model {model.name} cannot be loaded: {reason}") from error
    _choose(pipe, job)
    return pipe


def _choose(pipe: LongTakePipeline, job: Job) -> None:
    """How a pipeline, which may have had another job before, is to compute."""
    file = tiny_file(job.decoding)
    if file is not None:
        pipe.load_tiny_decoder(file)
    pipe.attention, pipe.compilation = job.attention, job.compilation
    pipe.decoding = job.decoding if file is None else "tiny"


def record(
    job: Job,
    pipe: LongTakePipeline,
    stop: Stop,
    again: str | None = None,
    on_chunk: Callable[[Recording], None] | None = None,
) -> int:
    """Makes the video of a settled job; returns the exit code.

    Args:
        again: how to go on, if not by its own command.
        on_chunk: called after every chunk, when it is written.
    """
    import torch

    request, plan = job.request, job.plan
    try:
        settings = {
            "model": plan.model.place,
            "choice": plan.model.choice.to_dict(),
            "signature": plan.model.signature(),
            "device": ",".join(job.devices),
            "seconds": plan.seconds,
            "every": job.every,
        } | ({} if job.quantize is None else {"quantize": job.quantize})
        settings |= {} if job.attention == "auto" else {"attention": job.attention}
        settings |= {} if job.compilation == "auto" else {"compilation": job.compilation}
        settings |= {} if job.decoding == "exact" else {"decoding": job.decoding}
        _choose(pipe, job)
        if job.found is None:
            take = pipe.start(
                job.script,
                plan.policy,
                job.seed,
                plan.height,
                plan.width,
                job.on_change,
                image=request.image,
                video=request.continue_from,
                on_past=None if request.quiet else PastLine(),
            )
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
    except torch.OutOfMemoryError:
        return say(f"{', '.join(job.devices)} has too little memory to begin the take: {_SMALLER}.", 1)

    progress = ProgressLine(request.out.name, recording.frames, quiet=request.quiet)

    def after(done: Progress) -> None:
        progress.update(done)
        if on_chunk is not None:
            on_chunk(recording)

    try:
        with stop.gently():
            finished = recording.run(plan.seconds, on_chunk=after, should_stop=stop)
    except OSError as error:
        progress.end()
        done = recording.frames / plan.model.fps
        kept = f"{request.out} plays for {format_seconds(done)}; " if recording.frames else ""
        return say(
            f"The take stopped because its files could not be written ({error.strerror or error}): {kept}"
            f"when there is room again, continue with: {job.continue_command()}",
            1,
        )
    except ValueError as error:
        progress.end()
        return say(str(error), 2)
    except torch.OutOfMemoryError:
        progress.end()
        return say(
            f"{', '.join(job.devices)} ran out of memory: {_SMALLER}; or, when others have given some back, continue "
            f"with: {job.continue_command()}",
            1,
        )
    progress.end()
    if not finished:
        there = format_seconds(recording.frames / plan.model.fps)
        how = again or f"To continue:\n  {job.continue_command()}"
        say(f"Stopped at {there} of {format_seconds(plan.seconds)}. {how}", 0)
        return 128 + stop.signal
    if not request.quiet:
        say(progress.summary(), 0)
    tell(str(request.out.absolute()))
    return 0

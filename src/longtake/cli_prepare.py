"""``longtake generate``, the first half: from what was typed to a plan, or to a refusal. Loads no torch."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtake.lock import is_locked, locked_by_another
from longtake.memory import PROMPT_CHANGES, parse_memory
from longtake.plan import DTYPE_BYTES, ModelFacts, Plan, count, default_dtype, format_bytes, format_seconds
from longtake.pocket.words import MAX_WORDS, content_words, unknown_words, what_it_knows, words_too_many
from longtake.prompts import Script, parse_duration, parse_script
from longtake.record import SNAPSHOT_EVERY, Recorded, snapshot_path

DEFAULT_SECONDS = 30.0
ON_CHANGE = (*PROMPT_CHANGES, "recache")
DTYPES = ("auto", *DTYPE_BYTES)
DEVICES = ("auto", "cpu", "cuda", "mps")
_THREADS_PER_CPU = 4  # more only stand in each other's way


@dataclass(frozen=True)
class Request:
    """What was typed; None for what was not."""

    prompt: str | None
    out: Path
    seconds: str | None = None
    model: str | None = None
    memory: str | None = None
    seed: int | None = None
    height: int | None = None
    width: int | None = None
    dtype: str | None = None
    device: str | None = None
    on_change: str | None = None
    every: str | None = None
    threads: int | None = None
    resume: bool = False
    overwrite: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Job:
    """What will be done, all settled. ``found`` is what is continued, if anything; ``device`` may be "auto"."""

    request: Request
    plan: Plan
    script: Script
    seed: int
    dtype: str
    device: str
    on_change: str
    every: float
    found: Recorded | None
    warnings: tuple[str, ...]

    @property
    def done(self) -> int | None:
        """Frames the file has already, if those are enough."""
        if self.found is None:
            return None
        frames = self.found.finished or self.found.frames
        return frames if frames >= self.plan.frames else None

    def continue_command(self, seconds: float | None = None) -> str:
        """What to type to go on."""
        length = f"{seconds or self.plan.seconds:g}"
        command = ["longtake", "generate", "--resume", "--out", str(self.request.out)]
        if self.request.threads is not None:
            command += ["--threads", str(self.request.threads)]
        return shlex.join([*command, *["--quiet"] * self.request.quiet, "--seconds", length])


def prepare(request: Request) -> Job:
    """Settles everything that can be settled without the model.

    Raises:
        ValueError, OSError: in one sentence, for everything that cannot work. Nothing has been written.
    """
    most = _THREADS_PER_CPU * (os.cpu_count() or 1)
    if request.threads is not None and not 1 <= request.threads <= most:
        raise ValueError(f"--threads must be 1 or more, here at most {most}, not {request.threads}.")
    for option, value, accepted in (
        ("--dtype", request.dtype, DTYPES),
        ("--device", request.device, DEVICES),
        ("--on-change", request.on_change, ON_CHANGE),
    ):
        if value is not None and value not in accepted:
            raise ValueError(f"{option} must be one of {', '.join(accepted)}, not {value!r}.")
    if request.prompt is None and not request.resume:
        raise ValueError('A prompt is needed, e.g. longtake generate "a red ball rolls over a meadow".')
    # Before anything is read from the disk: these need no context.
    seconds = None if request.seconds is None else parse_duration(request.seconds)
    if request.prompt is not None:
        parse_script(request.prompt, seconds, default_seconds=DEFAULT_SECONDS)
    found = _look_at(request)
    try:
        return _settle(request, found, seconds)
    except (KeyError, TypeError, AttributeError) as error:
        if found is None:
            raise
        raise ValueError(f"The snapshot of {request.out} lacks something that a take needs ({error}).") from None


def _look_at(request: Request) -> Recorded | None:
    """What there is to continue; refuses places where no video can or should be written."""
    out = request.out
    if request.resume and request.overwrite:
        raise ValueError("--resume continues a video and --overwrite starts over: give one of them.")
    if out.suffix.lower() != ".mp4":
        raise ValueError(f"Videos are written as MP4: --out must end in .mp4, not be {str(out)!r}.")
    if out.exists() and not out.is_file():
        raise ValueError(f"--out must be a file, and {out} is not one.")
    if not out.parent.is_dir():
        raise ValueError(f"There is no folder {out.parent}: --out must lie in one that exists.")
    try:
        if not os.access(out.parent, os.W_OK):
            raise PermissionError
        with tempfile.TemporaryFile(dir=out.parent):  # a read-only file system, or one without room for a name
            pass
    except OSError:
        raise ValueError(f"The folder {out.parent} cannot be written to: choose another one with --out.") from None
    if is_locked(out):
        raise locked_by_another(out)
    if request.resume:
        try:
            return Recorded.look(out)
        except ValueError as error:
            raise ValueError(f"{str(error)[:-1]}; --overwrite starts over, another --out leaves it alone.") from None
    if request.overwrite:
        return None
    what = out if out.exists() else snapshot_path(out)
    if not out.exists():
        with contextlib.suppress(ValueError):
            if (left := Recorded.look(out)) is None or not left.frames:
                return None  # killed before its first frame: nothing to lose
    raise ValueError(f"{what} exists: --resume continues it, --overwrite starts over, --out takes another name.")


def _settle(request: Request, found: Recorded | None, seconds: float | None) -> Job:
    data: Mapping[str, Any] = {} if found is None else found.data
    kept: Mapping[str, Any] = {} if found is None else found.settings

    def agreed(option: str, given: Any, old: Any, default: Any) -> Any:
        if found is None:
            return default if given is None else given
        if given is not None and given != old:
            raise ValueError(
                f"{option} {given} contradicts {snapshot_path(request.out).name}, which was made with {old}: "
                "leave the option out, or start over with --overwrite."
            )
        return old

    facts = ModelFacts.read(request.model or kept.get("model", "pocket"))
    signature = kept.get("signature")
    if signature is not None and signature != facts.signature():
        raise ValueError(
            f"The snapshot of {request.out} was made with another model, or other weights, than {facts.name} is now: "
            f"it needs {kept.get('model')} as it was."
        )
    memory = request.memory or data.get("policy", "memrope")
    policy = parse_memory(memory, facts.chunk)
    if found is not None and policy != parse_memory(data["policy"], facts.chunk):
        agreed("--memory", request.memory, data["policy"], None)
    seed = agreed("--seed", request.seed, data.get("seed"), 0)
    height = agreed("--height", request.height, data.get("height"), facts.size[0])
    width = agreed("--width", request.width, data.get("width"), facts.size[1])
    on_change = agreed("--on-change", request.on_change, data.get("on_change"), "keep")
    asked = None if request.dtype == "auto" else request.dtype
    dtype = agreed("--dtype", asked, str(data.get("dtype", "")).removeprefix("torch."), "auto")
    device = settle_device(request.device or kept.get("device", "auto"))
    every = parse_duration(request.every) if request.every else float(kept.get("every", SNAPSHOT_EVERY))

    script = _script(request, found, seconds, facts)
    length = seconds or (script.seconds if request.prompt is not None else None) or kept.get("seconds")
    length = float(length or script.seconds or DEFAULT_SECONDS)
    if dtype == "auto" and device != "auto":
        dtype = default_dtype(device)
    plan = Plan(facts, policy, length, height, width, "float32" if dtype == "auto" else dtype)
    warnings = _check_words(script, facts) if request.prompt is not None else []
    if found is not None and device != kept.get("device", device):
        warnings.append(f"On {device}, the video continues a little differently than on {kept['device']}.")
    job = Job(request, plan, script, seed, dtype, device, on_change, every, found, tuple(warnings))
    if job.done is None:
        _check_room(job)
    return job


def _script(request: Request, found: Recorded | None, seconds: float | None, facts: ModelFacts) -> Script:
    """What is said when; what was said until the snapshot cannot be changed."""
    if request.prompt is None:
        if found is None:
            raise ValueError(
                f"There is nothing to continue at {request.out}, and a new take needs a prompt: "
                'longtake generate "a red ball rolls over a meadow".'
            )
        return Script.from_dict(found.data["script"])
    kept = None if found is None else found.settings.get("seconds")
    script = parse_script(request.prompt, seconds, default_seconds=kept or DEFAULT_SECONDS)
    if found is not None:
        old, now = Script.from_dict(found.data["script"]), found.frames / facts.fps
        for time in sorted({s.start for s in (*old.segments, *script.segments) if s.start < now}):
            if old.at(time).prompt != script.at(time).prompt:
                raise ValueError(
                    f"At {format_seconds(time)} the snapshot was made with {old.at(time).prompt!r}, not "
                    f"{script.at(time).prompt!r}: only what comes after {format_seconds(now)} can be changed."
                )
    return script


def _check_words(script: Script, facts: ModelFacts) -> list[str]:
    warnings: list[str] = []
    if not facts.knows_pocket_words_only:
        return warnings
    for prompt in dict.fromkeys(segment.prompt for segment in script.segments):
        if not content_words(prompt):
            raise ValueError(f"The model {facts.name} knows nothing of {prompt!r}; it knows {what_it_knows()}.")
        if unknown := unknown_words(prompt):
            warnings.append(f"The model {facts.name} does not know {', '.join(unknown)}; it knows {what_it_knows()}.")
        if left_out := words_too_many(prompt):
            warnings.append(
                f"The model {facts.name} reads {MAX_WORDS} words of a prompt at most: "
                f"the last {count(left_out, 'word')} of {prompt!r} will have no effect."
            )
    return warnings


def _check_room(job: Job) -> None:
    out, plan = job.request.out, job.plan
    free = shutil.disk_usage(out.parent).free
    # What is continued is on the disk already; what is replaced is there until the new one begins.
    needed = max(plan.disk_bytes - (out.stat().st_size if job.found is not None and out.exists() else 0), 0)
    if needed > free:
        raise ValueError(
            f"{format_seconds(plan.seconds)} of video need about {format_bytes(needed)} on the disk of {out.parent}, "
            f"where {format_bytes(free)} are free: ask for fewer --seconds or choose another --out."
        )
    with contextlib.suppress(ValueError, AttributeError, OSError):  # not known everywhere
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if plan.memory_bytes > memory > 0 and job.device == "cpu":
            too_much = f"{format_bytes(plan.memory_bytes)} of memory, and this computer has {format_bytes(memory)}"
            raise MemoryError(f"Frames of {plan.height}x{plan.width} need {too_much}: choose a smaller size.")


def settle_device(device: str) -> str:
    """``cpu`` for ``auto`` where it is plain without torch that there is nothing else."""
    if device != "auto" or sys.platform != "linux":
        return device
    return "auto" if any(os.path.exists(p) for p in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")) else "cpu"

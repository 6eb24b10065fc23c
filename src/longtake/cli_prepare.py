"""``longtake generate``, the first half: from what was typed to a plan, or to a refusal. Loads no torch."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longtake.checkpoints.choice import Choice, place_of
from longtake.checkpoints.layout import file_kind
from longtake.checkpoints.sources import parse_lora
from longtake.cli_script import DEFAULT_SECONDS, check_words, script_of
from longtake.facts import ModelFacts
from longtake.lock import is_locked, locked_by_another
from longtake.memory import Echo, parse_memory
from longtake.placement import OFFLOADS, check_offload, parse_devices
from longtake.plan import DTYPE_BYTES, Plan, check_memory, default_dtype, format_bytes, format_seconds
from longtake.prompts import CHANGES, Script, parse_duration, parse_script
from longtake.record import SNAPSHOT_EVERY, Recorded, snapshot_path
from longtake.speed import ATTENTIONS, COMPILATIONS, TYPED_DECODINGS, tiny_file

TINY = "a .pth or .safetensors file of TAEHV"
DEFAULT_OUT = Path("take.mp4")
DTYPES = ("auto", *DTYPE_BYTES)
QUANTIZE = ("fp8", "int8")
_LARGE_SNAPSHOT = 10**9  # bytes
_THREADS_PER_CPU = 4  # more only stand in each other's way


@dataclass(frozen=True)
class Request:
    """What was typed; None for what was not. ``choice`` takes the place of ``model``, ``components`` and ``loras``."""

    prompt: str | None
    out: Path = DEFAULT_OUT
    seconds: str | None = None
    model: str | None = None
    components: Path | None = None
    loras: tuple[str, ...] = ()
    memory: str | None = None
    memory_weights: Path | None = None
    seed: int | None = None
    image: Path | None = None
    continue_from: Path | None = None
    height: int | None = None
    width: int | None = None
    dtype: str | None = None
    device: str | None = None
    devices: str | None = None
    offload: str | None = None
    quantize: str | None = None
    attention: str | None = None
    compilation: str | None = None
    decoding: str | None = None
    on_change: str | None = None
    every: str | None = None
    threads: int | None = None
    resume: bool = False
    overwrite: bool = False
    quiet: bool = False
    choice: Choice | None = None


@dataclass(frozen=True)
class Job:
    """What will be done, all settled. ``found`` is what is continued, if anything; ``devices`` may be ("auto",), and
    ``layers``, the blocks per device, may be open. ``given`` is how many frames a video to continue has, at the model's
    rate."""

    request: Request
    plan: Plan
    script: Script
    seed: int
    dtype: str
    devices: tuple[str, ...]
    offload: str
    quantize: str | None
    on_change: str
    every: float
    found: Recorded | None
    warnings: tuple[str, ...]
    layers: tuple[int, ...] | None = None
    given: int = 0
    attention: str = "auto"
    compilation: str = "auto"
    decoding: str = "exact"

    @property
    def loads(self) -> tuple[object, ...]:
        """What the pipeline of a settled job depends on: jobs where it is the same can share one."""
        choice = sorted(self.plan.model.choice.to_dict().items())
        return repr(choice), self.dtype, self.devices, self.offload, self.quantize

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
        ("--offload", request.offload, OFFLOADS),
        ("--quantize", request.quantize, QUANTIZE),
        ("--attention", request.attention, ATTENTIONS),
        ("--compile", request.compilation, COMPILATIONS),
        ("--decoding", None if tiny_file(request.decoding) else request.decoding, TYPED_DECODINGS),
        ("--on-change", request.on_change, CHANGES),
    ):
        if value is not None and value not in accepted:
            raise ValueError(f"{option} must be one of {', '.join(accepted)}, not {value!r}.")
    if file := tiny_file(request.decoding):
        path = Path(file).expanduser()
        file_kind(path, TINY)
        request = replace(request, decoding=f"tiny:{path.resolve()}")  # the video may be continued from elsewhere
    if request.prompt is None and not request.resume:
        raise ValueError('A prompt is needed, e.g. longtake generate "a red ball rolls over a meadow".')
    if request.device is not None and request.devices is not None:
        raise ValueError("--device names one place to compute and --devices several: give one of them.")
    if request.image is not None and request.continue_from is not None:
        raise ValueError("A take begins with a picture (--image) or after a video (--continue-from): give one of them.")
    settle_devices(request.device, request.devices)
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
                f"{option} {given} contradicts {snapshot_path(request.out).name}, which was made "
                f"{'without it' if old is None else f'with {old}'}: "
                "leave the option out, or start over with --overwrite."
            )
        return old

    facts = ModelFacts.read(asked_for(request, kept))
    signature, now = kept.get("signature"), facts.signature()
    if None not in (signature, now) and signature != now:
        raise ValueError(other_model(request.out, facts, kept))
    memory = request.memory or data.get("policy") or _default_memory(request, facts)
    policy = parse_memory(memory, facts.chunk)
    if found is not None and policy != parse_memory(data["policy"], facts.chunk):
        agreed("--memory", request.memory, data["policy"], None)
    seed = agreed("--seed", request.seed, data.get("seed"), 0)
    height = agreed("--height", request.height, data.get("height"), facts.size[0])
    width = agreed("--width", request.width, data.get("width"), facts.size[1])
    on_change = agreed("--on-change", request.on_change, data.get("on_change"), "keep")
    asked = None if request.dtype == "auto" else request.dtype
    dtype = agreed("--dtype", asked, str(data.get("dtype", "")).removeprefix("torch."), "auto")
    quantize = agreed("--quantize", request.quantize, kept.get("quantize"), None)
    devices = settle_devices(request.device, request.devices, kept.get("device"))
    offload = request.offload
    if offload is not None and devices != ("auto",):
        check_offload(offload, devices)

    script = script_of(request, found, seconds, facts)
    length = seconds or (script.seconds if request.prompt is not None else None) or kept.get("seconds")
    length = float(length or script.seconds or DEFAULT_SECONDS)
    if devices != ("auto",):
        dtype = default_dtype(devices[0]) if dtype == "auto" else dtype
        offload = offload or default_offload(devices)
    past = "image" if request.image is not None else "video" if request.continue_from is not None else None
    likely = "bfloat16" if sys.platform == "linux" else "float32"  # where it is not known yet, there is a GPU
    plan = Plan(facts, policy, length, height, width, likely if dtype == "auto" else dtype, past)
    check_memory(plan)
    every = parse_duration(request.every) if request.every else float(kept.get("every", default_every(plan)))
    warnings = check_words(script, facts) if request.prompt is not None else []
    kinds, before = ({name.split(":")[0] for name in names} for names in (devices, kept.get("device", "").split(",")))
    if found is not None and devices != ("auto",) and before not in ({""}, kinds):
        warnings.append(f"On {', '.join(devices)}, the video continues a little differently than on {kept['device']}.")
    given = 0
    if request.image is not None or request.continue_from is not None:
        given = _check_past(request, found, height, width, facts.fps)
    job = Job(
        request,
        plan,
        script,
        seed,
        dtype,
        devices,
        offload or "",
        quantize,
        on_change,
        every,
        found,
        tuple(warnings),
        given=given,
        attention=request.attention or kept.get("attention", "auto"),
        compilation=request.compilation or kept.get("compilation", "auto"),
        decoding=agreed("--decoding", request.decoding, kept.get("decoding", "exact"), "exact"),
    )
    if job.done is None:
        _check_room(job)
    return job


def asked_for(request: Request, kept: Mapping[str, Any]) -> Choice:
    """The model that was asked for; what was not said is as it was when the video was begun."""
    old = Choice.from_dict(kept["choice"]) if "choice" in kept else Choice(str(kept.get("model", "pocket")))
    if request.choice is not None:
        return replace(request.choice, memory=request.memory_weights or request.choice.memory)
    loras = tuple(parse_lora(text) for text in request.loras)
    if request.model is None or (kept and place_of(request.model) == old.model):
        return replace(
            old,
            components=request.components or old.components,
            loras=loras or old.loras,
            memory=request.memory_weights or old.memory,
        )
    return Choice(request.model, request.components, loras, memory=request.memory_weights)


def _default_memory(request: Request, facts: ModelFacts) -> str:
    """The model's; a learned one, where weights of one were given."""
    if request.memory_weights is None or parse_memory(facts.memory, facts.chunk).learned:
        return facts.memory
    saved = facts.saved_memory
    return Echo().spec() if saved is None else Echo(frames=saved["config"]["frames"]).spec()


def other_model(out: Path, facts: ModelFacts, kept: Mapping[str, Any]) -> str:
    """The sentence for a snapshot that another model was used for."""
    return (
        f"The snapshot of {out} was made with another model, or other weights, than {facts.name} is now: "
        f"it needs {kept.get('model')} as it was."
    )


def _check_past(request: Request, found: Recorded | None, height: int, width: int, fps: int) -> int:
    """Refuses a picture or video that a take cannot start from; returns the frames of the video."""
    if found is not None:
        option = "--image" if request.image is not None else "--continue-from"
        raise ValueError(f"{option} is for the start of a take, and {request.out} has begun: leave it out.")
    from longtake.pictures import read_clip, read_picture

    if request.image is not None:
        read_picture(request.image, height, width)
    if (past := request.continue_from) is None:
        return 0
    if past.exists() and request.out.exists() and past.samefile(request.out):
        raise ValueError(f"{request.out} cannot be continued into itself: --resume does that, or choose another --out.")
    return len(read_clip(past, height, width, fps))


def _check_room(job: Job) -> None:
    out, plan = job.request.out, job.plan
    free = shutil.disk_usage(out.parent).free
    # What is continued is on the disk already; what is replaced is there until the new one begins.
    needed = max(plan.disk_bytes - (out.stat().st_size if job.found is not None and out.exists() else 0), 0)
    if needed > free:
        snapshots, less = 2 * plan.snapshot_bytes, "ask for fewer --seconds"
        if snapshots > plan.video_bytes:
            less = f"{format_bytes(snapshots)} of it are for two snapshots, so ask for a memory with fewer frames"
        raise ValueError(
            f"{format_seconds(plan.seconds)} of video need about {format_bytes(needed)} on the disk of "
            f"{out.parent.absolute()}, where {format_bytes(free)} are free: {less}, or choose another --out."
        )


def settle_devices(device: str | None, devices: str | None, kept: str | None = None) -> tuple[str, ...]:
    """Where to compute: ``("auto",)``, or names. Of ``auto``, ``("cpu",)`` is left where it is plain without torch that
    there is nothing else.

    Raises:
        ValueError: for a name that is not one of a device.
    """
    asked = (devices or device or kept or "auto").strip().lower()
    if asked != "auto":
        names = parse_devices(asked)
        if len(names) > 1:  # one name per device: what is free there must count once
            names = tuple("cuda:0" if name == "cuda" else name for name in names)
        if device is not None and len(names) > 1:
            raise ValueError(f"--device names one place to compute, not {device!r}: --devices takes several.")
        return names
    if sys.platform != "linux":
        return ("auto",)
    gpus = any(os.path.exists(p) for p in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))
    return ("auto",) if gpus else ("cpu",)


def default_every(plan: Plan) -> float:
    """Seconds of video between snapshots: rarely where one takes long to write."""
    return SNAPSHOT_EVERY * (6 if plan.snapshot_bytes > _LARGE_SNAPSHOT else 1)


def default_offload(devices: tuple[str, ...]) -> str:
    """On a GPU the text encoder, the largest part by far and needed for a moment only, waits on the CPU."""
    return "text" if any(name.startswith("cuda") for name in devices) else "none"

"""What a take will be, before it is made: frames, chunks, memory, bytes. Imports nothing heavy."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from longtake import operations, sizes
from longtake.facts import ModelFacts
from longtake.memory import DeepForcing, Echo, MemoryPolicy, MemRoPE

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}

# H.264 at the writer's quality takes about 0.7 bits per pixel in the pocket world (64x64, all edges; measured). Large
# pictures have fewer details per pixel. On the low side, as a take is refused on this estimate.
_BITS_PER_PIXEL, _MORE_BITS_WHEN_SMALL, _SMALL = 0.1, 0.5, 64 * 64
_BYTES_PER_FRAGMENT = 900  # headers, per chunk
# Operations per second that get done, for the estimate of a plan only: rough, by a factor of two either way. For a
# CPU per core (measured with the pocket model on two cores with AVX-512), and as little as this is gained by more.
_SPEED = {
    ("cpu", "float32"): 16e9,
    ("cpu", "bfloat16"): 30e9,
    ("mps", "float32"): 2e12,
    ("mps", "bfloat16"): 2e12,
    ("cuda", "float32"): 2e13,
    ("cuda", "bfloat16"): 1e14,
}
_MORE_CORES = 0.8
_SECONDS_PER_BLOCK = 3e-4  # to start a transformer block's operations, however small they are
_SECONDS_PER_PIXEL = 2.5e-7  # to encode a picture
_TEXT_TOKENS = 512  # of a prompt, at most


def frames_in(seconds: float, fps: float) -> int:
    """Frames of a video that lasts this long: the nearest whole number, at least 1."""
    return max(1, round(seconds * fps))


def slots_of(policy: MemoryPolicy, chunk: int) -> list[tuple[str, int]]:
    """What a policy's slots hold once full, as (role, frames), in order of position."""
    tokens: list[tuple[str, int]] = []
    if isinstance(policy, MemRoPE):
        tokens = [(name, 1) for name in ("long", "short") if policy.averages in ("both", name)]
    tokens += [("memory", policy.frames)] if isinstance(policy, Echo) else []
    tokens += [("chosen", policy.chosen)] if isinstance(policy, DeepForcing) else []
    recent = policy.capacity(chunk) - policy.sink - sum(count for _, count in tokens) - chunk
    slots = [("sink", policy.sink), *tokens, ("recent", recent), ("current", chunk)]
    return [(role, count) for role, count in slots if count > 0]


def memory_layout(policy: MemoryPolicy, chunk: int) -> str:
    """What a policy's slots hold once full, e.g. ``3 sink + 1 long + 1 short + 4 recent + 3 current = 12 frames``."""
    if isinstance(policy, DeepForcing):
        return _in_turn(policy, chunk)
    parts = [f"{count} {role}" for role, count in slots_of(policy, chunk)]
    return " + ".join(parts) + f" = {policy.capacity(chunk)} frames"


def _in_turn(policy: DeepForcing, chunk: int) -> str:
    """The words for a memory that frames are added to until some of their tokens are chosen."""
    first = policy.recent - chunk  # recent frames beside the chunk right after a choice
    last = first + (policy.window - policy.budget) // chunk * chunk
    recent = f"{first} recent" if first == last else f"{first} to {last} recent"
    parts = [f"{policy.sink} sink"] * (policy.sink > 0) + [f"{policy.chosen} chosen"] * (policy.chosen > 0)
    parts += [recent] * (last > 0) + [f"{chunk} current"]
    most = policy.budget + last - first
    total = f"{most} frames" if first == last else f"{policy.budget} to {most} frames"
    return " + ".join(parts) + f" = {total}"


@dataclass(frozen=True)
class Plan:
    """A take that is about to be made. Sizes in pixels, everything else as it is called; ``past`` is what it starts
    from: "image", "video", or None.

    Raises:
        ValueError: for a size that the model or a video file cannot have, or a memory without room for a chunk.
    """

    model: ModelFacts
    policy: MemoryPolicy
    seconds: float
    height: int
    width: int
    dtype: str = "float32"
    past: str | None = None

    def __post_init__(self) -> None:
        step = self.model.step
        most = min(16384, step * self.model.longest)
        for name, value in (("Height", self.height), ("Width", self.width)):
            if value < step or value % step or value > most or value % 2:
                raise ValueError(
                    f"{name} must be a multiple of {step} from {step} to {most} pixels for the model "
                    f"{self.model.name}, not {value}."
                )
        self.policy.capacity(self._chunk_slots)

    @property
    def _chunk_slots(self) -> int:
        return max(1, self.model.chunk // self.model.patch[0])

    @property
    def frames(self) -> int:
        """Frames of the video."""
        return frames_in(self.seconds, self.model.fps)

    @property
    def chunks(self) -> int:
        """Chunks to make; the last one may be cut. With a picture as past, the first one gives the picture only; with a
        video, all are of the same length."""
        latents = math.ceil((self.frames - (self.past != "video")) / self.model.temporal)
        return (self.past == "image") + math.ceil((latents + (self.past is None)) / self.model.chunk)

    @property
    def layout(self) -> str:
        """The memory's slots in words."""
        return memory_layout(self.policy, self._chunk_slots)

    @property
    def _frame_tokens(self) -> int:
        return (self.height // self.model.step) * (self.width // self.model.step)

    @property
    def chunk_operations(self) -> float:
        """Multiplications and additions per chunk: all forwards of the transformer, and the decoder."""
        model = self.model
        frame = self._frame_tokens
        queries, keys = self._chunk_slots * frame, self.policy.capacity(self._chunk_slots) * frame
        denoise, commit = (
            operations.forward_operations(model.transformer, queries, keys, _TEXT_TOKENS, commit=commit).total
            for commit in (False, True)
        )
        decoder = operations.decoder_operations(model.vae, self.height, self.width, model.chunk)
        return len(model.denoising_steps) * denoise + commit + decoder

    def estimate_seconds(self, device: str, cores: int = 1) -> float:
        """Seconds that making the video may take, the loading of the model not counted: a guess, from the work."""
        speed = _SPEED[device, self.dtype] * (cores**_MORE_CORES if device == "cpu" else 1)
        calls = (len(self.model.denoising_steps) + 1) * self.model.layers
        chunk = self.chunk_operations / speed + calls * _SECONDS_PER_BLOCK
        return self.chunks * chunk + self.frames * self.height * self.width * _SECONDS_PER_PIXEL

    @property
    def memory_bytes(self) -> int:
        """Bytes that the memory holds all the time, see ``sizes.memory_bytes``."""
        model = self.model
        sizes_of_all = (model.layers, model.heads, model.head_dim, self._frame_tokens, self._chunk_slots)
        return sizes.memory_bytes(self.policy, *sizes_of_all, DTYPE_BYTES[self.dtype])

    @property
    def snapshot_bytes(self) -> int:
        """Bytes of a snapshot: the memory's keys and values, and the last two frames at every layer of the decoder."""
        cache = sizes.decoder_cache(self.model.vae, self.height, self.width)
        return self.memory_bytes * 2 // 3 + cache * DTYPE_BYTES[self.dtype]

    @property
    def video_bytes(self) -> int:
        """Rough size of the file. Pictures differ; this is a guess on the low side."""
        pixels = self.height * self.width
        bits = _BITS_PER_PIXEL + _MORE_BITS_WHEN_SMALL * math.sqrt(_SMALL / pixels)
        return int(self.frames * pixels * bits / 8) + self.chunks * _BYTES_PER_FRAGMENT

    @property
    def disk_bytes(self) -> int:
        """What the disk must have free: the video, and two snapshots, as a new one is whole before the old one goes."""
        return self.video_bytes + 2 * self.snapshot_bytes


def check_memory(plan: Plan) -> None:
    """Refuses a learned memory without trained weights, or with others than it needs, as far as headers tell.

    Raises:
        ValueError: in one sentence.
    """
    policy, facts = plan.policy, plan.model
    if not isinstance(policy, Echo):
        return
    if not facts.may_have_memory:
        raise ValueError(
            f"The memory {policy.name} is learned, and there are no trained weights of it for the model {facts.name}: "
            "give some with --memory-weights, or choose another --memory."
        )
    saved = facts.saved_memory
    if saved is None:
        return
    if not saved["trained"]:
        raise ValueError(
            f"The memory weights for the model {facts.name} are untrained and can make no video: "
            "give others with --memory-weights."
        )
    grid = (plan.height // facts.step, plan.width // facts.step)
    policy.check_weights(saved["config"], facts.heads, facts.head_dim, grid, facts.layers)


def bfloat16_units() -> list[str]:
    """What this computer's processor has for bfloat16, by the names of Linux; empty elsewhere or if it has nothing."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return []
    return [name for name in ("amx_bf16", "avx512_bf16", "bf16") if name in flags]


def default_dtype(device: str) -> str:
    """What ``--dtype auto`` means: bfloat16 where the hardware has it (twice as fast on such a CPU), else float32."""
    return "bfloat16" if device.startswith("cuda") or (device == "cpu" and bfloat16_units()) else "float32"


def count(number: int, thing: str) -> str:
    """``1 frame``, ``2 frames``."""
    return f"{number} {thing}" + "s" * (number != 1)


def format_bytes(count: float) -> str:
    """``4.3 MB``, with 1000 bytes to the kB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def format_seconds(seconds: float) -> str:
    """``12.5 s`` below two minutes, ``1h02m03s`` above; never 0 for a length that is not."""
    if 0 < seconds < 0.05:
        return f"{max(seconds, 0.001):.3f}".rstrip("0") + " s"
    if seconds < 120:
        return re.sub(r"\.0$", "", f"{seconds:.1f}") + " s"
    whole = round(seconds)
    text = f"{whole // 60 % 60:02d}m{whole % 60:02d}s"
    return f"{whole // 3600}h{text}" if whole >= 3600 else text.lstrip("0")

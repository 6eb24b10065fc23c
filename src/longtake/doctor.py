"""What Longtake runs on, and whether it works there."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake import __version__
from longtake.machine import bfloat16_units
from longtake.memory import MEMORIES
from longtake.plan import format_bytes

if TYPE_CHECKING:
    from longtake.pipeline import LongTakePipeline

_LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers", "safetensors", "av", "numpy")
_PROMPT = "a red ball rolls over a meadow"


@dataclass
class Report:
    """Facts by name, and what is wrong, each in one sentence."""

    facts: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"ok": not self.problems, "facts": self.facts, "problems": self.problems}

    def lines(self) -> list[str]:
        """For people."""
        width = max(map(len, self.facts), default=0)
        end = [f"PROBLEM: {problem}" for problem in self.problems] or ["OK"]
        return [*(f"{name:{width}}  {value}" for name, value in self.facts.items()), *end]


def examine() -> Report:
    """Looks at versions, devices and room, and makes two chunks with every named memory."""
    report = Report()
    facts = report.facts
    facts["longtake"] = __version__
    facts["python"] = f"{platform.python_version()} on {platform.platform()}"
    for name in _LIBRARIES:
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            report.problems.append(f"The package {name} is not installed.")
    if report.problems:
        return report
    try:
        import torch

        from longtake.quiet import quieten_libraries

        quieten_libraries()
        facts["device"] = _devices()
        facts["threads"] = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
        facts["bfloat16"] = _bfloat16()
        facts["attention"] = _attention()
    except Exception as error:  # an installation can be broken in any way
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        report.problems.append(f"PyTorch, diffusers or transformers is installed but does not work ({reason}).")
        return report
    facts["memory"] = _free_memory()
    facts["disk"] = f"{format_bytes(shutil.disk_usage('.').free)} free here"
    try:
        from longtake.video import pick_codec

        facts["video"] = pick_codec()[1]
    except (ValueError, ImportError, OSError) as error:
        report.problems.append(f"No video can be written: {error}")
    try:
        pipe = _pocket(facts)
    except Exception as error:  # whatever it is, it goes into the report
        report.problems.append(f"The pocket model cannot be loaded: {' '.join(str(error).split())[:300]}")
        return report
    for name, info in MEMORIES.items():
        if info.policy.learned and pipe.memory_encoder is None:
            facts[f"test {name}"] = "none: it needs trained weights, and the pocket model has none"
            continue
        try:
            facts[f"test {name}"] = self_test(pipe, name)
        except Exception as error:
            report.problems.append(f"The memory {name} fails its test: {type(error).__name__}: {error}")
    return report


def self_test(pipe: LongTakePipeline, memory: str) -> str:
    """Makes two chunks, the second one twice, from a snapshot too; returns how it went in a few words.

    Raises:
        RuntimeError: if a picture is not finite, or the resumed take differs in a single bit.
    """
    import torch

    start = time.perf_counter()
    take = pipe.start(_PROMPT, memory)
    first = take.next_chunk()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "test.snapshot"
        take.snapshot(path)
        resumed = pipe.resume(path)
    before = time.perf_counter()
    second, again = take.next_chunk(), resumed.next_chunk()
    speed = (len(second.video) + len(again.video)) / (time.perf_counter() - before)
    for chunk in (first, second):
        # Frames are clamped, which hides what latents do not.
        if not (chunk.latents.isfinite().all() and chunk.video.isfinite().all()):
            raise RuntimeError("a picture has values that are not numbers")
    if not torch.equal(second.video, again.video) or not torch.equal(second.latents, again.latents):
        raise RuntimeError("a take resumed from a snapshot differs from one that went on")
    return f"ok, resumes bit for bit ({time.perf_counter() - start:.1f} s, {speed:.0f} frames/s)"


def _devices() -> str:
    import torch

    found = ["cpu"]
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        found.insert(0, f"cuda ({name}, {format_bytes(free)} of {format_bytes(total)} free)")
    if torch.backends.mps.is_available():
        found.insert(0, "mps")
    return ", ".join(found) + " (the first one is used)" * (len(found) > 1)


def _bfloat16() -> str:
    import torch

    if torch.cuda.is_available():
        return "in hardware" if torch.cuda.is_bf16_supported() else "emulated, slow"
    fast = bfloat16_units()
    return f"in hardware ({', '.join(fast)})" if fast else "not in hardware, slower than float32"


def _attention() -> str:
    """What computes attention on the first device, and what else can."""
    import torch

    from longtake.kernels import available, best

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", 0) if cuda else torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    dtype = torch.bfloat16 if cuda or (device.type == "cpu" and bfloat16_units()) else torch.float32
    chosen = best(device, dtype)
    others = ", ".join(name for name in available(device, dtype) if name != chosen)
    small = " (for small pictures; native for larger ones)" * (chosen == "products")
    return f"{chosen}{small} in {str(dtype).removeprefix('torch.')}" + f"; --attention also takes {others}" * bool(
        others
    )


def _free_memory() -> str:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        free, total = kilobytes["MemAvailable"] * 1024, kilobytes["MemTotal"] * 1024
        return f"{format_bytes(free)} of {format_bytes(total)} free"
    except (OSError, KeyError, ValueError, IndexError):
        return "unknown on this system"


def _pocket(facts: dict[str, str]) -> LongTakePipeline:
    from longtake.checkpoints import load, load_registry

    folder = load_registry()["pocket"].folder
    assert folder is not None
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    facts["pocket"] = f"{format_bytes(size)} in {folder}"
    return load("pocket")

"""An environment of its own for the package ``vbench``, which asks for versions that current diffusers cannot use."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

VERSION = "0.1.5"
VARIABLE = "LONGTAKE_VBENCH"
"""Names a Python that has ``vbench``, instead of the environment made here."""

REQUIREMENTS = (f"vbench=={VERSION}", "setuptools<81", "wheel")  # newer setuptools lack what its CLIP imports
_PYTHONS = ((3, 11), (3, 10))  # transformers 4.33's tokenizers have no wheels for newer ones
_READY = "ready"

Note = Callable[[str], object]


def environment_folder() -> Path:
    """Where the environment lies: ``~/.cache/longtake/vbench-VERSION``, or below ``XDG_CACHE_HOME``."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "longtake" / f"vbench-{VERSION}"


def vbench_python(note: Note) -> Path:
    """A Python that has ``vbench``; the environment is made when it is first asked for.

    Args:
        note: is told what takes long.

    Raises:
        ValueError: in one sentence, if there is none and none can be made.
    """
    named = os.environ.get(VARIABLE)
    if named:
        if not os.access(named, os.X_OK) or not Path(named).is_file():
            raise ValueError(f"{VARIABLE} must name a Python that has vbench, and {named} is no program.")
        return Path(named)
    folder = environment_folder()
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not (folder / _READY).exists():
        note(f"Installing VBench {VERSION} into {folder}: once, several minutes, about 7 GB with a CUDA PyTorch.")
        try:
            shutil.rmtree(folder, ignore_errors=True)  # a half-made one
            folder.parent.mkdir(parents=True, exist_ok=True)
            _run(_creating(folder), "no environment could be made")
            _run([str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS], "a network is needed once")
            (folder / _READY).touch()
        except OSError as error:
            raise ValueError(f"VBench cannot be installed into {folder} ({error.strerror or error}).") from None
    return python


def _creating(folder: Path) -> list[str]:
    """The command that makes an environment with a Python that VBench runs on."""
    if sys.version_info[:2] in _PYTHONS:
        return [sys.executable, "-m", "venv", "--clear", str(folder)]
    for major, minor in _PYTHONS:
        found = shutil.which(f"python{major}.{minor}")
        if found:
            return [found, "-m", "venv", "--clear", str(folder)]
    if uv := shutil.which("uv"):
        return [uv, "venv", "--seed", "--python", "3.11", str(folder)]
    raise ValueError(
        f"VBench {VERSION} needs Python 3.10 or 3.11, and this is {sys.version_info[0]}.{sys.version_info[1]}: install "
        f"python3.11 or uv, or name a Python that has vbench in {VARIABLE}."
    )


def _run(command: Sequence[str], trouble: str) -> None:
    made = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=clean_environment())
    if made.returncode:
        lines = [line for line in (made.stderr or made.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if "ERROR" in line or "rror:" in line] or lines or ["no reason given"]
        reason = errors[-1].removeprefix("ERROR:").strip().rstrip(".")
        raise ValueError(
            f"VBench {VERSION} could not be installed: {trouble} ({reason}); or name a Python that has vbench in "
            f"{VARIABLE}."
        )


def clean_environment() -> dict[str, str]:
    """This process's variables without those that would lead another Python to this one's packages."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    return {name: value for name, value in os.environ.items() if name not in ours}

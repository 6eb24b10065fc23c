"""Checkpoints on disk: there whole or not at all, the last two of every stage."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longtake.plan import format_bytes

FORMAT = 1
KEPT = 2
_SPARE = 1 << 16  # bytes of a checkpoint that are no tensors, roughly


class Stopped(RuntimeError):
    """Training cannot go on, through no mistake in what was asked for. One sentence, for people."""


def checkpoint_path(folder: Path, stage: str, step: int) -> Path:
    """Where the checkpoint of a stage after so many steps lies."""
    return folder / f"{stage}-{step:08d}.pt"


def checkpoints(folder: Path, stage: str) -> list[Path]:
    """The checkpoints of a stage, newest first."""
    pattern = re.compile(re.escape(stage) + r"-\d{8,}\.pt$")
    return sorted((p for p in folder.glob(f"{stage}-*.pt") if pattern.match(p.name)), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """After how many steps a checkpoint was written, by its name."""
    return int(path.stem.rpartition("-")[2])


def read_checkpoint(path: Path, stage: str | None = None) -> dict[str, Any]:
    """A checkpoint; its tensors stay in the file until they are used.

    Args:
        stage: which it must be of.

    Raises:
        ValueError: if it cannot be read, is no checkpoint of this trainer, or one of another stage.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch has no common one for files that are torn or something else
        reason = " ".join(str(error).split())[:100]
        raise ValueError(f"{path} is not a whole checkpoint ({reason}).") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of this trainer, or one of another version.")
    if stage is not None and state["stage"] != stage:
        raise ValueError(f"{path} is a checkpoint of the stage {state['stage']!r}, not of {stage!r}: take it away.")
    return state


def newest(
    folder: Path, stage: str, note: Callable[[str], object] = lambda text: None
) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint of a stage; one that is damaged is noted, and the one before is taken.

    Raises:
        ValueError: if there are some and none of them is whole, or if one is of another stage.
    """
    problems = []
    for path in checkpoints(folder, stage):
        try:
            state = read_checkpoint(path)
        except ValueError as error:
            problems.append(str(error))
            continue
        if state["stage"] != stage:
            read_checkpoint(path, stage)  # says what is wrong
        for problem in problems:
            note(f"{problem} Going on from {path} instead.")
        return path, state
    if problems:
        raise ValueError(f"{problems[0]} There is no older one: take it away to start again.")
    return None


def finished_state(folder: Path, stage: str, command: str) -> dict[str, Any]:
    """The newest checkpoint of a stage that must be finished.

    Raises:
        ValueError: if there is none or it is not finished; says with which command to make it.
    """
    how = command.format(stage=stage)
    found = newest(folder, stage)
    if found is None:
        raise ValueError(f"The stage {stage!r} must come first, and {folder} has no checkpoint of it; make it: {how}")
    if not found[1]["finished"]:
        raise ValueError(
            f"The stage {stage!r} must come first, and is only at step {found[1]['step']}; finish it: {how}"
        )
    return found[1]


def tensors_in(state: Any) -> Iterator[Tensor]:
    """All tensors in nested dictionaries and lists."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors_in(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from tensors_in(value)


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes under a temporary name, flushes, renames, then removes all but the newest of its stage.

    Raises:
        OSError: if the disk is full or something else does not let it; what was there before is untouched.
    """
    size = sum(t.numel() * t.element_size() for t in tensors_in(state)) + _SPARE
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise OSError(f"the disk has {format_bytes(free)} left, and a checkpoint takes {format_bytes(size)}")
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, RuntimeError) as error:  # torch wraps what a file says in the latter
        with contextlib.suppress(OSError):
            part.unlink()
        reason = getattr(error, "strerror", None) or "the disk may be full, or files limited in size"
        raise OSError(f"writing {path} failed: {reason}") from None
    flush_folder(path.parent)
    stage = path.stem.rpartition("-")[0]
    for old in checkpoints(path.parent, stage)[KEPT:]:
        old.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Makes sure that names in a folder outlast a power cut, where the system can."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def write_text(path: Path, text: str) -> None:
    """Writes a small file, whole or not at all."""
    part = path.with_suffix(".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        raise

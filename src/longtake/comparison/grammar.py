"""Lists of memories, lengths and seeds, as they are typed. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from longtake.memory import MEMORIES
from longtake.prompts import parse_duration

_LABEL = re.compile(r"\w[\w .+()%-]{0,39}")
_MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Entry:
    """One memory of a comparison: what it is called, and what it is (see `longtake.memory.parse_memory`)."""

    label: str
    memory: str


def parse_memories(texts: Sequence[str]) -> list[Entry]:
    """Reads memories: ``memrope;sliding:window=12,sink=3`` or, as names and settings cannot be mistaken for each other,
    ``memrope,sliding:window=12,sink=3``. Each may have a name of its own before it: ``ours=memrope:recent=4``.

    Args:
        texts: one or several such lists. Settings are not looked at.

    Raises:
        ValueError: in one sentence, for an empty list, a setting without a memory, a label that cannot be, or two
            memories of one label.
    """
    entries = [_entry(part) for text in texts for whole in text.split(";") for part in _split(whole) if part]
    if not entries:
        raise ValueError("Which memories? --memories takes names, e.g. memrope,longlive; longtake memories lists them.")
    labels = [entry.label.lower() for entry in entries]
    for index, entry in enumerate(entries):
        if labels.index(entry.label.lower()) != index:
            raise ValueError(
                f"--memories has {entry.label!r} twice: leave one out, or give it another name, like "
                f"again={entry.memory}."
            )
    return entries


def _split(text: str) -> list[str]:
    """The memories of a list with commas, which separate their settings, too."""
    found: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        label, memory = _label(part)
        if label is None or not found or memory.partition(":")[0].strip() in MEMORIES:
            found.append(part)
        elif ":" in found[-1]:
            found[-1] += f",{part}"
        else:
            raise ValueError(
                f"--memories has {part!r} behind {found[-1]!r}: that is no setting of it, which would be written "
                f"{found[-1]}:{part}, and no other memory, as these are {', '.join(MEMORIES)}."
            )
    return found


def _label(part: str) -> tuple[str | None, str]:
    """What stands before the first ``=``, if that is not the one of a setting; and the rest."""
    label, equals, memory = part.partition("=")
    return (label.strip(), memory.strip()) if equals and ":" not in label else (None, part)


def _entry(part: str) -> Entry:
    label, memory = _label(part)
    memory = re.sub(r"\s+", "", memory)
    if label is not None and not _LABEL.fullmatch(label):
        raise ValueError(
            f"A memory can be called by up to 40 letters, digits, spaces and . + - _ ( ) %, not {label[:60]!r}."
        )
    return Entry(label or memory, memory)


def parse_lengths(text: str) -> list[float]:
    """Seconds from text like ``60,240`` or ``30s,4m``, ascending.

    Raises:
        ValueError: in one sentence, for what is no duration.
    """
    lengths = sorted({parse_duration(part.strip()) for part in text.split(",") if part.strip()})
    if not lengths:
        raise ValueError("--seconds takes lengths, e.g. 60,240 or 30s,4m.")
    return lengths


def parse_seeds(text: str) -> list[int]:
    """``3`` is three seeds, 0 to 2; ``0,7,9`` are these, and ``7,`` is that one.

    Raises:
        ValueError: in one sentence, for anything else.
    """
    try:
        if "," not in text:
            number = int(text)
            if not 1 <= number <= _MOST_SEEDS:
                raise ValueError
            return list(range(number))
        seeds = [int(part) for part in text.split(",") if part.strip()]
        if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
            raise ValueError
        return seeds
    except ValueError:
        raise ValueError(
            f"--seeds takes how many (1 to {_MOST_SEEDS}), or a list like 0,7,9 without doubles; not {text!r}."
        ) from None

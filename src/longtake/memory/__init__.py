"""Memories: which past frames a chunk may attend to. Loading this package does not load torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longtake.memory.memrope import MemRoPE
from longtake.memory.policy import PROMPT_CHANGES, MemoryPolicy, Place, Update
from longtake.memory.registry import MEMORIES, MemoryInfo, parse_memory
from longtake.memory.sliding import Sliding

if TYPE_CHECKING:
    from longtake.memory.store import Memory

__all__ = [
    "MEMORIES",
    "PROMPT_CHANGES",
    "MemRoPE",
    "Memory",
    "MemoryInfo",
    "MemoryPolicy",
    "Place",
    "Sliding",
    "Update",
    "parse_memory",
]


def __getattr__(name: str) -> object:
    if name == "Memory":
        from longtake.memory.store import Memory

        return Memory
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

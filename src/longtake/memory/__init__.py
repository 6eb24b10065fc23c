"""Memories: which past frames a chunk may attend to. Loading this package does not load torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longtake.memory.deep_forcing import DeepForcing
from longtake.memory.echo import Echo
from longtake.memory.memrope import MemRoPE
from longtake.memory.policy import PROMPT_CHANGES, MemoryPolicy, Place, Update
from longtake.memory.registry import MEMORIES, MemoryInfo, parse_memory
from longtake.memory.sliding import Sliding

if TYPE_CHECKING:
    from longtake.memory.echo_encoder import MemoryEncoder
    from longtake.memory.learned import Learned
    from longtake.memory.store import Memory

__all__ = [
    "MEMORIES",
    "PROMPT_CHANGES",
    "DeepForcing",
    "Echo",
    "Learned",
    "MemRoPE",
    "Memory",
    "MemoryEncoder",
    "MemoryInfo",
    "MemoryPolicy",
    "Place",
    "Sliding",
    "Update",
    "parse_memory",
]


def __getattr__(name: str) -> object:
    # These load torch.
    if name == "Memory":
        from longtake.memory.store import Memory

        return Memory
    if name == "MemoryEncoder":
        from longtake.memory.echo_encoder import MemoryEncoder

        return MemoryEncoder
    if name == "Learned":
        from longtake.memory.learned import Learned

        return Learned
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

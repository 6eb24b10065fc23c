"""A window of recent frames, with or without sink frames: Self-Forcing, LongLive, Infinity-RoPE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from longtake.memory.policy import MAX_ID, MemoryPolicy, Update, check_ids, oldest

if TYPE_CHECKING:
    from longtake.memory.store import Memory


@dataclass(frozen=True)
class Sliding(MemoryPolicy):
    """Keep the first ``sink`` frames and the newest others; forget the rest.

    Self-Forcing (arXiv 2506.08009) rolls 21 frames without a sink; LongLive (arXiv 2509.22622) keeps 3 sinks in 12,
    both at absolute ids; Infinity-RoPE (arXiv 2511.20649, section "Block-Relativistic RoPE") keeps 1 sink in 6 and
    numbers the slots.

    Args:
        window: frames a chunk attends to, sinks and itself included. Need not be a multiple of the chunk.
        sink: first frames of the take that are never evicted.
        ids: "absolute" (global frame index), "relative" (position in the window) or "unified": Echo-Infinity's ids
            (arXiv 2606.04527, Unified Relative RoPE) without its memory, the control for it. Sinks keep theirs, and the
            newest frame's grows to ``max_id`` and stays there.
        max_id: for unified ids.

    Raises:
        ValueError: if a setting is out of range.
    """

    window: int = 21
    sink: int = 0
    ids: str = "absolute"
    max_id: int = MAX_ID

    name: ClassVar[str] = "sliding"
    choices: ClassVar[dict[str, tuple[str, ...]]] = {"ids": ("absolute", "relative", "unified")}

    def __post_init__(self) -> None:
        self._check({"window": 1, "sink": 0, "max_id": 0})

    def capacity(self, chunk: int) -> int:
        if self.window < self.sink + chunk:
            raise ValueError(
                f"sliding: window must be at least {self.sink + chunk} "
                f"({self.sink} sink frames and a chunk of {chunk}), not {self.window}."
            )
        check_ids(self, self.window)
        return self.window

    def begin_chunk(self, memory: Memory) -> Update:
        return Update(evict=oldest(memory, self.sink, max(0, memory.used + memory.chunk - memory.capacity)))

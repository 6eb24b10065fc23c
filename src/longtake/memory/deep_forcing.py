"""Deep Forcing: many sink frames, and of the frames between them and now only the tokens that are looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from longtake.memory.policy import LEARNED, MemoryPolicy, Place, Update, oldest

if TYPE_CHECKING:
    from torch import Tensor

    from longtake.memory.store import Memory


@dataclass(frozen=True)
class DeepForcing(MemoryPolicy):
    """Deep Sink and Participative Compression (Deep Forcing, arXiv 2512.05081, sections 4.2 and 4.3, Algorithm 1).

    Frames are kept until a chunk would make them more than ``window``. Then, in that chunk's first forward, every layer
    keeps ``budget`` frames: the sinks, the newest ``recent`` (the chunk is among them), and of all tokens in between
    as many as make ``budget - sink - recent`` frames, those with the highest scores. A token's score is the product of
    its key with the sum of all queries of the recent frames, added up over the heads: the noisy queries of the chunk,
    and of the frames before it those of their commit. With the defaults a chunk attends to 16 and to 19 frames in turn.

    The chosen tokens are packed into frames in order of time. Their keys keep their places in the picture; their
    temporal ids, and those of the sinks, are where paper and released code differ:

    - ``ids="relative"``, the paper's: everything is contiguous, so that the sinks come right before the chosen tokens,
      and those right before the recent frames (equations 6, 10 and 11; the paper's text has the block begin at one
      position and does not say how tokens lie in it: here a token's id is that of the frame it is packed into). The
      equation for the sinks' shift (5) would put the last sink and the frame after it at one id; what the text says,
      a continuous sequence, is done instead. Ids are those of positions, 0 to ``window - 1``: only differences matter.
    - ``ids="released"``, as in the released code: absolute ids; chosen tokens keep the ids of their frames, so that
      they may lie beside or within the sinks; and sinks lie one chunk further back than contiguous, and move only when
      tokens are chosen. (Its first shift is written for a window of 21, where it is the same as all others.)

    Args:
        window: the most frames that a chunk attends to, itself included.
        sink: first frames of the take that are never evicted.
        budget: frames that are kept when there would be more than ``window``, the chunk included.
        recent: of these, the newest, whose queries choose; at least the chunk.
        ids: "relative" or "released".
        reuse: how often a token can be chosen; 0 for any number of times, as in the paper, and 7 in the released code.
            Tokens that have been chosen as often come behind all others (where there are too few others, the released
            code keeps fewer tokens; with its settings there never are).

    Raises:
        ValueError: if a setting is out of range.
    """

    window: int = 21
    sink: int = 10
    budget: int = 16
    recent: int = 4
    ids: str = "relative"
    reuse: int = 0

    name: ClassVar[str] = "deep-forcing"
    chooses: ClassVar[bool] = True
    choices: ClassVar[dict[str, tuple[str, ...]]] = {"ids": ("relative", "released")}

    def __post_init__(self) -> None:
        self._check({"window": 1, "sink": 0, "budget": 1, "recent": 1, "reuse": 0})
        if self.budget < self.sink + self.recent:
            raise ValueError(
                f"deep-forcing: budget must be at least {self.sink + self.recent} "
                f"({self.sink} sink and {self.recent} recent frames), not {self.budget}."
            )
        if self.window < self.budget:
            raise ValueError(f"deep-forcing: window must be at least the budget, {self.budget}, not {self.window}.")

    @property
    def chosen(self) -> int:
        """How many frames the chosen tokens make."""
        return self.budget - self.sink - self.recent

    def capacity(self, chunk: int) -> int:
        if self.recent < chunk:
            raise ValueError(f"deep-forcing: recent must be at least a chunk, {chunk} frames, not {self.recent}.")
        return self.window

    def begin_chunk(self, memory: Memory) -> Update:
        if memory.used + memory.chunk <= memory.capacity:
            return Update()
        packed = [memory.tags.index(tag) for tag in sorted(memory.tags, reverse=True) if tag <= LEARNED]
        frames = oldest(memory, self.sink, memory.capacity)
        kept = self.recent - memory.chunk
        between = packed + frames[: len(frames) - kept]
        return Update(evict=packed + frames, choose=between, move=frames[len(frames) - kept :])

    def layout(self, memory: Memory) -> list[Place]:
        places = super().layout(memory)
        if self.ids == "relative":
            return places
        # As the base has them, frames are at their index and chosen tokens, rotated already, at none.
        others = [tag for tag in memory.tags if tag >= self.sink]
        gone = min(others, default=self.sink) - self.sink
        back = gone - self.chosen - memory.chunk if gone else 0
        return [p._replace(id=p.id + back) if p.role == "sink" and p.id is not None else p for p in places]

    def observe(self, memory: Memory, layer: int, query: Tensor, key: Tensor) -> None:
        assert memory.chosen is not None
        memory.chosen.observe(layer, query)

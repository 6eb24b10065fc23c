"""MemRoPE: two running averages of everything that left the window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from longtake.memory.policy import LONG, SHORT, MemoryPolicy, Update, oldest

if TYPE_CHECKING:
    from torch import Tensor

    from longtake.memory.store import Memory


@dataclass(frozen=True)
class MemRoPE(MemoryPolicy):
    """Sinks, a slow and a fast moving average of evicted frames, and recent frames (arXiv 2603.12513, Algorithm 1).

    Slots, once full: ``[sink | long | short | recent | current chunk]``. A frame that leaves ``recent`` is averaged,
    un-rotated, into both memory frames: ``avg = (1 - rate) * avg + rate * mean(evicted)``, in float32.

    Args:
        sink: first frames of the take that are never evicted.
        recent: past frames kept as they are.
        long, short: rates of the slow and of the fast average, in (0, 1].
        pooling: "global" averages evicted frames over space too, as the released code does (a memory frame is then
            one key and one value per head); "position" averages each position over the evicted frames.
        adaptive: per-position averages where the fast rate follows motion: position p moves at
            ``0.1 * short + motion(p) * 4.9 * short``, where motion is the distance of the evicted keys to the fast
            average, mean over heads, divided by its maximum over positions (released code, ``ema_adaptive``). With
            ``first_eviction="fold"`` that rate is held to at most 1.
        ids: "relative" numbers the slots. "absolute" is the paper's ablation without position-free aggregation: each
            frame keeps its global index, and averages are taken of rotated keys and attended as they are.
        first_eviction: at the first overflow two more frames must leave than later, to make room for the memory
            frames. "fold" starts both averages with the mean of all that leave, so that every frame is folded exactly
            once. "released" does as the released code, for parity: the two oldest of them are dropped unseen, and
            an adaptive rate may pass 1 (with ``short`` above 0.2), where the fast average overshoots and, above 0.4,
            can grow without bound.
        averages: "both", or "long" or "short" alone, which is one memory frame less (the paper's ablation). Give that
            frame to ``recent`` to compare at equal frames.

    Raises:
        ValueError: if a setting is out of range.
    """

    sink: int = 3
    recent: int = 4
    long: float = 0.01
    short: float = 0.1
    pooling: str = "global"
    adaptive: bool = False
    ids: str = "relative"
    first_eviction: str = "fold"
    averages: str = "both"

    name: ClassVar[str] = "memrope"
    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "pooling": ("global", "position"),
        "ids": ("relative", "absolute"),
        "first_eviction": ("fold", "released"),
        "averages": ("both", "long", "short"),
    }

    def __post_init__(self) -> None:
        self._check({"sink": 0, "recent": 0}, rates=("long", "short"))
        if not isinstance(self.adaptive, bool):
            raise ValueError(f"memrope: adaptive must be true or false, not {self.adaptive!r}.")
        if self.adaptive and self.averages == "long":
            raise ValueError("memrope: adaptive is about the fast average, and averages=long has none.")

    @property
    def kept(self) -> tuple[int, ...]:
        """Tags of the averages there are."""
        return {"both": (LONG, SHORT), "long": (LONG,), "short": (SHORT,)}[self.averages]

    def capacity(self, chunk: int) -> int:
        return self.sink + len(self.kept) + self.recent + chunk

    def begin_chunk(self, memory: Memory) -> Update:
        overflow = memory.used + memory.chunk - memory.capacity
        if overflow <= 0:
            return Update()
        if self.kept[0] in memory.tags:
            folded = oldest(memory, self.sink, overflow)
            keys, values = self._pool(memory, folded)
            return Update(folded, self._average(memory, keys, values))
        more = len(self.kept)
        leaving = oldest(memory, self.sink, overflow + more)
        pooled = self._pool(memory, leaving if self.first_eviction == "fold" else leaving[more:])
        return Update(leaving, {tag: pooled for tag in self.kept})

    def _pool(self, memory: Memory, slots: list[int]) -> tuple[Tensor, Tensor]:
        """Mean of the keys and of the values of some slots, float32: [layers, batch, tokens or 1, heads, head_dim]."""
        import torch

        whole = self.pooling == "global" and not self.adaptive
        sums: list[Tensor] = []
        # Frame by frame, and without a copy in float32 where there need be none: it would be the largest tensor of the
        # whole chunk.
        for slot in slots:
            pair = [memory.keys[:, :, slot], memory.values[:, :, slot]]
            if self.ids == "absolute":
                pair[0] = memory.rotated(pair[0].float(), memory.tags[slot])
            pair = [x.mean(2, keepdim=True, dtype=torch.float32) if whole else x.float() for x in pair]
            sums = [a + b for a, b in zip(sums, pair, strict=True)] if sums else pair
        return sums[0] / len(slots), sums[1] / len(slots)

    def _average(self, memory: Memory, keys: Tensor, values: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        rates: dict[int, float | Tensor] = {LONG: self.long, SHORT: self.short}
        if self.adaptive:
            motion = (keys - memory.averages[SHORT][0]).norm(dim=-1).mean(-1)  # [layers, batch, tokens]
            motion = motion / (motion.amax(-1, keepdim=True) + 1e-8)
            fast = 0.1 * self.short + motion * (4.9 * self.short)
            # Beyond 1 an average would overshoot what it follows; only short > 0.2 gets there.
            rates[SHORT] = (fast if self.first_eviction == "released" else fast.clamp(max=1))[..., None, None]
        return {
            tag: (
                _towards(memory.averages[tag][0], keys, rates[tag]),
                _towards(memory.averages[tag][1], values, rates[tag]),
            )
            for tag in self.kept
        }


def _towards(average: Tensor, target: Tensor, rate: float | Tensor) -> Tensor:
    return (1 - rate) * average + rate * target

"""Echo-Infinity: memory queries that learn what to keep of what leaves the window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from longtake.memory.policy import MAX_ID, MemoryPolicy, Update, oldest

if TYPE_CHECKING:
    from longtake.memory.store import Memory


@dataclass(frozen=True)
class Echo(MemoryPolicy):
    """Sinks, frames of a learned memory, and recent frames (Echo-Infinity, arXiv 2606.04527).

    Slots, once full: ``[sink | memory | past | current chunk]``. Three frames leave the window with every chunk, and a
    ``MemoryEncoder`` (the weights; see ``longtake.memory.echo_encoder``) takes them into its state, from which the keys
    and values of the memory frames are made. Ids are Unified Relative RoPE's: sinks at 0, 1, 2, everything else packed
    backwards from the newest frame, whose id grows to ``max_id`` and stays there.

    The memory is attended to once it has taken something in and there are ids for it between sinks and window.

    Args:
        frames: memory frames, as many as the weights have: any compression of the past.
        past: recent frames beside the chunk: 6 as released, 9 in the paper's figure.
        sink: first frames of the take that are never evicted.
        max_id: the largest temporal id.
        update: "chunk_start": the memory takes in what leaves before the chunk's first forward, so that all forwards of
            a chunk see one memory. "after_first_forward": as the released code does; what leaves is in neither window
            nor memory during the first forward, and the first one of all sees no memory.
        static: only the initial queries, never updated (the paper's "w/o Memory Update").
        prior: attend to the initial queries until the first update; never so in the released code.
        recache: what the prompt change "recache" does to the memory: "reset" starts it afresh, from one update with the
            whole window as read again (released code, ``memory_recache``); "keep" leaves it as it is.

    Raises:
        ValueError: if a setting is out of range.
    """

    frames: int = 3
    past: int = 6
    sink: int = 3
    max_id: int = MAX_ID
    update: str = "chunk_start"
    static: bool = False
    prior: bool = False
    recache: str = "reset"

    name: ClassVar[str] = "echo"
    ids: ClassVar[str] = "unified"  # type: ignore[misc]
    learned: ClassVar[bool] = True
    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "update": ("chunk_start", "after_first_forward"),
        "recache": ("reset", "keep"),
    }

    def __post_init__(self) -> None:
        self._check({"frames": 1, "past": 0, "sink": 0, "max_id": 0})
        for name in ("static", "prior"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"echo: {name} must be true or false, not {getattr(self, name)!r}.")

    def capacity(self, chunk: int) -> int:
        total = self.sink + self.frames + self.past + chunk
        if total - 1 > self.max_id:
            raise ValueError(
                f"echo: {self.sink} sink, {self.frames} memory and {self.past} past frames and a chunk of {chunk} need "
                f"the ids 0 to {total - 1}, and max_id is {self.max_id}: ask for fewer frames."
            )
        return total

    def recached(self, chunk: int) -> int:
        """All that is in the window between two chunks."""
        return -(-(self.past + chunk) // chunk)

    def begin_chunk(self, memory: Memory) -> Update:
        held = sum(tag >= 0 for tag in memory.tags)
        leaving = oldest(memory, self.sink, max(0, held - self.sink - self.past))
        return Update(leaving, learn=() if self.static else leaving)

    def relearn(self, memory: Memory) -> list[int]:
        """Slots that a memory takes in at once when it starts afresh: the whole window."""
        return [] if self.static else oldest(memory, self.sink, memory.capacity)

    def fits(self, memory: Memory) -> bool:
        """Whether there are ids for the memory frames, between the sinks and the window of the chunk that begins."""
        local = sum(self.sink <= tag < memory.frame for tag in memory.tags) + memory.chunk
        newest = memory.frame + memory.chunk - 1
        return min(newest, self.max_id) - local + 1 - self.frames >= self.sink

    def on_prompt_change(self, memory: Memory, mode: str) -> Update:
        update = super().on_prompt_change(memory, mode)
        update.forget = mode != "keep"
        return update

    def check_weights(
        self, config: Mapping[str, Any], heads: int, head_dim: int, grid: tuple[int, int], num_layers: int
    ) -> None:
        """Refuses memory weights that were made for something else.

        Args:
            config: of the ``MemoryEncoder``; its ``num_layers`` is None where nobody knows.
            heads, head_dim, num_layers: of the transformer.
            grid: tokens per frame as (rows, columns).

        Raises:
            ValueError: if width, heads, layers, size of frames or number of memory frames differ; in one sentence.
        """
        check_model(config, heads, head_dim, num_layers)
        own = config["grid"] if isinstance(config["grid"], int) else tuple(config["grid"])
        here: object = grid[0] * grid[1] if isinstance(own, int) else tuple(grid)
        if own != here:
            raise ValueError(
                f"The memory weights are for pictures of {_tokens(own)} tokens per frame, not {_tokens(here)}: "
                "ask for the size that they were trained at."
            )
        if config["frames"] != self.frames:
            raise ValueError(
                f"The memory weights have {config['frames']} memory frames: ask for echo:frames={config['frames']}, "
                f"not {self.frames}."
            )


def check_model(config: Mapping[str, Any], heads: int, head_dim: int, num_layers: int) -> None:
    """Refuses memory weights that were made for another transformer; ``config`` is that of the ``MemoryEncoder``.

    Raises:
        ValueError: if width, heads or number of layers differ, or there are more groups than layers.
    """
    if (config["heads"], config["head_dim"]) != (heads, head_dim):
        width = config["heads"] * config["head_dim"]
        raise ValueError(
            f"The memory weights are for a transformer of width {width} in {config['heads']} heads, not "
            f"{heads * head_dim} in {heads}."
        )
    if config["num_layers"] not in (None, num_layers):
        raise ValueError(
            f"The memory weights are for a transformer of {config['num_layers']} layers, not {num_layers}."
        )
    if config["groups"] > num_layers:
        raise ValueError(f"The memory weights have {config['groups']} groups, more than the {num_layers} layers.")


def _tokens(grid: object) -> str:
    return f"{grid[0]}x{grid[1]}" if isinstance(grid, tuple) else str(grid)

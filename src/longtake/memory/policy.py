"""What a memory policy is: which past frames a chunk may attend to, and at which temporal ids.

A policy is a frozen dataclass of settings. It keeps nothing: all it knows of a take is in the ``Memory`` it is given
(``longtake.memory.store``), so that a snapshot of the memory is complete. Nothing here imports torch when loaded:
settings must be checked, and refused, before anything heavy starts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from longtake.memory.store import Memory

# What a slot holds: the global index of its frame (0 or more), or one of these; LEARNED - i is frame i of a learned
# memory, or of chosen tokens.
FREE, LONG, SHORT, LEARNED = -1, -2, -3, -4

MAX_ID = 20
"""The largest temporal id that Wan was pretrained on: its videos have 21 latent frames."""

PROMPT_CHANGES = ("keep", "flush", "cut")
"""What ``Memory.change_prompt`` can do. The fourth published way, re-running clean latents under the new text
("recache", LongLive), is the caller's: ``Memory.rewind`` and a commit per chunk."""

CUT_ID = 45
"""Where Infinity-RoPE (arXiv 2511.20649) puts the first frame of the chunk behind a "RoPE cut": at temporal id 45,
``transition_from`` in its released code, where three frames are cached, at ids 0 to 2, and it would stand at 3."""

CUT_GAP = CUT_ID - 3
"""How many ids further a chunk behind a cut stands, whatever is cached and however ids are given. Attention knows
differences of ids only, so this distance is all there is to the cut; with Infinity-RoPE's own memory the ids are its
own too."""


class Place(NamedTuple):
    """One slot in use. ``role`` is sink, long, short, memory, recent or current; ``id`` the temporal id its keys are
    rotated by (None: attended as stored); ``frame`` the global frame index (None for memory tokens)."""

    role: str
    id: int | None
    frame: int | None
    slot: int


@dataclass
class Update:
    """What a policy wants done to the slots. Tensors are new: the memory writes them, nobody else.

    Attributes:
        evict: slots to free.
        tokens: what memory slots hold from now on, by tag (LONG, SHORT): keys and values, float32
            [layers, batch, tokens or 1, heads, head_dim]. They are kept as they are for the next update and cast
            (and repeated over the frame, if there is one token) into the slot.
        learn: slots whose frames a learned memory takes in, as they are before anything is freed.
        forget: whether a learned memory starts afresh.
        choose: slots whose tokens compete for fewer slots, oldest first, of which the chunk's first forward chooses; to
            be freed as well.
        move: slots of frames that are kept as they are, behind what is chosen of ``choose``; to be freed as well.
    """

    evict: Sequence[int] = ()
    tokens: Mapping[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    learn: Sequence[int] = ()
    forget: bool = False
    choose: Sequence[int] = ()
    move: Sequence[int] = ()


class MemoryPolicy(ABC):
    """Base of all policies; see ``Sliding``, ``MemRoPE``, ``DeepForcing`` and ``Echo``.

    Attributes:
        learned: whether it needs weights of its own, a ``longtake.memory.echo_encoder.MemoryEncoder``.
        chooses: whether it keeps tokens for being looked at (``longtake.memory.chosen``), which needs ``observe``.
        max_id: the largest id of unified ids.
    """

    name: ClassVar[str]
    choices: ClassVar[dict[str, tuple[str, ...]]] = {}
    learned: ClassVar[bool] = False
    chooses: ClassVar[bool] = False
    sink: int
    ids: str
    max_id: int = MAX_ID

    @abstractmethod
    def capacity(self, chunk: int) -> int:
        """Slots needed, in latent frames, the current chunk of ``chunk`` frames included.

        Raises:
            ValueError: if the settings leave no room for a chunk of this size.
        """

    @abstractmethod
    def begin_chunk(self, memory: Memory) -> Update:
        """Make room for the next chunk. Must leave at least ``memory.chunk`` slots free, once full exactly as many."""

    def layout(self, memory: Memory) -> list[Place]:
        """Every slot in use with its id: sinks, memory tokens, recent frames, current chunk, each in order of time.

        ``ids="relative"``: the id is the position in this list, as in Infinity-RoPE (arXiv 2511.20649) and MemRoPE
        (arXiv 2603.12513). ``ids="absolute"``: the id is the global frame index. ``ids="unified"``: sinks keep theirs,
        the newest frame has its global index until that would pass ``max_id``, and all others are packed backwards
        from it (Echo-Infinity, arXiv 2606.04527, Unified Relative RoPE).

        Of a cut this knows nothing; ``Memory.layout`` adds its gap.
        """
        order = {LONG: -2, SHORT: -1}
        used = [(tag, slot) for slot, tag in enumerate(memory.tags) if tag != FREE]
        # sinks (0) before memory tokens (1) before everything else (2)
        used.sort(
            key=lambda item: (
                (1, order.get(item[0], LEARNED - item[0]))
                if item[0] < 0
                else (0 if item[0] < self.sink else 2, item[0])
            )
        )
        newest = memory.frame + (memory.chunk if memory.open else 0) - 1
        places = []
        for position, (tag, slot) in enumerate(used):
            if tag < 0:
                role = {LONG: "long", SHORT: "short"}.get(tag, "memory")
            elif memory.open and tag >= memory.frame:
                role = "current"
            else:
                role = "sink" if tag < self.sink else "recent"
            frame = tag if tag >= 0 else None
            index = position if self.ids == "relative" else frame
            if self.ids == "unified" and not 0 <= tag < self.sink:
                index = min(newest, self.max_id) - (len(used) - 1 - position)
            places.append(Place(role, index, frame, slot))
        return places

    def recached(self, chunk: int) -> int:
        """How many of the last chunks "recache" reads again, at most (``longtake.memory.change``)."""
        return 2

    def observe(self, memory: Memory, layer: int, query: Tensor, key: Tensor) -> None:  # noqa: B027
        """Called in every forward, before the keys are attended to, with un-rotated queries and keys
        [batch, tokens, heads, head_dim]. For policies that choose by looking; others do nothing."""

    def on_prompt_change(self, memory: Memory, mode: str) -> Update:
        """What a new prompt does to the past: "keep" nothing, "flush" and "cut" forget all but the sinks and the last
        two frames (Infinity-RoPE, KV flush, in its released code; memory tokens go too). That the chunk behind a cut
        has ids of its own is the memory's doing, not the policy's."""
        if mode == "keep":
            return Update()
        last = sorted(tag for tag in memory.tags if tag >= 0)[-2:]
        kept = {*range(self.sink), *last}
        return Update(evict=[slot for slot, tag in enumerate(memory.tags) if tag != FREE and tag not in kept])

    def spec(self) -> str:
        """The settings as text that ``parse_memory`` reads back, e.g. ``sliding:window=12,sink=3,ids=relative``."""
        changed = [
            f"{f.name}={str(value).lower() if isinstance(value, bool) else value}"
            for f in fields(self)  # type: ignore[arg-type]
            if (value := getattr(self, f.name)) != f.default or f.default is MISSING
        ]
        return self.name + (":" + ",".join(changed) if changed else "")

    def settings(self) -> list[dict[str, Any]]:
        """Every setting as it is: ``name``, ``value``, ``type`` and the accepted ``choices`` of a text (else None)."""
        return [
            {
                "name": f.name,
                "value": getattr(self, f.name),
                "type": type(getattr(self, f.name)).__name__,
                "choices": list(self.choices[f.name]) if f.name in self.choices else None,
            }
            for f in fields(self)  # type: ignore[arg-type]
        ]

    def _check(self, least: Mapping[str, int], rates: Sequence[str] = ()) -> None:
        for key, bound in least.items():
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < bound:
                raise ValueError(f"{self.name}: {key} must be a whole number of frames, {bound} or more, not {value}.")
        for key in rates:
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
                raise ValueError(f"{self.name}: {key} must be a rate above 0 and at most 1, not {value}.")
        for key, accepted in self.choices.items():
            if getattr(self, key) not in accepted:
                raise ValueError(f"{self.name}: {key} must be {' or '.join(accepted)}, not {getattr(self, key)!r}.")


def oldest(memory: Memory, sink: int, count: int, skip: int = 0) -> list[int]:
    """Slots of the ``count`` oldest frames that are no sinks, after the ``skip`` oldest of them, oldest first."""
    local = sorted((tag, slot) for slot, tag in enumerate(memory.tags) if tag >= sink)
    return [slot for _, slot in local[skip : skip + count]]


def check_ids(policy: MemoryPolicy, frames: int) -> None:
    """Refuses unified ids that do not reach for all frames of a chunk.

    Raises:
        ValueError: if ``frames``, the chunk's own and what it attends to, need an id beyond ``max_id``.
    """
    if policy.ids == "unified" and frames - 1 > policy.max_id:
        raise ValueError(
            f"{policy.name}: {frames} frames have the ids 0 to {frames - 1}, and max_id is {policy.max_id}: "
            "ask for fewer frames, or a larger max_id."
        )

"""Tokens that are kept because they are looked at: how they are chosen, and what has to be remembered for that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longtake.memory.deep_forcing import DeepForcing
from longtake.memory.policy import CUT_GAP, LEARNED, MemoryPolicy, Place
from longtake.rope import rotate

if TYPE_CHECKING:
    from longtake.memory.store import Memory

Table = tuple[Tensor, Tensor]  # cosine and sine


@dataclass
class _Due:
    """A choice to be made in the chunk's first forward, layer by layer.

    Attributes:
        between: slots whose tokens compete; the first ``packed`` of them hold tokens chosen before.
        move: slots of the recent frames before the chunk; these and what is chosen end up in ``slots``.
        frames: indices of the frames in ``move``.
        tags: of all slots, before.
        turn: to rotate the keys in ``between`` by the ids they have before.
        turn_chunk: to rotate the chunk's queries as if it were put behind all that is there.
        query: ``[layers, batch, heads, head_dim]``, float32: the rotated queries of ``frames``, added up.
        grad: whether gradients were on when the chunk began.
        source: keys and values ``[layers, batch, slots, ...]`` of a functional memory, as they are before.
        ids: temporal ids of ``slots``, None for keys that are rotated already.
        indices: by layer, once it has chosen: the tokens, ``[batch, chosen * tokens]``, counted within ``between``.
    """

    between: slice
    packed: int
    move: slice
    frames: list[int]
    tags: list[int]
    turn: Table
    turn_chunk: Table
    query: Tensor
    grad: bool
    source: tuple[Tensor, Tensor] | None
    slots: range = range(0)
    ids: list[int | None] = field(default_factory=list)
    indices: dict[int, Tensor] = field(default_factory=dict)


class Chosen:
    """What a :class:`~longtake.memory.deep_forcing.DeepForcing` memory needs beside its slots, for the layers of one
    ``Memory``, and how it chooses.

    Slots of such a memory are in order of time: sinks, chosen tokens, frames. Keys of chosen tokens are stored rotated
    in space, as each comes from a place of its own; with ``ids="released"`` in time as well.

    Layers choose when they are first asked in a chunk (:meth:`observe`). A memory that writes in place is changed there
    and then, layer by layer. Of a functional one the first forward is given what each layer chose, and slots are
    replaced before the second one (:meth:`settle`).

    Attributes:
        queries: ``[layers, batch, capacity, heads, head_dim]``, float32: of each of the last frames the queries of its
            commit, rotated in space and added up over the frame; frame f is in row f % capacity.
        counts: ``[layers, batch, chosen * tokens]``, int32: how often each chosen token was chosen. No columns if there
            is no limit.
    """

    def __init__(self, memory: Memory) -> None:
        assert isinstance(memory.policy, DeepForcing)
        self.memory, self.policy = memory, memory.policy
        layers, batch, _, tokens, *head = memory._shape
        limited = self.policy.chosen * tokens if self.policy.reuse else 0
        with torch.inference_mode(False), torch.no_grad():
            self.queries = torch.zeros(layers, batch, memory.capacity, *head, device=memory.device)
            self.counts = torch.zeros(layers, batch, limited, device=memory.device, dtype=torch.int32)
        self.due: _Due | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held in tensors."""
        return sum(x.numel() * x.element_size() for x in (self.queries, self.counts))

    def reset(self) -> None:
        """Nothing has been looked at yet."""
        self.queries.zero_()
        self.counts.zero_()
        self.due = None

    # What the memory tells

    def begin(self, between: Sequence[int], move: Sequence[int]) -> None:
        """A chunk begins, and the tokens in the slots ``between`` are too many; nothing has been freed yet."""
        if not between:
            return
        memory, policy = self.memory, self.policy
        places = {place.slot: place for place in memory.layout()}
        assert [*places] == sorted(places), "slots are in order of time"
        assert [*between, *move] == [*range(policy.sink, memory.used)]
        ids = [places[slot].id for slot in between]
        # Where the chunk would stand: right behind what is there.
        first = memory.frame if policy.ids == "released" else memory.used
        first += CUT_GAP if memory.cut else 0
        cos, sin = memory.rope.frames(list(range(first, first + memory.chunk)))
        frames = [memory.tags[slot] for slot in move]
        rows = [frame % self.queries.shape[2] for frame in frames]
        times = memory.rope.moments([places[slot].id for slot in move])
        past = torch.stack([self.queries[:, :, row] for row in rows], 2) if rows else self.queries[:, :, :0]
        self.due = _Due(
            slice(policy.sink, policy.sink + len(between)),
            sum(memory.tags[slot] <= LEARNED for slot in between),
            slice(policy.sink + len(between), memory.used),
            frames,
            list(memory.tags),
            memory.rope.frames(ids, self._in_space(between)),
            (cos.flatten(0, 1), sin.flatten(0, 1)),
            rotate(past, *times).sum(2),
            torch.is_grad_enabled(),
            (memory.keys, memory.values) if memory.functional else None,
        )

    def show(self) -> None:
        """Gives slots to what is going to be chosen and to the recent frames, once all of them have been freed."""
        if self.due is None or self.due.slots:
            return
        begin, kept = self.policy.sink, self.policy.chosen
        tags = [*(LEARNED - i for i in range(kept)), *self.due.frames]
        self.due.slots = range(begin, begin + len(tags))
        self.memory.tags[begin : begin + len(tags)] = tags

    def is_rotated_in_space(self, slot: int) -> bool:
        """Whether the keys in a slot are stored so."""
        return self.memory.tags[slot] <= LEARNED

    def _in_space(self, slots: Sequence[int]) -> list[bool]:
        return [self.is_rotated_in_space(slot) for slot in slots]

    def wait(self, places: Sequence[Place]) -> range:
        """Slots that the chunk's first forward fills and rotates, by their ids among all places."""
        if self.due is None:
            return range(0)
        self.due.ids = [place.id for place in places if place.slot in self.due.slots]
        for slot, index in zip(self.due.slots, self.due.ids, strict=True):
            self.memory._turned_by[slot] = index
        return self.due.slots

    def observe(self, layer: int, query: Tensor) -> None:
        """A forward is in a layer, whose un-rotated queries of the chunk are ``[batch, tokens, heads, head_dim]``."""
        memory = self.memory
        if self.due is not None and layer in self.due.indices:
            self.settle()  # this is the second forward
        with torch.no_grad():
            if self.due is not None and layer not in self.due.indices:
                self.due.indices[layer] = self._choose(layer, query)
                if not memory.functional:
                    self._write(layer)
            if memory._recording:
                looked = query.float().unflatten(1, (memory.chunk, -1))
                sums = rotate(looked, *memory.rope.space).sum(2)
                for index in range(memory.chunk):
                    row = (memory.frame + index) % self.queries.shape[2]
                    self.queries[layer, :, row].copy_(sums[:, index])

    def past(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Of a functional memory: rotated keys, and values, that a layer has just chosen; None if it need not choose.

        Raises:
            RuntimeError: if it should have chosen, and was not asked.
        """
        due = self.due
        if due is None:
            return None
        if layer not in due.indices:
            raise RuntimeError("This memory chooses by looking: let its policy observe the queries before update().")
        if due.source is None:
            return None
        keys, values = self._contents(due, due.source[0][layer], due.source[1][layer], due.indices[layer])
        cos, sin = self._tables()
        return rotate(keys, cos, sin).flatten(1, 2), values.flatten(1, 2)

    def settle(self) -> None:
        """After the first forward: what was chosen is what the memory holds."""
        due = self.due
        if due is None or len(due.indices) < self.memory._shape[0]:
            return
        self.due = None
        if due.source is None or not due.slots:
            return
        indices = torch.stack([index for _, index in sorted(due.indices.items())])
        with torch.set_grad_enabled(due.grad):
            keys, values = self._contents(due, *due.source, indices)
            self.memory._write_frames(due.slots, keys, values)
        if self.counts.shape[-1]:
            self.counts = self._counted(self.counts, indices, due)
        if self.memory.open:
            self.memory._prepare()

    # How it is done

    def _choose(self, layer: int, query: Tensor) -> Tensor:
        """Indices of the tokens to keep, ascending: ``[batch, chosen * tokens]``."""
        memory, due = self.memory, self.due
        assert due is not None
        keys = (memory.keys if due.source is None else due.source[0])[layer][:, due.between]
        turned = rotate(keys, *due.turn).flatten(1, 2).float()
        looking = due.query[layer] + rotate(query.float(), *due.turn_chunk).sum(1)
        scores = (turned.flatten(2) @ looking.flatten(1).unsqueeze(-1)).squeeze(-1)  # heads added up
        if due.packed and self.counts.shape[-1]:
            worn = self.counts[layer] >= self.policy.reuse
            span = scores.amax(-1, keepdim=True) - scores.amin(-1, keepdim=True) + 1
            scores[:, : due.packed * memory.tokens] -= span * worn
        return scores.topk(self.policy.chosen * memory.tokens, -1).indices.sort(-1).values

    def _contents(self, due: _Due, keys: Tensor, values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """What the waiting slots are to hold: keys and values ``[..., slots, tokens, heads, head_dim]``.

        Args:
            keys, values: all slots as they were, of one layer or of all: ``[..., batch, slots, tokens, heads, dim]``.
            indices: of tokens, ``[..., batch, chosen * tokens]``.
        """
        first, middle, end = due.between.start, due.between.start + due.packed, due.between.stop
        fresh = keys[..., middle:end, :, :, :]
        if self.policy.ids == "released":
            turned = rotate(fresh, *(x[due.packed :] for x in due.turn))
        else:
            turned = rotate(fresh, *self.memory.rope.space)
        among = torch.cat([keys[..., first:middle, :, :, :], turned], -4)
        held = []
        for x, all_slots in ((among, keys), (values[..., due.between, :, :, :], values)):
            index = indices[..., None, None].expand(*indices.shape, *x.shape[-2:])
            taken = x.flatten(-4, -3).gather(-3, index).unflatten(-3, (self.policy.chosen, self.memory.tokens))
            held.append(torch.cat([taken, all_slots[..., due.move, :, :, :]], -4))
        return held[0], held[1]

    def _counted(self, counts: Tensor, indices: Tensor, due: _Due) -> Tensor:
        """How often the tokens have been chosen, with this time: ``[..., chosen * tokens]``."""
        tokens = self.memory.tokens
        before = counts.new_zeros(*counts.shape[:-1], (due.between.stop - due.between.start) * tokens)
        before[..., : due.packed * tokens] = counts[..., : due.packed * tokens]
        return before.gather(-1, indices) + 1

    def _tables(self) -> Table:
        """To rotate the waiting slots by their new ids."""
        assert self.due is not None
        return self.memory.rope.frames(self.due.ids, self._in_space(self.due.slots))

    def _write(self, layer: int) -> None:
        memory, due = self.memory, self.due
        assert due is not None
        indices = due.indices[layer]
        keys, values = self._contents(due, memory.keys[layer], memory.values[layer], indices)
        slots = slice(due.slots.start, due.slots.stop)
        if self.counts.shape[-1]:
            self.counts[layer].copy_(self._counted(self.counts[layer], indices, due))
        memory.keys[layer][:, slots].copy_(keys)
        memory.values[layer][:, slots].copy_(values)
        rotate(keys, *self._tables(), out=memory._turned[layer][:, slots])

    def frozen(self, view: Memory) -> Chosen:
        """What forwards of the open chunk need of this, for ever; see ``longtake.memory.frozen``."""
        other = copy(self)
        other.memory = view
        if self.due is not None:
            other.due = copy(self.due)
            other.due.indices = dict(self.due.indices)
        return other

    # State

    def before(self) -> list[int] | None:
        """The slots' tags before the chunk began, if its choice is still to be made: a saved state is of then.

        Raises:
            RuntimeError: if some layers have chosen and others have not.
        """
        self.settle()
        if self.due is None:
            return None
        if self.due.indices:
            raise RuntimeError("A memory that chooses cannot be saved in the middle of a forward.")
        return self.due.tags

    def state_dict(self) -> dict[str, Tensor]:
        """What a snapshot needs."""
        return {"chosen.queries": self.queries, "chosen.counts": self.counts}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from what :func:`fits` has seen."""
        self.reset()
        self.queries.copy_(tensors["chosen.queries"])
        self.counts.copy_(tensors["chosen.counts"])


def fits(policy: MemoryPolicy, shape: tuple[int, ...], tensors: Mapping[str, Tensor]) -> bool:
    """Whether a saved state has what such a memory needs; ``shape``: of its keys."""
    assert isinstance(policy, DeepForcing)
    layers, batch, slots, tokens, *head = shape
    limited = policy.chosen * tokens if policy.reuse else 0
    wanted = {
        "chosen.queries": ((layers, batch, slots, *head), torch.float32),
        "chosen.counts": ((layers, batch, limited), torch.int32),
    }
    return all(
        name in tensors and tuple(tensors[name].shape) == size and tensors[name].dtype == dtype
        for name, (size, dtype) in wanted.items()
    )

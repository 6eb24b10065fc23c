"""Frames that are one key and one value, repeated over the grid: their share of attention in closed form.

MemRoPE's released code (arXiv 2603.12513) averages evicted frames over space too, so that a memory frame has the same
key and the same value at all its positions before rotation. Rotation splits the channels into three parts that turn
with time, row and column, so the score of a query against position (h, w) is ``a + b_h + c_w``, and

    sum over h, w of exp(a + b_h + c_w) = exp(a) * (sum over h of exp(b_h)) * (sum over w of exp(c_w)).

So ``1 + rows + columns`` short products take the place of ``rows * columns`` long ones, and the value is the same
wherever it is read: the frame enters the softmax as a single key with the logarithm of that sum as its score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from longtake.rope import Rope, rotate

if TYPE_CHECKING:
    from longtake.memory.policy import Place
    from longtake.memory.store import Memory

# Products of half-precision matrices with float32 results, as kernels of attention have their scores; newer PyTorch.
_WIDE_PRODUCTS = hasattr(torch.ops.aten.bmm, "dtype")


class Pooled(NamedTuple):
    """Such frames of one layer.

    Attributes:
        table: [batch, heads, head_dim, frames * (1 + rows + columns)]: per frame the key's parts turned by the frame's
            time, by every row and by every column, zero elsewhere, all times the scale of attention.
        values: [batch, heads, frames, head_dim].
        rows, columns: of the grid.
    """

    table: Tensor
    values: Tensor
    rows: int
    columns: int


def table_for(rope: Rope, keys: Tensor, ids: Sequence[int | None]) -> Tensor:
    """Tables of several layers.

    Args:
        rope: of the grid.
        keys: un-rotated, [layers, batch, frames, heads, head_dim].
        ids: temporal id per frame; None for one that is attended as it is.

    Returns:
        [layers, batch, heads, head_dim, frames * (1 + rows + columns)], float32 (float64 for such keys).
    """
    time, row, _ = rope.dims
    height, width = rope.grid
    wide = keys.to(torch.promote_types(keys.dtype, torch.float32))
    made = wide.new_zeros(*keys.shape[:2], len(ids), keys.shape[3], 1 + height + width, keys.shape[4])
    for frame, index in enumerate(ids):
        parts = wide[:, :, frame, :, None].split(rope.dims, dim=-1)
        turns = (rope.time([0 if index is None else index]), *rope.sides(index is not None))
        turned = [rotate(part, *turn) for part, turn in zip(parts, turns, strict=True)]
        made[:, :, frame, :, :1, :time] = turned[0]
        made[:, :, frame, :, 1 : 1 + height, time : time + row] = turned[1]
        made[:, :, frame, :, 1 + height :, time + row :] = turned[2]
    made *= keys.shape[-1] ** -0.5
    return made.permute(0, 1, 3, 5, 2, 4).flatten(4)


def pooled_scores(query: Tensor, pooled: Pooled) -> Tensor:
    """The score that each frame has as a single key, scale included.

    Args:
        query: rotated, [batch, tokens, heads, head_dim].

    Returns:
        [batch, heads, tokens, frames], float32 (float64 for such queries).
    """
    q, table = query.transpose(1, 2), pooled.table
    if query.is_cuda and query.dtype != torch.float32 and _WIDE_PRODUCTS:
        scores = torch.bmm(q.flatten(0, 1), table.to(q.dtype).flatten(0, 1), out_dtype=torch.float32)
        scores = scores.unflatten(0, q.shape[:2])
    else:
        scores = torch.matmul(q.to(table.dtype), table)
    parts = scores.unflatten(-1, (-1, 1 + pooled.rows + pooled.columns))
    time, rows, columns = parts.split([1, pooled.rows, pooled.columns], dim=-1)
    return time.squeeze(-1) + rows.logsumexp(-1) + columns.logsumexp(-1)


def merge(out: Tensor, lse: Tensor, scores: Tensor, values: Tensor) -> Tensor:
    """Adds single keys to attention that is done.

    Args:
        out: what it gave, [batch, tokens, heads, head_dim].
        lse: logarithm of the sum of the exponentials of its scores, [batch, heads, tokens].
        scores: of the keys that are added, [batch, heads, tokens, keys]; ``values``: [batch, heads, keys, head_dim].

    Returns:
        Like ``out``: attention to all keys together.
    """
    shares = torch.cat([lse.unsqueeze(-1).to(scores.dtype), scores], dim=-1).softmax(-1)
    added = torch.matmul(shares[..., 1:], values.to(shares.dtype)).transpose(1, 2)
    return (out * shares[..., :1].transpose(1, 2) + added).to(out.dtype)


class Collapsed:
    """Which frames of a memory are attended to in closed form in its open chunk: always the last slots in use.

    Attributes:
        count: how many.
    """

    def __init__(self) -> None:
        self.count = 0
        self._grid = (0, 0)
        self._table = self._values = torch.empty(0)

    def gather(self, memory: Memory) -> None:
        """Brings the frames of one key and one value into the last slots in use, if the memory collapses them."""
        held = memory.averages if memory.collapse else {}
        # Sorted: a memory that was restored may hold them in another order, and the order of keys is in the last bits.
        tags = sorted(tag for tag, pair in held.items() if tag in memory.tags and pair[0].shape[2] == 1)
        self.count = len(tags)
        for tag, slot in zip(tags, range(memory.used - self.count, memory.used), strict=True):
            _swap(memory, memory.tags.index(tag), slot)

    def prepare(self, memory: Memory, places: Sequence[Place]) -> None:
        """Makes the tables of all layers. Where tables of the same size were, they are written over: what was captured
        with them goes on reading the right ones."""
        if not self.count:
            return
        slots = slice(memory.used - self.count, memory.used)
        ids = {place.slot: place.id for place in places}
        keys, values = (x[:, :, slots, 0] for x in (memory.keys, memory.values))
        table = table_for(memory.rope, keys, [ids[slot] for slot in range(slots.start, slots.stop)])
        if self._table.shape == table.shape:
            self._table.copy_(table)
        else:
            self._table, self._values = table, torch.empty_like(values.transpose(2, 3))
        self._values.copy_(values.transpose(2, 3))
        self._grid = memory.rope.grid

    def at(self, layer: int) -> Pooled | None:
        """Those of a layer; None if there are none."""
        return Pooled(self._table[layer], self._values[layer], *self._grid) if self.count else None


def _swap(memory: Memory, one: int, other: int) -> None:
    """Exchanges what two slots in use hold: attention does not care."""
    if one == other:
        return
    held = [x[:, :, one].clone() for x in (memory.keys, memory.values)]
    memory._write(one, memory.keys[:, :, other], memory.values[:, :, other])
    memory._write(other, *held)
    memory.tags[one], memory.tags[other] = memory.tags[other], memory.tags[one]

"""Keys of past frames, rotated by their ids when a chunk begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longtake.rope import rotate

if TYPE_CHECKING:
    from longtake.memory.store import Memory

# Rotation makes float32 temporaries about four times this many elements: all layers at once for small models, groups
# of layers for large ones (all 30 layers of the 1.3B model at 480p would need 5 GB).
_ROTATE_ELEMENTS = 1 << 25

Pairs = Sequence[tuple[int, int | None]]  # slots and the ids that their keys are to be rotated by


def turn_anew(memory: Memory, pairs: Pairs) -> None:
    """Rotates the keys of some slots of a memory that writes in place."""
    for begin, end in runs([slot for slot, _ in pairs]):
        slots = slice(pairs[begin][0], pairs[begin][0] + end - begin)
        cos, sin = _tables(memory, pairs[begin:end])
        group = max(1, _ROTATE_ELEMENTS // memory.keys[0, :, slots].numel())
        for layer in range(0, memory._shape[0], group):
            block = (slice(layer, layer + group), slice(None), slots)
            rotate(memory.keys[block], cos, sin, out=memory._turned[block])
        memory._turned_by[slots] = [index for _, index in pairs[begin:end]]


def turned_past(memory: Memory, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Rotated keys, and values, of some slots of a functional memory, per layer: ``[layers, batch, tokens of all slots,
    heads, head_dim]``."""
    slots = torch.tensor([slot for slot, _ in pairs], device=memory.device, dtype=torch.long)
    cos, sin = _tables(memory, pairs)
    keys, values = (x.index_select(2, slots) for x in (memory.keys, memory.values))
    return rotate(keys, cos, sin).flatten(2, 3), values.flatten(2, 3)


def _tables(memory: Memory, pairs: Pairs) -> tuple[Tensor, Tensor]:
    done = [] if memory.chosen is None else [memory.chosen.is_rotated_in_space(slot) for slot, _ in pairs]
    return memory.rope.frames([index for _, index in pairs], done)


def runs(slots: Sequence[int]) -> list[tuple[int, int]]:
    """Index ranges [begin, end) of consecutive slot numbers; none for no slots."""
    starts = [i for i, slot in enumerate(slots) if i == 0 or slot != slots[i - 1] + 1]
    return list(zip(starts, [*starts[1:], len(slots)], strict=False))

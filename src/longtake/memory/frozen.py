"""A memory as it is within a chunk, kept for the backward of that chunk."""

from __future__ import annotations

from copy import copy

from longtake.memory.split import SplitMemory
from longtake.memory.store import Memory


def frozen(memory: Memory | SplitMemory) -> Memory | SplitMemory:
    """What forwards of the open chunk attend to, for ever: whatever becomes of the memory, the result's ``query`` and
    ``update`` give what the memory's give now.

    For gradient checkpointing, which runs a forward again in backward, when the memory has moved on. The result shares
    the rotated past of the chunk with the memory and holds no other keys and values, so that it is good for nothing
    else; what it is told is told to nobody.

    Raises:
        RuntimeError: if no chunk is open, or the memory writes in place.
    """
    if isinstance(memory, SplitMemory):
        return SplitMemory([_frozen(part) for part in memory.parts])
    return _frozen(memory)


def _frozen(memory: Memory) -> Memory:
    memory._require_open()
    if not memory.functional:
        raise RuntimeError("This memory writes in place; only a functional one can be frozen.")
    # A functional memory replaces its tensors: sharing them is enough. Its lists are changed, so they are copied.
    view = copy(memory)
    view.keys, view.values, view.averages = memory.keys.new_empty(0), memory.values.new_empty(0), {}
    view.tags, view.prompt = list(memory.tags), list(memory.prompt)
    view._recording, view._recorded, view.learned = False, {}, None
    view.chosen = None if memory.chosen is None else memory.chosen.frozen(view)
    return view

"""Blocks of the transformer compiled by ``torch.compile``, each as one graph, used from when the memory is full.

While a memory fills, the number of keys grows with every chunk, and a compiled block has shapes that do not change. So
the first chunks are computed without compiling. From then on each chunk goes to other slots of a full memory; the graph
is told where as tensors (:class:`Slots`), so that nothing is compiled again, however long the take and whatever its
prompts. All blocks, and all takes of the same sizes, share what was compiled.

Prompts are read, and a commit ends, outside of the graphs, and a memory that chooses by looking looks there. Which
forwards are compiled depends on the take's state alone, so that a resumed take goes on bit for bit.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from longtake import forward, speed
from longtake.attention import read_prompt
from longtake.forward import Fast, Modulation, Plain, run_block
from longtake.kernels import Kernel
from longtake.memory.policy import LEARNED, MemoryPolicy
from longtake.memory.pooled import Pooled
from longtake.memory.split import SplitMemory
from longtake.memory.store import Memory
from longtake.memory.together import Together
from longtake.rope import rotate
from longtake.transfer import send

BACKEND: str | Callable[..., Any] = "inductor"
"""What compiles, as ``torch.compile`` takes it. Others than PyTorch's own are for looking at what is compiled."""

_REFUSED = "The transformer's blocks cannot be compiled here"
_KEPT = 16  # different models and sizes in one process; of more, the least used are compiled again


class _Blind:
    """Stands for a policy that looks at nothing: of one that does, no forward in which it looks is compiled."""

    def observe(self, memory: Slots, layer: int, query: Tensor, key: Tensor) -> None:
        """See ``MemoryPolicy.observe``."""


class Slots:
    """One layer of a full memory for one forward, for ``longtake.attention``: tensors whose shapes never change, and
    nothing that would have to be looked at again in the next chunk.

    Args:
        memory: full, in an open chunk.
        layer: which of its layers.
        index: which of the memory's tokens are the current chunk's, [chunk * tokens].
    """

    collapse = False  # padding is not: its length is the prompt's, and every new one would be compiled
    padding = 0
    policy = _Blind()

    def __init__(self, memory: Memory, layer: int, index: Tensor) -> None:
        self.turned, keys, self.values = memory._views[layer]
        self.keys = keys if memory.is_recording else None
        self.index, self.angles = index, memory._angles
        self.shown = memory.pooled(layer)
        self.end = (memory.used - (0 if self.shown is None else self.shown.values.shape[2])) * memory.tokens
        self.kernel: Kernel | None = memory.kernel
        self.prompt = (memory.prompt[layer],)

    def query(self, query: Tensor) -> Tensor:
        """See ``Memory.query``."""
        return rotate(query.to(self.values.dtype), *self.angles)

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Memory.update``."""
        key, value = key.to(self.values.dtype), value.to(self.values.dtype)
        self.turned.index_copy_(1, self.index, rotate(key, *self.angles))
        self.values.index_copy_(1, self.index, value)
        if self.keys is not None:
            self.keys.index_copy_(1, self.index, key)
        return self.turned[:, : self.end], self.values[:, : self.end]

    def pooled(self, layer: int) -> Pooled | None:
        """See ``Memory.pooled``."""
        return self.shown


class Compiled(Fast):
    """As :class:`~longtake.forward.Fast`, with compiled blocks once the memory is full."""

    def __init__(self, transformer: Any, memory: Memory | SplitMemory | Together, times: Sequence[Tensor]) -> None:
        super().__init__(transformer, memory, times)
        self._slots: tuple[int, ...] = ()  # of the current chunk, and its tokens
        self._index = torch.empty(0)

    def _blocks(self, states: Tensor | None) -> Callable[[Any, Tensor, Modulation, int], Tensor]:
        memory = self.memory
        if not isinstance(memory, Memory) or not is_steady(memory):
            return super()._blocks(states)
        for layer, block in enumerate(self.transformer.blocks):
            read_prompt(block.attn2, memory, layer, states)
        from torch._dynamo.exc import TorchDynamoException

        compiled, index = compiled_block(self._sizes(memory)), self._index_for(memory)
        last = len(self.transformer.blocks) - 1

        def run(block: Any, x: Tensor, modulation: Modulation, layer: int) -> Tensor:
            try:
                out: Tensor = compiled(block, x, None, modulation, Slots(memory, layer, index), 0)
            except TorchDynamoException as error:
                raise ValueError(f"{_REFUSED}: {_reason(error)}; leave compilation off.") from error
            if memory.is_recording:
                memory._recorded[layer] = None
            if layer == last and memory.learned is not None:
                memory.learned.after_forward(memory)
            return out

        return run

    def _index_for(self, memory: Memory) -> Tensor:
        """Which tokens of the memory are the current chunk's; made where it is needed once per chunk."""
        slots = tuple(place.slot for place in memory._current)
        if slots != self._slots:
            tokens = torch.tensor(slots)[:, None] * memory.tokens + torch.arange(memory.tokens)
            self._slots, self._index = slots, send(tokens.flatten(), memory.device)
        return self._index

    def _sizes(self, memory: Memory) -> tuple[Any, ...]:
        """What a compiled block depends on."""
        held = (memory._shape[1:], memory.used, memory.chunk, memory.dtype, memory.device, memory.kernel)
        return (BACKEND, self.transformer.config.ffn_dim, *held)


def is_steady(memory: Memory) -> bool:
    """Whether the next forward has shapes that come again for ever, and nobody looks at what it computes."""
    if memory.chosen is not None:  # such a memory empties when it chooses, and fills again
        chose = any(tag <= LEARNED for tag in memory.tags)
        return chose and memory.chosen.due is None and not memory.is_recording
    left = memory.frame + memory.chunk > memory.capacity  # averages are there once frames have left
    return left and memory.used == memory.capacity and type(memory.policy).observe is MemoryPolicy.observe


@lru_cache(maxsize=_KEPT)
def compiled_block(sizes: tuple[Any, ...]) -> Callable[..., Tensor]:
    """``longtake.forward.run_block``, to be compiled for blocks and memories of these sizes; the first is a backend."""
    return _to_compile(run_block, sizes[0])


def _to_compile(function: Any, backend: str | Callable[..., Any]) -> Callable[..., Tensor]:
    # PyTorch counts by code how often something was compiled, and gives up after a few times: each has code of its own.
    own = types.FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    made: Callable[..., Tensor] = torch.compile(own, fullgraph=True, dynamic=False, backend=backend)
    return made


def check(device: torch.device) -> None:
    """Compiles a line for a device, to see whether that is possible; once in a process.

    Raises:
        ValueError: if not, in one sentence.
    """
    reason = _trial(BACKEND, device)
    if reason is not None:
        raise ValueError(f"{_REFUSED}: {reason}; leave compilation off.")


def _line(x: Tensor) -> Tensor:
    return x.sin() + 1


@cache
def _trial(backend: str | Callable[..., Any], device: torch.device) -> str | None:
    try:
        _to_compile(_line, backend)(torch.zeros(8, device=device))
    except Exception as error:  # no compiler, one that does not work, no header files, no Triton: all sorts
        return _reason(error)
    return None


def _reason(error: BaseException) -> str:
    text = next((line.strip(" .:") for line in str(error).splitlines() if line.strip()), "")
    return f"PyTorch's compiler says {type(error).__name__}" + (f", {text[:200]}" if text else "")


def forwards(
    transformer: Any,
    memory: Memory | SplitMemory | Together,
    times: Sequence[Tensor],
    path: str = "auto",
    compilation: str = "auto",
    held: Plain | None = None,
) -> Plain:
    """The forwards of a take, as :func:`longtake.forward.forwards` gives them, or compiled.

    Args:
        compilation: one of ``longtake.speed.COMPILATIONS``.

    Raises:
        ValueError: for another one, or if blocks are to be compiled and cannot be; in one sentence.
    """
    speed.check("compilation", compilation)
    if compilation != "blocks":
        return forward.forwards(transformer, memory, times, path, held)
    if isinstance(memory, Together):
        raise ValueError(f"{_REFUSED}: several takes are made side by side; leave compilation off.")
    made = forward.forwards(transformer, memory, times, path, held, Compiled)
    if not isinstance(made, Compiled):
        reason = "the plain path is asked for" if path == "plain" else forward.obstacle(transformer, memory)
        raise ValueError(f"{_REFUSED}: {reason}; leave compilation off.")
    check(memory.device)
    return made

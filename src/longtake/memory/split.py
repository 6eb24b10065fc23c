"""A memory in several parts, each on the device where its layers are computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longtake.memory.learned import Learned
from longtake.memory.policy import MemoryPolicy, Place
from longtake.memory.pooled import Pooled
from longtake.memory.state import check_state
from longtake.memory.store import Memory

if TYPE_CHECKING:
    from longtake.kernels import Kernel


class SplitMemory:
    """What :class:`~longtake.memory.store.Memory` is, for a transformer whose layers are on several devices.

    Every part is a ``Memory`` of consecutive layers, on their device. Policies work layer by layer, so each part runs
    the policy on its own tensors and all of them come to the same slots and ids; nothing is sent between devices. What
    is said of all layers at once is said here; what belongs to a layer (``update``, ``query``, ``prompt``) is done by
    its part, see :meth:`part`.

    A saved state is that of the undivided memory, so that a snapshot moves between splits.

    Args:
        parts: memories of the same policy and sizes, in order of layers.

    Raises:
        ValueError: if there are none, or they differ in anything but their layers and devices.
    """

    def __init__(self, parts: Sequence[Memory]) -> None:
        alike = {(part.policy, part.chunk, part._shape[1:], part.dtype, part.functional) for part in parts}
        if len(alike) != 1:
            raise ValueError("The parts of a memory must have the same policy, sizes and dtype.")
        self.parts = tuple(parts)
        self._places = [(part, layer) for part in self.parts for layer in range(part._shape[0])]

    def part(self, layer: int) -> tuple[Memory, int]:
        """The part that holds a layer, and the layer's number in it."""
        return self._places[layer]

    # What all parts agree on

    @property
    def policy(self) -> MemoryPolicy:
        """Which frames stay."""
        return self.parts[0].policy

    @property
    def chunk(self) -> int:
        """Latent frames (after patching) per chunk."""
        return self.parts[0].chunk

    @property
    def capacity(self) -> int:
        """Slots."""
        return self.parts[0].capacity

    @property
    def tokens(self) -> int:
        """Tokens per slot."""
        return self.parts[0].tokens

    @property
    def functional(self) -> bool:
        """Whether tensors are replaced instead of written into."""
        return self.parts[0].functional

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values."""
        return self.parts[0].dtype

    @property
    def device(self) -> torch.device:
        """Of the first layer: where the transformer takes its input and gives its output."""
        return self.parts[0].device

    @property
    def kernel(self) -> Kernel | None:
        """What computes attention where the first layer is; every part has its own."""
        return self.parts[0].kernel

    @property
    def collapse(self) -> bool:
        """Whether frames of one key and one value are attended to in closed form."""
        return self.parts[0].collapse

    @collapse.setter
    def collapse(self, collapse: bool) -> None:
        for part in self.parts:
            part.collapse = collapse

    @property
    def padding(self) -> int:
        """How many tokens at the end of the text are known to be zero."""
        return self.parts[0].padding

    @padding.setter
    def padding(self, padding: int) -> None:
        for part in self.parts:
            part.padding = padding

    @property
    def frame(self) -> int:
        """Global index of the first frame of the current chunk, or of the next one between chunks."""
        return self.parts[0].frame

    @property
    def open(self) -> bool:
        """Whether a chunk has begun and is not committed."""
        return self.parts[0].open

    @property
    def is_recording(self) -> bool:
        """Whether forwards are remembered: inside of :meth:`recording`."""
        return self.parts[0].is_recording

    @property
    def cut(self) -> bool:
        """Whether the current chunk, or the next one between chunks, stands behind a cut."""
        return self.parts[0].cut

    @property
    def tags(self) -> list[int]:
        """What each slot holds: a frame index, or FREE, LONG, SHORT. A copy."""
        return list(self.parts[0].tags)

    @property
    def used(self) -> int:
        """Slots in use, the current chunk's included while one is open."""
        return self.parts[0].used

    def layout(self) -> list[Place]:
        """Every slot in use as (role, id, frame, slot), in order of position."""
        return self.parts[0].layout()

    def rotated(self, keys: Tensor, frame_id: int) -> Tensor:
        """Rotate one frame's keys [..., tokens, heads, head_dim] as time id ``frame_id``, on their device."""
        return self._beside(keys).rotated(keys, frame_id)

    def query(self, query: Tensor) -> Tensor:
        """Rotate the current chunk's queries [batch, chunk * tokens, heads, head_dim] by its ids, on their device."""
        return self._beside(query).query(query)

    def _beside(self, tensor: Tensor) -> Memory:
        """A part on the tensor's device (angles are the same in all); the first if there is none."""
        return next((part for part in self.parts if part.device == tensor.device), self.parts[0])

    @property
    def learned(self) -> Learned | None:
        """The state of a memory that is learned: one for all parts."""
        return self.parts[0].learned

    # What is the sum of the parts

    @property
    def nbytes(self) -> int:
        """Bytes held in tensors, on all devices together."""
        return sum(part.nbytes for part in self.parts)

    @property
    def prompt(self) -> tuple[tuple[Tensor, Tensor] | None, ...]:
        """Cached keys and values of cross-attention, per layer. To be written in the layer's part."""
        return tuple(pair for part in self.parts for pair in part.prompt)

    def reset(self) -> None:
        """Forget everything, the prompt included. Keeps the allocation."""
        for part in self.parts:
            part.reset()

    def begin_chunk(self) -> None:
        """Make room for the next chunk in every part; see ``Memory.begin_chunk``.

        Raises:
            RuntimeError: if the last chunk has not been committed, or the policy chose other frames for some layers
                than for others.
        """
        for part in self.parts:
            part.begin_chunk()
        if any(part.tags != self.parts[0].tags for part in self.parts):
            raise RuntimeError(f"The memory {self.policy.spec()} chooses frames by layer and cannot be split.")

    @contextmanager
    def recording(self) -> Iterator[None]:
        """The forward inside (clean latents, t = 0) is remembered, and the chunk is over.

        Raises:
            RuntimeError: if no chunk is open, or not every layer was run inside; the chunk is still open then.
        """
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.recording())
            yield
            # Asked of all before the first of them closes its chunk.
            if any(len(part._recorded) != part._shape[0] for part in self.parts):
                raise RuntimeError("Nothing was recorded: run the transformer once, attending to this memory, inside.")

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put the current chunk beside the past, for one layer of one forward; see ``Memory.update``."""
        part, inner = self.part(layer)
        return part.update(inner, key, value)

    def pooled(self, layer: int) -> Pooled | None:
        """The frames of a layer that are attended to in closed form; see ``Memory.pooled``."""
        part, inner = self.part(layer)
        return part.pooled(inner)

    def catch_up(self) -> None:
        """What is due after a chunk's first forward; see ``Memory.catch_up``."""
        for part in self.parts:
            part.catch_up()

    def change_prompt(self, mode: str = "keep") -> None:
        """The text is about to change; see ``Memory.change_prompt``."""
        for part in self.parts:
            part.change_prompt(mode)

    def rewind(self, frames: int) -> None:
        """Forget the newest ``frames`` frames; see ``Memory.rewind``."""
        for part in self.parts:
            part.rewind(frames)

    def detach(self) -> None:
        """Cut the graph behind everything remembered (functional memories)."""
        for part in self.parts:
            part.detach()

    # State

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """A complete copy, as of one memory with all layers, on the CPU (no single device need have room for it)."""
        states = [part.state_dict() for part in self.parts]
        tensors = {
            name: tensor if _is_shared(name) else torch.cat([state[name] for state, _ in states])
            for name, tensor in states[0][0].items()
        }
        return tensors, states[0][1]

    def load_state_dict(self, tensors: Mapping[str, Tensor], counters: Mapping[str, int]) -> None:
        """Continue from ``state_dict()`` of a memory with the same policy and sizes, split or not.

        Raises:
            ValueError: if the state is not one of such a memory; nothing is changed then.
        """
        shape = (len(self._places), *self.parts[0]._shape[1:])
        check_state(shape, self.dtype, self.chunk, tensors, counters, self.policy, self.learned)
        first = 0
        for part in self.parts:
            layers = slice(first, first + part._shape[0])
            first = layers.stop
            mine = {name: tensor if _is_shared(name) else tensor[layers] for name, tensor in tensors.items()}
            part.load_state_dict(mine, counters)


def _is_shared(name: str) -> bool:
    """Whether a tensor of a saved state belongs to all layers together."""
    return name == "tags" or name.startswith("learned.")

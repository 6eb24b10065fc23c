"""Memories of several takes whose forwards are one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longtake.memory.split import SplitMemory

if TYPE_CHECKING:
    from longtake.memory.store import Memory


class Together:
    """What forwards of a batch attend to: item i of the batch to memory i, and to nothing else.

    Every memory remains that of its take: it begins its chunks, learns of a new prompt and is saved by itself, so the
    takes may have different policies, prompts and lengths. What belongs to a forward of all is said here.

    Args:
        memories: of one take each (batch 1), for the same transformer, chunk and size of picture.

    Raises:
        ValueError: if there are none, or they are not of the same sizes.
    """

    functional = False

    def __init__(self, memories: Sequence[Memory | SplitMemory]) -> None:
        self.memories = tuple(memories)
        if len({(m.chunk, m.tokens, m.dtype, m.device, len(m.prompt)) for m in self.memories}) != 1:
            raise ValueError("Takes side by side need memories of the same chunk, picture, dtype and place.")
        if any(m.functional for m in self.memories):
            raise ValueError("Memories for training cannot be put together.")

    def at(self, item: int, layer: int) -> tuple[Memory, int]:
        """What an item of the batch attends to in a layer: the memory that holds it, and the layer's number in it."""
        memory = self.memories[item]
        return memory.part(layer) if isinstance(memory, SplitMemory) else (memory, layer)

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values."""
        return self.memories[0].dtype

    @property
    def device(self) -> torch.device:
        """Of the first layer."""
        return self.memories[0].device

    @property
    def is_recording(self) -> bool:
        """Whether forwards are remembered: inside of :meth:`recording`."""
        return self.memories[0].is_recording

    @property
    def prompt(self) -> tuple[tuple[tuple[Tensor, Tensor], ...] | None, ...]:
        """Per layer, the cached keys and values of all prompts; None where one is missing."""
        pairs = zip(*(memory.prompt for memory in self.memories), strict=True)
        return tuple(None if None in layer else layer for layer in pairs)

    def catch_up(self) -> None:
        """See ``Memory.catch_up``."""
        for memory in self.memories:
            memory.catch_up()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """The forward inside is remembered by all; see ``Memory.recording``."""
        with ExitStack() as stack:
            for memory in self.memories:
                stack.enter_context(memory.recording())
            yield

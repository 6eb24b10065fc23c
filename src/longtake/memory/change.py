"""What a new prompt does to what is remembered: the ways of the memory itself, and LongLive's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from longtake.memory.split import SplitMemory
    from longtake.memory.store import Memory


def change_prompt(
    memory: Memory | SplitMemory, change: str, last: Sequence[Tensor], commit: Callable[[Tensor], object]
) -> None:
    """Changes the prompt between two chunks.

    Args:
        memory: no chunk of it open.
        change: one of ``PROMPT_CHANGES``, which the memory does itself; or "recache" (LongLive, arXiv 2509.22622): the
            last chunks are forgotten and read again under the new prompt. A learned memory starts afresh from all that
            is in the window then, or stays as it is: the policy's ``recache`` says which.
        last: clean latents of the last ``policy.recached(chunk)`` chunks or fewer, oldest first.
        commit: the forward at t = 0 of such latents under the new prompt, recorded.

    Raises:
        ValueError: for an unknown change.
    """
    memory.change_prompt("keep" if change == "recache" else change)
    if change != "recache" or not last:
        return
    # A short window may hold fewer than what is kept here; the newest chunk is always there.
    chunk, end = memory.chunk, memory.frame
    held = [n for n in range(1, len(last) + 1) if {*range(end - n * chunk, end)} <= {*memory.tags}]
    again = list(last)[-max(held) :]
    memory.rewind(chunk * len(again))
    afresh = memory.learned is not None and memory.learned.policy.recache == "reset"
    if memory.learned is not None and afresh:
        memory.learned.forget()
    for latents in again:
        memory.begin_chunk()
        commit(latents)
    if memory.learned is not None and afresh:
        memory.learned.relearn()

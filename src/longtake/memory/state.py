"""The saved state of a memory: made, restored, and what it must be, so that a damaged or foreign one is refused before
anything changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longtake.memory.chosen import fits as chosen_fits
from longtake.memory.deep_forcing import DeepForcing
from longtake.memory.learned import Learned
from longtake.memory.policy import FREE, LEARNED, LONG, SHORT, MemoryPolicy

if TYPE_CHECKING:
    from longtake.memory.store import Memory

_COUNTERS = {"frame", "open"}
_NEWER = {"cut"}  # missing in older snapshots


def check_state(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    chunk: int,
    tensors: Mapping[str, Tensor],
    counters: Mapping[str, int],
    policy: MemoryPolicy,
    learned: Learned | None = None,
) -> list[int]:
    """The tags of a memory's saved state, if it is one of a memory of these sizes.

    Args:
        shape: of its keys, ``[layers, batch, slots, tokens, heads, head_dim]``.
        dtype: of its keys.
        chunk: latent frames per chunk.
        tensors, counters: what ``Memory.state_dict`` gave.
        policy: of the memory; ``learned``: of one that is learned.

    Raises:
        ValueError: if it is not, in one sentence.
    """
    layers, batch, slots, tokens, *rest = shape
    tags: list[int] = []
    if "tags" in tensors and tensors["tags"].dtype == torch.int64 and tensors["tags"].ndim == 1:
        tags = tensors["tags"].tolist()
    stored = [tensors[name] for name in ("keys", "values") if name in tensors]
    fits = all(
        x.dtype == dtype and (*x.shape[:2], *x.shape[3:]) == (layers, batch, tokens, *rest) and x.shape[2] <= slots
        for x in stored
    )
    averages = [f"average.{tag}.{part}" for tag in tags if tag in (LONG, SHORT) for part in ("key", "value")]
    fits &= all(
        name in tensors and tuple(tensors[name].shape) in {(layers, batch, n, *rest) for n in (1, tokens)}
        for name in averages
    )
    more = ({"due"} if learned else set()) | ({"begun"} if policy.chooses else set())
    fits &= _COUNTERS <= set(counters) <= _COUNTERS | _NEWER | more
    fits &= all(type(x) is int and x >= 0 for x in counters.values()) and counters.get("cut", 0) <= 1
    fits &= counters.get("due", 0) <= 2 if fits else False
    fits &= counters.get("begun", 0) <= 1 - counters.get("open", 0)
    frames = 0 if learned is None else learned.policy.frames
    frames = policy.chosen if isinstance(policy, DeepForcing) else frames
    fits &= {tag for tag in tags if tag <= LEARNED} in (set(), {LEARNED - i for i in range(frames)})
    fits = fits and (learned is None or learned.check(tensors, counters))
    fits = fits and (not policy.chooses or chosen_fits(policy, shape, tensors))
    held = [tag for tag in tags if tag != FREE]
    whole = len(stored) == 2 and len(tags) == slots and len(set(held)) == len(held)
    if not (fits and whole and max(held, default=-1) < counters["frame"] + chunk * bool(counters["open"])):
        raise ValueError(
            f"This state is not of a memory with {slots} slots of {tokens} tokens, {layers} layers, "
            f"batch {batch}, {dtype}."
        )
    return tags


def saved_state(memory: Memory) -> tuple[dict[str, Tensor], dict[str, int]]:
    """See ``Memory.state_dict``."""
    before = None if memory.chosen is None else memory.chosen.before()
    tags = memory.tags if before is None else before
    with torch.no_grad():
        end = max((slot + 1 for slot, tag in enumerate(tags) if tag != FREE), default=0)
        tensors = {"keys": memory.keys[:, :, :end], "values": memory.values[:, :, :end]}
        for tag, (key, value) in memory.averages.items():
            if tag in memory.tags:
                tensors |= {f"average.{tag}.key": key, f"average.{tag}.value": value}
        more, counters = ({}, {}) if memory.learned is None else memory.learned.state_dict()
        tensors |= more | ({} if memory.chosen is None else memory.chosen.state_dict())
        plain = torch.contiguous_format
        copies = {n: x.detach().to("cpu", copy=True, memory_format=plain) for n, x in tensors.items()}
    copies["tags"] = torch.tensor(tags, dtype=torch.int64)
    counters = {"frame": memory.frame, "open": int(memory.open), "cut": int(memory.cut), **counters}
    if memory.chosen is not None:
        counters |= {"begun": 0} if before is None else {"open": 0, "begun": 1}
    return copies, counters


def restore(memory: Memory, tensors: Mapping[str, Tensor], counters: Mapping[str, int]) -> None:
    """See ``Memory.load_state_dict``."""
    tags = check_state(memory._shape, memory.dtype, memory.chunk, tensors, counters, memory.policy, memory.learned)
    stored = (tensors["keys"], tensors["values"])
    memory.reset()
    memory.tags, memory.frame, memory.open = tags, counters["frame"], bool(counters["open"])
    memory.cut = bool(counters.get("cut", 0))  # snapshots from before there were cuts do not say
    with torch.no_grad():
        for index in range(stored[0].shape[2]):
            memory._write(index, *(x[:, :, index].to(memory.device) for x in stored))
        for tag in {*tags} & {LONG, SHORT}:
            pair = (tensors[f"average.{tag}.key"], tensors[f"average.{tag}.value"])
            memory._keep_average(tag, *(x.to(memory.device) for x in pair))
    if memory.learned is not None:
        memory.learned.load(tensors, counters)
    if memory.chosen is not None:
        memory.chosen.load(tensors)
        if counters.get("begun", 0):
            memory.begin_chunk()
    if memory.open:
        memory._prepare()

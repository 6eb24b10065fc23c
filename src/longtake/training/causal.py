"""Chunk-causal attention over whole sequences in one forward: what every chunk attends to.

The ways to train an autoregressive video model on whole clips:

- **Teacher forcing**: a clean and a noisy copy of each sequence. Noisy chunk i attends to clean chunks before i and to
  itself, clean chunk i to clean chunks up to itself.
- **Diffusion forcing** (arXiv 2407.01392; CausVid, arXiv 2412.07772, by chunks): one copy with a noise level per
  chunk. Chunk i attends to chunks up to itself.

"Before i" is a :class:`Plan`: everything, a window with sinks, any mask, or what a memory policy would hold. A plan by
a mask is a plan whose slots hold one frame each, so there is one code path for all.

A chunk is one element of the batch (so the stock transformer gives each its own timestep), and a :class:`Layout` says
which frames of which elements are an element's keys. Elements with equally many keys are computed together, without a
mask: neither tokens x tokens nor padding is ever made. The processors are in ``causal_attention.py``.

**Temporal ids.** ``ids="absolute"`` is the frame's number in the take, for sequences within the range that the model
was trained on (21 latent frames for Wan; ``causal_layout(limit=...)`` checks). ``ids="relative"``, and every other
policy, is the position among what is held, which never leaves the window however late the sequence is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from longtake.memory.policy import MAX_ID, MemoryPolicy
from longtake.memory.sliding import Sliding
from longtake.training.sequence import Plan, plan_sequence

FORCINGS = ("teacher", "diffusion")


def masked_plan(sees: Tensor, ids: Tensor, own: Tensor) -> Plan:
    """A plan by a mask.

    Args:
        sees: bool ``[chunks, frames]``, frames = chunks * frames per chunk: which past frames a chunk attends to. Its
            own frames it always sees.
        ids: ``[frames]``, or ``[chunks, frames]`` if they depend on who looks: temporal ids of the past frames.
        own: ``[chunks, chunk]`` temporal ids of a chunk's own frames.

    Raises:
        ValueError: if sizes do not fit, or a chunk would see its own frames twice or later ones.
    """
    chunks, frames = sees.shape
    if own.shape != (chunks, frames // chunks) or frames % chunks or ids.shape not in ((frames,), (chunks, frames)):
        raise ValueError(
            f"A mask [chunks, frames] = {tuple(sees.shape)} takes ids [frames] or [chunks, frames] and own "
            f"[chunks, frames / chunks], not {tuple(ids.shape)} and {tuple(own.shape)}."
        )
    weights = torch.eye(frames).expand(chunks, frames, frames) * sees[..., None]
    plan = Plan(weights, torch.zeros(chunks, frames), ids.expand(chunks, frames).clone(), own.clone())
    _check_past(plan)
    return plan


def causal_plan(
    timeline: Sequence[int],
    chunk: int = 3,
    window: int | None = None,
    sink: int = 0,
    ids: str = "absolute",
    max_id: int = MAX_ID,
) -> Plan:
    """The plan of plain causal attention, or of a window with sinks: what the policy ``Sliding`` would hold.

    Args:
        timeline: which chunks of a take the sequence consists of, ascending; ``range(8)`` is its beginning, ``(0, 40,
            41)`` a sink and two chunks from later. Frames of chunks left out cannot be attended to.
        chunk: latent frames per chunk.
        window: frames a chunk attends to, sinks and itself included; None for all.
        sink: first frames of the take that never leave.
        ids: "absolute" (frame number in the take), "relative" (position among what is held) or "unified" (see
            ``Sliding``), with ``max_id``.

    Raises:
        ValueError: if a setting is out of range.
    """
    steps = _timeline(timeline)
    room = (steps[-1] + 1) * chunk if window is None else Sliding(window, sink, ids, max_id).capacity(chunk)
    if ids not in ("absolute", "relative", "unified") or (window is None and ids == "unified"):
        accepted = "absolute or relative" + (", or unified in a window" if window is None else " or unified")
        raise ValueError(f"ids must be {accepted}, not {ids!r}.")
    known = {frame: i for i, frame in enumerate(c * chunk + j for c in steps for j in range(chunk))}
    sees = torch.zeros(len(steps), len(known), dtype=torch.bool)
    places = torch.zeros(len(steps), len(known), dtype=torch.long)
    own = torch.zeros(len(steps), chunk, dtype=torch.long)
    for row, step in enumerate(steps):
        past = range(step * chunk)
        if len(past) + chunk > room:
            kept = room - chunk - sink
            past_list = [*past[:sink], *past[len(past) - kept :]]
        else:
            past_list = list(past)
        first = len(past_list) if ids == "relative" else step * chunk
        if ids == "unified":
            first = min(first, max_id - chunk + 1)
        for position, frame in enumerate(past_list):
            if frame in known:
                sees[row, known[frame]] = True
                own_id = ids == "absolute" or (ids == "unified" and frame < sink)
                places[row, known[frame]] = frame if own_id else first - len(past_list) + position
        own[row] = torch.arange(first, first + chunk)
    return masked_plan(sees, places, own)


def plan_for(policy: MemoryPolicy | None, timeline: Sequence[int], chunk: int = 3) -> Plan:
    """What the chunks of a sequence attend to under a memory policy; None is plain causal attention, absolute ids.

    Plans are kept: they depend on the arguments alone. Do not change one.

    Raises:
        ValueError: for a policy that is not linear in what it has seen (see ``plan_sequence``), or without room for a
            chunk.
    """
    steps = _timeline(timeline)
    if policy is not None and policy.ids == "relative" and policy.sink >= chunk and policy.capacity(chunk):
        steps = _nearer(steps, policy.capacity(chunk) + 2)
    return _plan_for(policy, steps, chunk)


def _nearer(steps: tuple[int, ...], most: int) -> tuple[int, ...]:
    """The same steps with no gap longer than ``most`` chunks: with relative ids, and sinks that hold the first chunk, a
    longer one changes nothing, as nothing is known of what lay in it."""
    made = [steps[0]]
    for before, after in pairwise(steps):
        made.append(made[-1] + min(after - before, most))
    return tuple(made)


@lru_cache(maxsize=256)
def _plan_for(policy: MemoryPolicy | None, timeline: tuple[int, ...], chunk: int) -> Plan:
    if policy is None:
        return causal_plan(timeline, chunk)
    if type(policy) is Sliding:  # also with absolute ids, and without running a memory through a long take
        return causal_plan(timeline, chunk, policy.window, policy.sink, policy.ids, policy.max_id)
    return plan_sequence(policy, timeline, chunk)


def _timeline(timeline: Sequence[int]) -> tuple[int, ...]:
    steps = tuple(timeline)
    if not steps or steps[0] < 0 or any(b <= a for a, b in pairwise(steps)):
        raise ValueError(f"A timeline is chunk numbers from 0, rising, at least one, not {list(steps)}.")
    return steps


def _check_past(plan: Plan) -> None:
    chunks, chunk = plan.own.shape
    starts = (torch.arange(chunks) * chunk).view(-1, 1, 1)
    if bool(((plan.weights != 0) & (torch.arange(plan.weights.shape[-1]) >= starts)).any()):
        raise ValueError("A chunk may attend to frames of earlier chunks only (its own it always sees).")


@dataclass(frozen=True)
class Group:
    """Elements that attend to equally many frames.

    Attributes:
        elements: ``[n]``, which ones.
        keys: ``[n * frames]``, rows of :attr:`Layout.turned`.
        values: ``[n * frames]``, sources.
    """

    elements: Tensor
    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Layout:
    """The elements of one forward and what they attend to. All tensors are small and on the host.

    A *source* is something a key can come from: frame f of element e is source ``e * chunk + f``; behind all frames
    come the pooled slots (rows of ``pooled``), then the mixed ones (rows of ``mixed``).

    Attributes:
        chunk: frames per element.
        clean: elements ``[:clean]`` are clean chunks (t = 0, no loss), the rest noisy ones.
        elements: (sequence, position of the chunk in it) of each element.
        ids: the distinct temporal ids, ascending; "rows" below are positions in it.
        own: rows of the elements' own frames, ``[elements * chunk]``.
        turned, turned_rows: keys are rotated once per (source, id); these are all pairs there are, ``[pairs]``.
        pooled, mixed: weights ``[slots, elements * chunk]`` of slots that are sums of frames; of pooled ones the mean
            over the frame's positions is taken too.
        groups: together, every element once.
    """

    chunk: int
    clean: int
    elements: tuple[tuple[int, int], ...]
    ids: tuple[int, ...]
    own: Tensor
    turned: Tensor
    turned_rows: Tensor
    pooled: Tensor
    mixed: Tensor
    groups: tuple[Group, ...]

    def __len__(self) -> int:
        return len(self.elements)

    @property
    def targets(self) -> tuple[tuple[int, int], ...]:
        """(sequence, position) of the noisy elements."""
        return self.elements[self.clean :]

    def rows(self, chunks: Sequence[int] | int) -> Tensor:
        """Where the elements are in the chunks of all sequences, one after the other: ``[elements]``.

        Args:
            chunks: how many chunks each sequence has, or one number for all.
        """
        if isinstance(chunks, int):
            return torch.tensor([s * chunks + c for s, c in self.elements])
        starts = [sum(chunks[:s]) for s in range(len(chunks))]
        return torch.tensor([starts[s] + c for s, c in self.elements])


def causal_layout(
    plans: Sequence[Plan],
    targets: Sequence[Sequence[int]] | None = None,
    forcing: str = "teacher",
    limit: int | None = None,
) -> Layout:
    """The layout of a forward over sequences, each with its plan.

    Elements are ordered clean ones first, then noisy ones, each sequence by sequence. Of a sequence, only clean chunks
    before the last target are there.

    Args:
        plans: one per sequence; lengths may differ (a first chunk alone is a sequence of one chunk), chunk sizes not.
        targets: which chunks of each sequence are noisy, ascending; None for all. Diffusion forcing takes None only.
        forcing: "teacher" or "diffusion".
        limit: temporal ids must be below this (frames that the model was trained on); None for no limit.

    Raises:
        ValueError: if something of this does not fit.
    """
    if forcing not in FORCINGS:
        raise ValueError(f"forcing must be {' or '.join(FORCINGS)}, not {forcing!r}.")
    if not plans or len({plan.own.shape[1] for plan in plans}) != 1:
        raise ValueError("A layout needs at least one plan, all with the same number of frames per chunk.")
    if targets is not None and forcing == "diffusion":
        raise ValueError("With diffusion forcing every chunk is noisy: leave targets out.")
    chosen = [list(range(len(plan.own))) for plan in plans] if targets is None else [list(t) for t in targets]
    for plan, wanted in zip(plans, chosen, strict=True):
        _check_past(plan)
        if not wanted or wanted != sorted(set(wanted)) or wanted[0] < 0 or wanted[-1] >= len(plan.own):
            raise ValueError(f"Targets are chunks from 0 to {len(plan.own) - 1}, rising, at least one, not {wanted}.")
    noisy = [(s, c) for s, wanted in enumerate(chosen) for c in wanted]
    clean = [(s, c) for s, wanted in enumerate(chosen) for c in range(wanted[-1])] if forcing == "teacher" else []
    return _Builder(plans, clean, noisy).build(limit)


class _Builder:
    """Collects the keys of every element."""

    def __init__(
        self, plans: Sequence[Plan], clean: Sequence[tuple[int, int]], noisy: Sequence[tuple[int, int]]
    ) -> None:
        self.chunk = plans[0].own.shape[1]
        self.clean, self.elements = len(clean), (*clean, *noisy)
        self.seen_as = {place: i for i, place in enumerate(clean or noisy)}  # the element that others see
        self.frames = len(self.elements) * self.chunk
        self.sums: dict[bool, list[Tensor]] = {True: [], False: []}
        self.plans = plans

    def build(self, limit: int | None) -> Layout:
        slots = {place: self._slots(*place) for place in dict.fromkeys(self.elements)}
        keys = []  # per element, (kind of source, number, id)
        for element, (sequence, c) in enumerate(self.elements):
            own = enumerate(self.plans[sequence].own[c].tolist(), element * self.chunk)
            keys.append([*slots[sequence, c], *(("frame", source, place) for source, place in own)])
        bases = {"frame": 0, "pooled": self.frames, "mixed": self.frames + len(self.sums[True])}
        pairs = [[(bases[kind] + number, place) for kind, number, place in row] for row in keys]
        ids = tuple(sorted({place for row in pairs for _, place in row}))
        if limit is not None and ids[-1] >= limit:
            raise ValueError(
                f"The sequences reach temporal id {ids[-1]}, the model is trained below {limit}: use a memory with "
                "relative ids, or shorter sequences."
            )
        row_of = {place: i for i, place in enumerate(ids)}
        distinct = sorted({pair for row in pairs for pair in row})
        number = {pair: i for i, pair in enumerate(distinct)}
        groups = []
        for length in sorted({len(row) for row in pairs}):
            members = [e for e, row in enumerate(pairs) if len(row) == length]
            groups.append(
                Group(
                    torch.tensor(members),
                    torch.tensor([number[pair] for e in members for pair in pairs[e]]),
                    torch.tensor([source for e in members for source, _ in pairs[e]]),
                )
            )
        return Layout(
            chunk=self.chunk,
            clean=self.clean,
            elements=self.elements,
            ids=ids,
            own=torch.tensor([row_of[place] for row in pairs for _, place in row[-self.chunk :]]),
            turned=torch.tensor([source for source, _ in distinct]),
            turned_rows=torch.tensor([row_of[place] for _, place in distinct]),
            pooled=self._stack(True),
            mixed=self._stack(False),
            groups=tuple(groups),
        )

    def _stack(self, pooled: bool) -> Tensor:
        return torch.stack(self.sums[pooled]) if self.sums[pooled] else torch.zeros(0, self.frames)

    def _slots(self, sequence: int, c: int) -> list[tuple[str, int, int]]:
        """What chunk ``c`` holds of its past; a slot with a sum in it is shared by its clean and its noisy copy."""
        plan, found = self.plans[sequence], []
        used = plan.weights[c].ne(0).any(-1).nonzero().flatten().tolist()
        for slot, place in zip(used, plan.ids[c, used].tolist(), strict=True):
            frames = plan.weights[c, slot].nonzero().flatten()
            sources = [
                self.seen_as[sequence, frame // self.chunk] * self.chunk + frame % self.chunk
                for frame in frames.tolist()
            ]
            pooled = bool(plan.pooled[c, slot])
            if len(sources) == 1 and not pooled:
                found.append(("frame", sources[0], place))
                continue
            row = torch.zeros(self.frames)
            row[sources] = plan.weights[c, slot, frames]
            self.sums[pooled].append(row)
            found.append(("pooled" if pooled else "mixed", len(self.sums[pooled]) - 1, place))
        return found

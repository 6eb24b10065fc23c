"""The loss of the causal student: flow matching over whole sequences, each chunk seeing what a memory would hold.

Everything random is drawn on the host from one generator per sequence, in a fixed order, so that a batch split over
processes is trained on the same numbers as the whole batch in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from longtake.memory.policy import MemoryPolicy
from longtake.memory.registry import parse_memory
from longtake.sampling import warp
from longtake.training.causal import FORCINGS, Layout, causal_layout, plan_for
from longtake.training.flow import noised, x0_from_flow
from longtake.training.sequence import Plan
from longtake.training.velocity import Velocity, causal_flows, to_chunks
from longtake.transfer import send

PLAIN = "causal"
"""The name, among memories, of attention to everything before at absolute ids."""


@dataclass(frozen=True)
class StudentOptions:
    """How sequences are trained on.

    Attributes:
        forcing: "teacher" or "diffusion"; see ``causal.py``.
        memories: what the model is trained to run with, as ``parse_memory`` reads it, or "causal" for everything at
            absolute ids. Each sequence draws one.
        chunk: latent frames per chunk.
        length: chunks taken of each sequence; None for all it has.
        late: share of the sequences, of those longer than ``length``, of which chunk 0 and ``length - 1`` chunks from
            later are taken: the sinks are then far away. A batch that says its timelines itself is taken as it is.
        targets: how many later chunks of each sequence are denoised, drawn anew each time; None for every chunk, the
            first one too. Teacher forcing only.
        context_noise, context_share: in this share of the sequences the clean chunks get up to this much noise (still
            labelled t = 0): what a take remembers is never quite clean. Teacher forcing only.
        timesteps, shift: of the few steps that sampling will use, before the shift.
        exact: share of the levels that are those of sampling; the others are spread over (0, 1) with the same shift.
        weights: factor of the loss by the chunk's position in the sequence; None for 1.
        trained_frames: temporal ids must be below this (21 for Wan); None for no limit.
        kernel: see ``causal_attention.attend``.

    Raises:
        ValueError: if a setting is out of range.
    """

    forcing: str = "teacher"
    memories: tuple[str, ...] = ("memrope", "sliding:window=12,sink=3,ids=relative")
    chunk: int = 3
    length: int | None = None
    late: float = 0.0
    targets: int | None = None
    context_noise: float = 0.12
    context_share: float = 0.7
    timesteps: tuple[float, ...] = (1000.0, 750.0, 500.0, 250.0)
    shift: float = 5.0
    exact: float = 0.6
    weights: tuple[float, ...] | None = None
    trained_frames: int | None = None
    kernel: str = "auto"

    def __post_init__(self) -> None:
        if self.forcing not in FORCINGS:
            raise ValueError(f"forcing must be {' or '.join(FORCINGS)}, not {self.forcing!r}.")
        if self.forcing == "diffusion" and self.targets is not None:
            raise ValueError("With diffusion forcing every chunk is denoised: leave targets out.")
        for name in ("late", "context_noise", "context_share", "exact"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, not {getattr(self, name)}.")
        for name in ("chunk", "length", "targets", "trained_frames"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, not {getattr(self, name)}.")
        if not self.memories:
            raise ValueError("memories must name at least one memory.")
        if self.weights is not None and (not self.weights or min(self.weights) < 0):
            raise ValueError(f"weights must be 0 or more, one per chunk, not {self.weights}.")
        self.levels()
        for memory in self.memories:
            plan_for(policy_of(memory), [0], self.chunk)  # refuses what cannot be trained

    def levels(self) -> Tensor:
        """The noise levels of sampling, falling, in 0..1."""
        return warp(self.timesteps, self.shift) / 1000


def policy_of(memory: str) -> MemoryPolicy | None:
    """The policy of a name in ``StudentOptions.memories``; None for plain causal attention."""
    return None if memory == PLAIN else parse_memory(memory)


@dataclass
class ChunkSequences:
    """Sequences to train on.

    Attributes:
        latents: clean, ``[batch, frames, channels, h, w]``.
        text: ``[batch, tokens, dim]``, or the different texts if ``texts`` is given.
        texts: rows of ``text`` by sequence and chunk; None if each sequence has one text.
        timelines: for each sequence, which chunks of a take its chunks are; None if all are beginnings of takes.
    """

    latents: Tensor
    text: Tensor
    texts: Sequence[Sequence[int]] | None = None
    timelines: Sequence[Sequence[int]] | None = None


def sample_levels(count: int, generator: Generator, options: StudentOptions) -> Tensor:
    """Noise levels ``[count]``: a share of exactly those of sampling, the others spread with the same shift."""
    spread = torch.rand(count, generator=generator)
    spread = options.shift * spread / (1 + (options.shift - 1) * spread)
    levels = options.levels()
    exact = levels[torch.randint(len(levels), (count,), generator=generator)]
    return torch.where(torch.rand(count, generator=generator) < options.exact, exact, spread)


@dataclass
class Drawn:
    """What is random about one sequence; tensors on the host.

    Attributes:
        positions: which of its chunks are taken.
        plan: what they attend to.
        targets: which of the taken ones are denoised and count.
        dirt, past_noise: how much noise the clean chunks get, and which ``[chunks, channels, chunk, h, w]``.
        sigma, noise: levels and noise of all taken chunks.
    """

    positions: list[int]
    plan: Plan
    targets: list[int]
    dirt: float
    past_noise: Tensor
    sigma: Tensor
    noise: Tensor


def draw_sequence(
    shape: Sequence[int], generator: Generator, options: StudentOptions, timeline: Sequence[int] | None = None
) -> Drawn:
    """Draws for one sequence of chunks ``shape`` = (chunks, channels, chunk, h, w).

    Chunks late in a take whose memory would hold chunks that the sequence does not have are context only.

    Raises:
        ValueError: if no chunk of the sequence can be trained on.
    """
    memory = options.memories[int(torch.randint(len(options.memories), (), generator=generator))]
    chance, place = torch.rand(2, generator=generator).tolist()
    count = shape[0]
    taken = count if options.length is None or timeline is not None else options.length
    if taken > count:
        raise ValueError(f"length is {taken} chunks, but the sequences have {count}.")
    positions = list(range(taken))
    starts = range(2, count - taken + 2)  # where the later part may begin: at least one chunk is left out
    if chance < options.late and taken > 1 and starts and timeline is None:
        start = starts[int(place * len(starts))]
        positions = [0, *range(start, start + taken - 1)]
    steps = positions if timeline is None else list(timeline)
    if len(steps) != len(positions):
        raise ValueError(f"A timeline must name each of the {len(positions)} chunks, not {len(steps)}.")
    policy = policy_of(memory)
    plan = plan_for(policy, steps, options.chunk)
    targets = _whole_pasts(plan, policy, steps)
    if options.targets is not None:
        later = [c for c in targets if c > 0]
        order = torch.randperm(len(later), generator=generator).tolist()
        targets = sorted(later[i] for i in order[: options.targets])
    if not targets:
        raise ValueError(f"No chunk of a sequence with the chunks {steps} of a take has its whole past for {memory!r}.")
    gate, amount = torch.rand(2, generator=generator).tolist()
    dirt = options.context_noise * amount if gate < options.context_share else 0.0
    sizes = (taken, *shape[1:])
    sigma = sample_levels(taken, generator, options)
    noise = torch.randn(sizes, generator=generator)
    past_noise = torch.randn(sizes, generator=generator) if dirt and options.forcing == "teacher" else torch.zeros(())
    return Drawn(positions, plan, targets, dirt, past_noise, sigma, noise)


def _whole_pasts(plan: Plan, policy: MemoryPolicy | None, steps: Sequence[int]) -> list[int]:
    """Chunks of which every slot that the memory would fill is filled from the sequence."""
    chunk = plan.own.shape[1]
    filled = plan.weights.ne(0).any(-1).sum(-1).tolist()
    most = [step * chunk if policy is None else min(step * chunk, policy.capacity(chunk) - chunk) for step in steps]
    return [c for c, (a, b) in enumerate(zip(filled, most, strict=True)) if a == b]


def student_losses(
    transformer: object,
    batch: ChunkSequences,
    generators: Sequence[Generator],
    options: StudentOptions,
    first: ChunkSequences | None = None,
    first_generators: Sequence[Generator] = (),
) -> dict[str, Tensor]:
    """Mean squared error of the flow.

    Each part is a mean over sequences of the mean over the sequence's chunks, so that the mean over processes with
    equally many sequences is the loss of all.

    Args:
        transformer: a ``WanTransformer3DModel``; run under autocast if you like.
        batch: the sequences.
        generators: of the host, one per sequence.
        options: see there.
        first: first chunks of takes (frames of one chunk) that are denoised alone beside, in the same forward: a start
            from nothing is the hardest thing to learn.
        first_generators: one per sequence of ``first``.

    Returns:
        ``later`` (chunks with a past), ``first`` (chunks without), where there are any, and their sum ``loss``.

    Raises:
        ValueError: if something does not fit.
    """
    sources = [(batch, generators)] + ([] if first is None else [(first, first_generators)])
    latents, drawn, rows, offset = [], [], [], 0
    for part, own_generators in sources:
        chunks = to_chunks(part.latents, options.chunk)
        if len(own_generators) != len(chunks):
            raise ValueError(f"{len(chunks)} sequences need as many generators, not {len(own_generators)}.")
        if part is first and chunks.shape[1] != 1:
            raise ValueError(f"First chunks have {options.chunk} frames, not {part.latents.shape[1]}.")
        only = replace(options, length=None, targets=None) if part is first else options
        for i, generator in enumerate(own_generators):
            timeline = None if part.timelines is None else part.timelines[i]
            drawn.append(draw_sequence(chunks[i].shape, generator, only, timeline))
            latents.append(chunks[i, drawn[-1].positions])
            texts = [i] * chunks.shape[1] if part.texts is None else list(part.texts[i])
            rows.append([offset + texts[position] for position in drawn[-1].positions])
        offset += len(part.text)
    teacher = options.forcing == "teacher"
    layout = causal_layout(
        [d.plan for d in drawn],
        [d.targets for d in drawn] if teacher else None,
        options.forcing,
        options.trained_frames,
    )
    device = batch.latents.device
    noise = send(torch.cat([d.noise[[c for s, c in layout.targets if s == i]] for i, d in enumerate(drawn)]), device)
    sigma = send(torch.stack([drawn[s].sigma[c] for s, c in layout.targets]), device)
    target = torch.stack([latents[s][c] for s, c in layout.targets]).float()
    flows = causal_flows(
        transformer,
        layout,
        _clean_inputs(layout, latents, drawn, target),
        noised(target, noise, sigma),
        sigma,
        batch.text if first is None else torch.cat([batch.text, first.text]),
        [rows[s][c] for s, c in layout.elements],
        options.kernel,
    )
    errors = (flows - (noise - target)).square().flatten(1).mean(1)
    return _means(errors, layout, drawn, options)


def _clean_inputs(layout: Layout, latents: Sequence[Tensor], drawn: Sequence[Drawn], like: Tensor) -> Tensor:
    inputs = []
    for s, c in layout.elements[: layout.clean]:
        x = latents[s][c].float()
        if drawn[s].dirt:
            x = (1 - drawn[s].dirt) * x + drawn[s].dirt * send(drawn[s].past_noise[c], x.device)
        inputs.append(x)
    return torch.stack(inputs) if inputs else like[:0]


def _means(errors: Tensor, layout: Layout, drawn: Sequence[Drawn], options: StudentOptions) -> dict[str, Tensor]:
    """Weighted sums of the errors: by part, the mean over its sequences of the mean over a sequence's chunks."""
    weights = options.weights
    parts: dict[str, Tensor] = {}
    for name, chunks_of in (
        ("later", [[c for c in d.targets if c > 0] for d in drawn]),
        ("first", [[c for c in d.targets if c == 0] for d in drawn]),
    ):
        sequences = sum(bool(chunks) for chunks in chunks_of)
        if not sequences:
            continue
        factors = []
        for s, c in layout.targets:
            if c not in chunks_of[s]:
                factors.append(0.0)
                continue
            if weights is not None and c >= len(weights):
                raise ValueError(f"weights has {len(weights)} factors, a sequence has a chunk {c + 1}.")
            factors.append((1.0 if weights is None else weights[c]) / len(chunks_of[s]) / sequences)
        parts[name] = (errors * send(torch.tensor(factors), errors.device)).sum()
    return {**parts, "loss": torch.stack(list(parts.values())).sum()}


@torch.no_grad()
def student_against_teacher(
    student: Velocity,
    teacher: Velocity,
    clean: Tensor,
    noise: Tensor,
    levels: Sequence[float],
    first: Sequence[bool],
) -> dict[str, dict[str, float]]:
    """How well the student predicts the clean latents of held-out sequences, beside its teacher.

    Args:
        student, teacher: e.g. ``teacher_forced(...)`` over held-out sequences, and ``bidirectional(...)`` or
            ``guided(...)`` over the same (``velocity.py``).
        clean, noise: ``[chunks, channels, chunk, h, w]``; the same noise is used at every level.
        levels: noise levels in 0..1.
        first: for each chunk, whether it has no past.

    Returns:
        By level (``"1.000"``), mean squared errors of the clean latents: ``student_first``, ``student_later``,
        ``teacher_first``, ``teacher_later`` against the truth, ``between_first``, ``between_later`` against each other.
        Groups without a chunk are left out.

    Raises:
        ValueError: if ``first`` does not name every chunk.
    """
    if len(first) != len(clean):
        raise ValueError(f"first must say of each of the {len(clean)} chunks whether it has no past.")
    groups = {"first": [i for i, x in enumerate(first) if x], "later": [i for i, x in enumerate(first) if not x]}
    found: dict[str, dict[str, float]] = {}
    for level in levels:
        sigma = torch.full((len(clean),), level, device=clean.device)
        x = noised(clean, noise, sigma)
        ours, theirs = (x0_from_flow(x, velocity(x, sigma), sigma) for velocity in (student, teacher))
        row: dict[str, float] = {}
        for name, pair in (("student", (ours, clean)), ("teacher", (theirs, clean)), ("between", (ours, theirs))):
            error = (pair[0] - pair[1]).square().flatten(1).mean(1)
            row |= {f"{name}_{group}": float(error[members].mean()) for group, members in groups.items() if members}
        found[f"{level:.3f}"] = row
    return found

"""Teacher forcing through the memories that inference will use, a whole sequence of chunks in one forward.

A memory policy that neither learns nor looks is linear: a slot holds a weighted sum of past frames. The weights are
read off the policy itself (it runs on one-hot "frames"), so what is trained is what runs. In a forward, a chunk is one
element of the batch - the stock transformer gives every element its own timestep and text - and the attention
processor lets element j attend to the slots that the policy would hold before chunk j.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from longtake.attention import _self_projections
from longtake.memory.policy import MemoryPolicy
from longtake.memory.store import Memory
from longtake.rope import Rope, rotate


@dataclass
class Plan:
    """What the chunks of one sequence may attend to.

    Attributes:
        weights: ``[chunks, slots, frames]``: each memory slot as a sum of clean frames; zero rows are unused slots.
        pooled: ``[chunks, slots]``, 1 where the slot is averaged over the frame's positions too.
        ids: ``[chunks, slots]`` temporal ids of the slots.
        own: ``[chunks, chunk]`` temporal ids of the chunk itself.
    """

    weights: torch.Tensor
    pooled: torch.Tensor
    ids: torch.Tensor
    own: torch.Tensor


def plan_sequence(policy: MemoryPolicy, timeline: Sequence[int], chunk: int = 3) -> Plan:
    """The plan of a sequence whose chunks are the chunks ``timeline`` (ascending) of a take.

    Frames of chunks that are not in the timeline have no weight; what is left of a slot is scaled to sum to one.

    Raises:
        ValueError: for a policy that is not linear in what it has seen, or whose ids are not relative.
    """
    if policy.ids != "relative" or policy.chooses or getattr(policy, "adaptive", False):
        raise ValueError(f"Teacher forcing needs relative ids, fixed rates and whole frames, not {policy.spec()}.")
    total = timeline[-1] + 1
    frames = total * chunk
    memory = Memory(policy, num_layers=1, heads=1, head_dim=frames + frames % 2, grid=(1, 1), chunk=chunk)
    slots = policy.capacity(chunk) - chunk
    known = [c * chunk + i for c in timeline for i in range(chunk)]
    weights = torch.zeros(len(timeline), slots, len(known))
    pooled, ids = torch.zeros(len(timeline), slots), torch.zeros(len(timeline), slots, dtype=torch.long)
    own = torch.zeros(len(timeline), chunk, dtype=torch.long)
    one_hot = torch.eye(frames, memory.values.shape[-1])
    for index in range(total):
        memory.begin_chunk()
        if index in timeline:
            row = timeline.index(index)
            places = memory.layout()
            past = [p for p in places if p.role != "current"]
            own[row] = torch.tensor([p.id for p in places if p.role == "current"])
            for i, place in enumerate(past):
                weight = memory.values[0, 0, place.slot, 0, 0, known]
                weights[row, i] = weight / weight.sum() if weight.sum() > 1e-6 else 0.0
                pooled[row, i] = float(place.frame is None and getattr(policy, "pooling", "") == "global")
                assert place.id is not None  # relative ids always are
                ids[row, i] = place.id
        frame = one_hot[index * chunk : (index + 1) * chunk].view(1, chunk, 1, -1)
        with memory.recording():
            memory.update(0, torch.zeros_like(frame), frame)
    return Plan(weights, pooled, ids, own)


@dataclass
class Batch:
    """How the elements of a forward are laid out: ``sequences`` x (``clean`` chunks, then targets), then ``solo`` first
    chunks that attend to nothing but themselves.

    ``weights`` [sequences, elements, slots, clean * chunk], ``pooled`` and ``ids`` [sequences, elements, slots],
    ``own`` [sequences, elements, chunk].
    """

    sequences: int
    clean: int
    solo: int
    weights: torch.Tensor
    pooled: torch.Tensor
    ids: torch.Tensor
    own: torch.Tensor


def lay_out(plans: Sequence[Plan], targets: Sequence[Sequence[int]], clean: int, solo: int) -> Batch:
    """The layout for sequences with these plans, of which the chunks ``targets`` are denoised."""
    rows = [torch.tensor([*range(clean), *chosen]) for chosen in targets]
    known = clean * plans[0].own.shape[1]
    return Batch(
        len(plans),
        clean,
        solo,
        torch.stack([p.weights[r][..., :known] for p, r in zip(plans, rows, strict=True)]),
        torch.stack([p.pooled[r] for p, r in zip(plans, rows, strict=True)]),
        torch.stack([p.ids[r] for p, r in zip(plans, rows, strict=True)]),
        torch.stack([p.own[r] for p, r in zip(plans, rows, strict=True)]),
    )


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Attention over ``[batch, tokens, heads, dim]``. Plain products: their backward is faster than the fused
    kernel's on a CPU at these sizes."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias[:, None, None, :]
    return (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2)


class SequenceAttnProcessor(WanAttnProcessor):
    """Self-attention of a training forward; see :func:`attending_sequences`."""

    batch: Batch
    rope: Rope

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        plan, tokens = self.batch, self.rope.grid[0] * self.rope.grid[1]
        q, k, v = _self_projections(attn, hidden_states)
        chunk = plan.own.shape[-1]
        elements = plan.weights.shape[1]
        count = plan.sequences * elements
        cos, sin = self.rope.frames(range(64))
        # chunks that stand alone: ids 0, 1, 2
        alone = (cos[:chunk].flatten(0, 1), sin[:chunk].flatten(0, 1))
        outs = []
        if count:
            shape = (plan.sequences, elements, chunk, tokens, *q.shape[2:])
            qs, ks, vs = (x[:count].view(shape) for x in (q, k, v))
            known = plan.weights.to(ks.dtype)
            mixed = []
            for x in (ks, vs):
                past = x[:, : plan.clean].flatten(1, 2)
                slots = torch.einsum("nesf,nfthd->nesthd", known, past)
                mean = slots.mean(3, keepdim=True).expand_as(slots)
                mixed.append(torch.where(plan.pooled[..., None, None, None] > 0, mean, slots))
            turned = rotate(mixed[0], cos[plan.ids], sin[plan.ids])
            own_cos, own_sin = cos[plan.own], sin[plan.own]
            keys = torch.cat([turned, rotate(ks, own_cos, own_sin)], 2)
            values = torch.cat([mixed[1], vs], 2)
            used = torch.cat([plan.weights.sum(-1) > 0, torch.ones_like(plan.own, dtype=torch.bool)], -1)
            bias = torch.where(used, 0.0, -1e9).repeat_interleave(tokens, -1).flatten(0, 1)
            queries, keys, values = (
                x.flatten(2, 3).flatten(0, 1) for x in (rotate(qs, own_cos, own_sin), keys, values)
            )
            outs.append(_attend(queries, keys, values, bias))
        if plan.solo:
            outs.append(_attend(rotate(q[count:], *alone), rotate(k[count:], *alone), v[count:]))
        out = torch.cat(outs).flatten(2, 3).type_as(hidden_states)
        projected: torch.Tensor = attn.to_out[1](attn.to_out[0](out))
        return projected


class PlainCrossAttnProcessor(WanAttnProcessor):
    """Cross-attention by plain products: on a CPU the fused kernel's backward takes several times as long."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        assert encoder_hidden_states is not None
        heads = (attn.heads, -1)
        q = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, heads)
        k = attn.norm_k(attn.to_k(encoder_hidden_states)).unflatten(2, heads)
        v = attn.to_v(encoder_hidden_states).unflatten(2, heads)
        out = _attend(q, k, v).flatten(2, 3).type_as(hidden_states)
        projected: torch.Tensor = attn.to_out[1](attn.to_out[0](out))
        return projected


@contextmanager
def attending_sequences(transformer: Any, batch: Batch, rope: Rope) -> Iterator[None]:
    """Forwards inside follow ``batch``; afterwards the processors are what they were."""
    layers = [layer for block in transformer.blocks for layer in (block.attn1, block.attn2)]
    before = [layer.processor for layer in layers]
    processor, cross = SequenceAttnProcessor(), PlainCrossAttnProcessor()
    processor.batch, processor.rope = batch, rope
    for i, layer in enumerate(layers):
        layer.set_processor(cross if i % 2 else processor)
    try:
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.set_processor(old)

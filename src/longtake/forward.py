"""How the forwards of a chunk are run: as diffusers does it, or the same layers without what is done in vain.

``Plain`` calls the transformer; it is the reference, and works wherever diffusers does. ``Fast`` calls the
transformer's own layers in the same order on the same numbers, and leaves out what does not change the result: the
embedding of a timestep and the modulation it gives every block are computed once, the prompt is embedded when it is
new, no rotary table is made that nobody reads, and a commit ends with the keys and values of the last layer, as its
output is thrown away. What is left is the same arithmetic, so both give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from longtake import speed
from longtake.attention import MemoryAttnProcessor, attend_past, attend_prompt, attending, install, remember
from longtake.memory.split import SplitMemory
from longtake.memory.store import Memory
from longtake.memory.together import Together
from longtake.transfer import identity


class Plain:
    """Forwards of one take, by diffusers' own code.

    Args:
        transformer: a ``WanTransformer3DModel``.
        memory: what it attends to.
        times: timesteps on the device, [1] each: of the denoising steps, then that of the commit.
    """

    def __init__(self, transformer: Any, memory: Memory | SplitMemory | Together, times: Sequence[Tensor]) -> None:
        self.transformer, self.memory, self.times = transformer, memory, tuple(times)

    def flow(self, x: Tensor, step: int, text: Tensor) -> Tensor:
        """What the model predicts at a denoising step, like ``x`` [batch, channels, frames, height, width].

        Args:
            x: noisy latents, in any dtype.
            step: number of the step.
            text: [batch, tokens, dim].
        """
        with attending(self.transformer, self.memory):
            return self._forward(x, self.times[step], text)

    def commit(self, x: Tensor, text: Tensor) -> None:
        """One forward of clean latents at t = 0, by which the memory learns the chunk."""
        with attending(self.transformer, self.memory), self.memory.recording():
            self._forward(x, self.times[-1], text)

    def _forward(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        dtype = self.memory.dtype
        flow: Tensor = self.transformer(x.to(dtype), time, text.to(dtype), return_dict=False)[0]
        return flow


class Modulation(NamedTuple):
    """What a timestep does to a block: shift, 1 + scale and gate of self-attention, and of the feed-forward layer."""

    shift: Tensor
    scale: Tensor
    gate: Tensor
    ff_shift: Tensor
    ff_scale: Tensor
    ff_gate: Tensor


class Conditions(NamedTuple):
    """All that a forward needs of its timestep: of every block, and shift and 1 + scale of the head."""

    blocks: tuple[Modulation, ...]
    head: tuple[Tensor, Tensor]


class Fast(Plain):
    """Forwards of one take, layer by layer; the same arguments. Only where :func:`obstacle` sees none."""

    def __init__(self, transformer: Any, memory: Memory | SplitMemory | Together, times: Sequence[Tensor]) -> None:
        super().__init__(transformer, memory, times)
        self._conditions: dict[int, Conditions] = {}
        self._weights: tuple[Any, ...] | None = ()

    def _forward(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        memory, transformer = self.memory, self.transformer
        assert not isinstance(memory, SplitMemory)
        committing = memory.is_recording
        x, text = x.to(memory.dtype), text.to(memory.dtype)
        conditions = self._conditions_of(time, text)
        states = None if all(memory.prompt) else transformer.condition_embedder.text_embedder(text)
        hidden = transformer.patch_embedding(x).flatten(2).transpose(1, 2).contiguous()
        last, run = len(transformer.blocks) - 1, self._blocks(states)
        for layer, (block, modulation) in enumerate(zip(transformer.blocks, conditions.blocks, strict=True)):
            if committing and layer == last:
                remember(
                    block.attn1, _modulated(block.norm1, hidden, modulation.shift, modulation.scale), memory, layer
                )
                return x  # nobody wants it
            hidden = run(block, hidden, modulation, layer)
        return self._head(hidden, conditions.head, x)

    def _blocks(self, states: Tensor | None) -> Callable[[Any, Tensor, Modulation, int], Tensor]:
        """What runs a block in this forward; ``states``: of the text, where the memory does not have it yet."""
        memory = self.memory
        assert not isinstance(memory, SplitMemory)
        return lambda block, x, modulation, layer: run_block(block, x, states, modulation, memory, layer)

    def _head(self, hidden: Tensor, head: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
        """From hidden states to latents like ``x``."""
        patches = self.transformer.proj_out(_modulated(self.transformer.norm_out, hidden, *head))
        sides = self.transformer.config.patch_size
        counts = [length // side for length, side in zip(x.shape[2:], sides, strict=True)]
        grid = patches.unflatten(1, counts).unflatten(-1, (*sides, -1)).permute(0, 7, 1, 4, 2, 5, 3, 6)
        flow: Tensor = grid.flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return flow

    def _conditions_of(self, time: Tensor, text: Tensor) -> Conditions:
        weights = _identity(self.transformer)
        if weights != self._weights:  # loaded, moved or trained since
            self._conditions, self._weights = {}, weights
        found = self._conditions.get(id(time))
        if found is None or weights is None:
            # Diffusers embeds time and text in one call: it gets one word.
            temb, projected = self.transformer.condition_embedder(time, text[:1, :1], None)[:2]
            projected = projected.unflatten(1, (6, -1))
            blocks = tuple(_modulation(block, projected) for block in self.transformer.blocks)
            shift, scale = (self.transformer.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
            found = self._conditions[id(time)] = Conditions(blocks, (shift, 1 + scale))
        return found


def _modulation(block: Any, projected: Tensor) -> Modulation:
    shift, scale, gate, ff_shift, ff_scale, ff_gate = (block.scale_shift_table + projected.float()).chunk(6, dim=1)
    return Modulation(shift, 1 + scale, gate, ff_shift, 1 + ff_scale, ff_gate)


def _modulated(norm: Any, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalised in float32, scaled and shifted, in the dtype of ``x``."""
    return (norm(x.float()) * scale + shift).type_as(x)


def run_block(
    block: Any, x: Tensor, text: Tensor | None, modulation: Modulation, memory: Memory | Together, layer: int
) -> Tensor:
    """A ``WanTransformerBlock``, as its own forward: [batch, tokens, dim]."""
    attended = attend_past(block.attn1, _modulated(block.norm1, x, modulation.shift, modulation.scale), memory, layer)
    x = (x.float() + attended * modulation.gate).type_as(x)
    x = x + attend_prompt(block.attn2, block.norm2(x.float()).type_as(x), text, memory, layer)
    fed = block.ffn(_modulated(block.norm3, x, modulation.ff_shift, modulation.ff_scale))
    return (x.float() + fed.float() * modulation.ff_gate).type_as(x)


def _identity(transformer: Any) -> tuple[Any, ...] | None:
    """Tells whether the weights behind conditions are still the same; None if that cannot be known."""
    embedder = transformer.condition_embedder
    parts = (embedder.time_embedder, embedder.time_proj)
    if any(hasattr(module, "scaling") for part in parts for module in part.modules()):
        return None  # adapters, which are switched without a trace in the weights
    tables = [block.scale_shift_table for block in transformer.blocks]
    weights = [*(p for part in parts for p in part.parameters()), transformer.scale_shift_table, *tables]
    return identity(weights)


def obstacle(transformer: Any, memory: Memory | SplitMemory | Together) -> str | None:
    """Why the forwards of a take cannot be run layer by layer, in a few words; None if they can."""
    if not isinstance(transformer, WanTransformer3DModel):
        return "the transformer is not diffusers' own"
    attentions = [attn for block in transformer.blocks for attn in (block.attn1, block.attn2)]
    for module in (transformer, transformer.condition_embedder, *transformer.blocks, *attentions):  # not called as such
        hooks = (module._forward_hooks, module._forward_pre_hooks, getattr(module, "_hf_hook", None))
        if any(hooks) or getattr(module, "_diffusers_hook", None) is not None:
            return "hooks are set on the transformer, as splitting and offloading do"
        if module._compiled_call_impl is not None:
            return "the transformer is compiled as a whole"
    if type(transformer) is not WanTransformer3DModel or "forward" in vars(transformer):
        return "the transformer's forward is not diffusers' own"
    if transformer.config.image_dim is not None or transformer.config.added_kv_proj_dim is not None:
        return "the model is conditioned on images"
    memories = memory.memories if isinstance(memory, Together) else (memory,)
    if any(not isinstance(one, Memory) or one.functional for one in memories) or torch.is_grad_enabled():
        return "gradients may be recorded"
    for block in transformer.blocks:
        if not all(isinstance(attn.processor, MemoryAttnProcessor) for attn in (block.attn1, block.attn2)):
            return "its attention processors have been replaced"
    return None


def forwards(
    transformer: Any,
    memory: Memory | SplitMemory | Together,
    times: Sequence[Tensor],
    path: str = "auto",
    held: Plain | None = None,
    fast: type[Fast] = Fast,
) -> Plain:
    """The forwards of a take.

    Args:
        transformer, memory, times: see :class:`Plain`.
        path: one of ``longtake.speed.FORWARD_PATHS``.
        held: those of the chunk before, given back if they are of the right kind.
        fast: what to take where layers can be called one by one.

    Raises:
        ValueError: for another path, or if ``fast`` is asked for and something stands in its way.
    """
    speed.check("forward path", path)
    install(transformer)
    reason = None if path == "plain" else obstacle(transformer, memory)
    if path == "fast" and reason is not None:
        raise ValueError(f"The fast path is not possible here: {reason}; auto and plain are.")
    kind = Plain if path == "plain" or reason is not None else fast
    if type(held) is kind and held.transformer is transformer and held.memory is memory:
        return held
    return kind(transformer, memory, times)

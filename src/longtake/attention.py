"""The bridge between a memory and diffusers' unmodified ``WanTransformer3DModel``: attention processors.

Self-attention of every block attends to the memory's slots and the current chunk; cross-attention keeps the keys and
values of the prompt. Without a memory bound, both are diffusers' own ``WanAttnProcessor``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor

from longtake import speed
from longtake.kernels import dispatch, kernel_for
from longtake.memory.echo_encoder import MemoryEncoder
from longtake.memory.frozen import frozen
from longtake.memory.learned import Learned
from longtake.memory.policy import MemoryPolicy
from longtake.memory.pooled import Pooled
from longtake.memory.split import SplitMemory
from longtake.memory.store import Memory
from longtake.memory.together import Together
from longtake.placement import groups_of


class _Binding:
    """Which memory the processors of one transformer serve at the moment."""

    def __init__(self) -> None:
        self.memory: Memory | SplitMemory | Together | None = None

    def at(self, layer: int) -> tuple[Memory | Together | None, int]:
        """The memory that holds a layer, and the layer's number in it."""
        return self.memory.part(layer) if isinstance(self.memory, SplitMemory) else (self.memory, layer)


class MemoryAttnProcessor(WanAttnProcessor):
    """Processor of one attention layer (``blocks[layer].attn1``, or ``attn2`` if ``cross``)."""

    def __init__(self, binding: _Binding, layer: int, cross: bool) -> None:
        super().__init__()
        self.binding = binding
        self.layer = layer
        self.cross = cross

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        memory, layer = self.binding.at(self.layer)
        # Image-conditioned cross-attention has keys of its own; the stock processor knows them.
        if memory is None or (self.cross and (encoder_hidden_states is None or attn.add_k_proj is not None)):
            stock: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
            return stock
        if self.cross:
            assert encoder_hidden_states is not None
            return attend_prompt(attn, hidden_states, encoder_hidden_states, memory, layer, attention_mask)
        return attend_past(attn, hidden_states, memory, layer)


def attend_past(attn: Any, x: Tensor, memory: Memory | Together, layer: int) -> Tensor:
    """Self-attention of the current chunk to itself and to what is remembered: [batch, tokens, dim], from the same.

    Args:
        attn: ``blocks[...].attn1``; with the attention backend that its processor was given.
        memory, layer: what is remembered, and which layer of it this is. Of takes together, all else is computed for
            all of them at once, and attention for each by itself.
    """
    query, key, value = _self_projections(attn, x)
    if isinstance(memory, Together):
        items = enumerate(zip(query.split(1), key.split(1), value.split(1), strict=True))
        return _project(attn, x, torch.cat([_past(attn, *memory.at(item, layer), *mine) for item, mine in items]))
    return _project(attn, x, _past(attn, memory, layer, query, key, value))


def _past(attn: Any, memory: Memory, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    memory.policy.observe(memory, layer, query, key)
    key, value = memory.update(layer, key, value)
    return _attend(attn, memory, memory.query(query), key, value, pooled=memory.pooled(layer))


def attend_prompt(
    attn: Any, x: Tensor, text: Tensor | None, memory: Memory | Together, layer: int, mask: Tensor | None = None
) -> Tensor:
    """Cross-attention to the prompt, whose keys and values the memory keeps; arguments as for :func:`attend_past`.

    Args:
        text: [batch, text tokens, dim]; may be left out where the memory has its keys and values already.
    """
    query = attn.norm_q(attn.to_q(x)).unflatten(2, (attn.heads, -1))
    if isinstance(memory, Together):
        texts = [None] * len(x) if text is None else text.split(1)
        items = enumerate(zip(query.split(1), texts, strict=True))
        parts = [_to_prompt(attn, *memory.at(item, layer), mine, its, mask) for item, (mine, its) in items]
        return _project(attn, x, torch.cat(parts))
    return _project(attn, x, _to_prompt(attn, memory, layer, query, text, mask))


def _to_prompt(
    attn: Any, memory: Memory, layer: int, query: Tensor, text: Tensor | None, mask: Tensor | None
) -> Tensor:
    key, value = read_prompt(attn, memory, layer, text)
    # One key and one value for each would be attention to nothing else.
    padding = min(memory.padding, key.shape[1] - 1) if memory.collapse and mask is None else 0
    if padding > 1:
        assert memory.kernel is not None  # only a kernel collapses
        return memory.kernel.with_repeated(query, key, value, padding)
    return _attend(attn, memory, query, key, value, mask)


def remember(attn: Any, x: Tensor, memory: Memory | Together, layer: int) -> None:
    """What :func:`attend_past` does to the memory, and no more: the last layer of a commit needs no output."""
    if isinstance(memory, Together):
        for item, mine in enumerate(x.split(1)):
            remember(attn, mine, *memory.at(item, layer))
        return
    if type(memory.policy).observe is MemoryPolicy.observe and not getattr(attn, "fused_projections", False):
        heads = (attn.heads, -1)
        memory.update(layer, attn.norm_k(attn.to_k(x)).unflatten(2, heads), attn.to_v(x).unflatten(2, heads))
        return
    query, key, value = _self_projections(attn, x)
    memory.policy.observe(memory, layer, query, key)
    memory.update(layer, key, value)


def _attend(
    attn: Any,
    memory: Memory,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    pooled: Pooled | None = None,
) -> Tensor:
    """Attention by diffusers' backend, if one was set, or else by the memory's kernel; all [batch, tokens, heads,
    head_dim]."""
    backend = attn.processor._attention_backend
    if pooled is not None:
        assert memory.kernel is not None  # only a kernel collapses
        out: Tensor = memory.kernel.with_pooled(query, key, value, pooled)
        return out
    if backend is not None or memory.kernel is None:
        return dispatch(query, key, value, mask, backend)
    return memory.kernel(query, key, value, mask)


def _project(attn: Any, x: Tensor, out: Tensor) -> Tensor:
    """The projection after attention, in the dtype of ``x``."""
    projected: Tensor = attn.to_out[1](attn.to_out[0](out.flatten(2, 3).type_as(x)))
    return projected


def choose_kernel(
    transformer: Any, memory: Memory | SplitMemory, attention: str = "auto", collapse: str = "auto"
) -> None:
    """Settles what computes attention to a memory, between chunks.

    Args:
        attention: one of ``longtake.speed.ATTENTIONS``. A backend that the transformer was told to use
            (``transformer.set_attention_backend``) comes first, unless another is asked for here.
        collapse: whether frames of one key and one value are attended to in closed form (``longtake.memory.pooled``),
            and padding of the text as one token; one of ``longtake.speed.COLLAPSE``.

    Raises:
        ValueError: if that is not possible, in one sentence.
    """
    speed.check("collapse", collapse)
    chosen = {attn.processor._attention_backend for block in transformer.blocks for attn in (block.attn1, block.attn2)}
    if chosen != {None} and attention not in ("auto", "native"):
        raise ValueError(f"The transformer was told to use another attention backend than {attention}: leave one out.")
    parts = memory.parts if isinstance(memory, SplitMemory) else [memory]
    size = _score_bytes(parts[0])
    kernels = [kernel_for(attention, part.device, part.dtype, size) for part in parts]  # each device has its best
    silent = [kernel for kernel, part in zip(kernels, parts, strict=True) if not kernel.gives_sums(part.device)]
    possible = chosen == {None} and not memory.functional and not silent
    if collapse == "on" and not possible:
        name = silent[0].name if silent else "another backend, or for training,"
        raise ValueError(f"Attention by {name} gives no sums of its scores here, which collapsing needs.")
    for part, kernel in zip(parts, kernels, strict=True):
        part.kernel = None if part.functional else kernel
    memory.collapse = possible and (collapse == "on" or (collapse == "auto" and collapse_pays(memory)))


def _score_bytes(memory: Memory) -> int:
    """Bytes of all scores of a layer of a full memory, in float32."""
    return 4 * memory.keys.shape[1] * memory.keys.shape[4] * memory.chunk * memory.capacity * memory.tokens**2


def collapse_pays(memory: Memory | SplitMemory) -> bool:
    """Whether closed forms are known to be faster where a memory is.

    On two cores of an AMD EPYC they were not at 64 tokens per frame, and hardly at 256; on a GPU it has not been
    measured (docs/performance.md says how to).
    """
    return False


def read_prompt(attn: Any, memory: Memory, layer: int, text: Tensor | None) -> tuple[Tensor, Tensor]:
    """Keys and values of the text in one layer: [batch, text tokens, heads, head_dim] each, kept until it changes."""
    # Under autograd the cache would either cut the gradient or hold on to an old graph.
    caching = not torch.is_grad_enabled()
    held = memory.prompt[layer] if caching else None
    if held is None:
        assert text is not None
        if getattr(attn, "fused_projections", False):
            key, value = attn.to_kv(text).chunk(2, dim=-1)
        else:
            key, value = attn.to_k(text), attn.to_v(text)
        held = (attn.norm_k(key).unflatten(2, (attn.heads, -1)), value.unflatten(2, (attn.heads, -1)))
        if caching:
            memory.prompt[layer] = held
    return held


def _self_projections(attn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised, un-rotated queries and keys, and values: [batch, tokens, heads, head_dim] each."""
    if getattr(attn, "fused_projections", False):
        query, key, value = attn.to_qkv(x).chunk(3, dim=-1)
    else:
        query, key, value = attn.to_q(x), attn.to_k(x), attn.to_v(x)
    heads = (attn.heads, -1)
    return attn.norm_q(query).unflatten(2, heads), attn.norm_k(key).unflatten(2, heads), value.unflatten(2, heads)


def install(transformer: Any) -> None:
    """Set the processors on every block, once; a second call does nothing.

    An attention backend chosen before (``transformer.set_attention_backend``) is kept; one chosen later is honoured.
    """
    if _binding(transformer) is not None:
        return
    binding = _Binding()
    for layer, block in enumerate(transformer.blocks):
        for attn, cross in ((block.attn1, False), (block.attn2, True)):
            processor = MemoryAttnProcessor(binding, layer, cross)
            processor._attention_backend = getattr(attn.processor, "_attention_backend", None)
            processor._parallel_config = getattr(attn.processor, "_parallel_config", None)
            attn.set_processor(processor)


def _binding(transformer: Any) -> _Binding | None:
    processor = transformer.blocks[0].attn1.processor
    return processor.binding if isinstance(processor, MemoryAttnProcessor) else None


@contextmanager
def attending(transformer: Any, memory: Memory | SplitMemory | Together) -> Iterator[Memory | SplitMemory | Together]:
    """Forwards of ``transformer`` inside attend to ``memory``; installs the processors if need be.

    Takes share a transformer by taking turns: bind, run a forward or a chunk, leave. With gradient checkpointing
    (``transformer.enable_gradient_checkpointing()``) and a functional memory, blocks that backward runs again attend to
    the memory as it was in the forward, wherever and whenever backward is called.

    Args:
        transformer: a ``WanTransformer3DModel``.
        memory: of this transformer's sizes; or of several takes together, one per item of the batch.

    Raises:
        ValueError: if the number of layers differs.
    """
    install(transformer)
    binding = _binding(transformer)
    assert binding is not None
    if len(memory.prompt) != len(transformer.blocks):
        raise ValueError(f"The memory has {len(memory.prompt)} layers, the transformer {len(transformer.blocks)}.")
    memory.catch_up()  # here, and not within a block that checkpointing would run again
    before, binding.memory = binding.memory, memory
    try:
        with _checkpointing(transformer, binding) if memory.functional else nullcontext():
            yield memory
    finally:
        binding.memory = before


class _Replayed:
    """A block as gradient checkpointing calls it: once in the forward, and again in each backward, when the memory has
    moved on or is bound no more. Then it attends to the memory as it was."""

    def __init__(self, block: Any, binding: _Binding) -> None:
        assert binding.memory is not None and not isinstance(binding.memory, Together)
        self.block, self.binding, self.memory = block, binding, frozen(binding.memory)
        self.again = False

    def __call__(self, *args: Any) -> Any:
        if not self.again:
            self.again = True
            return self.block(*args)
        before, self.binding.memory = self.binding.memory, self.memory
        try:
            return self.block(*args)
        finally:
            self.binding.memory = before


@contextmanager
def _checkpointing(transformer: Any, binding: _Binding) -> Iterator[None]:
    if not getattr(transformer, "gradient_checkpointing", False):
        yield
        return
    plain = transformer._gradient_checkpointing_func
    transformer._gradient_checkpointing_func = lambda block, *args: plain(_Replayed(block, binding), *args)
    try:
        yield
    finally:
        transformer._gradient_checkpointing_func = plain


def memory_for(
    transformer: Any,
    policy: MemoryPolicy,
    height: int,
    width: int,
    *,
    batch: int = 1,
    chunk: int = 3,
    functional: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    encoder: MemoryEncoder | None = None,
) -> Memory | SplitMemory:
    """A memory that fits a transformer: in parts, each where its layers are, if ``longtake.placement`` has split it.

    Args:
        transformer: a ``WanTransformer3DModel``.
        policy: which frames stay.
        height, width: of the latents, before patching.
        batch, chunk, functional: see ``Memory``; ``chunk`` in latent frames.
        device, dtype: the transformer's unless given; a split transformer's memory is where its layers are.
        encoder: weights of a learned memory, for a policy that is one.

    Raises:
        ValueError: if the latents cannot be cut into patches, the policy has no room for a chunk, or it is learned and
            the weights are not there, or not for this model and size.
    """
    config = transformer.config
    steps, rows, columns = config.patch_size
    if chunk % steps or height % rows or width % columns:
        raise ValueError(f"Latents of {chunk} x {height} x {width} do not divide into patches {config.patch_size}.")
    whole = (config.num_layers, torch.device(transformer.device if device is None else device))
    parts = [
        Memory(
            policy,
            num_layers=layers,
            heads=config.num_attention_heads,
            head_dim=config.attention_head_dim,
            grid=(height // rows, width // columns),
            batch=batch,
            chunk=chunk // steps,
            device=where,
            dtype=transformer.dtype if dtype is None else dtype,
            functional=functional,
        )
        for layers, where in groups_of(transformer) or [whole]
    ]
    if policy.learned:
        Learned(encoder, parts)  # which tells the parts
    return parts[0] if len(parts) == 1 else SplitMemory(parts)

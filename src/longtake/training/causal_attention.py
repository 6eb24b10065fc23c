"""Attention processors that carry out a :class:`~longtake.training.causal.Layout` on the stock Wan transformer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor

from longtake.attention import _self_projections
from longtake.rope import Rope, rotate
from longtake.training.causal import Layout
from longtake.training.plain import pays, plain
from longtake.transfer import send

KERNELS = ("auto", "plain", "fused")


@lru_cache(maxsize=8)
def _rotations(head_dim: int, grid: tuple[int, int], ids: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
    # tensors born in inference mode could not be used under autograd later
    with torch.inference_mode(False):
        cos, sin = Rope(head_dim, grid).frames(ids)
        return send(cos, device), send(sin, device)


class _Tables:
    """A layout on one device."""

    def __init__(
        self, layout: Layout, head_dim: int, grid: tuple[int, int], texts: Tensor | None, device: torch.device
    ):
        def there(x: Tensor) -> Tensor:
            return send(x, device)

        cos, sin = _rotations(head_dim, grid, layout.ids, device)
        own, turned = there(layout.own), there(layout.turned_rows)
        self.own = (cos.index_select(0, own), sin.index_select(0, own))
        self.turned = (cos.index_select(0, turned), sin.index_select(0, turned))
        whole = len(layout) * layout.chunk + len(layout.pooled) + len(layout.mixed)
        # with absolute ids every source is rotated once, in its place: nothing to gather
        same = torch.equal(layout.turned, torch.arange(whole))
        self.sources = None if same else there(layout.turned)
        self.pooled = there(layout.pooled)
        columns = layout.mixed.any(0).nonzero().flatten()
        self.mixed, self.columns = there(layout.mixed[:, columns]), there(columns)
        self.groups = [(there(g.elements), there(g.keys), there(g.values)) for g in layout.groups]
        order = torch.cat([g.elements for g in layout.groups])
        self.back = None if torch.equal(order, torch.arange(len(order))) else there(order.argsort())
        self.texts = None if texts is None else there(texts)


@dataclass
class _Forward:
    """What the processors of one ``attending_causal`` share."""

    layout: Layout
    head_dim: int
    grid: tuple[int, int]
    texts: Tensor | None
    kernel: str
    tables: dict[torch.device, _Tables] = field(default_factory=dict)

    def on(self, device: torch.device) -> _Tables:
        if device not in self.tables:
            with torch.inference_mode(False), torch.no_grad():
                self.tables[device] = _Tables(self.layout, self.head_dim, self.grid, self.texts, device)
        return self.tables[device]


def attend(q: Tensor, k: Tensor, v: Tensor, kernel: str = "auto", backend: Any = None) -> Tensor:
    """Attention without a mask over ``[batch, tokens, heads, head_dim]``.

    Args:
        q, k, v: all of one dtype.
        kernel: "plain" is two matrix products and a softmax, a few elements at a time; "fused" is PyTorch's (or
            ``backend``); "auto" is plain on a CPU while the scores are small, else fused (measured by
            ``benchmarks/causal_attention.py``).
        backend: diffusers' attention backend, for "fused".
    """
    turned = (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    if kernel == "auto":
        kernel = "plain" if pays(*turned[:2]) else "fused"
    if kernel == "fused":
        out: Tensor = dispatch_attention_fn(
            q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, backend=backend, parallel_config=None
        )
        return out
    return plain(*turned).transpose(1, 2)


class CausalAttnProcessor(WanAttnProcessor):
    """Self-attention of one layer; see :func:`attending_causal`."""

    def __init__(self, forward: _Forward) -> None:
        super().__init__()
        self.forward = forward

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        layout, tables = self.forward.layout, self.forward.on(hidden_states.device)
        if hidden_states.shape[0] != len(layout):
            raise ValueError(f"This layout has {len(layout)} elements, the batch {hidden_states.shape[0]}.")
        q, k, v = _self_projections(attn, hidden_states)
        by_frame = (layout.chunk, self.forward.grid[0] * self.forward.grid[1])
        frames = [x.type_as(v).unflatten(1, by_frame).flatten(0, 1) for x in (q, k, v)]
        queries = rotate(frames[0], *tables.own).unflatten(0, (-1, layout.chunk)).flatten(1, 2)
        keys, values = (_with_sums(x, tables) for x in frames[1:])
        if tables.sources is not None:
            keys = keys.index_select(0, tables.sources)
        keys = rotate(keys, *tables.turned)
        outs = []
        for elements, key_rows, value_rows in tables.groups:
            shape = (len(elements), -1)
            outs.append(
                attend(
                    queries.index_select(0, elements),
                    keys.index_select(0, key_rows).unflatten(0, shape).flatten(1, 2),
                    values.index_select(0, value_rows).unflatten(0, shape).flatten(1, 2),
                    self.forward.kernel,
                    self._attention_backend,
                )
            )
        out = outs[0] if len(outs) == 1 else torch.cat(outs)
        if tables.back is not None:
            out = out.index_select(0, tables.back)
        out = out.flatten(2, 3).type_as(hidden_states)
        projected: Tensor = attn.to_out[1](attn.to_out[0](out))
        return projected


def _with_sums(frames: Tensor, tables: _Tables) -> Tensor:
    """All sources: the frames ``[frames, tokens, heads, head_dim]``, then the slots that are sums of frames.

    Sums are taken in float32, as the memory takes its averages: in bfloat16 rates of 0.01 are lost.
    """
    parts = [frames]
    with torch.autocast(frames.device.type, enabled=False):
        if len(tables.pooled):
            means = frames.mean(1, dtype=torch.float32)
            slots = (tables.pooled @ means.flatten(1)).unflatten(1, means.shape[1:])
            parts.append(slots[:, None].type_as(frames).expand(-1, *frames.shape[1:]))
        if len(tables.mixed):
            used = frames.index_select(0, tables.columns).float()
            parts.append((tables.mixed @ used.flatten(1)).unflatten(1, used.shape[1:]).type_as(frames))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class CausalCrossAttnProcessor(WanAttnProcessor):
    """Cross-attention of one layer: keys and values once per text, not once per chunk."""

    def __init__(self, forward: _Forward) -> None:
        super().__init__()
        self.forward = forward

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        assert encoder_hidden_states is not None
        if getattr(attn, "fused_projections", False):
            key, value = attn.to_kv(encoder_hidden_states).chunk(2, dim=-1)
        else:
            key, value = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        heads = (attn.heads, -1)
        v = value.unflatten(2, heads)
        q = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, heads).type_as(v)
        k = attn.norm_k(key).unflatten(2, heads).type_as(v)
        texts = self.forward.on(hidden_states.device).texts
        if texts is not None:
            k, v = k.index_select(0, texts), v.index_select(0, texts)
        out = attend(q, k, v, self.forward.kernel, self._attention_backend).flatten(2, 3).type_as(hidden_states)
        projected: Tensor = attn.to_out[1](attn.to_out[0](out))
        return projected


@contextmanager
def attending_causal(
    transformer: Any,
    layout: Layout,
    grid: tuple[int, int],
    texts: Sequence[int] | None = None,
    kernel: str = "auto",
) -> Iterator[None]:
    """Forwards inside follow ``layout``; afterwards the processors are what they were.

    A forward takes latents ``[elements, channels, chunk, h, w]``, timesteps ``[elements]`` and text ``[elements,
    tokens, dim]``. The backward may run outside, also with diffusers' gradient checkpointing, which computes blocks
    anew: they get their processors back for it. (Checkpoints wrapped around blocks in another way need the backward
    inside.) Nothing else of the transformer is touched, so sharded ones do.

    Args:
        transformer: a ``WanTransformer3DModel`` for text to video.
        layout: which chunk attends to what.
        grid: tokens per latent frame as (height, width), after patching.
        texts: for every element, the row of ``encoder_hidden_states`` that is its text; the forward then takes each
            different text once, ``[different, tokens, dim]``.
        kernel: see :func:`attend`.

    Raises:
        ValueError: for a transformer that also attends to a picture, an unknown kernel or as many texts as do not fit.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be {', '.join(KERNELS)}, not {kernel!r}.")
    if texts is not None and len(texts) != len(layout):
        raise ValueError(f"texts must name one text for each of the {len(layout)} elements, not {len(texts)}.")
    layers = [layer for block in transformer.blocks for layer in (block.attn1, block.attn2)]
    if any(layer.add_k_proj is not None for layer in layers):
        raise ValueError("Causal training takes text-to-video transformers, not ones that attend to a picture.")
    rows = None if texts is None else torch.tensor(list(texts))
    forward = _Forward(layout, transformer.config.attention_head_dim, grid, rows, kernel)
    before = [layer.processor for layer in layers]
    checkpoint = getattr(transformer, "_gradient_checkpointing_func", None)
    for i, (layer, old) in enumerate(zip(layers, before, strict=True)):
        processor = CausalCrossAttnProcessor(forward) if i % 2 else CausalAttnProcessor(forward)
        processor._attention_backend = getattr(old, "_attention_backend", None)
        layer.set_processor(processor)
    if checkpoint is not None:
        transformer._gradient_checkpointing_func = _remembering(checkpoint)
    try:
        yield
    finally:
        if checkpoint is not None:
            transformer._gradient_checkpointing_func = checkpoint
        for layer, old in zip(layers, before, strict=True):
            layer.set_processor(old)


def _remembering(checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """A checkpoint function under which a block computed anew has the processors it had in the forward.

    Without it, a backward outside of the context would compute blocks anew with the wrong attention.
    """

    def run(block: Any, *args: Any) -> Any:
        layers = (block.attn1, block.attn2)
        then = [layer.processor for layer in layers]

        def call(*inner: Any) -> Any:
            now = [layer.processor for layer in layers]
            for layer, processor in zip(layers, then, strict=True):
                layer.set_processor(processor)
            try:
                return block(*inner)
            finally:
                for layer, processor in zip(layers, now, strict=True):
                    layer.set_processor(processor)

        return checkpoint(call, *args)

    return run

"""What the tests of causal training share: a small model, and the same attention written out by hand."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from longtake.attention import attending, memory_for
from longtake.memory import MemoryPolicy

HEIGHT, WIDTH = 4, 4
GRID = (HEIGHT // 2, WIDTH // 2)
TOKENS = GRID[0] * GRID[1]


def model(layers: int = 2, seed: int = 0) -> WanTransformer3DModel:
    torch.manual_seed(seed)
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=16,
        ffn_dim=32,
        num_layers=layers,
    )
    for block in transformer.blocks:  # strong attention: small weights would hide a wrong key
        for linear in (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v, block.attn1.to_out[0]):
            linear.weight.data.mul_(2)
    return transformer


def turn(x: Tensor, frame: int, row: int, column: int) -> Tensor:
    """A key or query [heads, 12] of one token, rotated as complex numbers: 3 pairs... by time 2, row 2, column 2."""
    angles = []
    for dim, index in ((4, frame), (4, row), (4, column)):
        angles += [index / 10000 ** (2 * i / dim) for i in range(dim // 2)]
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    turned = pairs * torch.polar(torch.ones(6, dtype=torch.float64), torch.tensor(angles, dtype=torch.float64))
    return torch.view_as_real(turned).flatten(-2)


Key = tuple[Tensor, Tensor, int]  # un-rotated keys and values of a frame [tokens, heads, 12], and the id to use


class ByHand:
    """Runs one chunk through the model, its tokens attending one by one to an explicit list of frames."""

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer

    @torch.no_grad()
    def __call__(
        self, x: Tensor, sigma: float, text: Tensor, own: list[int], past: list[list[Key]]
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The flow, and per layer the chunk's keys and values [chunk, tokens, heads, 12]. ``past``: per layer."""
        kept: list[tuple[Tensor, Tensor]] = []

        class Naive:
            def __call__(self, attn: Any, hidden: Tensor, *_: Any) -> Tensor:
                shape = (len(own), TOKENS, 2, 12)
                q, k, v = attn.norm_q(attn.to_q(hidden)), attn.norm_k(attn.to_k(hidden)), attn.to_v(hidden)
                q, k, v = (y[0].view(shape) for y in (q, k, v))
                frames = [*past[len(kept)], *((k[i], v[i], index) for i, index in enumerate(own))]
                kept.append((k, v))
                places = [(t, divmod(t, GRID[1])) for t in range(TOKENS)]
                keys = torch.stack([turn(key[t], index, *at) for key, _, index in frames for t, at in places])
                values = torch.stack([value[t].double() for _, value, _ in frames for t, _ in places])
                rows = []
                for i, index in enumerate(own):
                    for t, at in places:
                        query = turn(q[i, t], index, *at)
                        weights = ((keys * query).sum(-1) * 12**-0.5).softmax(0)
                        rows.append((weights[..., None] * values).sum(0).flatten())
                return attn.to_out[0](torch.stack(rows).float()[None])

        layers = [block.attn1 for block in self.transformer.blocks]
        before = [layer.processor for layer in layers]
        for layer in layers:
            layer.processor = Naive()
        try:
            flow = self.transformer(x[None], torch.tensor([1000 * sigma]), text[None], return_dict=False)[0][0]
        finally:
            for layer, old in zip(layers, before, strict=True):
                layer.processor = old
        return flow, kept


@torch.no_grad()
def cached(transformer: Any, policy: MemoryPolicy, clean: Tensor, noisy: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
    """Inference: every chunk [channels, chunk, h, w] is answered noisy, then committed clean, one after the other."""
    memory = memory_for(transformer, policy, HEIGHT, WIDTH, chunk=clean.shape[2])
    flows = []
    for index, chunk in enumerate(clean):
        memory.change_prompt()
        memory.begin_chunk()
        with attending(transformer, memory):
            t, prompt = 1000 * sigma[index][None], text[index][None]
            flows.append(transformer(noisy[index][None], t, prompt, return_dict=False)[0][0])
            with memory.recording():
                transformer(chunk[None], torch.zeros(1), prompt, return_dict=False)
    return torch.stack(flows)

"""The published way to run a chunk, to be measured against: the same pictures, the same memory, more work.

What the released code of MemRoPE (and of Self-Forcing and LongLive, which it comes from) does in every forward of
every layer: the cache is cloned; all cached keys are rotated again, as complex float64; counters are read back from the
device. LongLive's LoRA (rank 256 at width 1,536) stays beside the weights. Nothing is compiled, the commit is a whole
forward, and time and text are embedded anew in each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from longtake.memory.store import Memory

_READS_PER_LAYER = 5  # of counters on the device, in every layer of every forward
_LORA_PER_WIDTH = 6


class NaiveMemory(Memory):
    """A ``Memory`` that keeps nothing rotated."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._counter = torch.zeros(1, dtype=torch.long, device=self.device)

    def _prepare(self) -> None:
        for place in self.layout():
            if place.role != "current":
                self._turned_by[place.slot] = place.id  # nothing is to be rotated here
        super()._prepare()

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """As ``Memory.update``; the keys rotated one and all, in copies."""
        keys, values = self.keys[layer].clone().flatten(1, 2), self.values[layer].clone().flatten(1, 2)
        for _ in range(_READS_PER_LAYER):
            self._counter.item()
        for source, target in self._runs:
            keys[:, target], values[:, target] = key[:, source], value[:, source]
        if self._recording:
            self.keys[layer].copy_(keys.view_as(self.keys[layer]))
            self.values[layer].copy_(values.view_as(self.values[layer]))
            self._recorded[layer] = None
        end = self.used * self.tokens
        ids = {place.slot: place.id for place in self.layout()}
        cos, sin = self.rope.frames([ids[slot] for slot in range(self.used)])
        turns = torch.complex(cos.double(), sin.double()).flatten(0, 1)
        pairs = torch.view_as_complex(keys[:, :end].double().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turns).flatten(-2).to(key.dtype), values[:, :end]


def naive_memory(take: Any) -> NaiveMemory:
    """An empty one, of the sizes of a take's memory."""
    memory = take.memory
    layers, batch, _, _, heads, head_dim = memory.keys.shape
    return NaiveMemory(
        memory.policy,
        num_layers=layers,
        heads=heads,
        head_dim=head_dim,
        grid=memory.rope.grid,
        batch=batch,
        chunk=memory.chunk,
        device=memory.device,
        dtype=memory.dtype,
    )


@contextmanager
def unfused_lora(transformer: Any) -> Iterator[None]:
    """A LoRA that changes nothing beside the weights of all attention layers, for as long as this lasts."""
    from peft import LoraConfig

    rank = max(1, transformer.config.num_attention_heads * transformer.config.attention_head_dim // _LORA_PER_WIDTH)
    names = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
    transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), adapter_name="published")
    try:
        yield
    finally:
        transformer.delete_adapters("published")

"""Weights of the transformer's blocks in one byte each.

The arithmetic stays in the model's dtype: a weight is brought back to it where it is used, and forgotten again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longtake.placement import check_quantize

_STORED = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
_LARGEST = {"fp8": 448.0, "int8": 127.0}


class ByteLinear(torch.nn.Module):
    """A Linear layer whose weight is kept in one byte per number, with one scale per output channel.

    Args:
        linear: the layer it stands for.
        kind: ``fp8`` (float8 with 3 bits of mantissa) or ``int8``.

    Attributes:
        weight: [out, in], what is stored; times ``scale`` [out, 1] it is the layer's weight. The bias is the layer's.
    """

    def __init__(self, linear: torch.nn.Linear, kind: str) -> None:
        super().__init__()
        original = linear.weight.detach()
        largest = original.float().abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        # Rounded before it is used, so that rounding it costs nothing.
        scale = (largest / _LARGEST[kind]).to(original.dtype)
        tiniest = torch.finfo(original.dtype).tiny
        scaled = (original.float() / scale.float().clamp(min=tiniest)).clamp(-_LARGEST[kind], _LARGEST[kind])
        stored = (scaled.round() if kind == "int8" else scaled).to(_STORED[kind])
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = torch.nn.Parameter(stored, requires_grad=False)
        self.scale = torch.nn.Parameter(scale, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """As the layer it stands for: [..., in] to [..., out]."""
        weight = self.weight.to(x.dtype).mul_(self.scale)
        return torch.nn.functional.linear(x, weight, self.bias)


def quantize(transformer: Any, kind: str) -> None:
    """Stores the weights of all Linear layers in the blocks in one byte each; there is no way back but loading again.

    Embeddings, norms, modulation, biases and the last projection stay as they are.

    Args:
        transformer: a ``WanTransformer3DModel``, LoRA fused and unloaded, not yet placed.
        kind: ``fp8`` or ``int8``.

    Raises:
        ValueError: for another kind, if LoRA weights are not fused, or if it has been quantised before.
    """
    check_quantize(kind)
    modules = list(transformer.modules())
    if any(hasattr(module, "lora_A") for module in modules):
        raise ValueError("LoRA weights must be fused and unloaded before the model is quantised.")
    if any(isinstance(module, ByteLinear) for module in modules):
        raise ValueError("The transformer has been quantised already; load the model again to quantise it otherwise.")
    for parent in [module for block in transformer.blocks for module in block.modules()]:
        for name, child in parent.named_children():
            if isinstance(child, torch.nn.Linear):
                parent._modules[name] = ByteLinear(child, kind)

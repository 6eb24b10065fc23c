"""What computes attention: diffusers' backends by short names, and products of matrices where they are faster.

A kernel gives attention to a list of keys, and where it can, with it the logarithm of the sum of exponentials that the
scores had, so that more keys can be added afterwards (``longtake.memory.pooled``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.utils.constants import DIFFUSERS_ATTN_BACKEND
from torch import Tensor

from longtake import speed
from longtake.machine import bfloat16_units
from longtake.memory.pooled import Pooled, merge, pooled_scores
from longtake.speed import ATTENTIONS

# Short names for what diffusers calls otherwise.
_DIFFUSERS = {
    "cudnn": AttentionBackendName._NATIVE_CUDNN,
    "flash": AttentionBackendName._NATIVE_FLASH,
    "flash-attn-2": AttentionBackendName.FLASH,
    "flash-attn-3": AttentionBackendName._FLASH_3,
    "sage": AttentionBackendName.SAGE,
}
_SHORT = {backend: name for name, backend in _DIFFUSERS.items()}
_WITH_SUMS = ("cudnn", "flash", "flash-attn-2", "flash-attn-3")  # on CUDA
_AMPERE, _HOPPER = (8, 0), (9, 0)
_CACHED = 1 << 22  # bytes of scores that products of matrices may make on a CPU


@dataclass(frozen=True)
class Kernel:
    """A way to compute attention, by its name in ``longtake.speed.ATTENTIONS`` ("auto" is none), or by diffusers' name
    for one that is not there.

    The same one whatever happens in the process: diffusers remembers the backend that any model was told to use last
    and takes it for every call that names none, so one model's setting would change the last bits of another's take.
    """

    name: str

    def gives_sums(self, device: torch.device) -> bool:
        """Whether :meth:`with_sums` is possible."""
        return self.name == "products" or self.name in (("native",) if device.type == "cpu" else _WITH_SUMS)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention of queries to keys: all [batch, tokens, heads, head_dim], the result like the queries."""
        if self.name == "products" and mask is None:
            return by_products(query, key, value)
        name = "native" if self.name == "products" else self.name
        return dispatch(query, key, value, mask, _DIFFUSERS.get(name) or AttentionBackendName(name))

    def with_pooled(self, query: Tensor, key: Tensor, value: Tensor, pooled: Pooled) -> Tensor:
        """Attention to keys, and to pooled frames beside them."""
        return self._with_singles(query, key, value, pooled_scores(query, pooled), pooled.values)

    def with_repeated(self, query: Tensor, key: Tensor, value: Tensor, count: int) -> Tensor:
        """Attention to keys of which the last ``count`` are the same, and their values too: as to one of them, with the
        logarithm of the number added to its score."""
        own = key.shape[1] - count
        last, scale = key[:, own].to(torch.promote_types(key.dtype, torch.float32)), key.shape[-1] ** -0.5
        scores = torch.einsum("bqhd,bhd->bhq", query.to(last.dtype), last * scale) + math.log(count)
        return self._with_singles(query, key[:, :own], value[:, :own], scores[..., None], value[:, own, :, None])

    def _with_singles(self, query: Tensor, key: Tensor, value: Tensor, scores: Tensor, values: Tensor) -> Tensor:
        if self.name == "products":
            return by_products(query, key, value, scores, values)
        out, sums = self.with_sums(query, key, value)
        return merge(out, sums, scores, values)

    def with_sums(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Attention, and [batch, heads, tokens]: the logarithm of the sum of the exponentials of a query's scores."""
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        if self.name == "native":
            out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[:2]
            return out.transpose(1, 2), sums
        if self.name == "flash":
            out, sums = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[:2]
            return out.transpose(1, 2), sums
        if self.name == "cudnn":
            q, k, v = (x.contiguous() for x in (q, k, v))  # or the results are wrong, as diffusers' authors found
            out, sums = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)[:2]
            return out.transpose(1, 2), sums.reshape(q.shape[:3])  # with or without a last dimension of one
        function = attention_dispatch._AttentionBackendRegistry._backends[_DIFFUSERS[self.name]]
        out, sums = function(query=query, key=key, value=value, return_lse=True)[:2]
        return out, sums


def dispatch(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, backend: Any = None) -> Tensor:
    """Attention by one of diffusers' backends, or the one that is active; arguments as of :class:`Kernel`."""
    out: Tensor = dispatch_attention_fn(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=0.0,
        is_causal=False,
        backend=backend,
        parallel_config=None,
    )
    return out


def by_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scores: Tensor | None = None,
    values: Tensor | None = None,
) -> Tensor:
    """Attention as two products and a softmax, its scores in float32; arguments as of :class:`Kernel`.

    Where a processor multiplies matrices in bfloat16 and PyTorch's fused attention does not know it, this is faster,
    and as exact: the fused kernel rounds the softmax to bfloat16 too.

    Args:
        scores: of single keys beside these, [batch, heads, tokens, keys]; ``values``: theirs, [batch, heads, keys,
            head_dim].
    """
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    wide = torch.promote_types(q.dtype, torch.float32)
    made = torch.matmul(q.to(wide) * q.shape[-1] ** -0.5, k.to(wide).transpose(-1, -2))
    if scores is None:
        return torch.matmul(made.softmax(-1).to(v.dtype), v).transpose(1, 2)
    assert values is not None
    shares = torch.cat([made, scores.to(wide)], dim=-1).softmax(-1).to(v.dtype)
    count = made.shape[-1]
    out = torch.matmul(shares[..., :count], v) + torch.matmul(shares[..., count:], values.to(v.dtype))
    return out.transpose(1, 2)


def obstacle(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a kernel cannot be used, in a few words; None if it can.

    Raises:
        ValueError: if there is none of this name.
    """
    speed.check("attention", name)
    if name in ("auto", "native"):
        return None
    if name == "products":
        return None if device.type == "cpu" else "it is for CPUs"
    if device.type != "cuda":
        return "it needs an NVIDIA GPU"
    if dtype not in (torch.bfloat16, torch.float16):
        return "it needs bfloat16"
    least = _HOPPER if name == "flash-attn-3" else _AMPERE
    if torch.cuda.get_device_capability(device) < least:
        return f"it needs a GPU of compute capability {least[0]}.{least[1]} or newer"
    try:
        attention_dispatch._check_attention_backend_requirements(_DIFFUSERS[name])
    except RuntimeError:
        return "its package is not installed"
    if name == "cudnn" and not torch.backends.cudnn.is_available():
        return "this PyTorch has no cuDNN"
    return None


def available(device: torch.device, dtype: torch.dtype) -> list[str]:
    """The kernels that can be used, by name."""
    return [name for name in ATTENTIONS if name != "auto" and obstacle(name, device, dtype) is None]


def best(device: torch.device, dtype: torch.dtype, score_bytes: int = 0) -> str:
    """The name of the kernel that "auto" stands for.

    On a GPU from Hopper on that is FlashAttention 3 where it is installed, else cuDNN, which comes with PyTorch and
    knows these GPUs; before, PyTorch's own choice. On a CPU it is :func:`by_products` for bfloat16 where the processor
    has AVX-512 for it and no AMX (which PyTorch's kernel knows), while a layer's scores stay in its caches. What the
    environment's ``DIFFUSERS_ATTN_BACKEND`` says comes before all that.

    Args:
        score_bytes: of all scores of a layer in float32.
    """
    told = AttentionBackendName(DIFFUSERS_ATTN_BACKEND)
    if told != AttentionBackendName.NATIVE:
        return _SHORT.get(told, told.value)
    if device.type == "cpu":
        faster = dtype == torch.bfloat16 and score_bytes <= _CACHED and _units() == ("avx512_bf16",)
        return "products" if faster else "native"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= _HOPPER:
        return next((name for name in ("flash-attn-3", "cudnn") if obstacle(name, device, dtype) is None), "native")
    return "native"


@cache
def _units() -> tuple[str, ...]:
    return tuple(bfloat16_units())


def kernel_for(name: str, device: torch.device, dtype: torch.dtype, score_bytes: int = 0) -> Kernel:
    """A kernel by name; arguments as of :func:`best`.

    Raises:
        ValueError: if there is none of this name, or it cannot be used here; in one sentence that says which can.
    """
    reason = obstacle(name, device, dtype)
    if reason is not None:
        there = ", ".join(available(device, dtype))
        raise ValueError(f"Attention cannot be computed by {name} on {device}: {reason}; what can be used is {there}.")
    return Kernel(best(device, dtype, score_bytes) if name == "auto" else name)

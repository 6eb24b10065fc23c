"""Attention by plain products: while it is small, faster on a CPU than PyTorch's fused kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Scores up to which plain products beat the fused kernel on a CPU (twice to eight times as fast in forward and backward
# while the scores of an element are few), and how many are made at a time so that they stay in its cache.
SLICE = 1 << 20
MOST = 1 << 22


def pays(q: Tensor, k: Tensor) -> bool:
    """Whether :func:`plain` is the faster way for ``[batch, heads, tokens, head_dim]``."""
    return q.device.type == "cpu" and q.shape[1] * q.shape[2] * k.shape[2] <= MOST


def plain(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """Attention without a mask over ``[batch, heads, tokens, head_dim]``: two products and a softmax in full precision.

    Args:
        q, k, v: all of one dtype.
        scale: of the scores; ``head_dim ** -0.5`` by default.
    """
    step = max(1, SLICE // (q.shape[1] * q.shape[2] * k.shape[2]))
    parts = zip(q.split(step), k.split(step), v.split(step), strict=True)
    outs = [_products(*part, scale) for part in parts]
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def _products(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    exact = torch.promote_types(q.dtype, torch.float32)
    scores = (q @ k.transpose(-1, -2)).to(exact) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return scores.softmax(-1).to(v.dtype) @ v


class _Plain(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            found = _plain_form(*args, **kwargs)
            if found is not None:
                return found
        return func(*args, **kwargs)


def _plain_form(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """What ``scaled_dot_product_attention`` gives; None where that should be asked itself."""
    same = query.dtype == key.dtype == value.dtype and query.shape[:2] == key.shape[:2] and query.ndim == 4
    if attn_mask is not None or dropout_p or is_causal or enable_gqa or not same or not pays(query, key):
        return None
    return plain(query, key, value, scale)


@contextmanager
def plain_attention(device: torch.device) -> Iterator[None]:
    """Inside, small attentions without a mask are computed by :func:`plain`, whoever asks for them.

    Nothing changes on a device other than a CPU.
    """
    if device.type != "cpu":
        yield
        return
    with _Plain():
        yield

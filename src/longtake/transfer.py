"""Tensors on their way to a device without making the host wait, and whether they are still the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the host on ``device``.

    A copy to a CUDA device from ordinary (pageable) memory waits until everything queued there before it is done; one
    from pinned memory does not. PyTorch keeps the pinned block until the copy has been made.
    """
    if torch.device(device).type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def identity(tensors: Iterable[Tensor]) -> tuple[Any, ...]:
    """Tells whether tensors are still the same ones with the same content, as far as PyTorch can: equal as long as none
    was replaced, moved or written to in the usual ways."""
    return tuple((x.data_ptr(), -1 if x.is_inference() else x._version) for x in tensors)

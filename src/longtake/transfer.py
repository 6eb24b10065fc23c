"""Host tensors to the device, without making the host wait."""

from __future__ import annotations

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

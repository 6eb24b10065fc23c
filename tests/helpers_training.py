"""What the tests of training share."""

import torch
from torch import Tensor

FOREVER = 1e7  # minutes: the learning rate does not fall


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weights(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()]).clone()

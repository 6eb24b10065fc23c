"""Random numbers that belong to a sample: the same however many processes there are and wherever a run was stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator(seed: int, *keys: int | str) -> torch.Generator:
    """A generator of the host that follows from a seed and any number of keys.

    PyTorch's host generator takes 32 bits of a seed, so among some ten thousand generators two may be alike. For noise
    that is harmless: they belong to different clips and steps.
    """
    text = "/".join(map(str, (seed, *keys)))
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
    return torch.Generator().manual_seed(number)


def shuffled(seed: int, epoch: int, count: int) -> Tensor:
    """The order of ``count`` things in an epoch: int64 [count]."""
    return torch.randperm(count, generator=generator(seed, "order", epoch))


def stack_normal(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Normal noise, one sample from each generator: [generators, *shape], float32 on the host."""
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in generators])

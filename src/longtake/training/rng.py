"""The global random states: in a checkpoint, and put aside while something else is drawn."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from longtake.training.keyed import generator


def seed_all(*keys: int | str) -> None:
    """Sets every global random state; see :func:`longtake.training.keyed.generator`."""
    number = generator(0, *keys).initial_seed()
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)


def states() -> dict[str, Any]:
    """Every global random state of this process, as what a checkpoint can hold."""
    version, numbers, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, list(numbers), gauss],
        "numpy": [list(map(int, keys)), int(position), int(has_gauss), float(cached)],
    }


def restore(state: dict[str, Any]) -> None:
    """Takes over what :func:`states` gave."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached))


@contextlib.contextmanager
def aside(*keys: int | str) -> Iterator[None]:
    """Inside, the global random states follow from the keys; afterwards they are what they were before."""
    before = states()
    seed_all(*keys)
    try:
        yield
    finally:
        restore(before)

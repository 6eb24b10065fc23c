"""Counting bytes of tensors that have sizes but no data: real shapes of real models at no cost."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Live(TorchDispatchMode):
    """Bytes of all storages that operations inside have made and that are still held; ``peak`` is the most of it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._held: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage()._cdata for x in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in given and key not in self._held:  # else a view, or written in place
                self._hold(key, storage)
        self.peak = max(self.peak, self.now)
        return out

    def _hold(self, key: int, storage: Any) -> None:
        size = storage.nbytes()

        def gone(_: Any) -> None:
            del self._held[key]
            self.now -= size

        self._held[key] = weakref.ref(storage, gone)
        self.now += size


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [x for x in tree_iter(tree) if isinstance(x, torch.Tensor)]


def hollow(make: Callable[[], Any], dtype: torch.dtype) -> Any:
    """A model whose weights have no data. Under ``FakeTensorMode`` only."""
    with torch.device("meta"):
        model = make()
    made: dict[int, Any] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, x in tensors.items():
                if x is None:
                    continue
                if id(x) not in made:  # words and their other name are one tensor
                    empty = torch.empty(x.shape, dtype=dtype if x.is_floating_point() else x.dtype)
                    is_weight = isinstance(x, torch.nn.Parameter)
                    made[id(x)] = torch.nn.Parameter(empty, requires_grad=False) if is_weight else empty
                tensors[name] = made[id(x)]
    return model.eval()

"""Muon for matrices and convolutions, Adam for the rest; also for weights that are split between processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from longtake.training.distributed import part_of, whole


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: Newton-Schulz with the quintic of Muon (Jordan et al., 2024).

    Args:
        matrices: ``[n, rows, columns]``.
        steps: iterations; after five every singular value lies in about [0.7, 1.2].
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(torch.bfloat16)
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Muon (momentum 0.95, Nesterov) on parameters of two or more dimensions, AdamW on the others.

    A convolution counts as the matrix ``[out, in * kernel]``. The update has a root mean square of ``0.2 * lr`` per
    entry whatever the shape (Liu et al., "Muon is scalable for LLM training", 2025), so one rate fits all. Matrices of
    one shape are treated together, which is what makes it fast on a GPU.

    Args:
        params: the parameters; those without ``requires_grad`` are left out.
        lr: rate of the Muon updates.
        adam_lr: rate of the Adam updates.
        betas, eps: of Adam.
        weight_decay: decoupled.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        adam_lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        chosen = [p for p in params if p.requires_grad]
        matrices = [p for p in chosen if is_matrix(p)]
        rest = [p for p in chosen if not is_matrix(p)]
        groups = [{"params": matrices, "muon": True, "lr": lr}, {"params": rest, "muon": False, "lr": adam_lr}]
        defaults = {"weight_decay": weight_decay, "betas": betas, "eps": eps}
        super().__init__([g for g in groups if g["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients in place."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            if group["weight_decay"]:
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            (self._muon if group["muon"] else self._adam)(params, group)

    def _muon(self, params: list[Tensor], group: dict[str, Any]) -> None:
        grads = [_grad(p) for p in params]
        momenta = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in params]
        torch._foreach_lerp_(momenta, grads, 0.05)
        updates = torch._foreach_lerp(grads, momenta, 0.95)
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, p in enumerate(params):
            alike[tuple(p.shape)].append(i)
        for shape, indices in alike.items():
            # every process does the whole matrices: they are small beside what made the gradients
            made = orthogonalise(torch.stack([whole(updates[i]).flatten(1) for i in indices]))
            made *= -group["lr"] * 0.2 * max(made.shape[1:]) ** 0.5
            for i, update in zip(indices, made, strict=True):
                p, update = params[i], update.view(shape)
                p.add_(part_of(update, p) if hasattr(p, "placements") else update)

    def _adam(self, params: list[Tensor], group: dict[str, Any]) -> None:
        grads = [_grad(p) for p in params]
        first = [self.state[p].setdefault("first", torch.zeros_like(p)) for p in params]
        second = [self.state[p].setdefault("second", torch.zeros_like(p)) for p in params]
        (beta1, beta2), steps = group["betas"], group.get("steps", 0) + 1
        group["steps"] = steps
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        below = torch._foreach_sqrt(second)
        torch._foreach_div_(below, (1 - beta2**steps) ** 0.5)
        torch._foreach_add_(below, group["eps"])
        torch._foreach_addcdiv_(params, first, below, -group["lr"] / (1 - beta1**steps))


def is_matrix(p: Tensor) -> bool:
    """Whether Muon takes a parameter: two or more dimensions, and more than one row and column."""
    return p.ndim >= 2 and p.shape[0] > 1 and p.numel() > p.shape[0]


def _grad(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad

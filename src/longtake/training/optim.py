"""Muon for matrices and convolutions, Adam for the rest, in one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


def orthogonalise(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrix, roughly: Newton-Schulz with the quintic of Muon (Jordan et al., 2024).

    Args:
        matrix: ``[rows, columns]``.
        steps: iterations; after five every singular value lies in about [0.7, 1.2].
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.to(torch.bfloat16)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.T).to(matrix.dtype)


class MuonAdam(torch.optim.Optimizer):
    """Muon (momentum 0.95, Nesterov) on parameters of two or more dimensions, Adam (0.9, 0.99) on the others.

    A convolution counts as the matrix ``[out, in * kernel]``. Muon's update has the root mean square of ``0.2 * lr``
    per entry whatever the shape (Liu et al., "Muon is scalable for LLM training", 2025), so one rate fits all.

    Args:
        params: the parameters.
        lr: rate of the Muon updates.
        adam_lr: rate of the Adam updates.
        weight_decay: decoupled, on the Muon parameters only.
    """

    def __init__(
        self, params: Iterable[torch.nn.Parameter], lr: float, adam_lr: float, weight_decay: float = 0.0
    ) -> None:
        chosen = [p for p in params if p.requires_grad]
        groups = [
            {
                "params": [p for p in chosen if p.ndim >= 2 and min(p.shape[0], p[0].numel()) > 1],
                "muon": True,
                "lr": lr,
            },
            {
                "params": [p for p in chosen if not (p.ndim >= 2 and min(p.shape[0], p[0].numel()) > 1)],
                "muon": False,
                "lr": adam_lr,
            },
        ]
        super().__init__([g for g in groups if g["params"]], {"weight_decay": weight_decay})
        for group in self.param_groups:
            group["base_lr"] = group["lr"]

    def scale_lr(self, factor: float) -> None:
        """Sets every rate to ``factor`` times its initial value."""
        for group in self.param_groups:
            group["lr"] = group["base_lr"] * factor

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients in place."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if group["muon"]:
                    momentum = state.setdefault("momentum", torch.zeros_like(p))
                    momentum.lerp_(p.grad, 0.05)
                    update = torch.lerp(p.grad, momentum, 0.95).flatten(1)
                    update = orthogonalise(update) * (0.2 * max(update.shape) ** 0.5)
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update.view_as(p), alpha=-group["lr"])
                    continue
                state["step"] = state.get("step", 0) + 1
                first = state.setdefault("first", torch.zeros_like(p)).lerp_(p.grad, 0.1)
                second = state.setdefault("second", torch.zeros_like(p)).lerp_(p.grad.square(), 0.01)
                first, second = first / (1 - 0.9 ** state["step"]), second / (1 - 0.99 ** state["step"])
                p.add_(first / (second.sqrt() + 1e-8), alpha=-group["lr"])

"""One trained network: its optimizer, learning rate, clipping and running average."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from longtake.training.distributed import World, gathered, put, whole
from longtake.training.muon import Muon
from longtake.training.sections import Optimization


def rate_factor(settings: Optimization, step: int, progress: float) -> float:
    """What the learning rate is multiplied by.

    It rises over ``warmup_steps`` in equal parts (the first step has one of them), and falls, if the schedule says so,
    from ``decay_from`` of the budget to zero at its end: along a line, or half a cosine.

    Args:
        step: from 0.
        progress: share of the budget spent before this step, 0 to 1.
    """
    rise = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    if settings.schedule == "constant" or settings.decay_from >= 1:
        return rise
    left = min(1.0, max(0.0, 1.0 - progress) / (1.0 - settings.decay_from))
    return rise * (left if settings.schedule == "linear-decay" else 0.5 - 0.5 * math.cos(math.pi * left))


def make_optimizer(parameters: list[nn.Parameter], settings: Optimization) -> torch.optim.Optimizer:
    """The optimizer of the settings."""
    given: dict[str, Any] = {"betas": settings.betas, "eps": settings.eps, "weight_decay": settings.weight_decay}
    if settings.optimizer == "muon":
        return Muon(parameters, settings.lr, settings.lr if settings.adam_lr is None else settings.adam_lr, **given)
    return torch.optim.AdamW(parameters, settings.lr, **given)


class Network:
    """A network in training. Made by :meth:`longtake.training.run.Run.network`, which also places it.

    Args:
        name: in checkpoints and logs.
        module: placed already; parameters with ``requires_grad`` are trained, and are float32.
        settings: how.
        world: the processes.
        every: it is stepped in every so many steps of the run, beginning with the first.

    Raises:
        ValueError: if there is nothing to train.
    """

    def __init__(self, name: str, module: nn.Module, settings: Optimization, world: World, every: int = 1) -> None:
        self.name, self.module, self.settings, self.world, self.every = name, module, settings, world, every
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError(f"The network {name!r} has no parameters that require gradients: nothing can be trained.")
        self.optimizer = make_optimizer(list(self.parameters.values()), settings)
        self._base = [group["lr"] for group in self.optimizer.param_groups]
        self.updates = 0
        self.average: dict[str, Tensor] = {}
        self._averaged_steps = 0

    def due(self, step: int) -> bool:
        """Whether it is stepped at the end of this step of the run."""
        return step % self.every == 0

    def finish_gradients(self) -> Tensor:
        """Averages the gradients over the processes and clips them; returns their norm before that, float32 []."""
        self.world.average_gradients(self.parameters.values())
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip or math.inf)
        return whole(norm.detach()).float()

    def apply(self, step: int, progress: float) -> None:
        """One optimizer step with the gradients, and one of the running average.

        Args:
            step, progress: of the run; see :func:`rate_factor`.
        """
        # The number of its own updates: a network that is stepped rarely shall warm up all the same.
        factor = rate_factor(self.settings, self.updates, progress)
        for group, base in zip(self.optimizer.param_groups, self._base, strict=True):
            group["lr"] = base * factor
        self.optimizer.step()
        self.updates += 1
        self._follow(step)

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @torch.no_grad()
    def _follow(self, step: int) -> None:
        rate = self.settings.ema
        if rate is None or step < self.settings.ema_start:
            return
        if not self.average:  # starts as a copy
            self.average = {n: p.detach().clone() for n, p in self.parameters.items()}
            return
        self._averaged_steps += 1
        if self.settings.ema_warmup:
            rate = min(rate, self._averaged_steps / (self._averaged_steps + 10))
        weights = [p.detach() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - rate)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Inside, the module has its averaged weights (if there are any) and is in evaluation mode."""
        training = self.module.training
        self.module.eval()
        before = {n: p.detach().clone() for n, p in self.parameters.items()} if self.average else {}
        try:
            self._set(self.average)
            yield self.module
        finally:
            self._set(before)
            self.module.train(training)

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.parameters[name].copy_(value)

    def state(self, keep: bool) -> dict[str, Any]:
        """All that is needed to go on, as whole tensors of the host; every process must ask.

        Args:
            keep: whether this process wants it; the others get empty groups, and hold no copies meanwhile.
        """
        optimizer: dict[str, Any] = {}
        for name, p in self.parameters.items():
            values = self.optimizer.state[p]
            optimizer[name] = {
                key: gathered(value, keep) if isinstance(value, Tensor) else value for key, value in values.items()
            }
        return {
            "weights": self._whole(self.parameters, keep),
            "average": self._whole(self.average, keep),
            "buffers": self._whole(self._buffers(), keep),
            "optimizer": optimizer,
            "groups": [{"steps": group.get("steps", 0)} for group in self.optimizer.param_groups],
            "updates": self.updates,
            "averaged_steps": self._averaged_steps,
        }

    def _buffers(self) -> dict[str, Tensor]:
        names = {n for n, _ in self.module.named_parameters()}
        return {n: t for n, t in self.module.state_dict().items() if n not in names}

    @staticmethod
    def _whole(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
        made = {}
        for name, tensor in tensors.items():
            full = gathered(tensor, keep)
            if full is not None:
                made[name] = full
        return made

    @torch.no_grad()
    def load(self, state: Mapping[str, Any]) -> None:
        """Takes over what :meth:`state` gave, made by any number of processes.

        Raises:
            ValueError: if it is of other weights; names one.
        """
        load_weights(self.name, self.parameters, state["weights"])
        load_weights(self.name, self._buffers(), state["buffers"])
        self.average = {}
        if state["average"]:
            self.average = {n: p.detach().clone() for n, p in self.parameters.items()}
            load_weights(self.name, self.average, state["average"])
        self.optimizer.state.clear()
        for name, p in self.parameters.items():
            mine = self.optimizer.state[p]
            for key, value in state["optimizer"].get(name, {}).items():
                if isinstance(value, Tensor) and value.shape == p.shape and value.ndim:
                    mine[key] = torch.zeros_like(p)
                    put(mine[key], value)
                else:
                    mine[key] = value.clone() if isinstance(value, Tensor) else value
        for group, saved in zip(self.optimizer.param_groups, state["groups"], strict=True):
            if saved["steps"]:
                group["steps"] = saved["steps"]
        self.updates, self._averaged_steps = state["updates"], state["averaged_steps"]


@torch.no_grad()
def load_weights(what: str, into: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Copies whole tensors into parameters that may be split.

    Raises:
        ValueError: if one is missing, unknown or of another shape; names it.
    """
    for name in [*into, *weights]:
        if name not in into or name not in weights:
            where = "no such weight in the network" if name not in into else "no such weight in the checkpoint"
            raise ValueError(f"The checkpoint does not fit {what}: {name}, {where}.")
        if into[name].shape != weights[name].shape:
            shapes = f"{list(weights[name].shape)} in the checkpoint and {list(into[name].shape)} in the network"
            raise ValueError(f"The checkpoint does not fit {what}: {name} has {shapes}.")
    for name, target in into.items():
        put(target, weights[name])

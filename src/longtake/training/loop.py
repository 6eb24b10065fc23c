"""What every training stage shares: processes, time budget, averaging, checkpoints, the log.

A stage runs for a budget of minutes, not of steps: the learning rate follows the share of the budget that is spent, so
the same command gives a finished model on a fast machine and on a slow one. Under ``torchrun`` every process takes its
own batches and gradients are averaged (gloo on CPU).
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from longtake.training.optim import MuonAdam


class Stage:
    """One training stage: call :meth:`update` after every backward, until :attr:`done`.

    Args:
        name: names its checkpoint and log files.
        folder: where they go; a checkpoint found there is continued.
        modules: what is trained and saved, by name.
        minutes: the budget of wall time, over all the runs of this stage.
        lr, adam_lr: see :class:`MuonAdam`.
        decay_from: share of the budget after which the rate falls linearly to zero.
        ema: rate of the running average of the weights, which is what a stage hands on.
        warmup_steps: over which the rate rises.
        save_every: seconds between checkpoints.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        modules: dict[str, torch.nn.Module],
        minutes: float,
        lr: float,
        adam_lr: float,
        decay_from: float = 0.3,
        ema: float = 0.98,
        warmup_steps: int = 20,
        save_every: float = 60.0,
    ) -> None:
        self.name, self.folder, self.modules = name, folder, modules
        self.budget, self.decay_from, self.ema_rate = minutes * 60, decay_from, ema
        self.warmup_steps, self.save_every = warmup_steps, save_every
        self.rank, self.world = 0, 1
        if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:
            if not dist.is_initialized():
                dist.init_process_group("gloo")
            self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.params = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
        self.optimizer = MuonAdam(self.params, lr, adam_lr)
        self.steps, self.spent = 0, 0.0
        self.ema = [p.detach().clone() for p in self.params]
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._load()
        elif self.world > 1:
            for p in self.params:
                dist.broadcast(p.data, 0)
            self.ema = [p.detach().clone() for p in self.params]
        self.start_clock()

    @property
    def path(self) -> Path:
        """The stage's checkpoint."""
        return self.folder / f"{self.name}.pt"

    @property
    def progress(self) -> float:
        """Share of the budget spent, 0 to 1; the same in every process."""
        return min(1.0, self.spent / max(self.budget, 1e-9))

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return self.progress >= 1.0

    def start_clock(self) -> None:
        """The budget runs from here: call it after preparing data, before the first step."""
        self._tick = self._saved = time.monotonic()

    def run(self, step: Callable[[], dict[str, float]], renew: Callable[[], object], every: int) -> Stage:
        """Trains to the end of the budget, starting the clock; returns the stage with its averaged weights in place.

        Args:
            step: makes gradients, and gives the losses to be logged.
            renew: brings new data; called once ``every`` so many steps.
        """
        self.start_clock()
        while not self.done:
            self.update(step())
            if self.steps % every == 0:
                renew()
        self.copy_ema()
        return self

    def update(self, losses: dict[str, float], clip: float = 1.0) -> None:
        """Averages the gradients over processes, steps, averages the weights, logs, and saves now and then."""
        now = time.monotonic()
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.params]
        # the clock travels with the gradients, so that every process sees the same learning rate
        flat = torch.cat([g.flatten() for g in grads] + [torch.tensor([now - self._tick])])
        if self.world > 1:
            dist.all_reduce(flat)
            flat /= self.world
        self._tick = now
        self.spent += float(flat[-1])
        flat[:-1].mul_(min(1.0, clip / (float(flat[:-1].norm()) + 1e-6)))
        for p, g in zip(self.params, flat[:-1].split([p.numel() for p in self.params]), strict=True):
            p.grad = g.view_as(p)
        warm = min(1.0, (self.steps + 1) / self.warmup_steps)
        cool = min(1.0, (1.0 - self.progress) / (1.0 - self.decay_from))
        self.optimizer.scale_lr(warm * max(cool, 0.0))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        rate = min(self.ema_rate, self.steps / (self.steps + 10))
        torch._foreach_lerp_(self.ema, [p.data for p in self.params], 1 - rate)
        if self.rank == 0:
            self._log(losses)
            if now - self._saved > self.save_every or self.done:
                self.save()
                self._saved = time.monotonic()

    def _log(self, losses: dict[str, float]) -> None:
        path = self.folder / f"{self.name}.csv"
        new = not path.exists()
        with path.open("a", newline="") as f:
            writer = csv.writer(f)
            if new:
                writer.writerow(["step", "minutes", *losses])
            writer.writerow([self.steps, f"{self.spent / 60:.2f}", *(f"{v:.5f}" for v in losses.values())])

    def save(self) -> None:
        """Writes the checkpoint under a temporary name, flushes, renames: a kill leaves the old one or the new one."""
        state: dict[str, Any] = {
            "modules": {n: m.state_dict() for n, m in self.modules.items()},
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "spent": self.spent,
        }
        part = self.path.with_suffix(".part")
        with part.open("wb") as f:
            torch.save(state, f)
            f.flush()
            os.fsync(f.fileno())
        part.replace(self.path)

    def _load(self) -> None:
        state = torch.load(self.path, weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        self.ema, self.steps, self.spent = state["ema"], state["steps"], state["spent"]
        self.optimizer.load_state_dict(state["optimizer"])

    def copy_ema(self) -> None:
        """Puts the averaged weights into the modules: the end of a stage."""
        for p, average in zip(self.params, self.ema, strict=True):
            p.data.copy_(average)


def command_line(description: str | None, minutes: float) -> argparse.ArgumentParser:
    """The options that every stage has: ``--folder`` and ``--minutes``. Of the description, the first line is shown."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/pocket"))
    parser.add_argument("--minutes", type=float, default=minutes)
    return parser


def load_averaged(path: Path, modules: dict[str, torch.nn.Module]) -> None:
    """Loads what a finished (or running) stage hands on: its averaged weights.

    Raises:
        FileNotFoundError: if the stage has not saved yet.
    """
    state = torch.load(path, weights_only=True)
    average = iter(state["ema"])
    for name, module in modules.items():
        module.load_state_dict(state["modules"][name])
        for p in module.parameters():
            if p.requires_grad:
                p.data.copy_(next(average))


def mean(values: Iterable[float]) -> float:
    """The mean, 0 for nothing."""
    kept = list(values)
    return sum(kept) / max(len(kept), 1)

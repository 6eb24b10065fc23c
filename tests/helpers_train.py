"""What the tests of the trainer share: a stage that is small enough to know everything about."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from longtake.training.checkpoint import newest
from longtake.training.config import Config, load_config
from longtake.training.registry import make_stage
from longtake.training.run import Run
from longtake.training.stage import Stage

QUIET = ("run.tensorboard=false",)


class Line(Stage):
    """Fits a linear map to noisy data of its own, sample by sample; goes under the section `teacher`."""

    name: ClassVar[str] = "teacher"
    title: ClassVar[str] = "a line"
    trouble: Callable[[int, Tensor], Tensor] = staticmethod(lambda step, loss: loss)
    every: ClassVar[int] = 1

    def build(self, run: Run) -> None:
        self.network = run.network("line", torch.nn.Linear(6, 4))
        self.seen: list[Tensor] = []
        self.samples: list[int] = []

    def step(self, run: Run, step: int) -> Mapping[str, Tensor]:
        self.seen.append(self.weights())
        total = torch.zeros(())
        for samples in run.parts(step):
            self.samples += samples
            x = torch.stack([torch.randn(6, generator=run.generator(step, s)) for s in samples])
            loss = (self.network.module(x) - x[:, :4] - 1).square().mean()
            loss = self.trouble(step, loss)
            run.backward(loss)
            total += loss.detach() / self.config.run.accumulate
        return {"loss": total}

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.network.parameters.values()])


def tiny(*changes: str) -> Config:
    return load_config("tiny", (*QUIET, *changes))


def train(stage: Stage, folder: Path, **options: Any) -> Run:
    """Opens and trains; the stage's configuration is the run's."""
    folder.mkdir(exist_ok=True)
    run = Run(stage, stage.config, folder, **options)
    run.open()
    run.train()
    return run


def saved(folder: Path, stage: str = "teacher") -> dict[str, Any]:
    found = newest(folder, stage)
    assert found is not None
    return found[1]


def column(folder: Path, name: str, stage: str = "teacher") -> list[float]:
    with (folder / f"{stage}.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def flat(state: Any, path: str = "") -> dict[str, Any]:
    """Every tensor and plain value of a checkpoint, by where it is."""
    if isinstance(state, dict):
        return {k: v for key, value in state.items() for k, v in flat(value, f"{path}/{key}").items()}
    if isinstance(state, list) and any(isinstance(x, dict | Tensor) for x in state):
        return {k: v for i, value in enumerate(state) for k, v in flat(value, f"{path}/{i}").items()}
    return {path: state}


def assert_resumes(stage: str, config: Config, whole: Path, stopped: Path) -> None:
    """A run that is stopped after its second step and goes on ends with the checkpoint of one that is not, bit for bit.

    Args:
        whole, stopped: folders with what the stage begins with, for each of the two.
    """
    train(make_stage(stage, config), whole)
    train(make_stage(stage, config), stopped, stop=iter([False, True] + [False] * 9).__next__)
    assert saved(stopped, stage)["step"] == 2
    train(make_stage(stage, config), stopped)
    first, second = saved(whole, stage), saved(stopped, stage)
    for state in (first, second):
        state.pop("minutes", None)
    assert differences(first, second) == []


def differences(first: Any, second: Any) -> list[str]:
    """Where two checkpoints are not the same, to the last bit."""
    a, b = flat(first), flat(second)
    different = sorted(set(a) ^ set(b))
    for key in a.keys() & b.keys():
        same = torch.equal(a[key], b[key]) if isinstance(a[key], Tensor) else a[key] == b[key]
        if not same:
            different.append(key)
    return different

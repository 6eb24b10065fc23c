"""What a training stage is. The loop (:mod:`longtake.training.run`) does everything else."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from longtake.training.config import Config

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from longtake.training.run import Run


@dataclass(frozen=True)
class Figure:
    """A measured figure, and the bar it is held against.

    Attributes:
        value: measured.
        bar: what it must reach; None: only told.
        better: ``lower`` or ``higher``: on which side of the bar it should be.
        meaning: one line for people.
    """

    value: float
    bar: float | None = None
    better: str = "lower"
    meaning: str = ""

    @property
    def passed(self) -> bool:
        """Whether it is on the right side of the bar. Not a number never is."""
        if self.bar is None:
            return True
        return math.isfinite(self.value) and (
            self.value <= self.bar if self.better == "lower" else self.value >= self.bar
        )


class Stage(ABC):
    """One stage of training. An object of it serves one run.

    Class attributes:
        name: of its section in the configuration, its checkpoints and logs.
        title: one line for ``longtake train --list``.
        splits: whether its networks can be split between processes (FSDP2): what is run is their ``forward``.
        compiles: whether compiling its blocks pays: they are always run in the same way.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    splits: ClassVar[bool] = True
    compiles: ClassVar[bool] = False

    def __init__(self, config: Config) -> None:
        self.config = config

    def needs(self) -> tuple[str, ...]:
        """The stages that must be finished before, with this configuration."""
        return ()

    def check_config(self) -> None:
        """Refuses what this stage cannot work with, before anything heavy is loaded.

        Raises:
            ValueError: one sentence.
        """
        return None

    @abstractmethod
    def build(self, run: Run) -> None:
        """Makes networks (``run.network``, ``run.frozen``) and data. The global random state follows from the seed.

        Raises:
            ValueError: one sentence, if something that the configuration names is not there or does not fit.
        """

    @abstractmethod
    def step(self, run: Run, step: int) -> Mapping[str, Tensor]:
        """Makes the gradients of one step (``run.backward``) for all networks that are due.

        Returns:
            Losses by name, scalars without gradients, means over this process's samples of the step.
        """

    def sample(self, run: Run) -> Image.Image | None:
        """A picture of what the stage can do now, if it has one; every process calls it, the first one's is kept."""
        return None

    def check(self, run: Run) -> Mapping[str, Figure]:
        """Figures that say whether the stage did its job; every process calls it."""
        return {}

    def outputs(self, run: Run) -> Mapping[str, Any]:
        """What an export writes: parts of a diffusers pipeline by name, with averaged weights in place.

        Called without other processes.
        """
        return {}

    def state(self) -> Any:
        """Of this process, what the stage must remember besides its networks: tensors, numbers and texts, nested."""
        return None

    def load_state(self, state: Any) -> None:
        """Takes over what :meth:`state` gave; None if the checkpoint is of another number of processes."""
        return None

"""Prompts alone, for stages that make their own clips: of a file, of captioned clips, or of the pocket world."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from longtake.training.config import Config
from longtake.training.keyed import shuffled
from longtake.training.sources import LatentFolder, PromptFile, SyntheticSource, make_source


class Prompts(ABC):
    """Prompts by number, the same for the same number."""

    @abstractmethod
    def captions(self, samples: Sequence[int]) -> list[str]:
        """The prompts of samples of a run."""

    @abstractmethod
    def held_out(self) -> list[str]:
        """Prompts that training never sees."""

    def changed(self, sample: int) -> str:
        """What the prompt of a sample may change to; the next sample's unless there is something better."""
        return self.captions([sample + 1])[0]


class ListedPrompts(Prompts):
    """Prompts of a list, each once per epoch, shuffled anew in each.

    Args:
        prompts, held_out: not empty.
        seed: of the order.
    """

    def __init__(self, prompts: Sequence[str], held_out: Sequence[str], seed: int) -> None:
        self._prompts, self._held, self._seed = list(prompts), list(held_out), seed
        self._order: tuple[int, list[int]] = (-1, [])

    def captions(self, samples: Sequence[int]) -> list[str]:
        count, found = len(self._prompts), []
        for sample in samples:
            epoch, place = divmod(sample, count)
            if epoch != self._order[0]:  # an order of a million prompts is not made for every one of them
                self._order = epoch, shuffled(self._seed, epoch, count).tolist()
            found.append(self._prompts[self._order[1][place]])
        return found

    def held_out(self) -> list[str]:
        return list(self._held)


class WorldPrompts(Prompts):
    """Captions of scenes of the pocket world, without end."""

    def __init__(self, level: str, held_out: int) -> None:
        self._level, self._held = level, held_out

    def _caption(self, number: int, changes: bool = False) -> str:
        from longtake.pocket.world import caption
        from longtake.training.worlddata import changed, scene_of

        scene = scene_of(number, self._level)
        if changes:
            scene = changed(scene, number, self._level)
        return caption(scene, 0, random.Random(f"prompt {number} {changes}"))

    def captions(self, samples: Sequence[int]) -> list[str]:
        return [self._caption(3 * (1 << 40) + s) for s in samples]  # scenes of their own

    def changed(self, sample: int) -> str:
        return self._caption(3 * (1 << 40) + sample, True)

    def held_out(self) -> list[str]:
        return [self._caption(5 * (1 << 40) + i) for i in range(self._held)]


def make_prompts(config: Config) -> Prompts:
    """The prompts that ``data`` asks for.

    Raises:
        ValueError: if there is no such file or folder, or too little in it.
    """
    data, seed = config.data, config.run.seed
    if data.source == "world":
        return WorldPrompts(data.level, data.held_out)
    if data.source == "prompts":
        file = PromptFile(Path(data.path or "."), data.held_out)
        return ListedPrompts(file.captions(range(file.count)), file.held_out(), seed)
    source = make_source(config)
    assert isinstance(source, SyntheticSource | LatentFolder)
    return ListedPrompts(source.captions(), source.captions(held_out=True), seed)

"""Sequences of the pocket world for the causal student: from the beginning of takes, from late in them, and with
changes of prompt."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.pocket.world import Scenes, caption
from longtake.training.config import Config
from longtake.training.keyed import generator
from longtake.training.worlddata import FRAMES, Shelf, WorldSource, changed, clip_number, scene_of

CHUNKS = 8  # of a sequence
_GAP = (8, 1000)  # how many chunks are skipped after the first one, in sequences from late in a take
_CHANGED = 0.25  # share of the sequences with a change of prompt


@dataclass(frozen=True)
class WorldSequence:
    """One sequence.

    Attributes:
        latents: normalised, ``[CHUNKS * chunk, channels, h, w]``.
        captions: one per chunk.
        timeline: which chunks of a take its chunks are.
    """

    latents: Tensor
    captions: list[str]
    timeline: list[int]


class WorldSequences:
    """Makes and keeps them.

    Args:
        clips: encodes and decodes.
        config: sizes and data.
        batch: sequences per step of the run.
        late: share of the sequences that are chunk 0 and then chunks from much later.
        firsts: first chunks per sequence.
    """

    def __init__(self, clips: WorldSource, config: Config, batch: int, late: float, firsts: int) -> None:
        self.clips, self.config, self.late = clips, config, late
        kept = max(config.data.cache, batch)
        self._place = (batch, kept, config.data.reuse)
        self._first_place = (max(1, batch * firsts), max(kept, batch * firsts), config.data.reuse)
        self._shelf = Shelf(self._make, kept)
        self._firsts = Shelf(self._make_first, self._first_place[1])

    def _make(self, number: int) -> tuple[Tensor, list[Scenes], list[int]]:
        """Latents, the scene of every chunk, the timeline."""
        chunk = self.config.model.chunk
        late, switch, place, gap = torch.rand(4, generator=generator(0, "sequence", number)).tolist()
        scene = scene_of(number, self.config.data.level)
        cut = 1 + int(place * (CHUNKS - 1)) if switch < _CHANGED else CHUNKS
        after = changed(scene, number, self.config.data.level) if cut < CHUNKS else scene
        scenes = [scene] * cut + [after] * (CHUNKS - cut)
        if late >= self.late:
            latents = self._take(scenes, None)
            timeline = list(range(CHUNKS))
        else:
            skipped = int(_GAP[0] + gap * (_GAP[1] - _GAP[0]))
            start = self._take(scenes[:1], None)
            later = self._take(scenes[1:], FRAMES * chunk * (1 + skipped) - 3)
            latents = torch.cat([start, later])
            timeline = [0, *range(1 + skipped, skipped + CHUNKS)]
        return latents.to(torch.bfloat16), scenes, timeline

    def _take(self, scenes: Sequence[Scenes], start: int | None) -> Tensor:
        """The latents of chunks, each with its scene; see :meth:`WorldSource.take`."""
        chunk = self.config.model.chunk
        parts: list[Scenes] = []
        ends: list[int] = []
        for i, scene in enumerate(scenes):
            if parts and parts[-1] is scene:
                ends[-1] = (i + 1) * chunk
            else:
                parts.append(scene)
                ends.append((i + 1) * chunk)
        return self.clips.take(parts, ends, start)

    def _make_first(self, number: int) -> tuple[Tensor, Scenes]:
        scene = scene_of(number, self.config.data.level)
        return self.clips.take([scene], [self.config.model.chunk], None).to(torch.bfloat16), scene

    def sequence(self, sample: int) -> WorldSequence:
        """The sequence of a sample of the run."""
        latents, scenes, timeline = self._shelf[clip_number(sample, *self._place)]
        rng = random.Random(f"sequence {sample}")
        said: dict[int, str] = {}
        for scene in scenes:
            if id(scene) not in said:
                said[id(scene)] = caption(scene, 0, rng)
        return WorldSequence(latents, [said[id(scene)] for scene in scenes], timeline)

    def first_chunk(self, number: int) -> tuple[Tensor, str]:
        """A first chunk of a take, ``[chunk, channels, h, w]``, and its caption."""
        latents, scene = self._firsts[clip_number(number, *self._first_place)]
        return latents, caption(scene, 0, random.Random(f"first {number}"))

    def held_out(self, device: torch.device) -> tuple[Tensor, list[str]]:
        """See :meth:`ClipSource.held_out`."""
        return self.clips.held_out(device)

    def decode(self, latents: Tensor) -> Tensor:
        """See :meth:`ClipSource.decode`."""
        return self.clips.decode(latents)

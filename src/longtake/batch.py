"""Takes side by side: the forwards of several are one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from longtake.compiled import forwards
from longtake.forward import Plain
from longtake.memory.together import Together
from longtake.prompts import Script
from longtake.sampling import denoise
from longtake.take import Chunk, Take

if TYPE_CHECKING:
    from longtake.pipeline import LongTakePipeline


class Batch:
    """Takes of one pipeline that are made together, chunk by chunk.

        batch = Batch.start(pipe, ["a red ball", "a blue box"], seeds=[0, 1], memory="memrope")
        for chunks in batch.chunks(10):  # one of every take
            ...

    The transformer's layers are computed for all of them at once; attention, memory, prompt, noise and decoding are
    each take's own. So every take makes what it makes alone, up to the rounding of matrix products whose number of rows
    is another, and remains a take like any other: it has its own script and memory, can be told something new, be
    written into a snapshot of its own, and go on alone or in another batch. The takes need not be equally long.

    Args:
        takes: between chunks, of the same size of picture.

    Raises:
        ValueError: if there are none, one comes twice, or they differ in pipeline or size.
    """

    def __init__(self, takes: Sequence[Take]) -> None:
        self.takes = tuple(takes)
        if not self.takes or len({id(take) for take in self.takes}) != len(self.takes):
            raise ValueError("A batch needs one or more takes, each of them once.")
        if len({(id(take.pipe), take.shape, take.schedule.sigmas) for take in self.takes}) != 1:
            raise ValueError("Takes side by side need the same pipeline and the same height and width.")
        self._held: dict[tuple[int, ...], Plain] = {}  # by who takes part

    @classmethod
    def start(
        cls,
        pipe: LongTakePipeline,
        prompts: str | Script | Sequence[str | Script],
        seeds: Sequence[int] | None = None,
        **settings: Any,
    ) -> Batch:
        """Begins takes; nothing is generated yet.

        Args:
            prompts: one per take; or one for all.
            seeds: one per take; 0 for each prompt by default, as if each were made alone.
            settings: of :meth:`LongTakePipeline.start`, for all of them.

        Raises:
            ValueError: if there are not as many seeds as prompts, or for anything that one take refuses.
        """
        many = [prompts] * len(seeds or [0]) if isinstance(prompts, (str, Script)) else list(prompts)
        each = [0] * len(many) if seeds is None else list(seeds)
        if len(many) != len(each):
            raise ValueError(f"There are {len(many)} prompts and {len(each)} seeds: one seed per prompt is needed.")
        return cls([pipe.start(prompt, seed=seed, **settings) for prompt, seed in zip(many, each, strict=True)])

    @torch.no_grad()
    def next_chunks(self) -> list[Chunk]:
        """Makes the next chunk of every take; see :meth:`Take.next_chunk`."""
        if len(self.takes) == 1:
            return [self.takes[0].next_chunk()]
        with ExitStack() as stack:
            for take in self.takes:  # all are asked before any of them begins
                take.embed(take.prompt_at(take.index))
            for take in self.takes:
                stack.enter_context(take.making())
            texts = [take.begin() for take in self.takes]
            latents = self._denoise(texts)
            self._forwards(range(len(self.takes))).commit(torch.cat(latents), torch.cat(texts))
            return [take.end(mine) for take, mine in zip(self.takes, latents, strict=True)]

    def chunks(self, count: int | None = None) -> Iterator[list[Chunk]]:
        """The next ``count`` chunks of every take, or chunks without end."""
        made = 0
        while count is None or made < count:
            yield self.next_chunks()
            made += 1

    def videos(self, seconds: float) -> Tensor:
        """The next ``seconds`` of every take: float32 ``[takes, frames, 3, height, width]`` in [0, 1]. The takes
        themselves move by whole chunks.

        Raises:
            ValueError: if that is no positive number.
        """
        frames = self.takes[0].pipe._frames(seconds)
        count = max(take.chunks_until(take.frames_done + frames) for take in self.takes)
        rows = zip(*self.chunks(count), strict=True)
        return torch.stack([torch.cat([chunk.video for chunk in row])[:frames] for row in rows])

    def _denoise(self, texts: Sequence[Tensor]) -> list[Tensor]:
        """Latents of all takes, of which some may be given."""
        made = [take.given for take in self.takes]
        open_ = [item for item, given in enumerate(made) if given is None]
        if open_:
            takes, forward, text = [self.takes[i] for i in open_], self._forwards(open_), [texts[i] for i in open_]
            latents = denoise(
                takes[0].schedule,
                lambda step: torch.cat([take.noise(step) for take in takes]),
                lambda x, step: forward.flow(x, step, torch.cat(text)),
            )
            for item, mine in zip(open_, latents.split(1), strict=True):
                made[item] = mine.clone()  # what a take keeps of its last chunks is not all takes'
        return [x for x in made if x is not None]

    def _forwards(self, items: Sequence[int]) -> Plain:
        first, key = self.takes[items[0]], tuple(items)
        held = self._held.get(key)
        memory = Together([self.takes[i].memory for i in items]) if held is None else held.memory
        pipe = first.pipe
        self._held[key] = forwards(pipe.transformer, memory, first._times, pipe.forward_path, pipe.compilation, held)
        return self._held[key]

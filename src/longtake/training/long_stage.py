"""Distribution matching on takes that go on and on: LongLive's streaming long tuning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longtake.training.dmd_stage import DmdStage
from longtake.training.run import Run
from longtake.training.sections import Long
from longtake.training.selfforcing import Clip, Rollout, Switch, shared_exit


class LongStage(DmdStage):
    """Streaming long tuning (LongLive, arXiv 2509.22622): a rollout goes on over many steps; each learns from its
    newest clip. In half of the takes the prompt changes once, at the start of a clip.
    """

    name = "long"
    title = "the same on long takes that go on from step to step, with changes of prompt"
    start = "dmd"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._takes_now: dict[int, tuple[Rollout, int]] = {}  # by part of the step: the rollout, the step it began in
        self._saved: dict[int, Any] | None = None

    @property
    def settings(self) -> Long:
        return self.config.long

    @property
    def clip_frames(self) -> int:
        return self.settings.clip_frames

    def check_config(self) -> None:
        long = self.settings
        self._check_memories()
        new, chunk = long.clip_frames - long.overlap, self.config.model.chunk
        if new % chunk or long.frames < long.clip_frames or (long.frames - long.clip_frames) % new:
            example = long.clip_frames + 3 * max(new, 1)
            raise ValueError(
                f"long.clip_frames less long.overlap must be a multiple of {chunk}, and long.frames be clip_frames and "
                f"that many more any number of times, like {example}; not {long.frames}."
            )

    def make(self, run: Run, step: int, samples: range, grad: bool) -> tuple[Clip, Tensor]:
        long = self.settings
        part = (samples[0] - run.samples(step)[0]) // max(1, len(samples))
        if self._saved is not None:
            self._restore(run)
        rollout, began = self._takes_now.get(part, (None, step))
        clips = 1 + (long.frames - long.clip_frames) // (long.clip_frames - long.overlap)
        if rollout is None or step - began >= clips:
            began = step
            rollout = self.rollout(run, step, samples, self._text(run, began, samples, 0))
            self._takes_now[part] = rollout, began
        own = self._samples(run, began, part, samples)
        switches = {}
        changes = self._change(run, began, own[0], clips)
        if step - began == changes:
            switches = {rollout.index: Switch(self._text(run, began, own, 1), long.on_change)}
        exit = shared_exit(run.config.run.seed, step, len(self.schedule))
        clip = rollout.clip(exit, long.clip_frames, long.overlap, switches, grad=grad, reencode=self.reencode)
        return clip, clip.text

    def _samples(self, run: Run, began: int, part: int, now: range) -> range:
        """The samples that a part had in the step its rollout began."""
        first = run.samples(began)[0] + part * len(now)
        return range(first, first + len(now))

    def _change(self, run: Run, began: int, sample: int, clips: int) -> int | None:
        """The clip of a rollout that begins with a new prompt, if any."""
        if not self.settings.prompt_changes or clips < 2:
            return None
        gate, place = torch.rand(2, generator=run.generator(began, 0, "change")).tolist()
        return 1 + int(place * (clips - 1)) if gate < 0.5 else None

    def _text(self, run: Run, began: int, samples: range, side: int) -> Tensor:
        said = [self.prompts.changed(s) for s in samples] if side else self.prompts.captions(samples)
        return self.text(said, run.device)

    def state(self) -> Any:
        return {part: [rollout.state_dict(), began] for part, (rollout, began) in self._takes_now.items()}

    def load_state(self, state: Any) -> None:
        self._saved = state or {}

    def _restore(self, run: Run) -> None:
        """Rollouts as they were; made here, where the run is known."""
        saved, self._saved = self._saved or {}, None
        for part, (state, began) in saved.items():
            count = len(run.samples(began)) // run.config.run.accumulate
            first = run.samples(began)[0] + part * count
            own = range(first, first + count)
            rollout = self.rollout(run, began, own, self._text(run, began, own, 0))
            rollout.load_state_dict(state)
            self._takes_now[part] = rollout, began

"""The start in few steps: the causal student learns to jump along the ODE of its own many-step self."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from longtake.training.causal import causal_layout
from longtake.training.causal_stage import CausalStage, sequence_source, student_options
from longtake.training.consistency import consistency_loss, discretise, ode_loss, ode_pairs
from longtake.training.models import text_embedder, trained_transformer
from longtake.training.run import Run
from longtake.training.stage import Figure
from longtake.training.student import Drawn, draw_sequence
from longtake.training.velocity import Velocity, guided, teacher_forced, to_chunks


class ConsistencyStage(CausalStage):
    """Consistency distillation (arXiv 2303.01469), or regression to ODE trajectories (CausVid, arXiv 2412.07772).

    The teacher is the causal student itself with many steps and guidance, given the same clean past: its answers are
    ones that the student can give.
    """

    name = "consistency"
    title = "the causal student's start in few steps, by consistency or ODE trajectories"

    def needs(self) -> tuple[str, ...]:
        own = () if self.config.model.checkpoint else ("causal",)
        return (*self.config.parts_trained, *own)

    def build(self, run: Run) -> None:
        student = trained_transformer(self.config.model)
        teacher = trained_transformer(self.config.model)
        if not self.config.model.checkpoint:
            run.load_previous("causal", "transformer", student)
            run.load_previous("causal", "transformer", teacher)
        if not run.for_export:
            self.text = text_embedder(self.config, run)
            self.source = sequence_source(self.config, run)
            self.first = 0
            self.teacher = run.frozen(teacher)
        self.network = run.network("transformer", student)

    def step(self, run: Run, step: int) -> Mapping[str, Tensor]:
        total = torch.zeros((), device=run.device)
        for samples in run.parts(step):
            with run.autocast():
                loss = self._loss(run, step, samples)
            run.backward(loss)
            total += loss.detach() / self.config.run.accumulate
        return {self.config.consistency.method: total}

    def _loss(self, run: Run, step: int, samples: range) -> Tensor:
        stage, options = self.config.consistency, student_options(self.config)
        batch = self._batch(run, samples)
        chunks = to_chunks(batch.latents, options.chunk)
        drawn: list[Drawn] = [
            draw_sequence(
                chunks[i].shape,
                run.generator(step, s),
                options,
                None if batch.timelines is None else batch.timelines[i],
            )
            for i, s in enumerate(samples)
        ]
        layout = causal_layout([d.plan for d in drawn], [d.targets for d in drawn])
        noise = torch.stack([drawn[s].noise[c] for s, c in layout.targets]).to(run.device)
        target = torch.stack([chunks[s, c] for s, c in layout.targets])
        past = torch.stack([chunks[s, c] for s, c in layout.elements[: layout.clean]]) if layout.clean else target[:0]
        rows = [0 if batch.texts is None else batch.texts[s][c] for s, c in layout.elements]
        empty = self.text([""], run.device)

        def of(module: torch.nn.Module, text: Tensor, which: list[int]) -> Velocity:
            return teacher_forced(module, layout, past, text, which)

        student = of(self.network.module, batch.text, rows)
        teacher = guided(of(self.teacher, batch.text, rows), of(self.teacher, empty, [0] * len(rows)), stage.guidance)
        g = run.generator(step, samples[0], "levels")
        if stage.method == "ode":
            levels = options.levels().tolist()
            with torch.no_grad():
                pairs = ode_pairs(teacher, noise, levels, stage.ode_steps, stage.shift, stage.solver)
            index = torch.randint(len(levels), (len(target),), generator=g).to(run.device)
            return ode_loss(student, pairs, index)
        sigmas = discretise(stage.ode_steps, stage.shift, options.levels().tolist())
        index = self._indices(sigmas, len(target), g).to(run.device)
        return consistency_loss(student, student, teacher, target, noise, index, sigmas, stage.solver)

    def _indices(self, sigmas: Tensor, count: int, g: torch.Generator) -> Tensor:
        """Which step each chunk takes: half of them from the levels that sampling uses."""
        anywhere = torch.randint(len(sigmas) - 1, (count,), generator=g)
        levels = student_options(self.config).levels()
        rows = (sigmas[None] - levels[:, None]).abs().argmin(1)
        exact = rows[torch.randint(len(rows), (count,), generator=g)]
        return torch.where(torch.rand(count, generator=g) < 0.5, exact, anywhere)

    @torch.no_grad()
    def check(self, run: Run) -> Mapping[str, Figure]:
        """How far one jump from pure noise lands from the teacher's whole trajectory, as a share of what a jump of the
        teacher itself misses."""
        options = student_options(self.config)
        clean, captions = self.source.held_out(run.device)
        clean, captions = clean[:, : self.config.model.frames], list(captions)
        chunks = to_chunks(clean, options.chunk)
        shape = chunks.shape[1:]
        drawn = [draw_sequence(shape, run.generator(0, i, "check"), options) for i in range(len(chunks))]
        layout = causal_layout([d.plan for d in drawn], [d.targets for d in drawn])
        noise = torch.stack([drawn[s].noise[c] for s, c in layout.targets]).to(run.device)
        past = torch.stack([chunks[s, c] for s, c in layout.elements[: layout.clean]])
        text, rows = self.text(captions, run.device), [s for s, _ in layout.elements]
        ones = torch.ones(len(noise), device=run.device)
        with self.network.averaged() as module, run.autocast():
            teacher = teacher_forced(self.teacher, layout, past, text, rows)
            ends = ode_pairs(teacher, noise, [1.0], self.config.consistency.ode_steps, options.shift).ends
            misses = []
            for velocity in (teacher_forced(module, layout, past, text, rows), teacher):
                misses.append(float((noise - velocity(noise, ones) - ends).square().mean()))
        return {
            "jump": Figure(misses[0] / misses[1], 1.0, "lower", "error of one jump by that of the teacher's own jump")
        }

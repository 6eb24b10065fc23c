"""The start in few steps: the causal student learns to jump along the ODE of its own many-step self."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from longtake.training.causal import causal_layout
from longtake.training.causal_stage import CausalStage, few_step_takes, sequence_source, student_options
from longtake.training.consistency import consistency_loss, discretise, ode_loss, ode_pairs
from longtake.training.models import text_embedder, trained_transformer
from longtake.training.run import Run
from longtake.training.stage import Figure
from longtake.training.student import ChunkSequences, Drawn, StudentOptions, draw_sequence
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

    dropout = 0.0  # guidance of nothing teaches nothing

    def step(self, run: Run, step: int) -> Mapping[str, Tensor]:
        total = torch.zeros((), device=run.device)
        for samples in run.parts(step):
            batch = self._batch(run, samples)
            with run.autocast():
                loss = self._loss(run, step, samples, batch)
            run.backward(loss)
            total += loss.detach() / self.config.run.accumulate
        return {self.config.consistency.method: total}

    def _options(self) -> StudentOptions:
        stage = self.config.consistency
        return replace(student_options(self.config), timesteps=stage.timesteps, shift=stage.shift)

    def _loss(self, run: Run, step: int, samples: range, batch: ChunkSequences) -> Tensor:
        """The mean over the sequences of the mean over a sequence's chunks."""
        stage, options = self.config.consistency, self._options()
        chunks = to_chunks(batch.latents, options.chunk)
        generators = [run.generator(step, s) for s in samples]
        drawn: list[Drawn] = [
            draw_sequence(
                chunks[i].shape, generators[i], options, None if batch.timelines is None else batch.timelines[i]
            )
            for i in range(len(samples))
        ]
        layout = causal_layout([d.plan for d in drawn], [d.targets for d in drawn])
        noise = torch.stack([drawn[s].noise[c] for s, c in layout.targets]).to(run.device)
        target = torch.stack([chunks[s, c] for s, c in layout.targets])
        past = torch.stack([chunks[s, c] for s, c in layout.elements[: layout.clean]]) if layout.clean else target[:0]
        rows = [0 if batch.texts is None else batch.texts[s][c] for s, c in layout.elements]
        weights = [1 / len(drawn[s].targets) / len(drawn) for s, _ in layout.targets]
        empty = self.text([""], run.device)

        def of(module: torch.nn.Module, text: Tensor, which: list[int]) -> Velocity:
            return teacher_forced(module, layout, past, text, which)

        student = of(self.network.module, batch.text, rows)
        teacher = guided(of(self.teacher, batch.text, rows), of(self.teacher, empty, [0] * len(rows)), stage.guidance)
        of_each = torch.tensor(weights, device=run.device)
        counts = [len(d.targets) for d in drawn]
        if stage.method == "ode":
            levels = options.levels().tolist()
            with torch.no_grad():
                pairs = ode_pairs(teacher, noise, levels, stage.ode_steps, stage.shift, stage.solver)
            index = torch.cat(
                [torch.randint(len(levels), (n,), generator=g) for n, g in zip(counts, generators, strict=True)]
            )
            return ode_loss(student, pairs, index.to(run.device), of_each)
        sigmas = discretise(stage.ode_steps, stage.shift, options.levels().tolist())
        index = torch.cat([self._indices(sigmas, n, g) for n, g in zip(counts, generators, strict=True)]).to(run.device)
        return consistency_loss(student, student, teacher, target, noise, index, sigmas, stage.solver, weights=of_each)

    def _indices(self, sigmas: Tensor, count: int, g: torch.Generator) -> Tensor:
        """Which step each chunk takes: half of them from the levels that sampling uses."""
        anywhere = torch.randint(len(sigmas) - 1, (count,), generator=g)
        levels = self._options().levels()
        rows = (sigmas[None] - levels[:, None]).abs().argmin(1)
        exact = rows[torch.randint(len(rows), (count,), generator=g)]
        return torch.where(torch.rand(count, generator=g) < 0.5, exact, anywhere)

    def takes(self, run: Run, captions: Sequence[str]) -> Tensor:
        s = self.config.consistency
        with self.network.averaged() as module:
            memory = self.config.causal.memories[0]
            return few_step_takes(
                run, self.config, module, self.text, captions, memory, timesteps=s.timesteps, shift=s.shift
            )

    @torch.no_grad()
    def check(self, run: Run) -> Mapping[str, Figure]:
        """How far one jump from pure noise lands from the teacher's whole trajectory, as a share of what a jump of the
        teacher itself misses."""
        options, stage = self._options(), self.config.consistency
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
            plain = teacher_forced(self.teacher, layout, past, text, rows)
            without = teacher_forced(self.teacher, layout, past, self.text([""], run.device), [0] * len(rows))
            teacher = guided(plain, without, stage.guidance)
            ends = ode_pairs(teacher, noise, [1.0], stage.ode_steps, stage.shift).ends
            misses = []
            for velocity in (teacher_forced(module, layout, past, text, rows), teacher):
                misses.append(float((noise - velocity(noise, ones) - ends).square().mean()))
        return {
            "jump": Figure(misses[0] / misses[1], 1.0, "lower", "error of one jump by that of the teacher's own jump")
        }

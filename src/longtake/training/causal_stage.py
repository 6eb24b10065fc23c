"""The causal student: flow matching chunk by chunk, each seeing what a memory would hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from longtake.memory.echo_encoder import MemoryEncoder
from longtake.memory.registry import parse_memory
from longtake.sampling import FewStepSchedule
from longtake.training.causal import causal_layout, plan_for
from longtake.training.config import Config
from longtake.training.models import Encoded, Words, text_embedder, trained_transformer
from longtake.training.run import Run
from longtake.training.selfforcing import Rollout
from longtake.training.sources import ClipSource, make_source
from longtake.training.stage import Figure, Stage
from longtake.training.student import ChunkSequences, StudentOptions, student_against_teacher, student_losses
from longtake.training.teacher import latent_pictures, outputs_of, strip
from longtake.training.velocity import bidirectional, teacher_forced, to_chunks
from longtake.training.worldsequences import WorldSequences

SAMPLED = 45  # latent frames of a sample: long enough that every memory is full
TIMESTEPS = (1000.0, 750.0, 500.0, 250.0)


class CausalStage(Stage):
    """Teacher forcing or diffusion forcing (arXiv 2407.01392) from the teacher's weights, through the memories that the
    model will run with."""

    name = "causal"
    title = "the causal student, by teacher forcing or diffusion forcing through its memories"
    dropout: ClassVar[float | None] = None  # of captions; None: as configured

    def needs(self) -> tuple[str, ...]:
        own = () if self.config.model.checkpoint else ("teacher",)
        return (*self.config.parts_trained, *own)

    def check_config(self) -> None:
        if self.config.data.source == "prompts":
            raise ValueError("The stage 'causal' learns from clips, and data.source prompts has none: use latents.")
        student_options(self.config)
        for memory in self.config.causal.memories:
            parse_memory(memory)  # "causal", everything at absolute ids, is no memory to run with

    def build(self, run: Run) -> None:
        student = trained_transformer(self.config.model)
        if not self.config.model.checkpoint:
            run.load_previous("teacher", "transformer", student)
        if not run.for_export:
            self.text = text_embedder(self.config, run)
            self.source = sequence_source(self.config, run)
            self.first = max(0, self.config.causal.first_chunks)
        self.network = run.network("transformer", student)

    def step(self, run: Run, step: int) -> Mapping[str, Tensor]:
        options = student_options(self.config)
        sums: dict[str, Tensor] = {}
        for samples in run.parts(step):
            batch = self._batch(run, samples)
            first = self._firsts(run, samples) if self.first else None
            firsts = [s * self.first + i for s in samples for i in range(self.first)]
            with run.autocast():
                losses = student_losses(
                    self.network.module,
                    batch,
                    [run.generator(step, s) for s in samples],
                    options,
                    first,
                    [run.generator(step, s, "first") for s in firsts] if first is not None else (),
                )
            run.backward(losses.pop("loss"))
            for name, loss in losses.items():
                sums[name] = sums.get(name, torch.zeros_like(loss)) + loss.detach() / self.config.run.accumulate
        return sums

    def _batch(self, run: Run, samples: Sequence[int]) -> ChunkSequences:
        dropout = self.config.causal.text_dropout if self.dropout is None else self.dropout
        if isinstance(self.source, WorldSequences):
            made = [self.source.sequence(s) for s in samples]
            captions = [c for m in made for c in dict.fromkeys(m.captions)]
            texts, offset = [], 0
            for m in made:
                own = list(dict.fromkeys(m.captions))
                texts.append([offset + own.index(c) for c in m.captions])
                offset += len(own)
            latents = torch.stack([m.latents for m in made]).float().to(run.device)
            timelines: list[Sequence[int]] | None = [m.timeline for m in made]
        else:
            latents, captions = self.source.batch(
                run.clips(range(samples[0], samples[-1] + 1), self.source.count), run.device
            )
            texts, timelines = [[i] * (latents.shape[1] // self.config.model.chunk) for i in range(len(samples))], None
        for i, sample in enumerate(samples):
            if float(torch.rand((), generator=run.generator(0, sample, "dropout"))) < dropout:
                for row in set(texts[i]):
                    captions[row] = ""
        return ChunkSequences(latents, self.text(captions, run.device), texts, timelines)

    def _firsts(self, run: Run, samples: Sequence[int]) -> ChunkSequences:
        """First chunks of takes: more of them than sequences, as a start from nothing is the hardest thing to learn."""
        chunk = self.config.model.chunk
        numbers = [s * self.first + i for s in samples for i in range(self.first)]
        if isinstance(self.source, WorldSequences):
            pairs = [self.source.first_chunk(n) for n in numbers]
            latents = torch.stack([x for x, _ in pairs]).float().to(run.device)
            captions = [c for _, c in pairs]
        else:
            latents, captions = self.source.batch(
                run.clips(range(numbers[0], numbers[-1] + 1), self.source.count), run.device
            )
            latents = latents[:, :chunk]
        for i, number in enumerate(numbers):
            if (
                float(torch.rand((), generator=run.generator(0, number, "first dropout")))
                < self.config.causal.text_dropout
            ):
                captions[i] = ""
        return ChunkSequences(latents, self.text(captions, run.device))

    def sample(self, run: Run) -> Image.Image | None:
        captions = self.source.held_out(run.device)[1][:4]
        made = self.takes(run, captions)
        pictures = self.source.decode(made)
        return strip(latent_pictures(made) if pictures is None else pictures, 12)

    def takes(self, run: Run, captions: Sequence[str]) -> Tensor:
        """Takes as inference makes them: latents ``[n, frames, channels, h, w]``."""
        s = self.config.causal
        with self.network.averaged() as module:
            return few_step_takes(run, self.config, module, self.text, captions, s.memories[0], shift=s.shift)

    @torch.no_grad()
    def check(self, run: Run) -> Mapping[str, Figure]:
        """The student's error beside the teacher's on held-out clips: it sees a clean past, the teacher a noisy all."""
        model = self.config.model
        if self.config.model.checkpoint:
            return {}
        clean, captions = self.source.held_out(run.device)
        clean = clean[:, : model.frames]
        text = self.text(captions, run.device)
        chunks = to_chunks(clean, model.chunk)
        count = chunks.shape[1]
        policy = parse_memory(self.config.causal.memories[0])
        layout = causal_layout([plan_for(policy, range(count), model.chunk)] * len(clean))
        flat = chunks.flatten(0, 1)
        noise = torch.randn(flat.shape).to(run.device)
        teacher = trained_transformer(replace(model, lora_rank=0))
        run.load_previous("teacher", "transformer", teacher)
        teacher = run.frozen(teacher)
        pasts = flat[layout.rows(count)[: layout.clean]]
        rows = [s for s, _ in layout.elements]
        with self.network.averaged() as module, run.autocast():
            found = student_against_teacher(
                teacher_forced(module, layout, pasts, text, rows),
                bidirectional(teacher, text),
                flat,
                noise,
                student_options(self.config).levels().tolist(),
                [c == 0 for _, c in layout.targets],
            )
        figures = {}
        for level, row in found.items():
            for part, bar in (("later", 1.0), ("first", 1.5)):
                figures[f"{part}_{level}"] = Figure(
                    row[f"student_{part}"] / row[f"teacher_{part}"],
                    bar,
                    "lower",
                    f"error of {part} chunks' clean latents by the teacher's",
                )
        return figures

    def outputs(self, run: Run) -> Mapping[str, Any]:
        return outputs_of(run, self.config, self.network)


def student_options(config: Config) -> StudentOptions:
    """The stage's settings as ``student_losses`` takes them.

    Raises:
        ValueError: if a setting is out of range, or a memory cannot be trained.
    """
    stage = config.causal
    return StudentOptions(
        forcing=stage.forcing,
        memories=stage.memories,
        chunk=config.model.chunk,
        targets=stage.targets if stage.forcing == "teacher" else None,
        context_noise=stage.context_noise,
        context_share=stage.context_noise_share,
        timesteps=TIMESTEPS,
        shift=stage.shift,
        exact=stage.sampling_levels,
    )


def sequence_source(config: Config, run: Run) -> ClipSource | WorldSequences:
    """Sequences to train on: of the pocket world with what happens late in takes, and changes of prompt."""
    source = make_source(config, run)
    if config.data.source == "world":
        return WorldSequences(source, config, run.batch, config.causal.late_share, config.causal.first_chunks)  # type: ignore[arg-type]
    return source


@torch.no_grad()
def few_step_takes(
    run: Run,
    config: Config,
    module: torch.nn.Module,
    text: Words | Encoded,
    captions: Sequence[str],
    memory: str,
    frames: int = SAMPLED,
    timesteps: Sequence[float] = TIMESTEPS,
    shift: float = 5.0,
    encoder: MemoryEncoder | None = None,
) -> Tensor:
    """Takes by few-step sampling through a memory, as inference does it: latents ``[n, frames, channels, h, w]``.

    As many at once as a process has samples: what they remember is the most of what they need.
    """
    model, made = config.model, []
    for seeds in torch.arange(len(captions)).split(len(run.samples(0))):
        rollout = Rollout(
            module,
            parse_memory(memory),
            FewStepSchedule.from_steps(tuple(timesteps), shift),
            text([captions[i] for i in seeds], run.device),
            seeds.tolist(),
            model.height,
            model.width,
            chunk=model.chunk,
            functional=False,
            dtype=run.dtype,
            encoder=encoder,
        )
        with run.autocast():
            made.append(rollout.clip(len(timesteps) - 1, frames, 0, grad=False).frames)
    return torch.cat(made).transpose(1, 2)

"""Self-forcing with distribution matching: the generator learns from its own takes, through its own memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, cast

import torch
from PIL import Image
from torch import Tensor

from longtake.memory.registry import parse_memory
from longtake.sampling import FewStepSchedule
from longtake.training.causal_stage import few_step_takes
from longtake.training.critic import critic_from
from longtake.training.dmd import DMD
from longtake.training.flow import SigmaSampling, WanFlow
from longtake.training.models import components_folder, published_transformer, text_embedder, trained_transformer
from longtake.training.prompts_source import Prompts, make_prompts
from longtake.training.run import Run
from longtake.training.sections import Dmd
from longtake.training.selfforcing import Clip, Rollout, image_latent, shared_exit
from longtake.training.stage import Figure, Stage
from longtake.training.teacher import latent_pictures, outputs_of, strip

OVERLAP = 3  # latent frames of the clip before that the score networks see


class DmdStage(Stage):
    """Self-Forcing (arXiv 2506.08009): in every step the critic learns the generator's clips; in every few steps the
    generator is moved from the critic's score towards the teacher's.

    Takes longer than a clip (``frames``) are rolled out clip by clip, of which the last one is learned from: what the
    memory does in a long take is then part of what is trained.
    """

    name = "dmd"
    title = "self-forcing with distribution matching, through the memories"
    start = "consistency"
    learns: ClassVar[bool] = False  # whether it trains the weights of a learned memory

    @property
    def settings(self) -> Dmd:
        """The section of this stage."""
        return self.config.dmd

    @property
    def clip_frames(self) -> int:
        """Latent frames that the scores see at once."""
        return self.config.model.frames

    def needs(self) -> tuple[str, ...]:
        model = self.config.model
        teacher = () if model.teacher else ("teacher",)
        return tuple(dict.fromkeys((*self.config.parts_trained, *teacher, *self.begins_with())))

    def begins_with(self) -> tuple[str, ...]:
        """The stages whose networks this one begins with."""
        return () if self.config.model.checkpoint and self.start == "consistency" else (self.start,)

    def generator_from(self) -> str | None:
        """The one of them that has the generator; None if that is ``model.checkpoint``."""
        return next(iter(self.begins_with()), None)

    def check_config(self) -> None:
        self._check_memories()
        new = self.settings.frames - self.config.model.frames
        later = self.config.model.frames - OVERLAP
        if later < 1 or later % self.config.model.chunk:
            raise ValueError(
                f"model.frames must be {OVERLAP} and whole chunks of {self.config.model.chunk} more for distillation, "
                f"not {self.config.model.frames}."
            )
        if new < 0 or new % later:
            raise ValueError(
                f"{self.name}.frames must be model.frames, {self.config.model.frames}, and any number of times {later} "
                f"more, not {self.settings.frames}."
            )

    def _check_memories(self) -> None:
        if not self.settings.memories:
            raise ValueError(f"{self.name}.memories must name at least one memory.")
        for memory in self.settings.memories:
            policy = parse_memory(memory)
            policy.capacity(self.config.model.chunk)
            if policy.learned and not self.learns:
                raise ValueError(
                    f"{self.name}.memories has {memory!r}, which has weights of its own: the stages echo and echo_long "
                    "train those."
                )

    def build(self, run: Run) -> None:
        model = self.config.model
        generator = trained_transformer(model)
        if (stage := self.generator_from()) is not None:
            run.load_previous(stage, "transformer", generator)
        if run.for_export:
            self.network = self.trained(run, generator)
            return
        plain = replace(model, lora_rank=0, checkpoint=None)
        teacher = published_transformer(model.teacher, model) if model.teacher else trained_transformer(plain)
        if not model.teacher:
            run.load_previous("teacher", "transformer", teacher)
        critic = published_transformer(model.critic, model) if model.critic else critic_from(teacher)
        self.text = text_embedder(self.config, run)
        self.prompts: Prompts = make_prompts(self.config)
        self.decode, self.reencode = _autoencoder(self, run)
        self.network = self.trained(run, generator)
        self.critic = run.network("critic", critic.requires_grad_(True), self.settings.critic)
        self.teacher = run.frozen(teacher)
        s = self.settings
        low, high = s.min_step / 1000, s.max_step / 1000
        self.matching = DMD(SigmaSampling(shift=s.shift, low=low, high=high), normalise=s.normalise)
        self.schedule = FewStepSchedule.from_steps(s.timesteps, s.shift)

    def trained(self, run: Run, generator: torch.nn.Module) -> Any:
        """The generator as the network that is trained."""
        return run.network("transformer", generator, every=self.settings.generator_every)

    def remembering(self) -> Mapping[str, Any]:
        """What rollouts are told of a memory that learns."""
        return {}

    def step(self, run: Run, step: int) -> Mapping[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for samples in run.parts(step):
            losses = self._part(run, step, samples)
            for name, loss in losses.items():
                sums[name] = sums.get(name, torch.zeros_like(loss)) + loss.detach() / self.config.run.accumulate
        return sums

    def _part(self, run: Run, step: int, samples: range) -> dict[str, Tensor]:
        due = self.network.due(step)
        with run.autocast():
            clip, text = self.make(run, step, samples, grad=due)
            real = WanFlow(self.teacher, self.settings.guidance, self.text([""], run.device))
            fake = WanFlow(self.critic.module)
            losses: dict[str, Tensor] = {}
            if due:
                sigma, noise = self._draws(run, step, samples, clip.frames, "generator")
                matched = self.matching.loss(
                    clip.frames, text, real, fake, supervised=clip.supervised, sigma=sigma, noise=noise
                )
                losses["generator"] = matched.loss
                losses["gradient"] = matched.gradient.square().mean().sqrt()
        if due:
            run.backward(losses["generator"])
        with run.autocast():
            sigma, noise = self._draws(run, step, samples, clip.frames, "critic")
            losses["critic"] = self.matching.critic_loss(clip.frames, text, fake, sigma=sigma, noise=noise)
        run.backward(losses["critic"])
        return losses

    def _draws(self, run: Run, step: int, samples: range, like: Tensor, stream: str) -> tuple[Tensor, Tensor]:
        sigmas, noises = [], []
        for sample in samples:
            g = run.generator(step, sample, stream)
            sigmas.append(self.matching.sigmas.sample(1, g))
            noises.append(torch.randn(like.shape[1:], generator=g))
        return torch.cat(sigmas).to(run.device), torch.stack(noises).to(run.device)

    def rollout(self, run: Run, step: int, samples: Sequence[int], text: Tensor, functional: bool = True) -> Rollout:
        """A new rollout for these samples, with the memory of this step; ``functional`` for gradients."""
        model, memories = self.config.model, self.settings.memories
        which = int(torch.randint(len(memories), (), generator=run.generator(step, 0, "memory")))
        return Rollout(
            self.network.module,
            parse_memory(memories[which]),
            self.schedule,
            text,
            [int(run.generator(step, s, "noise").initial_seed() % 2**31) for s in samples],
            model.height,
            model.width,
            chunk=model.chunk,
            grad_chunks=self.settings.gradient_chunks,
            functional=functional,
            keep=self.clip_frames,
            dtype=run.dtype,
            **self.remembering(),
        )

    def make(self, run: Run, step: int, samples: range, grad: bool) -> tuple[Clip, Tensor]:
        """The clip to learn from, and the text that holds in it."""
        text = self.text(self.prompts.captions(samples), run.device)
        rollout = self.rollout(run, step, samples, text, functional=grad)
        size = self.config.model.frames
        clips = 1 + (self.settings.frames - size) // (size - OVERLAP)
        chosen = 1 + int(torch.randint(clips, (), generator=run.generator(step, 0, "clips")))
        seed = run.config.run.seed
        for _ in range(chosen - 1):  # what is remembered is what inference would remember
            rollout.clip(len(self.schedule) - 1, size, OVERLAP, grad=False)
        exit = shared_exit(seed, step, len(self.schedule))
        return rollout.clip(exit, size, OVERLAP, grad=grad, reencode=self.reencode), text

    def sample(self, run: Run) -> Image.Image | None:
        captions = self.prompts.held_out()[:4]
        made = self._takes(run, captions, 45)
        pictures = None if self.decode is None else self.decode(made)
        return strip(latent_pictures(made) if pictures is None else pictures, 12)

    def _takes(self, run: Run, captions: Sequence[str], frames: int) -> Tensor:
        s = self.settings
        with self.network.averaged() as module:
            return few_step_takes(
                run, self.config, module, self.text, captions, s.memories[0], frames, s.timesteps, s.shift
            )

    def check(self, run: Run) -> Mapping[str, Figure]:
        """Whether long takes stay what they are: the spread of the latents at the end by that at the beginning, and in
        the pocket world, what its readers see."""
        captions = self.prompts.held_out()[:8]
        made = self._takes(run, captions, 240)
        spread = made.float().std(dim=(1, 2, 3, 4)).mean()
        ends = made[:, -21:].float().std(dim=(1, 2, 3, 4)).mean()
        ratio = max(float(ends / spread), float(spread / ends))
        figures = {
            "spread": Figure(ratio, 1.1, "lower", "deviation of latents in the last 5 of 60 s and in all, ratio")
        }
        if self.decode is not None and self.config.data.source == "world":
            from longtake.training.world_check import read_takes

            figures |= read_takes(self.decode(made[:, -24:]), captions)
        return figures

    def outputs(self, run: Run) -> Mapping[str, Any]:
        return outputs_of(run, self.config, self.network)


def _autoencoder(
    stage: DmdStage, run: Run
) -> tuple[Callable[[Tensor], Tensor | None] | None, Callable[[Tensor], Tensor] | None]:
    """How latents become pictures, and how the first latent of an overlap becomes one of an image; None without an
    autoencoder."""
    config = stage.config
    if config.data.source == "world":
        from longtake.training.worlddata import WorldSource, trained_vae

        vae = trained_vae(run, config)
        return WorldSource(vae, config, config.model.frames, run.batch).decode, partial(image_latent, vae)
    folder = components_folder(config.model)
    if folder is None or not (folder / "vae").is_dir():
        return None, None
    from diffusers import AutoencoderKLWan

    loaded = cast(AutoencoderKLWan, AutoencoderKLWan.from_pretrained(folder, subfolder="vae"))
    loaded = loaded.to(run.device).eval().requires_grad_(False)
    return None, partial(image_latent, loaded)

"""The teacher: a bidirectional video model by flow matching over whole clips, with captions left out now and then."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor

from longtake.training.config import Config
from longtake.training.models import text_embedder, trained_transformer, without_lora
from longtake.training.network import Network
from longtake.training.run import Run
from longtake.training.sources import ClipSource, make_source
from longtake.training.stage import Figure, Stage

LEVELS = (0.3, 0.6, 0.9)
"""Noise levels at which the check measures."""


class TeacherStage(Stage):
    """Flow matching (Lipman et al., arXiv 2210.02747) as in Wan (arXiv 2503.20314).

    With clean latents x, noise e and a level s the input is (1 - s) x + s e at timestep 1000 s, and the target e - x.
    s = shift u / (1 + (shift - 1) u) with u uniform. A share of the captions is left out, so that guidance is possible.

    A share of the budget may go to the clips' first chunks alone, as Wan begins with pictures: many more scenes and
    captions are seen for the same work.
    """

    name = "teacher"
    title = "a bidirectional model by flow matching over whole clips"
    compiles = True

    def needs(self) -> tuple[str, ...]:
        return self.config.parts_trained

    def check_config(self) -> None:
        source = self.config.data.source
        if source == "prompts":
            raise ValueError("The stage 'teacher' learns from clips, and data.source prompts has none: use latents.")

    def build(self, run: Run) -> None:
        if not run.for_export:
            self.source = make_source(self.config, run)
            self.text = text_embedder(self.config, run)
            self.openings = self._openings(run)
        self.network = run.network("transformer", trained_transformer(self.config.model))

    def _openings(self, run: Run) -> ClipSource | None:
        """Clips of one chunk, where a source can make such."""
        if self.config.teacher.opening_share and self.config.data.source == "world":
            from longtake.training.worlddata import WorldSource

            assert isinstance(self.source, WorldSource)
            batch = run.batch * self.config.teacher.opening_batch
            return WorldSource(self.source.vae, self.config, self.config.model.chunk, batch)
        return None

    def _batch(self, run: Run, samples: range) -> tuple[range, Tensor, list[str]]:
        """What a part of a step is trained on: numbers, clean latents and captions."""
        settings, source = self.config.teacher, self.source
        if run.share >= settings.opening_share:
            return samples, *source.batch(run.clips(samples, source.count), run.device)
        numbers = range(samples.start * settings.opening_batch, samples.stop * settings.opening_batch)
        source = self.openings or source
        clean, captions = source.batch(run.clips(numbers, source.count), run.device)
        return numbers, clean[:, : self.config.model.chunk], captions

    def step(self, run: Run, step: int) -> Mapping[str, Tensor]:
        total = torch.zeros((), device=run.device)
        for part in run.parts(step):
            samples, clean, captions = self._batch(run, part)
            sigma, kept, noise = draw(run, self.config, step, samples, clean.shape[1:])
            text = self.text([c if keep else "" for c, keep in zip(captions, kept, strict=True)], run.device)
            with run.autocast():
                loss = flow_error(self.network.module, clean, noise.to(run.device), sigma.to(run.device), text).mean()
            run.backward(loss)
            total += loss.detach() / self.config.run.accumulate
        return {"flow": total}

    def sample(self, run: Run) -> Image.Image | None:
        clean, captions = self.source.held_out(run.device)
        clean, captions = clean[:4], captions[:4]
        settings = self.config.teacher
        noise = torch.randn(clean.shape).to(run.device)
        text, empty = self.text(captions, run.device), self.text([""] * len(captions), run.device)
        with self.network.averaged() as module, run.autocast():
            made = euler(module, noise, text, empty, settings.guidance, settings.shift, settings.sample_steps)
        pictures = self.source.decode(made)
        return strip(latent_pictures(made) if pictures is None else pictures)

    def check(self, run: Run) -> Mapping[str, Figure]:
        clean, captions = self.source.held_out(run.device)
        noise = torch.randn(clean.shape).to(run.device)
        text = self.text(captions, run.device)
        wrong = self.text([*captions[1:], captions[0]], run.device)
        variance = float(clean.float().var())
        figures, right_sum, wrong_sum = {}, 0.0, 0.0
        with self.network.averaged() as module, run.autocast():
            for level in LEVELS:
                sigma = torch.full((len(clean),), level, device=run.device)
                error = float(flow_error(module, clean, noise, sigma, text).mean())
                right_sum += error
                wrong_sum += float(flow_error(module, clean, noise, sigma, wrong).mean())
                # the best that can be done knowing of the data only its variance: Var(e - x | x_t) of a Gaussian
                plain = variance / (variance * (1 - level) ** 2 + level**2)
                figures[f"error_{level:g}"] = Figure(
                    error / plain, 0.9, "lower", "error of the flow, as a share of knowing the variance alone"
                )
        figures["caption"] = Figure(
            wrong_sum / right_sum, 1.0, "higher", "error with wrong captions by that with right ones"
        )
        return figures

    def outputs(self, run: Run) -> Mapping[str, Any]:
        return outputs_of(run, self.config, self.network)


def outputs_of(run: Run, config: Config, network: Network) -> Mapping[str, Any]:
    """What an export of a transformer writes: it, and all other parts if this run has trained them."""
    with network.averaged() as module:
        weights = {n: t.clone() for n, t in module.state_dict().items()}
    network.module.load_state_dict(weights)
    made: dict[str, Any] = {
        "transformer": without_lora(network.module),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=getattr(config.stage(run.name), "shift", 5.0)),
    }
    if config.data.source == "world" and config.model.text == "stage":
        from longtake.training.text_stage import trained_text
        from longtake.training.worlddata import trained_vae

        made["vae"] = trained_vae(run, config)
        made["tokenizer"], made["text_encoder"] = trained_text(run, config)
    return made


def draw(run: Run, config: Config, step: int, samples: range, shape: torch.Size) -> tuple[Tensor, list[bool], Tensor]:
    """What a step draws for its samples: levels float32 [n], whether the caption is kept, noise [n, *shape]."""
    shift, dropout = config.teacher.shift, config.teacher.text_dropout
    levels, kept, noise = [], [], []
    for sample in samples:
        g = run.generator(step, sample)
        u, v = torch.rand(2, generator=g).tolist()
        levels.append(shift * u / (1 + (shift - 1) * u))
        kept.append(v >= dropout)
        noise.append(torch.randn(shape, generator=g))
    return torch.tensor(levels), kept, torch.stack(noise)


def flow_error(module: torch.nn.Module, clean: Tensor, noise: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
    """The squared error of the predicted flow, mean per clip: float32 [n].

    Args:
        module: a ``WanTransformer3DModel``.
        clean, noise: [n, frames, channels, h, w].
        sigma: levels [n].
        text: embeddings [n, tokens, dim].
    """
    s = sigma.view(-1, 1, 1, 1, 1)
    noisy = (1 - s) * clean + s * noise
    flow = predict(module, noisy, sigma, text)
    return (flow.float() - (noise - clean)).square().mean(dim=(1, 2, 3, 4))


def predict(module: torch.nn.Module, noisy: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
    """The flow e - x that the model predicts: [n, frames, channels, h, w]."""
    made = module(noisy.transpose(1, 2), 1000 * sigma, text, return_dict=False)[0]
    return made.transpose(1, 2)


def euler(
    module: torch.nn.Module, noise: Tensor, text: Tensor, empty: Tensor, guidance: float, shift: float, steps: int
) -> Tensor:
    """Clips from noise by Euler steps along the flow, with classifier-free guidance (arXiv 2207.12598)."""
    u = torch.linspace(1, 0, steps + 1)
    sigmas = (shift * u / (1 + (shift - 1) * u)).tolist()
    x = noise
    both = torch.cat([text, empty])
    for now, later in pairwise(sigmas):
        sigma = torch.full((2 * len(x),), now, device=x.device)
        flow, plain = predict(module, torch.cat([x, x]), sigma, both).float().chunk(2)
        x = x + (later - now) * (plain + guidance * (flow - plain))
    return x


def latent_pictures(latents: Tensor) -> Tensor:
    """Latents as pictures where there is no decoder: the first three channels, uint8 [n, frames, h * 8, w * 8, 3]."""
    three = latents[:, :, :3].float().cpu()
    three = torch.nn.functional.pad(three, (0, 0, 0, 0, 0, 3 - three.shape[2]))
    pixels = (three.permute(0, 1, 3, 4, 2) * 0.25 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return pixels.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)


def strip(pictures: Tensor, most: int = 8) -> Image.Image:
    """A contact sheet: one row per clip, up to ``most`` pictures over its length."""
    chosen = np.linspace(0, pictures.shape[1] - 1, min(most, pictures.shape[1])).round().astype(int)
    rows = pictures[:, torch.from_numpy(chosen)]
    n, columns, height, width, _ = rows.shape
    grid = rows.permute(0, 2, 1, 3, 4).reshape(n * height, columns * width, 3)
    return Image.fromarray(grid.numpy())

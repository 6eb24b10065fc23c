"""The first stages of the pocket model: its autoencoder, a tiny `AutoencoderKLWan`, and that one's decoder alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from torch import Tensor

from longtake.training.clip_vae import decode_clip, encode_clip
from longtake.training.run import Run
from longtake.training.sections import Decoder, Reconstruction
from longtake.training.stage import Figure, Stage
from longtake.training.teacher import strip
from longtake.training.worlddata import (
    HELD_OUT,
    PIXELS,
    WorldClips,
    as_input,
    decoder_of,
    measured,
    new_vae,
    world_size,
)


class AutoencoderStage(Stage):
    """A variational autoencoder on clips long enough that its causal receptive field is trained.

    The loss is L1 + L2 + half the L1 of the spatial gradients, pixels on a subject counting several times, + KL. Most
    samples are crops near a subject; in every fourth step, whole clips.
    """

    name = "autoencoder"
    title = "the pocket model's autoencoder, on rendered clips"
    splits = False  # whole clips go through its layers, not through its forward

    @property
    def settings(self) -> Reconstruction:
        """What it is shown, and what counts."""
        return self.config.autoencoder

    def check_config(self) -> None:
        height, width = world_size(self.config)
        crop, frames = self.settings.crop, self.settings.frames
        most = min(height, width)  # of the picture
        if crop % PIXELS or crop > most:
            raise ValueError(f"{self.name}.crop must be a multiple of {PIXELS} of at most {most} pixels, not {crop}.")
        if frames % 4 != 1:
            raise ValueError(f"{self.name}.frames must be a multiple of 4 and one more, like 25, not {frames}.")
        if self.config.data.source != "world":
            raise ValueError(f"The stage {self.name!r} is trained on the pocket world: set data.source to world.")

    def build(self, run: Run) -> None:
        stage, data = self.settings, self.config.data
        part, fewer = len(run.samples(0)) // self.config.run.accumulate, self._fewer()
        if part % fewer:
            raise ValueError(
                f"In steps of whole clips one sample of {fewer} is used: samples per process and part must be a "
                f"multiple of that, not {part}; set {self.name}.batch, or a larger {self.name}.crop."
            )
        if not run.for_export:
            place = (run.batch, data.cache, data.reuse)
            size = world_size(self.config)
            self.clips = WorldClips(stage.frames, size, data.level, *place, stage.cuts, run.device)
        vae = new_vae(self.config)
        for p in vae.parameters():
            if p.ndim == 5:  # what bfloat16 convolutions want, on a CPU and on a GPU
                p.data = p.data.contiguous(memory_format=torch.channels_last_3d)
        self._networks(run, vae)

    def _networks(self, run: Run, vae: AutoencoderKLWan) -> None:
        self.network, self.vae = run.network("vae", vae), vae

    def step(self, run: Run, step: int) -> Mapping[str, Tensor]:
        whole = step % self.settings.whole_every == self.settings.whole_every - 1
        sums: dict[str, Tensor] = {}
        for samples in run.parts(step):
            video, cover, noise = self._batch(run, step, samples, whole)
            losses = self._losses(run, video, cover, noise)
            run.backward(self._total(losses))
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + loss.detach() / self.config.run.accumulate
        return sums

    def _batch(self, run: Run, step: int, samples: range, whole: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Video [n, 3, frames, h, w] in [-1, 1], cover [n, 1, ...] in [0, 1], and noise for each one's latents."""
        height, width = world_size(self.config)
        crop = self.settings.crop
        # a whole clip is as much work as several crops: of the same samples, every so many
        fewer = self._fewer() if whole else 1
        videos, covers, noise = [], [], []
        for sample in samples[::fewer]:  # the same whatever the parts, as they are multiples of it
            g = run.generator(step, sample)
            clip = self.clips.sample(sample)
            video, cover = clip.video, clip.cover
            if not whole:
                top, left = _corner(clip.middles, crop, (height, width), g)
                video, cover = (x[..., top : top + crop, left : left + crop] for x in (video, cover))
            videos.append(video)
            covers.append(cover)
            latents = 1 + (len(video) - 1) // 4, video.shape[-2] // PIXELS, video.shape[-1] // PIXELS
            noise.append(torch.randn(self.config.model.channels, *latents, generator=g))
        video = as_input(torch.stack(videos)).contiguous(memory_format=torch.channels_last_3d)
        return video, torch.stack(covers).transpose(1, 2).float() / 255, noise

    def _losses(self, run: Run, video: Tensor, cover: Tensor, noise: list[Tensor]) -> dict[str, Tensor]:
        with run.autocast():
            mean, logvar = (x.float() for x in encode_clip(self.vae, video))
            latents = mean + torch.exp(0.5 * logvar) * torch.stack(noise).to(run.device)
            rebuilt = self._rebuilt(latents, video, cover)
        return {**rebuilt, "kl": 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()}

    def _rebuilt(self, latents: Tensor, video: Tensor, cover: Tensor) -> dict[str, Tensor]:
        """The loss of what is made of latents, and its PSNR."""
        out = decode_clip(self.vae, latents).float()
        weight = 1 + (self.settings.moving - 1) * cover
        error = (out.detach().clamp(-1, 1) - video).square().mean() / 4
        return {"rebuilt": reconstruction_loss(out, video, weight), "psnr": -10 * torch.log10(error + 1e-10)}

    def _total(self, losses: Mapping[str, Tensor]) -> Tensor:
        return losses["rebuilt"] + self.config.autoencoder.kl * losses["kl"]

    def _fewer(self) -> int:
        """Of how many samples one is used in steps of whole clips: about as many crops are as much work."""
        height, width = world_size(self.config)
        return max(1, height * width // self.settings.crop**2)

    def sample(self, run: Run) -> Image.Image | None:
        """In pairs of rows: clips that training never sees, and what the autoencoder makes of them."""
        rows = []
        for number in range(3):
            video = self._held_out_clips(run, 49).make(HELD_OUT + number).video
            with self.network.averaged(), torch.no_grad(), run.autocast():
                out = decode_clip(self.vae, encode_clip(self.vae, as_input(video[None]))[0]).float()
            made = ((out[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).transpose(0, 1)
            rows += [x.permute(0, 2, 3, 1).cpu() for x in (video, made)]
        return strip(torch.stack(rows))

    def _held_out_clips(self, run: Run, frames: int) -> WorldClips:
        return WorldClips(frames, world_size(self.config), self.config.data.level, 1, 1, 1, device=run.device)

    @torch.no_grad()
    def check(self, run: Run) -> Mapping[str, Figure]:
        """Reconstruction of unseen clips of ten seconds: whole, on subjects, in the first second and in the last."""
        clips = self._held_out_clips(run, 161)
        errors: dict[str, list[Tensor]] = {"whole": [], "subject": [], "first": [], "last": []}
        for number in range(6):
            clip = clips.make(HELD_OUT + number)
            video, cover = clip.video, clip.cover
            with self.network.averaged(), run.autocast():
                latents = encode_clip(self.vae, as_input(video[None]))[0]
                out = decode_clip(self.vae, latents).float()[0].transpose(0, 1)
            error = (out.clamp(-1, 1) - (video.float() / 127.5 - 1)).square().mean(1, keepdim=True) / 4
            share = cover.float() / 255
            errors["whole"].append(error.mean())
            errors["subject"].append((error * share).sum() / share.sum().clamp(min=1))
            errors["first"].append(error[:16].mean())
            errors["last"].append(error[-16:].mean())
        psnr = {name: float(-10 * torch.log10(torch.stack(e).mean())) for name, e in errors.items()}
        return {
            "psnr": Figure(psnr["whole"], 29.0, "higher", "PSNR of unseen clips of 10 seconds, dB"),
            "psnr_subject": Figure(psnr["subject"], 24.0, "higher", "the same on subjects, dB"),
            "drift": Figure(
                psnr["first"] - psnr["last"], 1.0, "lower", "PSNR in the first second above that in the tenth, dB"
            ),
        }

    def outputs(self, run: Run) -> Mapping[str, Any]:
        with self.network.averaged() as module:
            weights = {n: t.clone() for n, t in module.state_dict().items()}
        self.network.module.load_state_dict(weights)
        return {"vae": measured(self.vae.eval(), self.config)}


class DecoderStage(AutoencoderStage):
    """The autoencoder's decoder alone: a denoiser knows the latents, so the encoder stays as it is.

    Its latents are those of the stage before, with noise of up to a share of their deviation.
    """

    name = "decoder"
    title = "its decoder alone: the latents stay as the other stages know them"

    @property
    def settings(self) -> Decoder:
        """What it is shown, and what counts."""
        return self.config.decoder

    def needs(self) -> tuple[str, ...]:
        return ("autoencoder",)

    def _networks(self, run: Run, vae: AutoencoderKLWan) -> None:
        run.load_previous("autoencoder", "vae", vae)
        run.frozen(vae)
        self.vae, self.network = vae, run.network("vae", decoder_of(vae).requires_grad_(True))

    def _losses(self, run: Run, video: Tensor, cover: Tensor, noise: list[Tensor]) -> dict[str, Tensor]:
        drawn = torch.stack(noise).to(run.device)
        with run.autocast():
            with torch.no_grad():
                latents = encode_clip(self.vae, video)[0].float()
                spread = latents.std((0, 2, 3, 4), keepdim=True)
                # how much: from the noise itself, so that nothing else has to be drawn
                share = torch.special.ndtr(drawn[:, :1, :1, :1, :1]) * self.settings.noise
                latents = latents + share * spread * drawn
            return self._rebuilt(latents, video, cover)

    def _total(self, losses: Mapping[str, Tensor]) -> Tensor:
        return losses["rebuilt"]


def _corner(middles: Tensor, crop: int, size: tuple[int, int], g: torch.Generator) -> tuple[int, int]:
    """Where to cut a crop: as a rule near the middle of what subjects cover in some frame.

    Args:
        middles: of the frames, see ``worlddata.middles``.
        crop: its height and width.
        size: of the picture.
    """
    height, width = size
    frame, near, row, column = torch.rand(4, generator=g).tolist()
    y, x = middles[int(frame * len(middles))].tolist()
    if near < 0.8 and y == y:  # a number
        y, x = y + (row - 0.5) * crop, x + (column - 0.5) * crop
    else:
        y, x = row * height, column * width
    return max(0, min(height - crop, round(y - crop / 2))), max(0, min(width - crop, round(x - crop / 2)))


def reconstruction_loss(out: Tensor, video: Tensor, weight: Tensor) -> Tensor:
    """L1 + L2 + half the L1 of the spatial gradients of the difference, each pixel with its weight.

    Args:
        out, video: [n, 3, frames, h, w].
        weight: [n, 1, frames, h, w].
    """
    difference = out - video
    loss = (weight * difference.abs()).mean() + (weight * difference.square()).mean()
    for dim in (-1, -2):
        loss = loss + 0.5 * (difference.diff(dim=dim).abs() * weight.narrow(dim, 1, weight.shape[dim] - 1)).mean()
    return loss

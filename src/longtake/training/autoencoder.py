"""Stage 1 of the pocket model: its autoencoder, `AutoencoderKLWan` in a tiny configuration.

torchrun --nproc-per-node 2 -m longtake.training.autoencoder --folder runs/pocket --minutes 28
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan

from longtake.pocket.first.world import SIZE, Scenes, render, sample_scenes
from longtake.pocket.model import build_vae
from longtake.training.clip_vae import decode_clip, encode_clip
from longtake.training.loop import Stage, command_line

FRAMES = 25  # shorter clips leave the causal receptive field untrained: colours drift when decoding goes on


class ClipPool:
    """Rendered clips kept in memory and renewed one by one: rendering would cost more than training."""

    def __init__(self, count: int, seed: int, frames: int = FRAMES) -> None:
        self.seed, self.frames, self.next = seed, frames, 0
        self.video = torch.empty(count, frames, 3, SIZE, SIZE, dtype=torch.uint8)
        self.cover = torch.empty(count, frames, 1, SIZE, SIZE, dtype=torch.uint8)
        self.renew(count)

    def renew(self, count: int = 1) -> None:
        """Replaces the ``count`` oldest clips."""
        for start in range(0, count, 8):
            n = min(8, count - start)
            scenes: Scenes = sample_scenes(n, self.seed * 1_000_003 + self.next)
            video, cover = render(scenes, torch.arange(self.frames))
            if self.next % 6 == 0:  # a cut at the start of a latent frame, as a new prompt makes
                cut = 1 + 4 * ((self.next // 6) % (self.frames // 4))
                after, after_cover = render(
                    sample_scenes(n, self.seed * 1_000_003 - 1 - self.next), torch.arange(self.frames)
                )
                video[:, cut:], cover[:, cut:] = after[:, cut:], after_cover[:, cut:]
            where = torch.arange(self.next, self.next + n) % len(self.video)
            self.video[where] = (video * 255).round().to(torch.uint8)
            self.cover[where] = (cover * 255).round().to(torch.uint8)
            self.next += n

    def batch(self, count: int, crop: int, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
        """Clips ``[count, 3, frames, crop, crop]`` in [-1, 1] and cover ``[count, 1, ...]``, crops near the subject."""
        videos, covers = [], []
        for _ in range(count):
            i = rng.randrange(len(self.video))
            top = left = 0
            if crop < SIZE:
                middle = self.cover[i, rng.randrange(self.frames), 0]
                rows, columns = middle.any(1).nonzero(), middle.any(0).nonzero()
                y = int(rows.float().mean()) if len(rows) and rng.random() < 0.8 else rng.randrange(SIZE)
                x = int(columns.float().mean()) if len(columns) and rng.random() < 0.8 else rng.randrange(SIZE)
                top = max(0, min(SIZE - crop, y - crop // 2 + rng.randint(-10, 10)))
                left = max(0, min(SIZE - crop, x - crop // 2 + rng.randint(-10, 10)))
            videos.append(self.video[i, :, :, top : top + crop, left : left + crop])
            covers.append(self.cover[i, :, :, top : top + crop, left : left + crop])
        video = torch.stack(videos).transpose(1, 2).float() / 127.5 - 1
        return video, torch.stack(covers).transpose(1, 2).float() / 255


def reconstruction_loss(out: torch.Tensor, video: torch.Tensor, cover: torch.Tensor) -> torch.Tensor:
    """L1 + L2 + half the L1 of spatial gradients, all five times as much on the subject."""
    weight = 1 + 4 * cover
    difference = out - video
    loss = (weight * difference.abs()).mean() + (weight * difference.square()).mean()
    for dim in (-1, -2):
        loss = loss + 0.5 * (difference.diff(dim=dim).abs() * weight.narrow(dim, 1, weight.shape[dim] - 1)).mean()
    return loss


def psnr(out: torch.Tensor, video: torch.Tensor, weight: torch.Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB of videos in [-1, 1], optionally weighted (``weight`` broadcasts)."""
    error = (out.clamp(-1, 1) - video).square() / 4
    if weight is not None:
        error = error * weight / weight.expand_as(error).mean()
    return float(-10 * torch.log10(error.mean()))


@torch.no_grad()
def check(vae: AutoencoderKLWan, frames: int = 129, seed: int = 99) -> dict[str, float]:
    """Reconstruction of unseen clips much longer than those trained on, whole and on the subject, early and late."""
    video, cover = render(sample_scenes(6, seed), torch.arange(frames))
    video, cover = video.transpose(1, 2) * 2 - 1, cover.transpose(1, 2)
    out = decode_clip(vae, encode_clip(vae, video)[0])
    return {
        "psnr": psnr(out, video),
        "psnr_subject": psnr(out, video, cover),
        "psnr_first_second": psnr(out[:, :, :16], video[:, :, :16]),
        "psnr_last_second": psnr(out[:, :, -16:], video[:, :, -16:]),
    }


def train(folder: Path, minutes: float, crops: int = 8, lr: float = 2e-3, pool: int = 256, kl: float = 5e-4) -> Stage:
    """Trains for ``minutes``, continuing what is in ``folder``; returns the stage, its averaged weights in place."""
    torch.manual_seed(0)
    vae = build_vae()
    for p in vae.parameters():
        if p.ndim == 5:  # oneDNN's bfloat16 convolutions want channels last
            p.data = p.data.contiguous(memory_format=torch.channels_last_3d)
    stage = Stage("autoencoder", folder, {"vae": vae}, minutes, lr=lr, adam_lr=2e-3, ema=0.99)
    if stage.done:
        stage.copy_ema()
        return stage
    clips = ClipPool(pool, seed=1 + stage.rank + 1000 * stage.steps)
    rng = random.Random(stage.rank + 7919 * stage.steps)
    torch.manual_seed(stage.rank + 7919 * stage.steps)
    stage.start_clock()
    while not stage.done:
        whole = stage.steps % 4 == 3
        video, cover = clips.batch(max(1, crops // 4), SIZE, rng) if whole else clips.batch(crops, SIZE // 2, rng)
        video = video.contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast("cpu", torch.bfloat16):
            mean, logvar = encode_clip(vae, video)
            mean, logvar = mean.float(), logvar.float()
            latents = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
            out = decode_clip(vae, latents).float()
        rebuilt = reconstruction_loss(out, video, cover)
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        (rebuilt + kl * divergence).backward()
        with torch.no_grad():
            error = F.mse_loss(out.clamp(-1, 1), video) / 4
        stage.update({"loss": rebuilt.item(), "kl": divergence.item(), "psnr": float(-10 * error.log10())})
        clips.renew(1)
        if stage.rank == 0 and stage.steps % 500 == 0:
            print(f"step {stage.steps}, {stage.spent / 60:.1f} min: {check(vae)}", flush=True)
    stage.copy_ema()
    return stage


def main() -> None:
    """Command line of this stage."""
    parser = command_line(__doc__, minutes=28)
    parser.add_argument("--crops", type=int, default=8)
    args = parser.parse_args()
    stage = train(args.folder, args.minutes, args.crops)
    if stage.rank == 0:
        print(check(stage.modules["vae"]))


if __name__ == "__main__":
    main()

"""Training sequences for the denoiser: captioned latents of the pocket world, kept in memory and renewed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

from longtake.pocket.first.words import COLORS, MOTIONS, PATTERNS, PLACES, SHAPES, caption
from longtake.pocket.first.world import Scenes, render, sample_scenes
from longtake.pocket.model import CHUNK, build_vae
from longtake.training.clip_vae import encode_clip
from longtake.training.loop import load_averaged

CHUNKS = 8  # per training sequence
_WARM = 7  # latents after which the encoder has forgotten that its clip had a beginning


def describe(scenes: Scenes, index: int, rng: random.Random | None = None) -> str:
    """A caption of one scene of a batch; without ``rng`` the plainest."""

    def name(group: dict[str, tuple[str, ...]], value: torch.Tensor) -> str:
        return list(group)[int(value[index])]

    return caption(
        name(COLORS, scenes.color),
        name(SHAPES, scenes.shape),
        name(PATTERNS, scenes.pattern),
        name(MOTIONS, scenes.motion),
        name(PLACES, scenes.place),
        rng,
    )


def load_vae(folder: Path) -> AutoencoderKLWan:
    """The trained autoencoder of ``folder``, with the latents' mean and deviation measured and in its configuration.

    Raises:
        FileNotFoundError: if the autoencoder stage has not run.
    """
    if (folder / "vae" / "config.json").exists():
        vae: AutoencoderKLWan = AutoencoderKLWan.from_pretrained(folder / "vae")
        return vae.eval().requires_grad_(False)
    vae = build_vae()
    load_averaged(folder / "autoencoder.pt", {"vae": vae})
    vae.eval().requires_grad_(False)
    parts = [render(sample_scenes(16, 5 + i), torch.arange(49))[0] for i in range(6)]
    latents = torch.cat([encode_clip(vae, video.transpose(1, 2) * 2 - 1)[0] for video in parts])
    vae.register_to_config(
        latents_mean=latents.mean((0, 2, 3, 4)).tolist(), latents_std=latents.std((0, 2, 3, 4)).tolist()
    )
    return vae


def encode(vae: AutoencoderKLWan, video: torch.Tensor) -> torch.Tensor:
    """Normalised latents ``[batch, frames, channels, h, w]`` of video ``[batch, frames, 3, H, W]`` in [0, 1]."""
    with torch.no_grad():
        mean = encode_clip(vae, video.transpose(1, 2) * 2 - 1)[0].transpose(1, 2)
    center = torch.tensor(vae.config.latents_mean).view(1, 1, -1, 1, 1)
    return (mean - center) / torch.tensor(vae.config.latents_std).view(1, 1, -1, 1, 1)


def change(scenes: Scenes, seed: int) -> Scenes:
    """What a new prompt may ask for: each told attribute changed with probability 0.4, hidden ones kept."""
    other = sample_scenes(len(scenes), seed)
    g = torch.Generator().manual_seed(seed + 1)
    result = scenes.select(torch.arange(len(scenes)))
    for name in ("place", "shape", "color", "pattern", "motion"):
        flip = torch.rand(len(scenes), generator=g) < 0.4
        setattr(result, name, torch.where(flip, getattr(other, name), getattr(scenes, name)))
    return result


@dataclass
class Sequences:
    """A batch of training sequences: latents ``[batch, CHUNKS * 3, channels, height, width]``, one caption per chunk,
    and whether chunk 1 onwards is from much later than chunk 0."""

    latents: torch.Tensor
    captions: list[list[str]]
    gap: list[bool]


class SequencePool:
    """Sequences of :data:`CHUNKS` chunks: from the start of a take, and from late in it (sink chunk, then a gap).

    One group in four has a prompt change at a chunk boundary.
    """

    def __init__(self, vae: AutoencoderKLWan, count: int, seed: int) -> None:
        self.vae, self.seed, self.next = vae, seed, 0
        self.rng = random.Random(seed)
        self.latents: list[torch.Tensor] = []
        self.captions: list[list[str]] = []
        self.gap: list[bool] = []
        self.limit = count
        while len(self.latents) < min(count, 160):  # the rest comes while training goes on
            self.renew()

    def renew(self, count: int = 4) -> None:
        """Adds ``count`` new sequences; the oldest go."""
        seed = self.seed * 1_000_003 + self.next
        self.next += count
        scenes = sample_scenes(count, seed)
        after = change(scenes, seed + 17)
        switched = self.rng.random() < 0.25
        cut = self.rng.randrange(1, CHUNKS) if switched else CHUNKS
        gap = self.rng.random() < 0.5
        length = 1 + 4 * (CHUNKS * CHUNK - 1)
        if gap:
            # chunk 0 from the start of the take; the rest from a clip of which the first seconds are dropped
            start = encode(self.vae, render(scenes, torch.arange(1 + 4 * (CHUNK - 1)))[0])
            lead = 4 * _WARM - 3
            first = lead + 4 * CHUNK * (cut - 1)
            times = self.rng.randrange(100, 4000) + torch.arange(lead + 4 * CHUNK * (CHUNKS - 1))
            latents = torch.cat([start, self._clip(scenes, after, times, first)[:, _WARM:]], 1)
        else:
            latents = self._clip(scenes, after, torch.arange(length), 1 + 4 * (CHUNK * cut - 1))
        for i in range(count):
            before = describe(scenes, i, self.rng)
            later = describe(after, i, self.rng) if switched else before
            self.latents.append(latents[i].to(torch.bfloat16))
            self.captions.append([before] * cut + [later] * (CHUNKS - cut))
            self.gap.append(gap)
        excess = max(0, len(self.latents) - self.limit)
        del self.latents[:excess], self.captions[:excess], self.gap[:excess]

    def _clip(self, scenes: Scenes, after: Scenes, times: torch.Tensor, first: int) -> torch.Tensor:
        video = render(scenes, times)[0]
        if first < len(times):
            video[:, first:] = render(after, times[first:])[0]
        return encode(self.vae, video)

    def batch(self, count: int) -> Sequences:
        """``count`` random sequences."""
        chosen = [self.rng.randrange(len(self.latents)) for _ in range(count)]
        return Sequences(
            torch.stack([self.latents[i] for i in chosen]).float(),
            [self.captions[i] for i in chosen],
            [self.gap[i] for i in chosen],
        )

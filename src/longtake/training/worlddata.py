"""The pocket world as training data: rendered clips for the autoencoder, and their latents for everything after it.

Rendering and encoding cost about as much as training does, so clips are kept for a while and used several times. Which
clip a sample gets follows from its number alone: any number of processes, and any interruption, see the same data.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from longtake.pocket.model import build_vae
from longtake.pocket.world import Rendered, Scenes, caption, change, render, sample_scenes
from longtake.training.checkpoint import newest
from longtake.training.clip_vae import decode_clip, encode_clip
from longtake.training.config import Config
from longtake.training.keyed import generator
from longtake.training.sources import ClipSource

if TYPE_CHECKING:
    from longtake.training.run import Run

PIXELS = 8  # per latent
FRAMES = 4  # per latent frame
WARM = 10  # latent frames after which the encoder has forgotten that its clip had a beginning
HELD_OUT = 1 << 40  # numbers of clips from here on are never trained on
_LATEST = 16 * 3600  # a clip begins within the first hour of a scene
_Item = TypeVar("_Item")


def scene_of(number: int, level: str) -> Scenes:
    """The scene of a clip by its number."""
    return sample_scenes(1, int(generator(0, "scene", number).initial_seed() % 2**31), level)


class Shelf(Generic[_Item]):
    """Keeps what has the highest numbers.

    Args:
        make: makes an item of its number.
        size: how many are kept.
    """

    def __init__(self, make: Callable[[int], _Item], size: int) -> None:
        self._make, self._size = make, size
        self._kept: dict[int, _Item] = {}

    def __getitem__(self, number: int) -> _Item:
        if number in self._kept:
            return self._kept[number]
        made = self._kept[number] = self._make(number)
        while len(self._kept) > self._size:
            del self._kept[min(self._kept)]  # numbers only rise: the smallest is the first that nobody asks for again
        return made


def clip_number(sample: int, batch: int, window: int, reuse: int) -> int:
    """The clip that a sample of the run gets.

    Each place in the batch has clips of its own, so that processes do not make each other's. Of these a new one comes
    every ``reuse`` steps, and a sample takes any of the newest ``window / batch``.

    Args:
        sample: its number in the run, ``step * batch + place``.
        batch: samples per step.
        window: clips in use at a time, over all places.
        reuse: how often a clip is used, on average.
    """
    step, place = divmod(sample, batch)
    newest = step // reuse
    kept = max(1, min(window // batch, newest + 1))
    back = int(torch.randint(kept, (), generator=generator(0, "clip", sample)))
    return (newest - back) * batch + place


@dataclass(frozen=True)
class WorldClip:
    """A rendered clip.

    Attributes:
        video: uint8 ``[frames, 3, h, w]``.
        cover: how much subjects cover, uint8 ``[frames, 1, h, w]``.
        middles: of what they cover, see :func:`middles`.
    """

    video: Tensor
    cover: Tensor
    middles: Tensor


class WorldClips:
    """Rendered clips of the world.

    Args:
        frames: of a clip.
        size: (height, width) in pixels.
        level: of the scenes, see ``sample_scenes``.
        batch, window, reuse: see :func:`clip_number`.
        cuts: share of the clips with a cut to another scene at the start of a latent frame, as a new prompt makes.
        device: where clips are painted, and kept.
    """

    def __init__(
        self,
        frames: int,
        size: tuple[int, int],
        level: str,
        batch: int,
        window: int,
        reuse: int,
        cuts: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.frames, self.size, self.level, self.cuts, self.device = frames, size, level, cuts, torch.device(device)
        self._place = (batch, window, reuse)
        self._shelf = Shelf(self.make, window)

    def make(self, number: int) -> WorldClip:
        """The clip of a number."""
        g = generator(0, "clip frames", number)
        start = int(torch.randint(_LATEST, (), generator=g))
        video, cover = self._render(number, start)
        if float(torch.rand((), generator=g)) < self.cuts and self.frames > FRAMES:
            cut = 1 + FRAMES * int(torch.randint((self.frames - 1) // FRAMES, (), generator=g))
            video[cut:], cover[cut:] = (x[cut:] for x in self._render(-1 - number, start))
        return WorldClip(video, cover, middles(cover))

    def _render(self, number: int, start: int) -> tuple[Tensor, Tensor]:
        times = torch.arange(start, start + self.frames)
        made = painted(scene_of(number, self.level), times, self.size, self.device)
        cover = made.masks.sum(2, keepdim=True).clamp(max=1)
        return (255 * made.video[0]).round().to(torch.uint8), (255 * cover[0]).round().to(torch.uint8)

    def sample(self, sample: int) -> WorldClip:
        """The clip of a sample of the run."""
        return self._shelf[clip_number(sample, *self._place)]


def painted(scene: Scenes, times: Tensor, size: tuple[int, int], device: torch.device) -> Rendered:
    """Renders in float32, also within autocast."""
    with torch.autocast(device.type, enabled=False):
        return render(scene, times, size, device)


def middles(cover: Tensor) -> Tensor:
    """The middle of what is covered in every frame, on the host.

    Args:
        cover: ``[frames, 1, h, w]``.

    Returns:
        Rows and columns, float32 ``[frames, 2]``; not a number where nothing is.
    """
    shown = (cover[:, 0] > 0).float()
    rows, columns = (torch.arange(n, device=cover.device).float() for n in shown.shape[1:])
    down, across = shown.amax(2), shown.amax(1)
    found = torch.stack([(down * rows).sum(1) / down.sum(1), (across * columns).sum(1) / across.sum(1)], 1)
    return found.cpu()


def world_size(config: Config) -> tuple[int, int]:
    """Height and width in pixels of what the model shows."""
    return PIXELS * config.model.height, PIXELS * config.model.width


@torch.no_grad()
def measured(vae: AutoencoderKLWan, config: Config, clips: int = 32, frames: int = 25) -> AutoencoderKLWan:
    """The autoencoder with its latents' mean and deviation in its configuration, measured on clips of their own."""
    device = next(vae.parameters()).device
    source = WorldClips(frames, world_size(config), config.data.level, 1, 1, 1, device=device)
    found = []
    for number in range(clips):
        video = source.make(2 * HELD_OUT + number).video
        found.append(encode_clip(vae, as_input(video[None]))[0].float().cpu())
    latents = torch.cat(found)
    vae.register_to_config(
        latents_mean=latents.mean((0, 2, 3, 4)).tolist(), latents_std=latents.std((0, 2, 3, 4)).tolist()
    )
    return vae


def as_input(video: Tensor) -> Tensor:
    """uint8 [n, frames, 3, h, w] as the autoencoder takes it: [n, 3, frames, h, w] in [-1, 1]."""
    return video.transpose(1, 2).float() / 127.5 - 1


def new_vae(config: Config) -> AutoencoderKLWan:
    """The autoencoder, untrained."""
    channels, stage = config.model.channels, config.autoencoder
    return build_vae(
        z_dim=channels,
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
        base_dim=stage.base_dim,
        decoder_base_dim=stage.decoder_base_dim,
    )


def decoder_of(vae: AutoencoderKLWan) -> nn.ModuleDict:
    """What of it turns latents into pictures."""
    return nn.ModuleDict({"post_quant_conv": vae.post_quant_conv, "decoder": vae.decoder})


def trained_vae(run: Run, config: Config) -> AutoencoderKLWan:
    """The autoencoder of the finished stage, on the run's device, with its latents measured.

    Its decoder is that of the stage ``decoder`` if that is finished too.

    Raises:
        ValueError: if the stage ``autoencoder`` is not finished here.
    """
    vae = new_vae(config)
    run.load_previous("autoencoder", "vae", vae)
    tuned = newest(run.folder, "decoder")
    if tuned is not None and tuned[1]["finished"]:
        run.load_previous("decoder", "vae", decoder_of(vae))
    return measured(vae.requires_grad_(False).eval().to(run.device), config)


class WorldSource(ClipSource):
    """Latents of the world's clips: those from the beginning of a take, as an autoencoder gives the first frame of a
    video its own latent, and those from the middle of one.

    Args:
        vae: on the device where clips are encoded; its configuration has the latents' mean and deviation.
        config: sizes and data.
        frames: latent frames of a clip.
        batch: samples per step of the run.
        warm: latent frames that the encoder sees before a take from the middle of a scene.
    """

    count: int | None = None  # it never ends

    def __init__(self, vae: AutoencoderKLWan, config: Config, frames: int, batch: int, warm: int = WARM) -> None:
        self.vae, self.config, self.frames, self.warm = vae, config, frames, warm
        self.device = next(vae.parameters()).device
        data = config.data
        self._place = (batch, max(data.cache, batch), data.reuse)
        self._shelf = Shelf(self._latents, max(data.cache, batch))
        shape = (1, -1, 1, 1)
        self.mean, self.std = (torch.tensor(x).view(shape) for x in (vae.config.latents_mean, vae.config.latents_std))

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Normalised latents [1 + n, channels, h, w] of frames [1 + 4 n, 3, H, W] in [0, 1], float32 on the host."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            found = encode_clip(self.vae, video.to(self.device).transpose(0, 1)[None] * 2 - 1)[0]
        return (found[0].transpose(0, 1).float().cpu() - self.mean) / self.std

    def take(self, scenes: Sequence[Scenes], ends: Sequence[int], start: int | None, opening: int = 0) -> Tensor:
        """Latents [frames, channels, h, w] of a take that shows one scene after the other.

        Args:
            scenes: of the world, one each.
            ends: the latent frame at which each ends; the last is all frames.
            start: None for the beginning of a take, else the frame of the world at which its first latent begins, with
                what the encoder saw before.
            opening: for the beginning of a take, the frame of the world that it begins with.
        """
        before = 0 if start is None else self.warm
        frames = 1 + FRAMES * (before + ends[-1] - 1)
        first = opening if start is None else start - 1 - FRAMES * (before - 1)
        times = first + torch.arange(frames)
        parts, begin = [], 0
        for scene, end in zip(scenes, ends, strict=True):
            stop = 1 + FRAMES * (before + end - 1)
            parts.append(painted(scene, times[begin:stop], world_size(self.config), self.device).video[0])
            begin = stop
        return self.encode(torch.cat(parts))[before:]

    def _latents(self, number: int) -> tuple[Tensor, Scenes]:
        scene = scene_of(number, self.config.data.level)
        # Half of the clips begin with the scene, half anywhere in its first hour: long takes show all of what it does.
        anywhere, at = torch.rand(2, generator=generator(0, "opening", number)).tolist()
        opening = int(at * _LATEST) if anywhere < 0.5 else 0
        return self.take([scene], [self.frames], None, opening).to(torch.bfloat16), scene

    def batch(self, indices: Sequence[int], device: torch.device) -> tuple[Tensor, list[str]]:
        latents, captions = [], []
        for index in indices:
            found, scene = self._shelf[clip_number(index, *self._place)]
            latents.append(found)
            captions.append(caption(scene, 0, random.Random(f"caption {index}")))
        return torch.stack(latents).float().to(device), captions

    def held_out(self, device: torch.device) -> tuple[Tensor, list[str]]:
        numbers = [HELD_OUT + i for i in range(self.config.data.held_out)]
        made = [self._latents(n) for n in numbers]
        captions = [caption(scene, 0, random.Random(n)) for n, (_, scene) in zip(numbers, made, strict=True)]
        return torch.stack([x for x, _ in made]).float().to(device), captions

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        shown = []
        for clip in latents.float().cpu():
            raw = (clip * self.std + self.mean).to(self.device).transpose(0, 1)[None]
            video = decode_clip(self.vae, raw)[0].transpose(0, 1)
            shown.append(((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
        return torch.stack(shown)


def changed(scene: Scenes, number: int, level: str) -> Scenes:
    """What a new prompt may ask of a scene of a level: told attributes changed, hidden ones kept."""
    return change(scene, int(generator(0, "change", number).initial_seed() % 2**31), level=level)

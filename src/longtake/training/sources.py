"""What is learned from: clips of latents with captions, or prompts alone."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longtake.training.config import Config
from longtake.training.keyed import generator

if TYPE_CHECKING:
    from longtake.training.run import Run


class ClipSource(ABC):
    """Clips of clean latents, normalised as the transformer sees them, with captions.

    Attributes:
        count: how many training clips there are; None: any index is a clip of its own.
    """

    count: int | None

    @abstractmethod
    def batch(self, indices: Sequence[int], device: torch.device) -> tuple[Tensor, list[str]]:
        """Training clips by index, the same for the same index: latents [n, frames, channels, h, w], captions."""

    @abstractmethod
    def held_out(self, device: torch.device) -> tuple[Tensor, list[str]]:
        """Clips that training never sees, in the same form."""

    def decode(self, latents: Tensor) -> Tensor | None:
        """Pictures of latents [n, frames, channels, h, w]: uint8 [n, pictures, h, w, 3] on the host; None: none."""
        return None


class SyntheticSource(ClipSource):
    """Waves that run over the latents: colour, direction and speed are in the caption, phase and size are not.

    Every clip follows from its index. Entries have zero mean and a variance of about one half.

    Args:
        frames, channels, height, width: of the latents.
        clips: how many there are to train with; the held-out ones come after them.
        held_out: how many of those.
    """

    colours = ("red", "green", "blue", "yellow")
    directions = ("left", "right", "up", "down")
    speeds = ("slowly", "quickly")

    def __init__(self, frames: int, channels: int, height: int, width: int, clips: int, held_out: int) -> None:
        self.shape = (frames, channels, height, width)
        self.count: int | None = clips
        self._held_out = held_out

    def clip(self, index: int) -> tuple[Tensor, str]:
        """Latents [frames, channels, h, w] and caption of one clip."""
        frames, channels, height, width = self.shape
        g = generator(0, "wave", index)
        colour, direction, speed = (int(torch.randint(n, (), generator=g)) for n in (4, 4, 2))
        phase, size = torch.rand(2, generator=g).tolist()
        tint = torch.randn(channels, generator=generator(0, "colour", colour))
        tint = tint / tint.square().mean().sqrt()
        t = torch.arange(frames)[:, None, None]
        along = torch.arange(width)[None, None, :] if direction < 2 else torch.arange(height)[None, :, None]
        sign = 1 if direction % 2 else -1
        place = (along - sign * (1 + speed) * t / 3) / (3 + 2 * size) + phase
        wave = (2 * math.pi * place).sin().expand(frames, height, width)
        text = f"a {self.colours[colour]} wave runs {self.directions[direction]} {self.speeds[speed]}"
        return wave[:, None] * tint[:, None, None], text

    def captions(self, held_out: bool = False) -> list[str]:
        """Of all training clips, or of the held-out ones."""
        first, count = (self.count or 0, self._held_out) if held_out else (0, self.count or 0)
        return [self.clip(i)[1] for i in range(first, first + count)]

    def batch(self, indices: Sequence[int], device: torch.device) -> tuple[Tensor, list[str]]:
        latents, captions = zip(*(self.clip(i) for i in indices), strict=True)
        return torch.stack(latents).to(device), list(captions)

    def held_out(self, device: torch.device) -> tuple[Tensor, list[str]]:
        first = self.count or 0
        return self.batch(range(first, first + self._held_out), device)


class LatentFolder(ClipSource):
    """A folder of clips that were encoded before, one safetensors file each; see :func:`write_clip`.

    The last files by name are held out.

    Args:
        folder: of the files.
        shape: (frames, channels, h, w) that clips must have; longer ones are cut to their beginning.
        held_out: how many.

    Raises:
        ValueError: if there are too few files.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int, int], held_out: int) -> None:
        self.folder, self.shape = folder, shape
        files = sorted(folder.glob("*.safetensors"))
        if len(files) <= held_out:
            raise ValueError(
                f"{folder} has {len(files)} .safetensors files of latents, and data.held_out keeps {held_out} from "
                "training: there must be more."
            )
        self._files, self._held = files[: len(files) - held_out], files[len(files) - held_out :]
        self.count: int | None = len(self._files)

    def captions(self, held_out: bool = False) -> list[str]:
        """Of all training clips, or of the held-out ones."""
        return [read_clip(path, self.shape)[1] for path in (self._held if held_out else self._files)]

    def batch(self, indices: Sequence[int], device: torch.device) -> tuple[Tensor, list[str]]:
        return self._read([self._files[i] for i in indices], device)

    def held_out(self, device: torch.device) -> tuple[Tensor, list[str]]:
        return self._read(self._held, device)

    def _read(self, files: Sequence[Path], device: torch.device) -> tuple[Tensor, list[str]]:
        latents, captions = zip(*(read_clip(path, self.shape) for path in files), strict=True)
        return torch.stack(latents).to(device), list(captions)


def write_clip(path: Path, latents: Tensor, caption: str) -> None:
    """Writes a clip for :class:`LatentFolder`: the tensor ``latents`` [frames, channels, h, w], and its caption."""
    from safetensors.torch import save_file

    part = path.with_suffix(".part")
    save_file({"latents": latents.detach().cpu().contiguous()}, part, {"caption": caption})
    part.replace(path)


def read_clip(path: Path, shape: Sequence[int]) -> tuple[Tensor, str]:
    """A clip, float32, cut to the frames of ``shape``, and its caption.

    Raises:
        ValueError: if the file is none, or of another shape.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            latents = file.get_tensor("latents").float()
            caption = (file.metadata() or {}).get("caption", "")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} has no latents that can be read: {' '.join(str(error).split())[:100]}.") from None
    if latents.ndim != 4 or list(latents.shape[1:]) != list(shape[1:]) or len(latents) < shape[0]:
        raise ValueError(f"{path} has latents of {list(latents.shape)}, and the configuration asks for {list(shape)}.")
    return latents[: shape[0]], caption


class PromptFile:
    """Prompts alone, one per line: for stages that make their own clips. The last ones are held out.

    Raises:
        ValueError: if there is no such file, or too few lines.
    """

    def __init__(self, path: Path, held_out: int) -> None:
        from longtake.promptfiles import read_lines

        lines = [line for line in read_lines(path) if line.strip()]
        if len(lines) <= held_out:
            raise ValueError(f"{path} has {len(lines)} prompts, and data.held_out keeps {held_out}: it needs more.")
        self._lines, self._held = lines[: len(lines) - held_out], lines[len(lines) - held_out :]
        self.count = len(self._lines)

    def captions(self, indices: Sequence[int]) -> list[str]:
        """Training prompts by index."""
        return [self._lines[i] for i in indices]

    def held_out(self) -> list[str]:
        """Prompts that training never sees."""
        return list(self._held)


def make_source(config: Config, run: Run | None = None, frames: int | None = None) -> ClipSource:
    """The clips that ``data`` asks for.

    Args:
        config: all settings.
        run: that needs them; the pocket world's are encoded by the autoencoder in its folder.
        frames: latent frames per clip; the model's by default.

    Raises:
        ValueError: if it asks for prompts alone, or for what is not there.
    """
    model, data = config.model, config.data
    shape = (frames or model.frames, model.channels, model.height, model.width)
    if data.source == "synthetic":
        return SyntheticSource(*shape, data.clips, data.held_out)
    if data.source == "latents":
        return LatentFolder(Path(data.path or "."), shape, data.held_out)
    if data.source == "world" and run is not None:
        from longtake.training.worlddata import WorldSource, trained_vae

        return WorldSource(trained_vae(run, config), config, shape[0], run.batch)
    raise ValueError(f"data.source {data.source} gives no clips of latents here: use synthetic or latents.")

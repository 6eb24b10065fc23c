"""A tiny decoder for previews: the decoder of TAEHV, of which there are weights for several models' latents.

Ollin Boer Bohan's TAEHV (github.com/madebyollin/taehv; ``taew2_1.pth`` for the latents of Wan 2.1) decodes with small
two-dimensional convolutions, in about 25 times fewer operations than Wan's autoencoder. Its blocks look at the frame
before, and at nothing older, so a take goes on from one frame per block. It was trained on latents as the transformer
sees them, normalised. Details are simpler than the autoencoder's: it is for looking, not for keeping.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtake.checkpoints.layout import some
from longtake.checkpoints.weights import choose, read_file
from longtake.decode import StreamingDecoder, decoding_for

ACCEPTED = "a .pth or .safetensors file of TAEHV, such as taew2_1.pth"
_STAGES, _BLOCKS = 3, 3
_FIRST, _LENGTH = 3, _BLOCKS + 3  # of the layers of a stage: blocks, enlargement, growth in time, next width


class Squash(nn.Module):
    """Keeps latents within -3 and 3, softly."""

    def forward(self, x: Tensor) -> Tensor:
        """Like ``x``."""
        return 3 * torch.tanh(x / 3)


class Recalling(nn.Module):
    """A residual block of three convolutions that sees a frame and the one before: [frames, width, height, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        layers = [nn.Conv2d(2 * width, width, 3, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """Args: ``x``, frames one after the other; ``before``, the frame before the first, [1, ...]."""
        past = torch.cat([before, x[:-1]])
        return F.relu(self.conv(torch.cat([x, past], dim=1)) + x)


class Growing(nn.Module):
    """Makes ``times`` frames of each."""

    def __init__(self, width: int, times: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width * times, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[frames, width, ...] to [frames * times, width, ...]."""
        grown: Tensor = self.conv(x).reshape(-1, *x.shape[1:])
        return grown


class TinyDecoder(nn.Module):
    """The decoder of TAEHV; its weights have the names that they have in the published files.

    Args:
        channels: of the latents.
        widths: of the three stages, and after the last.
        growth: frames that each stage makes of one.
        patch: pixels along a side that come from one place of the last layer.

    Attributes:
        temporal, spatial: frames per latent, and pixels along a side of it.
    """

    def __init__(
        self,
        channels: int = 16,
        widths: Sequence[int] = (256, 128, 64, 64),
        growth: Sequence[int] = (1, 2, 2),
        patch: int = 1,
    ) -> None:
        super().__init__()
        self.channels, self.patch = channels, patch
        self.temporal, self.spatial = math.prod(growth), 2**_STAGES * patch
        layers: list[nn.Module] = [Squash(), nn.Conv2d(channels, widths[0], 3, padding=1), nn.ReLU()]
        for width, following, times in zip(widths, widths[1:], growth, strict=False):
            layers += [Recalling(width) for _ in range(_BLOCKS)]
            layers += [nn.Upsample(scale_factor=2), Growing(width, times)]
            layers += [nn.Conv2d(width, following, 3, padding=1, bias=False)]
        self.decoder = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(widths[-1], 3 * patch**2, 3, padding=1))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> TinyDecoder:
        """Reads published weights; an encoder beside them is left out.

        Raises:
            ValueError: if they are not the weights of such a decoder; in one sentence.
        """
        path = Path(path).expanduser()
        found = choose(read_file(path)[0], None, (), str(path))
        weights = {name: x.float() for name, x in found.items() if name.startswith("decoder.")}
        try:
            tiny = cls(**_sizes(weights))
        except (KeyError, IndexError, ZeroDivisionError, RuntimeError):
            raise ValueError(f"{path} has no weights of a tiny decoder; accepted is {ACCEPTED}.") from None
        expected = {name: tuple(x.shape) for name, x in tiny.state_dict().items()}
        given = {name: tuple(x.shape) for name, x in weights.items()}
        if given != expected:
            wrong = {name for name in {*given, *expected} if given.get(name) != expected.get(name)}
            raise ValueError(f"{path} is not a tiny decoder that is known: see {some(wrong)}; accepted is {ACCEPTED}.")
        tiny.load_state_dict(weights)
        return tiny.eval().requires_grad_(False)

    def forward(self, latents: Tensor, memory: dict[int, Tensor]) -> Tensor:
        """Decodes latents that follow those before.

        Args:
            latents: [latents, channels, height, width], normalised.
            memory: by layer, the last frame that each block saw, [1, width, ...]; replaced. Empty at the beginning.

        Returns:
            [latents * temporal, 3, height * spatial, width * spatial], not limited.
        """
        x = latents
        for index, layer in enumerate(self.decoder):
            if isinstance(layer, Recalling):
                before = memory.get(index)
                memory[index], x = x[-1:].clone(), layer(x, torch.zeros_like(x[:1]) if before is None else before)
            else:
                x = layer(x)
        return F.pixel_shuffle(x, self.patch)

    def check(self, vae: Any) -> None:
        """Refuses latents of another kind than its own.

        Args:
            vae: the ``AutoencoderKLWan`` whose place it takes.

        Raises:
            ValueError: in one sentence.
        """
        wanted = (vae.config.z_dim, vae.config.scale_factor_temporal, vae.config.scale_factor_spatial)
        if (self.channels, self.temporal, self.spatial) != wanted:
            raise ValueError(
                f"The tiny decoder is for latents of {self.channels} channels that stand for {self.temporal} frames of "
                f"{self.spatial}x{self.spatial} pixels; this model's are {wanted[0]} channels, {wanted[1]} frames, "
                f"{wanted[2]}x{wanted[2]} pixels."
            )

    def operations(self, height: int, width: int, latents: int = 1) -> float:
        """What ``latents`` latents of a video of ``height`` by ``width`` pixels need, by the shapes of its layers."""
        places, frames, macs = (height // self.spatial) * (width // self.spatial), latents, 0
        for layer in self.decoder:
            if isinstance(layer, nn.Upsample):
                places *= 4
                continue
            kernels = [x for name, x in layer.named_parameters() if name.endswith("weight")]
            macs += frames * places * sum(x.numel() for x in kernels)
            if isinstance(layer, Growing):
                frames *= kernels[0].shape[0] // kernels[0].shape[1]
        return 2.0 * macs

    def fingerprint(self) -> str:
        """Identifies its weights."""
        digest = hashlib.sha256()
        for name, x in sorted(self.state_dict().items()):
            digest.update(f"{name}{tuple(x.shape)}".encode() + x.float().cpu().numpy().tobytes())
        return digest.hexdigest()[:32]


def _sizes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of the :class:`TinyDecoder` that has such weights."""
    starts = [_FIRST + _LENGTH * stage for stage in range(_STAGES)]
    shapes = [weights[f"decoder.{start + _BLOCKS + 1}.conv.weight"].shape for start in starts]
    last = weights[f"decoder.{starts[-1] + _LENGTH + 1}.weight"].shape
    return {
        "channels": weights["decoder.1.weight"].shape[1],
        "widths": (*(shape[1] for shape in shapes), last[1]),
        "growth": tuple(shape[0] // shape[1] for shape in shapes),
        "patch": math.isqrt(last[0] // 3),
    }


class StreamingTinyDecoder:
    """Turns latents into frames as they come; what :class:`~longtake.decode.StreamingDecoder` is, with a tiny decoder.

    The latents of a portion go through it together, so the last bits depend on the portions; a take's are its chunks.

    Args:
        tiny: the decoder; moved to ``device`` and ``dtype``.
    """

    def __init__(self, tiny: TinyDecoder, device: torch.device, dtype: torch.dtype) -> None:
        self.tiny, self._device, self._dtype = tiny.to(device, dtype), device, dtype
        self.temporal = tiny.temporal
        self._name = tiny.fingerprint()
        self.reset()

    def reset(self) -> None:
        """Forgets everything; the next latent is a first one."""
        self._memory: dict[int, Tensor] = {}
        self.latents = 0

    def frames_for(self, latents: int) -> int:
        """How many frames the first ``latents`` latents of a take give."""
        return 1 + self.temporal * (latents - 1) if latents > 0 else 0

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decodes the next latents; arguments and result as of ``StreamingDecoder.decode``."""
        frames = self.tiny(latents[0].transpose(0, 1).to(self._device, self._dtype), self._memory)
        if not self.latents:  # a first latent stands for one frame, the last of those that are made of it
            frames = frames[self.temporal - 1 :]
        self.latents += latents.shape[2]
        return frames.float().clamp(0, 1)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything it remembers: tensors, and what JSON can hold."""
        return {str(layer): x for layer, x in self._memory.items()}, {"latents": self.latents, "tiny": self._name}

    def load_state_dict(self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        """Continues from ``state_dict()``.

        Raises:
            ValueError: if that state is not one of this decoder.
        """
        if counters.get("tiny") != self._name:
            other = "another tiny decoder" if "tiny" in counters else "the model's own decoder"
            raise ValueError(f"The snapshot was made with {other}: decode the rest of the take with that one too.")
        blocks = {str(i): layer for i, layer in enumerate(self.tiny.decoder) if isinstance(layer, Recalling)}
        latents = counters["latents"]
        fits = type(latents) is int and latents >= 0 and set(tensors) == (set(blocks) if latents else set())
        if not fits or not all(x.ndim == 4 and x.shape[:2] == (1, blocks[i].width) for i, x in tensors.items()):
            raise ValueError("The decoder state in this snapshot is not one of this tiny decoder.")
        self._memory = {int(i): x.to(self._device, self._dtype) for i, x in tensors.items()}
        self.latents = latents


def decoder_for(
    vae: Any, tiny: TinyDecoder | None, device: torch.device, decoding: str, height: int, width: int, chunk: int
) -> StreamingDecoder | StreamingTinyDecoder:
    """What turns a take's latents into frames.

    Args:
        vae: the model's autoencoder, at work on ``device``; ``tiny``: the tiny decoder, if one is loaded.
        decoding: one of ``longtake.speed.DECODINGS``.
        height, width: of the video, in pixels; ``chunk``: latents that come together.

    Raises:
        ValueError: if a tiny decoder is asked for and there is none, or it is for other latents.
    """
    if decoding != "tiny":
        return StreamingDecoder(vae, **(decoding_for(vae, height, width, chunk) if decoding == "fast" else {}))
    if tiny is None:
        raise ValueError("There is no tiny decoder to decode with: load one with pipe.load_tiny_decoder(file).")
    tiny.check(vae)
    return StreamingTinyDecoder(tiny, device, next(vae.decoder.parameters()).dtype)

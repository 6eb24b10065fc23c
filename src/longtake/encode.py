"""Encoding without an end: frames of a given past become latents as they come, in constant memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, patchify

from longtake.decode import awaken


class StreamingEncoder:
    """Turns frames into latents as they come, with an ``AutoencoderKLWan`` that stays untouched.

    The counterpart of :class:`longtake.decode.StreamingDecoder`. The first frame becomes a latent by itself, later ones
    in groups of ``temporal`` (4 for Wan2.1), and the encoder's causal context is kept between calls. So the latents
    are bit for bit the same whatever the portions the frames come in, and those of ``vae.encode`` of the whole clip
    (from two latents on; a single latent takes another kernel there, with other last bits).

    Args:
        vae: an ``AutoencoderKLWan``.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self.temporal: int = vae.config.scale_factor_temporal
        slots = sum(isinstance(m, WanCausalConv3d) for m in vae.encoder.modules())
        self._cache: list[Any] = [None] * slots
        self._center = torch.tensor(vae.config.latents_mean, dtype=torch.float32).view(1, -1, 1, 1, 1)
        self._spread = torch.tensor(vae.config.latents_std, dtype=torch.float32).view(1, -1, 1, 1, 1)
        self._waiting: list[np.ndarray] = []
        self.latents = 0

    @torch.no_grad()
    def encode(self, frames: np.ndarray) -> torch.Tensor:
        """Encodes the next frames. Those that do not fill a latent wait for the next call.

        Args:
            frames: uint8 RGB ``[frames, height, width, 3]``.

        Returns:
            The latents that are complete now (maybe none): float32 ``[1, channels, n, height / 8, width / 8]``, the
            means of their distributions, normalised as the transformer sees them.
        """
        awaken(self.vae)
        parameter = next(self.vae.encoder.parameters())
        self._spread, self._center = self._spread.to(parameter.device), self._center.to(parameter.device)
        self._waiting += list(frames)
        height, width = frames.shape[1:3]
        scale = self.vae.config.scale_factor_spatial
        channels = self._center.shape[1]
        made = [torch.empty(1, channels, 0, height // scale, width // scale, device=parameter.device)]
        while len(self._waiting) >= (need := self.temporal if self.latents else 1):
            group, self._waiting = np.stack(self._waiting[:need]), self._waiting[need:]
            video = torch.from_numpy(group).to(parameter.device).float() / 127.5 - 1
            x = video.permute(3, 0, 1, 2)[None].to(parameter.dtype)
            if self.vae.config.patch_size is not None:
                x = patchify(x, patch_size=self.vae.config.patch_size)
            out = self.vae.encoder(x, feat_cache=self._cache, feat_idx=[0])
            # Two latents, as in StreamingDecoder: one alone takes a kernel with other last bits.
            moments = self.vae.quant_conv(out.repeat(1, 1, 2, 1, 1))[:, :, :1]
            mean = moments.chunk(2, dim=1)[0]
            made.append((mean.float() - self._center) / self._spread)
            self.latents += 1
        return torch.cat(made, 2)

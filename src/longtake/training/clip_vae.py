"""`AutoencoderKLWan` on whole clips at once, with gradients.

diffusers runs this autoencoder latent by latent through a feature cache, because its temporal resampling is defined
by the cache (without one it is skipped). That is right for streaming and slow for training: here the same function is
written for a whole clip. `tests/test_training_parts.py` holds the two against each other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, patchify, unpatchify


def _frames(resample: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Applies a 2-D module to every frame of ``[batch, channels, frames, height, width]``."""
    b, _, t = x.shape[:3]
    y = resample(x.transpose(1, 2).flatten(0, 1))
    return y.unflatten(0, (b, t)).transpose(1, 2)


def _down(layer: WanResample, x: torch.Tensor) -> torch.Tensor:
    x = _frames(layer.resample, x)
    if layer.mode != "downsample3d" or x.shape[2] == 1:
        return x
    # the first frame stands alone; then every window of three, two frames apart
    return torch.cat([x[:, :, :1], F.conv3d(x, layer.time_conv.weight, layer.time_conv.bias, stride=(2, 1, 1))], 2)


def _up(layer: WanResample, x: torch.Tensor) -> torch.Tensor:
    if layer.mode == "upsample3d" and x.shape[2] > 1:
        later = layer.time_conv(x[:, :, 1:])  # pads the past with zeros: it never sees the first frame
        even, odd = later.chunk(2, dim=1)
        x = torch.cat([x[:, :, :1], torch.stack([even, odd], 3).flatten(2, 3)], 2)
    return _frames(layer.resample, x)


def encode_clip(vae: AutoencoderKLWan, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Encodes ``[batch, 3, 1 + 4n, height, width]`` in [-1, 1].

    Returns:
        Mean and log-variance of the latents, each ``[batch, z, 1 + n, height / 8, width / 8]``, unscaled.
    """
    encoder = vae.encoder
    x = video if vae.config.patch_size is None else patchify(video, patch_size=vae.config.patch_size)
    x = encoder.conv_in(x)
    for layer in encoder.down_blocks:
        x = _down(layer, x) if isinstance(layer, WanResample) else layer(x)
    x = encoder.conv_out(encoder.nonlinearity(encoder.norm_out(encoder.mid_block(x))))
    mean, logvar = vae.quant_conv(x).chunk(2, dim=1)
    return mean, logvar.clamp(-30.0, 20.0)


def decode_clip(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Decodes ``[batch, z, 1 + n, height, width]`` (unscaled) to video in about [-1, 1], not clamped."""
    decoder = vae.decoder
    x = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(latents)))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = resnet(x)
        if block.upsamplers is not None:
            x = _up(block.upsamplers[0], x)
    x = decoder.conv_out(decoder.nonlinearity(decoder.norm_out(x)))
    return x if vae.config.patch_size is None else unpatchify(x, patch_size=vae.config.patch_size)

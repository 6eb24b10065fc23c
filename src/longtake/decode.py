"""Decoding without an end: the autoencoder's feature cache lives in the take, not in the call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify

from longtake.transfer import identity

# Of the decoder's largest tensor: several latents go through a CPU at once as long as it has no more numbers than this.
_AT_ONCE = 1 << 24
_REPEAT = "Rep"  # what diffusers leaves in the cache of a temporal upsampler after the first latent


def awaken(vae: Any) -> None:
    """Brings an offloaded autoencoder to its device, as its own ``encode`` and ``decode`` would."""
    hook = getattr(vae, "_hf_hook", None)
    if hook is not None and hasattr(hook, "pre_forward"):
        hook.pre_forward(vae)


def decoding_for(vae: Any, height: int, width: int, chunk: int) -> dict[str, Any]:
    """What is fastest for an autoencoder where it is, as settings of a :class:`StreamingDecoder`: the same frames as
    without them up to rounding, and the same ones for every take, as its chunks are the portions.

    Args:
        height, width: of the video, in pixels; ``chunk``: latents that come together.
    """
    parameter = next(vae.decoder.parameters())
    if parameter.device.type != "cpu":
        return {"together": chunk}
    config = vae.config
    channels = (config.decoder_base_dim or config.base_dim) * config.dim_mult[0]
    largest = channels * config.scale_factor_temporal * height * width // (config.patch_size or 1) ** 2
    # Channels innermost: on two cores of an AMD EPYC, bfloat16 takes two thirds of the time, and float32 no less.
    return {"together": max(1, min(chunk, _AT_ONCE // largest)), "channels_last": parameter.dtype == torch.bfloat16}


class StreamingDecoder:
    """Turns latents into frames as they come, with an ``AutoencoderKLWan`` that stays untouched.

    ``AutoencoderKLWan.decode`` forgets its causal context at the end of every call, so decoding a long video in pieces
    loses frames and shows seams. This keeps the context: latents go through the decoder one at a time whatever the
    portions they arrive in, so the frames are bit for bit the same (unless ``together`` allows more). The first latent
    gives one frame, every later one ``temporal`` (4 for Wan2.1).

    Args:
        vae: an ``AutoencoderKLWan``.
        together: how many latents after the first may go through the decoder at once. More are the same frames up to
            rounding, in fewer and larger operations, and take more memory; the last bits then depend on the portions.
        channels_last: convolve with channels innermost, by other kernels; on some devices much faster.
    """

    def __init__(self, vae: Any, together: int = 1, channels_last: bool = False) -> None:
        self.vae, self.together, self.channels_last = vae, max(1, together), channels_last
        self._slots = sum(isinstance(m, WanCausalConv3d) for m in vae.decoder.modules())
        self._center = torch.tensor(vae.config.latents_mean, dtype=torch.float32).view(1, -1, 1, 1, 1)
        self._spread = torch.tensor(vae.config.latents_std, dtype=torch.float32).view(1, -1, 1, 1, 1)
        self._turned: tuple[tuple[Any, ...], dict[str, torch.Tensor]] = ((), {})
        self.temporal: int = vae.config.scale_factor_temporal
        self.reset()

    def reset(self) -> None:
        """Forgets everything; the next latent is a first one."""
        self._cache: list[Any] = [None] * self._slots
        self.latents = 0

    def frames_for(self, latents: int) -> int:
        """How many frames the first ``latents`` latents of a take give."""
        return 1 + self.temporal * (latents - 1) if latents > 0 else 0

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decodes the next latents.

        Args:
            latents: ``[1, channels, n, height, width]``, normalised as the transformer sees them.

        Returns:
            Float32 frames ``[frames, 3, height * 8, width * 8]`` in [0, 1].
        """
        awaken(self.vae)
        parameter = next(self.vae.decoder.parameters())
        if self._spread.device != parameter.device:  # once: a copy in every chunk would make the host wait
            self._spread, self._center = self._spread.to(parameter.device), self._center.to(parameter.device)
        scaled = latents.to(device=parameter.device, dtype=torch.float32) * self._spread + self._center
        scaled = scaled.to(parameter.dtype)
        frames = []
        done, count = 0, scaled.shape[2]
        while done < count:
            part = scaled[:, :, done : done + (self.together if self.latents else 1)]
            out = self._decode(part)
            done += part.shape[2]
            self.latents += part.shape[2]
            if self.vae.config.patch_size is not None:
                out = unpatchify(out, patch_size=self.vae.config.patch_size)
            frames.append(out[0].transpose(0, 1))
        return (torch.cat(frames).float().clamp(-1, 1) + 1) / 2

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        if latents.shape[2] > 1:
            x = self.vae.post_quant_conv(latents)
        else:
            # Convolving one latent takes another kernel, with other last bits, than convolving several, as
            # `vae.decode` does for all but the shortest videos: always give it two, whatever the portion.
            x = self.vae.post_quant_conv(latents.repeat(1, 1, 2, 1, 1))[:, :, :1]
        settings = {"feat_cache": self._cache, "feat_idx": [0], "first_chunk": self.latents == 0}
        weights: dict[str, torch.Tensor] = {}
        if self.channels_last:
            x, weights = x.contiguous(memory_format=torch.channels_last_3d), self._weights()
        out: torch.Tensor = torch.func.functional_call(self.vae.decoder, weights, (x,), settings)
        return out

    def _weights(self) -> dict[str, torch.Tensor]:
        """Copies of the convolutions' weights with channels innermost; the autoencoder keeps its own, to be saved."""
        named = {name: p for name, p in self.vae.decoder.named_parameters() if p.ndim > 3 and p.numel() > p.shape[0]}
        now = identity(named.values())
        if self._turned[0] != now:
            formats = {4: torch.channels_last, 5: torch.channels_last_3d}
            turned = {name: p.detach().contiguous(memory_format=formats[p.ndim]) for name, p in named.items()}
            self._turned = (now, turned)
        return self._turned[1]

    def state_dict(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Everything it remembers: tensors, and what JSON can hold."""
        tensors = {str(i): x for i, x in enumerate(self._cache) if isinstance(x, torch.Tensor)}
        repeats = [i for i, x in enumerate(self._cache) if isinstance(x, str)]
        return tensors, {"latents": self.latents, "repeats": repeats}

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor], counters: Mapping[str, Any]) -> None:
        """Continues from ``state_dict()``.

        Raises:
            ValueError: if that state is not one of this autoencoder.
        """
        if "tiny" in counters:
            raise ValueError("The snapshot was made with a tiny decoder: decode the rest of the take with it too.")
        latents, repeats = counters["latents"], counters["repeats"]
        numbers = all(type(i) is int for i in (latents, *repeats)) and all(i.isdecimal() for i in tensors)
        indices = {int(i) for i in (*tensors, *repeats)} if numbers else {-1}
        fits = all(0 <= i < self._slots for i in indices) and all(x.ndim == 5 for x in tensors.values())
        if not fits or latents < 0 or (latents and not tensors):
            raise ValueError("The decoder state in this snapshot is not one of this model's autoencoder.")
        device = next(self.vae.decoder.parameters()).device
        self.reset()
        layout = torch.channels_last_3d if self.channels_last else torch.contiguous_format
        for i, tensor in tensors.items():
            self._cache[int(i)] = tensor.to(device).contiguous(memory_format=layout)
        for i in repeats:
            self._cache[i] = _REPEAT
        self.latents = latents

"""The pipeline: a diffusers ``DiffusionPipeline`` whose videos need not end."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
)
from diffusers.loaders import WanLoraLoaderMixin
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from diffusers.utils import BaseOutput
from diffusers.video_processor import VideoProcessor
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from longtake import placement
from longtake.memory import MemoryPolicy, parse_memory
from longtake.pictures import to_clip, to_picture
from longtake.pipeline_memory import MemoryLoaderMixin
from longtake.prompts import Script, parse_script
from longtake.snapshot import read_snapshot
from longtake.take import Chunk, Take
from longtake.text import encode_text, text_length
from longtake.tiny import TinyDecoder
from longtake.transfer import send

OUTPUT_TYPES = ("np", "pt", "pil", "latent")
_ALIGNMENT = 64  # bytes; where PyTorch itself places tensors


def _adapters(module: torch.nn.Module) -> str:
    """What PEFT's layers do at the moment, beyond their weights: adapters in use, their scales; empty without any."""
    states = []
    for name, layer in module.named_modules():
        scaling = getattr(layer, "scaling", None)
        if isinstance(scaling, dict) and hasattr(layer, "disable_adapters"):
            used = [] if layer.disable_adapters else layer.active_adapters
            scales = [(key, float(scaling[key])) for key in used if key in scaling]
            states.append((name, scales, list(layer.merged_adapters)))
    return json.dumps(states) if states else ""


def _gathered(samples: list[torch.Tensor]) -> torch.Tensor:
    """One tensor on the CPU, with one copy per device that they are on."""
    parts: list[torch.Tensor] = [*samples]
    for device in {x.device for x in samples}:
        here = [i for i, x in enumerate(samples) if x.device == device]
        pieces = torch.cat([samples[i] for i in here]).cpu().split([len(samples[i]) for i in here])
        for i, piece in zip(here, pieces, strict=True):
            parts[i] = piece
    return torch.cat(parts)


@dataclass
class LongTakePipelineOutput(BaseOutput):
    """Output of :class:`LongTakePipeline`.

    Attributes:
        frames: one video per prompt, as diffusers gives them: for ``np`` an array ``[videos, frames, height, width,
            3]`` in [0, 1], for ``pt`` a tensor ``[videos, frames, 3, height, width]``, for ``pil`` a list of lists of
            images, for ``latent`` normalised latents ``[videos, channels, latents, height, width]`` (whole chunks).
            Videos of different lengths come as a list.
    """

    frames: Any


class LongTakePipeline(MemoryLoaderMixin, DiffusionPipeline, WanLoraLoaderMixin):
    """Text to endless video with a few-step autoregressive Wan model and a memory of constant cost.

    The parts are diffusers' and transformers' own, unmodified, so any diffusers folder of a Wan text-to-video model
    loads (a model that was not distilled to few causal steps will not look good).

    Args:
        tokenizer, text_encoder, transformer, vae, scheduler: as in ``WanPipeline``. Of the scheduler only the shift is
            used (``shift`` or ``flow_shift``).
        denoising_steps: timesteps before the shift (Self-Forcing, arXiv 2506.08009).
        chunk_frames: latent frames per chunk.
        fps: frames per second of the videos the model was trained on.
        default_size: (height, width) when none is asked for.

    Attributes:
        forward_path: how takes run the transformer, one of ``longtake.speed.FORWARD_PATHS``: the same latents, bit for
            bit, as long as PyTorch's own attention is used, which it always is with ``plain``.
        attention: what computes attention in takes, one of ``longtake.speed.ATTENTIONS``; see also
            ``transformer.set_attention_backend``.
        collapse: whether MemRoPE's averages and the text's padding are attended to in closed form, one of
            ``longtake.speed.COLLAPSE``.
        compilation: whether the transformer's blocks are compiled, one of ``longtake.speed.COMPILATIONS``.
        decoding: how new takes decode, one of ``longtake.speed.DECODINGS``.
        tiny_decoder: what decodes where ``decoding`` is ``tiny``, see :meth:`load_tiny_decoder`.
    """

    forward_path: str = "auto"
    attention: str = "auto"
    collapse: str = "auto"
    compilation: str = "auto"
    decoding: str = "exact"
    tiny_decoder: TinyDecoder | None = None
    model_cpu_offload_seq = "text_encoder->transformer->vae"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: UMT5EncoderModel,
        vae: AutoencoderKLWan,
        scheduler: FlowMatchEulerDiscreteScheduler | UniPCMultistepScheduler,
        transformer: WanTransformer3DModel,
        # Not Sequence: diffusers reads these annotations, and understands lists and unions only.
        denoising_steps: list[float] | tuple[float, ...] = (1000, 750, 500, 250),
        chunk_frames: int = 3,
        fps: int = 16,
        default_size: list[int] | tuple[int, ...] = (480, 832),
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, scheduler=scheduler, transformer=transformer
        )
        self.register_to_config(
            denoising_steps=[float(t) for t in denoising_steps],
            chunk_frames=chunk_frames,
            fps=fps,
            default_size=list(default_size),
        )
        self.vae_scale_factor_spatial: int = vae.config.scale_factor_spatial
        self.video_processor = VideoProcessor(vae_scale_factor=self.vae_scale_factor_spatial)

    @property
    def shift(self) -> float:
        """The timestep shift of the scheduler."""
        config = self.scheduler.config
        return float(config.get("shift") or config.get("flow_shift") or 5.0)

    def load_tiny_decoder(self, file: str | os.PathLike[str]) -> TinyDecoder:
        """Loads a tiny decoder (``longtake.tiny``); takes that are started with ``decoding = "tiny"`` decode with it.

        Args:
            file: weights of TAEHV for the latents of this model.

        Raises:
            ValueError: if they are not, in one sentence.
        """
        tiny = TinyDecoder.from_file(file)
        tiny.check(self.vae)
        self.tiny_decoder = tiny
        return tiny

    def device_of(self, name: str) -> torch.device:
        """Where a part takes its input: the execution device under offloading, its own (the first one, if it is split)
        otherwise."""
        part = getattr(self, name)
        if getattr(part, "_hf_hook", None) is not None:
            return torch.device(self._execution_device)
        return placement.device_of(part)

    def align(self) -> None:
        """Copies weights that lie at odd addresses in the CPU's memory, as those mapped from a file do: there, other
        kernels run, with other last bits, and a saved and loaded model would not make the same video."""
        for name, part in self.components.items():
            if isinstance(part, torch.nn.Module) and (self.device_of(name).type == "cpu" or placement.groups_of(part)):
                for weight in (*part.parameters(), *part.buffers()):
                    plain = type(weight.data) is torch.Tensor and weight.device.type == "cpu"
                    if plain and weight.data_ptr() % _ALIGNMENT:
                        weight.data = weight.data.clone()

    def fingerprint(self) -> str:
        """Identifies all that a video depends on: configurations, words, a few values of every weight tensor (as it
        is stored), and which LoRA adapters are on, at which scale. Where the parts are placed does not matter."""
        # Not kept: parts can be replaced and LoRA weights loaded at any time.
        digest = hashlib.sha256()
        settings = {k: self.config[k] for k in ("denoising_steps", "chunk_frames", "fps")}
        words = sorted(self.tokenizer.get_vocab().items())
        digest.update(json.dumps([settings, self.shift, words]).encode())
        for module in (self.transformer, self.vae, self.text_encoder):
            if module is not self.text_encoder:  # what transformers writes into a configuration varies by version
                config = {k: v for k, v in sorted(module.config.items()) if not k.startswith("_")}
                digest.update(json.dumps(config, default=str).encode())
            samples = []
            for name, parameter in sorted(module.state_dict().items()):
                digest.update(f"{name}{tuple(parameter.shape)}".encode())
                samples.append(parameter.flatten()[:: max(1, parameter.numel() // 8)][:8].float())
            digest.update(_gathered(samples).numpy().tobytes())
            digest.update(_adapters(module).encode())
        return digest.hexdigest()[:32]

    @torch.no_grad()
    def encode_prompt(self, prompt: str) -> torch.Tensor:
        """Text embedding ``[1, tokens, dim]`` of one prompt, where the transformer takes it. Warns if the prompt is too
        long to be read whole.

        Raises:
            ValueError: if the prompt is empty, or the tokenizer knows none of its words.
        """
        text = self._clean(prompt)
        length, limit = len(self.tokenizer(text)["input_ids"]), text_length(self.tokenizer)
        if length > limit:
            warnings.warn(f"Only the first {limit} of the prompt's {length} tokens are read.", stacklevel=2)
        embedding = placement.with_text_encoder(
            self, lambda device: encode_text(self.tokenizer, self.text_encoder, [text], device)
        )
        return send(embedding, self.device_of("transformer"))

    def _clean(self, prompt: str) -> str:
        text: str = prompt_clean(prompt)
        if not text:
            raise ValueError("A prompt must not be empty.")
        unknown = self.tokenizer.unk_token_id
        special = set(self.tokenizer.all_special_ids) - {unknown}
        ids = [i for i in self.tokenizer(text)["input_ids"] if i not in special]
        if unknown is not None and all(i == unknown for i in ids):
            raise ValueError(f"The model knows no word of the prompt {text!r}.")
        return text

    def check_size(self, height: int, width: int) -> None:
        """Refuses what the model cannot make.

        Raises:
            ValueError: if the size does not divide into patches, or a chunk has more of them along a side than the
                transformer has rotary positions for (diffusers looks them up in a table).
        """
        config = self.transformer.config
        steps, *sides = config.patch_size
        most: int = config.rope_max_seq_len
        for pixels, patch in zip((height, width), sides, strict=True):
            step = self.vae_scale_factor_spatial * patch
            if pixels % step or pixels < step:
                raise ValueError(f"Height and width must be multiples of {step}, not {height}x{width}.")
            if pixels > most * step:
                raise ValueError(f"This model's height and width are at most {most * step}, not {height}x{width}.")
        if self.config.chunk_frames > most * steps:
            raise ValueError(f"A chunk must have at most {most * steps} frames, not {self.config.chunk_frames}.")

    def start(
        self,
        prompt: str | Script,
        memory: str | MemoryPolicy = "memrope",
        seed: int = 0,
        height: int | None = None,
        width: int | None = None,
        on_prompt_change: str = "keep",
        image: Any = None,
        video: Any = None,
        on_past: Callable[[int, int], None] | None = None,
    ) -> Take:
        """Begins a take; nothing is generated yet.

        With ``image`` the video starts with that picture (as the autoencoder gives it back); with ``video`` it goes on
        where that one ends, and what the take gives is only what comes after. Both are read into the memory under the
        first prompt. Models trained on text to video alone were never asked for this. They take up what a video shows
        as if they had made it themselves, the better the more it looks like theirs; a still they may hold for a while
        or leave at once. A prompt that says what is to be seen helps in both cases.

        Args:
            prompt: a prompt, or prompts over time: ``"a red ball [10s] | [cut] a blue ball [5s]"``; the
                last goes on for as long as the take does.
            memory: a policy or its name with settings, e.g. ``"memrope:recent=4"``.
            seed: of all noise.
            height, width: in pixels; the model's own size by default.
            on_prompt_change: ``keep``, ``recache``, ``flush`` or ``cut``; see :class:`Take`.
            image: a file, a PIL image or an array ``[height, width, 3]``; resized to cover, cropped in the middle.
            video: a file (at any rate), or frames at the model's rate: an array ``[frames, height, width, 3]`` or a
                list of what ``image`` takes. A file is read in constant memory. See :meth:`Take.begin_from_video`.
            on_past: called with the number of chunks read and of all, while ``video`` is.

        Raises:
            ValueError: for anything that cannot work, in one sentence.
        """
        script = parse_script(prompt) if isinstance(prompt, str) else prompt
        policy = parse_memory(memory, self.config.chunk_frames) if isinstance(memory, str) else memory
        for segment in script.segments:  # refused now, not when its time comes
            self._clean(segment.prompt)
        height = self.config.default_size[0] if height is None else height
        width = self.config.default_size[1] if width is None else width
        if image is not None and video is not None:
            raise ValueError("A take starts from an image or from a video: give one of them.")
        self.check_size(height, width)
        picture = None if image is None else to_picture(image, height, width)
        clip = None if video is None else to_clip(video, height, width, self.config.fps)
        take = Take(self, script, policy, seed, height, width, on_prompt_change)
        if picture is not None:
            take.begin_from_picture(picture)
        if clip is not None:
            take.begin_from_video(clip, on_chunk=on_past)
        return take

    def resume(self, path: str | os.PathLike[str]) -> Take:
        """Continues a take from its snapshot, bit for bit as if it had never stopped.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no snapshot, damaged, or of another model.
        """
        tensors, data = read_snapshot(path)
        return Take.from_state(self, tensors, data)

    def chunks_for(self, frames: int) -> int:
        """How many chunks give at least this many frames, without a given past (with one: ``take.chunks_until``)."""
        temporal = self.vae.config.scale_factor_temporal
        latents = 1 + math.ceil(max(frames - 1, 0) / temporal)
        return math.ceil(latents / self.config.chunk_frames)

    def stream(self, prompt: str | Script, seconds: float | None = None, **settings: Any) -> Iterator[Chunk]:
        """Yields chunks as they are made, without end or for ``seconds`` (whole chunks).

        Settings are those of :meth:`start`.
        """
        frames = None if seconds is None else self._frames(seconds)
        script = parse_script(prompt, seconds) if isinstance(prompt, str) else prompt
        take = self.start(script, **settings)
        return take.chunks(None if frames is None else take.chunks_until(frames))

    def _frames(self, seconds: float) -> int:
        if not (math.isfinite(seconds) and seconds > 0):
            raise ValueError(f"seconds must be a positive number, not {seconds}.")
        return max(1, round(seconds * self.config.fps))

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Script | Sequence[str],
        seconds: float | None = None,
        height: int | None = None,
        width: int | None = None,
        memory: str | MemoryPolicy = "memrope",
        seed: int | None = None,
        generator: torch.Generator | None = None,
        on_prompt_change: str = "keep",
        image: Any = None,
        video: Any = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_chunk_end: Callable[[LongTakePipeline, Chunk], None] | None = None,
    ) -> LongTakePipelineOutput | tuple[Any]:
        """Makes videos of a given length and returns them whole (an endless one: :meth:`stream`).

        Args:
            prompt: a prompt, a script, or a list of prompts, made one after the other.
            seconds: length of the video; the script's own if it has one, else 5.
            height, width, memory, on_prompt_change, image, video: as in :meth:`start`. The result starts with the
                image, and with what comes after the video; for ``latent``, with the chunk that holds the image.
            seed: of all noise; 0 by default.
            generator: the diffusers way to give a seed: its initial seed is used.
            output_type: ``np``, ``pt``, ``pil`` or ``latent``.
            return_dict: whether to return an output object or a tuple.
            callback_on_chunk_end: called with the pipeline and every :class:`Chunk`.

        Raises:
            ValueError: for anything that cannot work, in one sentence.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, not {output_type!r}.")
        if seed is None:
            seed = 0 if generator is None else generator.initial_seed()
        prompts = [prompt] if isinstance(prompt, (str, Script)) else list(prompt)
        if not prompts:
            raise ValueError("At least one prompt is needed.")
        videos = []
        for one in prompts:
            script = parse_script(one, seconds, default_seconds=5.0) if isinstance(one, str) else one
            length = seconds if seconds is not None else script.seconds
            if length is None:
                raise ValueError("A script without an end needs seconds.")
            frames = self._frames(length)
            take = self.start(script, memory, seed, height, width, on_prompt_change, image, video)
            parts = []
            count = take.chunks_until(frames)
            with self.progress_bar(total=count) as bar:
                for chunk in take.chunks(count):
                    parts.append(chunk.latents[0].transpose(0, 1) if output_type == "latent" else chunk.video)
                    if callback_on_chunk_end is not None:
                        callback_on_chunk_end(self, chunk)
                    bar.update()
            whole = torch.cat(parts)
            videos.append(whole.transpose(0, 1) if output_type == "latent" else whole[:frames])
        frames_out: Any = torch.stack(videos) if len({v.shape for v in videos}) == 1 else videos
        if output_type == "np":
            arrays = [v.permute(0, 2, 3, 1).cpu().numpy() for v in videos]
            frames_out = np.stack(arrays) if isinstance(frames_out, torch.Tensor) else arrays
        elif output_type == "pil":
            frames_out = [VideoProcessor.numpy_to_pil(v.permute(0, 2, 3, 1).cpu().numpy()) for v in videos]
        self.maybe_free_model_hooks()
        return LongTakePipelineOutput(frames=frames_out) if return_dict else (frames_out,)

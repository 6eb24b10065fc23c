"""A take: one running generation, from its first frame to whenever it is stopped."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from longtake.attention import attending, memory_for
from longtake.decode import StreamingDecoder
from longtake.memory import PROMPT_CHANGES, MemoryPolicy, parse_memory
from longtake.prompts import Script
from longtake.sampling import FewStepSchedule, chunk_noise
from longtake.snapshot import write_snapshot
from longtake.transfer import send

if TYPE_CHECKING:
    from longtake.pipeline import LongTakePipeline

ON_CHANGE = (*PROMPT_CHANGES, "recache")
_RECACHED_CHUNKS = 2


@dataclass
class Chunk:
    """What one step of a take gives.

    Attributes:
        index: number of the chunk, from 0.
        first_frame: index of its first frame in the take.
        prompt: what was asked for.
        latents: ``[1, channels, chunk, height, width]``, normalised.
        video: float32 ``[frames, 3, height, width]`` in [0, 1].
    """

    index: int
    first_frame: int
    prompt: str
    latents: torch.Tensor
    video: torch.Tensor

    def to_uint8(self) -> np.ndarray:
        """Frames as a file wants them: uint8 RGB ``[frames, height, width, 3]``."""
        return (self.video * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


class Take:
    """One running generation: memory, decoder state, noise counter and prompts.

    Made by ``pipe.start(...)`` or ``pipe.resume(...)``. Its cost per chunk does not depend on how long it has run, and
    what it makes depends on the settings, the seed and the chunk's index alone, so a longer take begins with the
    shorter one.

    An exception in the middle of a chunk (an interrupt from the keyboard too) leaves its parts out of step. Such a take
    refuses to go on: resume from its last snapshot.

    Args:
        pipe: the pipeline whose parts it uses; several takes may share one, in turns.
        script: what is said when.
        policy: what is remembered.
        seed: of all noise.
        height, width: of the video in pixels.
        on_change: what a new prompt does to the past: ``keep`` nothing, ``flush`` forgets all but the sinks and the
            last two frames (Infinity-RoPE), ``recache`` reads the last two chunks again under the new prompt
            (LongLive).
    """

    def __init__(
        self,
        pipe: LongTakePipeline,
        script: Script,
        policy: MemoryPolicy,
        seed: int,
        height: int,
        width: int,
        on_change: str = "keep",
    ) -> None:
        if on_change not in ON_CHANGE:
            raise ValueError(f"A prompt change is one of {', '.join(ON_CHANGE)}, not {on_change!r}.")
        self.pipe, self.script, self.policy, self.seed, self.on_change = pipe, script, policy, seed, on_change
        self.height, self.width = height, width
        pipe.check_size(height, width)
        pipe.align()
        self.size = pipe.config.chunk_frames
        self.schedule = FewStepSchedule.from_steps(pipe.config.denoising_steps, pipe.shift)
        rows, columns = height // pipe.vae_scale_factor_spatial, width // pipe.vae_scale_factor_spatial
        self.shape = (1, pipe.transformer.config.in_channels, self.size, rows, columns)
        self.memory = memory_for(
            pipe.transformer, policy, rows, columns, chunk=self.size, device=pipe.device_of("transformer")
        )
        self.decoder = StreamingDecoder(pipe.vae)
        self.index = 0
        # On the device, one per denoising step and zero for the commit: made here, a chunk waits for none of them.
        times = torch.cat([self.schedule.timesteps, torch.zeros(1)])
        self._times = send(times, self.memory.keys.device).split(1)
        self._prompt: str | None = None  # of the last chunk
        self._embedding: tuple[str, torch.Tensor] | None = None
        self._broken = False
        self._last: deque[torch.Tensor] = deque(maxlen=_RECACHED_CHUNKS if on_change == "recache" else 0)

    @property
    def frames_done(self) -> int:
        """Frames made so far."""
        return self.decoder.frames_for(self.decoder.latents)

    @property
    def seconds_done(self) -> float:
        """Seconds of video made so far."""
        return self.frames_done / self.pipe.config.fps

    def prompt_at(self, chunk: int) -> str:
        """The prompt of a chunk: the one that holds in its middle, so that a change is at most half a chunk off."""
        first = self.decoder.frames_for(chunk * self.size)
        last = self.decoder.frames_for((chunk + 1) * self.size)
        return self.script.at((first + last) / 2 / self.pipe.config.fps).prompt

    def steer(self, script: Script) -> None:
        """Replaces the script; what it says of the time until now has no effect."""
        self.script = script

    # One chunk, in stages

    @torch.no_grad()
    def begin(self) -> torch.Tensor:
        """Settles what the next chunk attends to and is asked for; returns the prompt's embedding."""
        prompt = self.prompt_at(self.index)
        text = self._embed(prompt)
        before, self._prompt = self._prompt, prompt
        if before not in (None, prompt):
            self._change_prompt(text)
        self.memory.begin_chunk()
        return text

    def _embed(self, prompt: str) -> torch.Tensor:
        if self._embedding is None or self._embedding[0] != prompt:
            self._embedding = (prompt, self.pipe.encode_prompt(prompt))
        return self._embedding[1]

    def _change_prompt(self, text: torch.Tensor) -> None:
        self.memory.change_prompt("flush" if self.on_change == "flush" else "keep")
        if self.on_change == "recache" and self._last:
            # A short window may hold fewer than what is kept here; the newest chunk is always there.
            chunk, end = self.memory.chunk, self.memory.frame
            held = [n for n in range(1, len(self._last) + 1) if {*range(end - n * chunk, end)} <= {*self.memory.tags}]
            again = list(self._last)[-max(held) :]
            self.memory.rewind(chunk * len(again))
            for latents in again:
                self.memory.begin_chunk()
                self.commit(latents, text)

    @torch.no_grad()
    def denoise(self, text: torch.Tensor) -> torch.Tensor:
        """All denoising steps of the chunk; returns its clean latents."""
        device, dtype = self.memory.keys.device, self.memory.keys.dtype
        x = chunk_noise(self.seed, self.index, 0, self.shape, device)
        with attending(self.pipe.transformer, self.memory):
            for step in range(len(self.schedule)):
                if step:
                    x = self.schedule.renoise(x, chunk_noise(self.seed, self.index, step, self.shape, device), step)
                flow = self._forward(x, self._times[step], text, dtype)
                x = self.schedule.x0(x, flow, step)
        return x

    @torch.no_grad()
    def commit(self, latents: torch.Tensor, text: torch.Tensor) -> None:
        """One more forward at t = 0, by which the memory learns the chunk."""
        with attending(self.pipe.transformer, self.memory), self.memory.recording():
            self._forward(latents, self._times[-1], text, self.memory.keys.dtype)

    def _forward(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        out = self.pipe.transformer(x.to(dtype), t, text.to(dtype), return_dict=False)
        flow: torch.Tensor = out[0]
        return flow

    def next_chunk(self) -> Chunk:
        """Makes the next chunk: begin, denoise, commit, decode.

        Raises:
            ValueError: if the prompt cannot be encoded; the take is as before, to be steered elsewhere.
            RuntimeError: if the take was interrupted within a chunk.
        """
        self._require_whole()
        self._embed(self.prompt_at(self.index))
        self._broken = True  # until all parts have come to the end of the chunk
        text = self.begin()
        latents = self.denoise(text)
        self.commit(latents, text)
        self._last.append(latents)
        first = self.frames_done
        video = self.decoder.decode(latents)
        self.index += 1
        self._broken = False
        assert self._prompt is not None
        return Chunk(self.index - 1, first, self._prompt, latents, video)

    def _require_whole(self) -> None:
        if self._broken:
            raise RuntimeError(
                "This take was interrupted in the middle of a chunk and cannot go on; resume it from its last snapshot."
            )

    def chunks(self, count: int | None = None) -> Iterator[Chunk]:
        """The next ``count`` chunks, or chunks without end."""
        made = 0
        while count is None or made < count:
            yield self.next_chunk()
            made += 1

    def frames(self, count: int | None = None) -> Iterator[np.ndarray]:
        """The next ``count`` frames, or frames without end: uint8 ``[height, width, 3]``.

        The take itself moves by chunks: what is left of the last one is not given.
        """
        made = 0
        if count is not None and count <= 0:
            return
        for chunk in self.chunks():
            for frame in chunk.to_uint8():
                yield frame
                made += 1
                if made == count:
                    return

    # Snapshots

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Everything the take knows: tensors, and data for JSON. Only between chunks.

        Raises:
            RuntimeError: if the take was interrupted within a chunk.
        """
        self._require_whole()
        memory_tensors, memory_data = self.memory.state_dict()
        decoder_tensors, decoder_data = self.decoder.state_dict()
        tensors = {f"memory.{k}": v for k, v in memory_tensors.items()}
        tensors |= {f"decoder.{k}": v for k, v in decoder_tensors.items()}
        tensors |= {f"last.{i}": v for i, v in enumerate(self._last)}
        data = {
            "model": self.pipe.fingerprint(),
            "dtype": str(self.memory.keys.dtype),
            "policy": self.policy.spec(),
            "seed": self.seed,
            "height": self.height,
            "width": self.width,
            "on_change": self.on_change,
            "script": self.script.to_dict(),
            "prompt": self._prompt,
            "index": self.index,
            "memory": memory_data,
            "decoder": decoder_data,
        }
        return tensors, data

    def snapshot(self, path: str | os.PathLike[str], **extra: Any) -> None:
        """Writes a complete snapshot, from which :meth:`LongTakePipeline.resume` continues bit for bit.

        Args:
            path: the file; an older one is replaced only when the new one is safe on the disk.
            extra: anything JSON can hold, given back by ``read_snapshot_data`` under ``extra``.

        Raises:
            OSError: if the disk does not take it.
            RuntimeError: if the take was interrupted within a chunk.
        """
        tensors, data = self.state()
        write_snapshot(path, tensors, {**data, "extra": extra})

    @classmethod
    def from_state(
        cls,
        pipe: LongTakePipeline,
        tensors: Mapping[str, torch.Tensor],
        data: Mapping[str, Any],
    ) -> Take:
        """The take that :meth:`state` describes.

        Raises:
            ValueError: if it was made with another model or dtype, or does not fit together.
        """

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        dtype = str(pipe.transformer.dtype)
        try:
            if data["dtype"] != dtype:
                raise ValueError(f"The snapshot was made in {data['dtype']}; load the model so, not in {dtype}.")
            if data["model"] != pipe.fingerprint():
                raise ValueError("The snapshot was made with another model or other weights than the one loaded.")
            for name in ("seed", "height", "width", "index"):
                if type(data[name]) is not int:
                    raise ValueError(f"The snapshot's {name} must be a whole number, not {data[name]!r}.")
            take = cls(
                pipe,
                Script.from_dict(data["script"]),
                parse_memory(data["policy"], pipe.config.chunk_frames),
                data["seed"],
                data["height"],
                data["width"],
                data["on_change"],
            )
            take.memory.load_state_dict(part("memory."), data["memory"])
            take.decoder.load_state_dict(part("decoder."), data["decoder"])
            take.index = data["index"]
            if data["prompt"] is not None:
                take._prompt = data["prompt"]
                take._embed(data["prompt"])
            device = take.memory.keys.device
            take._last.extend(x.to(device) for _, x in sorted(part("last.").items()))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"The snapshot lacks something that a take needs ({error}).") from None
        frames = take.index * take.size
        in_step = take.memory.frame == take.index * take.memory.chunk and take.decoder.latents == frames
        whole = not take.memory.open and len(take._last) == min(take.index, take._last.maxlen or 0)
        if take.index < 0 or not in_step or not whole or any(x.shape != take.shape for x in take._last):
            raise ValueError("The snapshot's parts do not belong to the same chunk of the same take.")
        return take

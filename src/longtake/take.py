"""A take: one running generation, from its first frame to whenever it is stopped."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from longtake import speed
from longtake.attention import choose_kernel, install, memory_for
from longtake.compiled import forwards
from longtake.encode import StreamingEncoder
from longtake.forward import Plain
from longtake.memory import MemoryPolicy
from longtake.memory.change import change_prompt
from longtake.pictures import portions
from longtake.prompts import CHANGES, Script, Segment, parse_script
from longtake.sampling import FewStepSchedule, chunk_noise, denoise
from longtake.snapshot import write_snapshot
from longtake.take_past import read_video
from longtake.take_state import state_of, take_of
from longtake.text import zeros_at_end
from longtake.tiny import decoder_for
from longtake.transfer import send

if TYPE_CHECKING:
    from longtake.pipeline import LongTakePipeline


@dataclass
class Chunk:
    """What one step of a take gives.

    Attributes:
        index: number of the chunk, from 0; a given video's chunks count.
        first_frame: index of its first frame in the take; a given video's frames do not count.
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

    A take may begin with a given past, see :meth:`begin_from_picture` and :meth:`begin_from_video`. All frames and
    seconds, those of the script too, count from the first frame that the take gives.

    Args:
        pipe: the pipeline whose parts it uses; several takes may share one, in turns.
        script: what is said when.
        policy: what is remembered.
        seed: of all noise.
        height, width: of the video in pixels.
        on_change: what a new prompt does to the past, where its segment does not say: ``keep`` nothing, ``recache``
            reads the last two chunks again under the new prompt (LongLive; with ``echo`` the whole window, from which
            its memory starts afresh), ``flush`` forgets all but the sinks and the last two frames (Infinity-RoPE),
            ``cut`` does that too and lets the next chunk stand far away in time (Infinity-RoPE's RoPE cut).

    Attributes:
        skip: frames at the beginning, decoded and not given to anybody: those of a given past.

    Raises:
        ValueError: if the size, the memory or ``on_change`` cannot be, or a learned memory has no trained weights.
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
        if on_change not in CHANGES:
            raise ValueError(f"A prompt change is one of {', '.join(CHANGES)}, not {on_change!r}.")
        self.pipe, self.script, self.policy, self.seed, self.on_change = pipe, script, policy, seed, on_change
        self.height, self.width = height, width
        pipe.check_size(height, width)
        pipe.align()
        install(pipe.transformer)
        self.size = pipe.config.chunk_frames
        self.schedule = FewStepSchedule.from_steps(pipe.config.denoising_steps, pipe.shift)
        rows, columns = height // pipe.vae_scale_factor_spatial, width // pipe.vae_scale_factor_spatial
        self.shape = (1, pipe.transformer.config.in_channels, self.size, rows, columns)
        self.memory = memory_for(
            pipe.transformer,
            policy,
            rows,
            columns,
            chunk=self.size,
            device=pipe.device_of("transformer"),
            encoder=pipe.encoder_for(policy),
        )
        speed.check("decoding", pipe.decoding)
        where = pipe.device_of("vae")
        self.decoder = decoder_for(pipe.vae, pipe.tiny_decoder, where, pipe.decoding, height, width, self.size)
        self._settle()  # or is refused
        self.index = self.skip = 0
        # On the device, one per denoising step and zero for the commit: made here, a chunk waits for none of them.
        times = torch.cat([self.schedule.timesteps, torch.zeros(1)])
        self._times = send(times, self.memory.device).split(1)
        self._held: Plain | None = None
        self._forwards()  # or is refused
        self.prompt: str | None = None  # of the last chunk
        self._embedding: tuple[str, torch.Tensor] | None = None
        self._padding: int | None = None  # tokens of it; counted where that is of use, as the host waits for it
        self._broken = False
        # Always kept, as any segment may ask for "recache".
        self.last: deque[torch.Tensor] = deque(maxlen=policy.recached(self.memory.chunk))
        self.given: torch.Tensor | None = None  # latents of the first chunk, if they need not be made

    def frames_in(self, chunks: int) -> int:
        """How many frames the first ``chunks`` chunks give (a given video's chunks count, and give none)."""
        return max(0, self.decoder.frames_for(chunks * self.size) - self.skip)

    @property
    def frames_done(self) -> int:
        """Frames made so far."""
        return self.frames_in(self.index)

    @property
    def seconds_done(self) -> float:
        """Seconds of video made so far."""
        return self.frames_done / self.pipe.config.fps

    def chunks_until(self, frames: int) -> int:
        """How many more chunks it takes until the take has given at least this many frames."""
        latents = 1 + math.ceil(max(frames + self.skip - 1, 0) / self.decoder.temporal) if frames > 0 else 0
        return max(0, math.ceil(latents / self.size) - self.index)

    # What is said

    def _middle(self, chunk: int) -> float:
        return (self.frames_in(chunk) + self.frames_in(chunk + 1)) / 2 / self.pipe.config.fps

    def segment_at(self, chunk: int) -> Segment:
        """The script's segment that holds in the middle of a chunk, so that a change is at most half a chunk off."""
        return self.script.at(self._middle(chunk))

    def prompt_at(self, chunk: int) -> str:
        """The prompt of a chunk, see :meth:`segment_at`; a given past has that of the first segment."""
        return self.segment_at(chunk).prompt

    def steer(self, script: Script | str) -> None:
        """Replaces the script; what it says of the time until now has no effect.

        Args:
            script: its times count from the take's first frame. A text is read by :func:`parse_script`.

        Raises:
            ValueError: if the text is no script.
        """
        self.script = parse_script(script) if isinstance(script, str) else script

    def say(self, prompt: str, on_change: str | None = None) -> None:
        """From the next chunk on, and until something else is said, this prompt holds.

        Args:
            prompt: one prompt, taken as it is (no script).
            on_change: what becomes of the past, the take's own way by default. Given, it happens even if the prompt is
                the one that holds. Without effect if there is no past yet.

        Raises:
            ValueError: if the model cannot read the prompt, or the change is unknown; nothing has changed then.
        """
        # A millisecond in, if no frame has been given yet: a first segment has nothing before it to change from.
        now = max(self.seconds_done, 0.001)
        said = Segment(prompt, now, None, on_change)
        self.embed(said.prompt)
        held = self.script.at(0).prompt if self.prompt is None else self.prompt
        self.script = Script((Segment(held, 0, now), said))

    # A given past

    def begin_from_picture(self, picture: np.ndarray) -> None:
        """Lets a new take start from a picture: its first chunk is a still of it, of which one frame is given.

        The still is as long as a first chunk (9 frames for Wan2.1), is read into the memory like a chunk that the take
        has made itself, and the video starts with its last frame, the picture as the autoencoder gives it back.

        No published text-to-video model has learned to go on from a still: expect the first seconds to hardly move,
        or to leave the picture for what the prompt says. A prompt that describes the picture helps.

        Args:
            picture: uint8 RGB ``[height, width, 3]`` of the take's size; see ``longtake.pictures``.

        Raises:
            ValueError: if it is something else, or the take is not new.
        """
        self._require_new()
        frames = self.decoder.frames_for(self.size)
        (still,) = portions([picture] * frames, [frames], self.height, self.width)
        self.given = StreamingEncoder(self.pipe.vae).encode(still).to(self.memory.device)
        self.skip = frames - 1

    def begin_from_video(
        self,
        frames: Iterable[np.ndarray],
        count: int | None = None,
        on_chunk: Callable[[int, int], None] | None = None,
    ) -> None:
        """Lets a new take go on where a video ends; what it gives is only what comes after.

        The video is encoded chunk by chunk and read into the memory at t = 0 under the first segment's prompt, so that
        the memory holds of it what the policy would hold of the take's own past; and it is decoded, so that the
        decoder goes on without a seam. That takes one forward per chunk instead of five, and no memory that grows
        with the video. Chunks are whole: of a video whose length does not fit (9, 21, 33, ... frames for Wan2.1), the
        oldest frames are left out; one of fewer than 9 begins with its first frame repeated.

        The model sees the video through its autoencoder only. One trained on text and its own videos goes on best
        from video like its own, at its frame rate, under a prompt that describes it; other video drifts towards what
        it knows.

        Args:
            frames: uint8 RGB ``[height, width, 3]`` of the take's size, at the model's rate; see ``longtake.pictures``.
            count: how many there are, if ``len(frames)`` does not say; a mere iterator is read into a list.
            on_chunk: called after every chunk with the number of chunks done and of all.

        Raises:
            ValueError: if there are no frames, fewer than ``count``, or others than these; or if the take is not new.
        """
        read_video(self, frames, count, on_chunk)

    def _require_new(self) -> None:
        self._require_whole()
        if self.index or self.given is not None:
            raise ValueError("Only a new take can be given a past.")

    # One chunk, in stages

    @torch.no_grad()
    def begin(self) -> torch.Tensor:
        """Settles what the next chunk attends to and is asked for; returns the prompt's embedding."""
        segment = self.segment_at(self.index)
        text = self.embed(segment.prompt)
        self._settle()
        self.memory.padding = self._zeros(text)
        before, self.prompt = self.prompt, segment.prompt
        # A segment that says how to change does so once, also without another prompt.
        asked = segment.change is not None and self.index > 0 and self.segment_at(self.index - 1) != segment
        if before is not None and (asked or before != segment.prompt):
            self._change_prompt(segment.change or self.on_change, text)
        self.memory.begin_chunk()
        return text

    def _settle(self) -> None:
        """What computes attention: asked anew for every chunk, as the transformer may have been told otherwise."""
        pipe, plain = self.pipe, self.pipe.forward_path == "plain"
        attention, collapse = ("native", "off") if plain else (pipe.attention, pipe.collapse)
        choose_kernel(pipe.transformer, self.memory, attention, collapse)

    def embed(self, prompt: str) -> torch.Tensor:
        if self._embedding is None or self._embedding[0] != prompt:
            self._embedding = (prompt, self.pipe.encode_prompt(prompt))
            self._padding = None
        return self._embedding[1]

    def _zeros(self, text: torch.Tensor) -> int:
        """How many tokens of the embedded prompt are padding, if that matters."""
        if not self.memory.collapse:
            return 0
        if self._padding is None:
            self._padding = zeros_at_end(text)
        return self._padding

    def _change_prompt(self, change: str, text: torch.Tensor) -> None:
        change_prompt(self.memory, change, self.last, lambda latents: self.commit(latents, text))

    @torch.no_grad()
    def denoise(self, text: torch.Tensor) -> torch.Tensor:
        """All denoising steps of the chunk; returns its clean latents."""
        forward = self._forwards()
        return denoise(self.schedule, self.noise, lambda x, step: forward.flow(x, step, text))

    def noise(self, step: int) -> torch.Tensor:
        """What the next chunk is given at a denoising step."""
        return chunk_noise(self.seed, self.index, step, self.shape, self.memory.device)

    @torch.no_grad()
    def commit(self, latents: torch.Tensor, text: torch.Tensor) -> None:
        """One more forward at t = 0, by which the memory learns the chunk."""
        self._forwards().commit(latents, text)

    @torch.no_grad()
    def _forwards(self) -> Plain:
        # Asked anew every time: hooks, adapters and processors may come and go between chunks.
        pipe, held = self.pipe, self._held
        self._held = forwards(pipe.transformer, self.memory, self._times, pipe.forward_path, pipe.compilation, held)
        return self._held

    def next_chunk(self) -> Chunk:
        """Makes the next chunk: begin, denoise (unless it is given), commit, decode.

        Raises:
            ValueError: if the prompt cannot be encoded; the take is as before, to be steered elsewhere.
            RuntimeError: if the take was interrupted within a chunk.
        """
        with self.making():
            text = self.begin()
            latents = self.denoise(text) if self.given is None else self.given
            self.commit(latents, text)
            return self.end(latents)

    @contextmanager
    def making(self) -> Iterator[None]:
        """The next chunk is made inside, to its end; left in between, the take refuses to go on.

        Raises:
            ValueError: if the prompt cannot be encoded; RuntimeError: if the take was left so before.
        """
        self._require_whole()
        self.embed(self.prompt_at(self.index))
        self._broken = True
        yield
        self._broken = False

    def end(self, latents: torch.Tensor) -> Chunk:
        """Ends a chunk whose clean latents have been committed: decodes them."""
        first, video = self.frames_done, self._finish(latents)
        assert self.prompt is not None
        return Chunk(self.index - 1, first, self.prompt, latents, video)

    def _finish(self, latents: torch.Tensor) -> torch.Tensor:
        """The frames of committed latents that are not skipped."""
        self.last.append(latents)
        video = self.decoder.decode(latents)
        before = self.frames_done
        self.index += 1
        self.given = None
        return video[len(video) - (self.frames_done - before) :]

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
        return state_of(self)

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

        return take_of(cls, pipe, tensors, data)

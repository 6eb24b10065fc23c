"""Echo-Infinity: a learned memory, trained end to end with the model, or alone."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longtake.memory.echo import Echo
from longtake.memory.echo_encoder import MemoryEncoder
from longtake.memory.registry import parse_memory
from longtake.training.causal_stage import few_step_takes
from longtake.training.dmd_stage import DmdStage
from longtake.training.long_stage import LongStage
from longtake.training.network import Network
from longtake.training.run import Run
from longtake.training.sections import EchoLong, EchoShort


class _Fixed:
    """A generator that stays as it is; it is asked for a clip with gradients whenever its memory is to be stepped.

    Args:
        module: placed.
        memory: the network that is trained.
    """

    def __init__(self, module: nn.Module, memory: Network) -> None:
        self.module, self.due = module, memory.due

    @contextlib.contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """There is no average: what it always is."""
        yield self.module


class LearnedMemoryStage(DmdStage):
    """What both stages share (arXiv 2606.04527): the memory is updated under autograd by everything that leaves the
    window in the clips with gradients, and its state is a constant from one clip to the next. So queries, gate and
    attention have gradients in every step of the generator, whichever denoising step it ends at.
    """

    learns = True

    @property
    @abstractmethod
    def settings(self) -> EchoShort | EchoLong:
        """The section of this stage."""

    def check_config(self) -> None:
        super().check_config()
        learned = [p for p in map(parse_memory, self.settings.memories) if isinstance(p, Echo)]
        if not learned:
            raise ValueError(f"{self.name}.memories must name the memory that is to learn: echo.")
        if len({policy.frames for policy in learned}) > 1:
            raise ValueError(f"All of {self.name}.memories must have as many memory frames: one set of weights learns.")
        if self.settings.start == "checkpoint" and not self.config.model.checkpoint:
            raise ValueError(f"{self.name}.start is checkpoint, and there is no model.checkpoint.")

    def trained(self, run: Run, generator: Any) -> Any:
        settings = self.settings
        encoder = self._encoder(run, generator)
        every = settings.generator_every
        self.memory = run.network("memory", encoder, settings.memory, every, split=False)
        if settings.trains == "all":
            return run.network("transformer", generator, every=every)
        if run.config.run.checkpointing and hasattr(generator, "enable_gradient_checkpointing"):
            generator.enable_gradient_checkpointing()  # gradients pass through it to the memory
        return _Fixed(run.frozen(generator), self.memory)

    def _encoder(self, run: Run, generator: Any) -> MemoryEncoder:
        """The memory's weights: of the stage before, of the published folder that training begins with, or new."""
        config, model = generator.config, self.config.model
        rows, columns = config.patch_size[1:]
        heads, grid = config.num_attention_heads, (model.height // rows, model.width // columns)
        encoder = MemoryEncoder(
            heads,
            config.attention_head_dim,
            frames=next(p.frames for p in map(parse_memory, self.settings.memories) if isinstance(p, Echo)),
            grid=grid,
            groups=self.settings.groups,
            normalize_keys=self.settings.normalize_keys,
            num_layers=config.num_layers,
        )
        if "echo" in self.begins_with():
            run.load_previous("echo", "memory", encoder)
        elif (folder := self._published()) is not None:
            from longtake.checkpoints.memory_weights import load_memory

            found = load_memory(folder, heads, grid, torch.float32)
            if found.config != encoder.config:
                raise ValueError(
                    f"The memory in {folder} has the shape {found.config}, and {encoder.config} is asked for."
                )
            encoder = found
        return encoder.requires_grad_(True)

    def _published(self) -> Path | None:
        from longtake.checkpoints.memory_file import FILE, FOLDER

        if self.config.model.checkpoint is None:
            return None
        folder = Path(self.config.model.checkpoint) / FOLDER
        return folder if (folder / FILE).is_file() else None

    def remembering(self) -> Mapping[str, Any]:
        return {"encoder": self.memory.module, "memory_grad": "update"}

    def _takes(self, run: Run, captions: Sequence[str], frames: int) -> Tensor:
        s = self.settings
        memory = next(m for m in s.memories if isinstance(parse_memory(m), Echo))
        with self.network.averaged() as module, self.memory.averaged() as encoder:
            assert isinstance(encoder, MemoryEncoder)
            return few_step_takes(
                run, self.config, module, self.text, captions, memory, frames, s.timesteps, s.shift, encoder
            )

    def outputs(self, run: Run) -> Mapping[str, Any]:
        made = dict(super().outputs(run))
        with self.memory.averaged() as module:
            weights = {n: t.clone() for n, t in module.state_dict().items()}
        encoder = self.memory.module
        encoder.load_state_dict(weights)
        assert isinstance(encoder, MemoryEncoder)
        encoder.trained = True
        return {**made, "memory_encoder": encoder}


class EchoStage(LearnedMemoryStage):
    """Stage 1: short rollouts, from the first of which the memory is attended to."""

    name = "echo"
    title = "Echo-Infinity's learned memory, on short takes"

    @property
    def settings(self) -> EchoShort:
        return self.config.echo

    def begins_with(self) -> tuple[str, ...]:
        return () if self.settings.start == "checkpoint" else (self.settings.start,)


class EchoLongStage(LearnedMemoryStage, LongStage):
    """Stage 2: takes that go on from step to step, with changes of prompt; the state lives as long as its take."""

    name = "echo_long"
    title = "the same on long takes that go on from step to step, with changes of prompt"

    @property
    def settings(self) -> EchoLong:
        return self.config.echo_long

    def begins_with(self) -> tuple[str, ...]:
        if self.settings.start == "checkpoint":
            return ()
        first = self.generator_from()
        return ("echo",) if first in (None, "echo") else (str(first), "echo")

    def generator_from(self) -> str | None:
        if self.settings.start == "checkpoint":
            return None
        if self.config.echo.trains == "all":
            return "echo"
        first = self.config.echo.start  # the generator is what it was before stage 1
        return None if first == "checkpoint" else first

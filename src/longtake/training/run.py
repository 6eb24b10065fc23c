"""The loop of every stage: budget, accumulation, steps, logs, checkpoints, samples and checks.

All that a stage draws should come from :meth:`Run.generator`, which follows from (seed, stage, step, global sample
index): then any number of processes, and any number of interruptions, make the same run.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longtake.training import rng
from longtake.training.checkpoint import (
    FORMAT,
    Stopped,
    checkpoint_path,
    finished_state,
    newest,
    tensors_in,
    write_checkpoint,
)
from longtake.training.checks import check_lines, write_check
from longtake.training.config import Config, check_world, same_model
from longtake.training.distributed import World
from longtake.training.keyed import generator, shuffled
from longtake.training.log import Log, memory_gb
from longtake.training.network import Network, load_weights
from longtake.training.plain import plain_attention
from longtake.training.sections import Optimization
from longtake.training.settings import to_plain
from longtake.training.stage import Stage


class Run:
    """One stage in training.

    Args:
        stage: what is trained.
        config: all settings.
        folder: where everything goes; it exists. A checkpoint of the stage that is found there is continued.
        world: the processes.
        command: what people type to continue, for sentences; ``{stage}`` in it stands for the stage.
        note: told what happens, in sentences.
        stop: asked after every step whether to save and stop.
        for_export: the stage is built only for what it exports: it may leave out data.
        progress: told (step, share of the budget, logged values) after every step.

    Attributes:
        step: steps done.
        minutes: of training, over all runs of the stage.
        networks: by name.
    """

    def __init__(
        self,
        stage: Stage,
        config: Config,
        folder: Path,
        world: World | None = None,
        *,
        command: str = "longtake train {stage}",
        note: Callable[[str], object] = lambda text: None,
        stop: Callable[[], bool] = lambda: False,
        for_export: bool = False,
        progress: Callable[[int, float, Mapping[str, float]], object] = lambda step, share, values: None,
    ) -> None:
        self.stage, self.config, self.folder, self.world = stage, config, folder, world or World()
        if not stage.splits:
            self.world = replace(self.world, fsdp=False)
        self.name, self.settings = stage.name, config.stage(stage.name)
        self.step, self.minutes, self.for_export = 0, 0.0, for_export
        self.networks: dict[str, Network] = {}
        self._command, self._stop, self._progress = command, stop, progress
        self._note = note if self.world.first else lambda text: None
        self._bad_in_row = 0
        self._written: tuple[int, bool] | None = None  # step and whether finished, of the newest checkpoint
        self._order: tuple[int, int, Tensor] | None = None

    # What a stage builds with

    @property
    def device(self) -> torch.device:
        """Where networks are."""
        return self.world.device

    def network(
        self,
        name: str,
        module: nn.Module,
        settings: Optimization | None = None,
        every: int = 1,
        split: bool = True,
    ) -> Network:
        """Makes a network that is trained, places it, and puts it under :attr:`networks`.

        Args:
            module: on the host, the same in every process; parameters without ``requires_grad`` stay as they are.
            settings: how; those of the stage by default.
            every: see :class:`Network`.
            split: whether it may be split between processes (FSDP2): what is run is its ``forward``.
        """
        for p in module.parameters():
            if p.requires_grad:
                p.data = p.data.float()  # an average with rate 0.99 stalls in bfloat16, and so do small steps
        if self.config.run.checkpointing:
            _call(module, "enable_gradient_checkpointing")
        world = self.world if split else replace(self.world, fsdp=False)
        module = self._placed(module.train(), world)
        made = Network(name, module, settings or self.settings, world, every)
        self.networks[name] = made
        return made

    def frozen(self, module: nn.Module) -> nn.Module:
        """Places a network that is only used: no gradients to its weights, evaluation mode, not in checkpoints."""
        return self._placed(module.requires_grad_(False).eval())

    def _placed(self, module: nn.Module, world: World | None = None) -> nn.Module:
        if self.config.run.compile and self.stage.compiles:
            _call(module, "compile_repeated_blocks")
        return (world or self.world).place(module, self.dtype if self.dtype != torch.float32 else None)

    def load_previous(self, stage: str, network: str, into: nn.Module) -> None:
        """Loads the averaged weights of a network of a finished stage (its plain weights if it has no average).

        Args:
            into: on the host, not placed yet.

        Raises:
            ValueError: if the stage has no checkpoint here, or one of other sizes.
        """
        state = finished_state(self.folder, stage, self._command)
        saved = state["networks"].get(network)
        if saved is None:
            there = ", ".join(state["networks"])
            raise ValueError(f"The stage {stage!r} has no network {network!r}; it has {there}.")
        adapters = any(".lora_" in name for name in saved["weights"])  # then nothing else was trained, or saved
        load_weights(
            f"{network} of {stage}",
            {n: p for n, p in into.named_parameters() if not adapters or n in saved["weights"]},
            saved["average"] or saved["weights"],
        )

    # What a stage steps with

    @property
    def dtype(self) -> torch.dtype:
        """Of forward and backward."""
        return torch.bfloat16 if self.config.run.precision == "bf16" else torch.float32

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, forwards are in the configured precision."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @property
    def batch(self) -> int:
        """Samples per step over all processes."""
        return self.config.batch(self.name)

    def samples(self, step: int) -> range:
        """The global indices of this process's samples in a step; no index comes twice in a run."""
        share = self.batch // self.world.size
        first = step * self.batch + self.world.rank * share
        return range(first, first + share)

    def parts(self, step: int) -> Iterator[range]:
        """The same in ``run.accumulate`` parts, one after another. Make one backward pass for each."""
        mine = self.samples(step)
        size = len(mine) // self.config.run.accumulate
        for first in range(mine.start, mine.stop, size):
            yield range(first, first + size)

    def clips(self, samples: range, count: int | None) -> list[int]:
        """Which of ``count`` clips belong to global sample indices: every clip once per epoch, shuffled anew in each.

        With None the data never repeats, and the indices are the clips.
        """
        if count is None:
            return list(samples)
        chosen = []
        for sample in samples:
            epoch, place = divmod(sample, count)
            if self._order is None or self._order[:2] != (epoch, count):
                self._order = (epoch, count, shuffled(self.config.run.seed, epoch, count))
            chosen.append(int(self._order[2][place]))
        return chosen

    def generator(self, step: int, sample: int, stream: str = "") -> torch.Generator:
        """The generator (on the host) of one sample in one step; ``stream`` tells several of them apart."""
        return generator(self.config.run.seed, self.name, stream, step, sample)

    def backward(self, loss: Tensor) -> None:
        """The backward pass of one part: ``loss`` is a mean over the part's samples."""
        (loss / self.config.run.accumulate).backward()

    # The loop

    @property
    def share(self) -> float:
        """Share of the budget spent, 0 to 1; 0 without a budget."""
        if self.settings.steps is not None:
            return min(1.0, self.step / self.settings.steps)
        return min(1.0, self.minutes / self.settings.minutes) if self.settings.minutes else 0.0

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return self.share >= 1.0

    @property
    def saved(self) -> bool:
        """Whether the newest checkpoint is of this very state."""
        return self._written == (self.step, self.finished)

    def open(self, resume: bool = True) -> None:
        """Builds the stage, and goes on from its newest checkpoint if there is one.

        Raises:
            ValueError: one sentence, for a configuration that does not work out, a stage before that is missing, or
                a checkpoint of something else.
        """
        check_world(self.config, self.name, self.world.size)
        for stage in self.stage.needs():
            finished_state(self.folder, stage, self._command)
        found = newest(self.folder, self.name, self._note) if resume else None
        if found is not None:
            self._check_checkpoint(*found)
        rng.seed_all(self.config.run.seed, self.name, "build")
        self.stage.build(self)
        if not self.networks:
            raise ValueError(f"The stage {self.name!r} has nothing to train.")
        rng.seed_all(self.config.run.seed, self.name, "run", self.world.rank)
        if found is not None:
            self._load(found[1])

    def train(self) -> bool:
        """Trains to the end of the budget, or until asked to stop; then samples and checks.

        Returns:
            Whether the budget is spent.

        Raises:
            ValueError: if there is no budget.
            Stopped: if training cannot go on: one sentence that says what happened, what is kept and how to go on.
        """
        if self.settings.steps is None and self.settings.minutes is None:
            raise ValueError(f"The stage {self.name!r} has no budget: give --steps or --minutes.")
        log = None
        try:
            if self.world.first:
                log = Log(self.folder, self.name, self.step, self.config.run.tensorboard, self._note)
            # not with checkpointing: what is computed again in the backward pass would be so in another way
            own = contextlib.nullcontext() if self.config.run.checkpointing else plain_attention(self.device)
            with own:
                self._train(log)
        except OSError as error:
            raise self._stopped(f"{self.name} stopped at step {self.step}: {error.strerror or error}") from None
        finally:
            if log is not None:
                log.close()
        return self.finished

    def _train(self, log: Log | None) -> None:
        self._tick = self._saved = time.monotonic()
        asked = False
        while not self.finished and not asked:
            asked = self._one(log)
        if not self.saved:
            self.save()
        if self.finished:
            self._sample()
            self._check()

    def _one(self, log: Log | None) -> bool:
        """One step; returns whether any process was asked to stop."""
        losses = dict(self.stage.step(self, self.step))
        due = [n for n in self.networks.values() if n.due(self.step)]
        norms = {f"norm/{n.name}" if len(self.networks) > 1 else "norm": n.finish_gradients() for n in due}
        values, save, asked, seconds = self._exchange(losses, norms)
        share = self.share
        self.minutes += seconds / 60
        bad = next((name for name, value in values.items() if not math.isfinite(value)), None)
        if bad is None:
            self._bad_in_row = 0
            for network in due:
                network.apply(self.step, share)
        else:
            self._bad_in_row += 1
            if self._bad_in_row > self.config.run.skip_bad_steps:
                raise self._not_finite(bad)
        for network in self.networks.values():
            network.zero_grad()
        self.step += 1
        if log is not None:
            values = {"minutes": self.minutes, "lr": due[0].lr if due else math.nan, **values}
            values |= {"samples_per_s": self.batch / max(seconds, 1e-9), "memory_gb": memory_gb(self.device)}
            log.write(self.step, values)
            self._progress(self.step, self.share, values)
        every = self.config.run.sample_every
        if every and self.step % every == 0 and not self.finished:
            self._sample()
        if save:
            self.save()
        return asked

    def _exchange(
        self, losses: Mapping[str, Tensor], norms: Mapping[str, Tensor]
    ) -> tuple[dict[str, float], bool, bool, float]:
        """What the processes must agree on: mean losses, whether to save and to stop, and the seconds of the step.

        This is the one place in a step where the host waits for the device.
        """
        tensors = [t.detach().float().reshape(()).to(self.device) for t in (*losses.values(), *norms.values())]
        numbers = torch.stack(tensors).tolist() if tensors else []
        now = time.monotonic()
        save = self.world.first and now - self._saved >= self.config.run.save_every
        *sums, saves, stops, seconds = self.world.sum_host(
            [*numbers, float(save), float(self._stop()), now - self._tick]
        )
        self._tick = now
        values = dict(zip((*losses, *norms), (s / self.world.size for s in sums), strict=True))
        return values, saves > 0, stops > 0, seconds / self.world.size

    # Trouble

    def _stopped(self, what: str, advice: str = "") -> Stopped:
        kept = newest(self.folder, self.name)
        last = f"The last good state is step {kept[1]['step']}, {kept[0]}" if kept else "Nothing was saved yet"
        how = self._command.format(stage=self.name)
        return Stopped(f"{what}. {last}. To go on{advice}: {how}")

    def _not_finite(self, name: str) -> Stopped:
        what = "norm of the gradient" if name.startswith("norm") else f"loss {name!r}"
        return self._stopped(
            f"The {what} of {self.name} is not a finite number at step {self.step}",
            f", with a lower learning rate (--set {self.name}.lr={self.settings.lr / 2:g}) or leaving out such steps "
            "(--set run.skip_bad_steps=3)",
        )

    # Checkpoints

    def save(self) -> None:
        """Writes a checkpoint; every process must take part.

        Raises:
            Stopped: if it cannot be written, or weights are not finite; the one before is untouched.
        """
        keep = self.world.first
        state = {
            "format": FORMAT,
            "stage": self.name,
            "step": self.step,
            "minutes": self.minutes,
            "finished": self.finished,
            "bad_in_row": self._bad_in_row,
            "config": to_plain(self.config),
            "networks": {name: network.state(keep) for name, network in self.networks.items()},
            "random": self.world.gather_objects(rng.states()),
            "stage_state": self.world.gather_objects(self.stage.state()),
        }
        problem = self._write(state) if keep else None
        problem = self.world.gather_objects(problem)[0]
        if problem:
            raise self._stopped(problem)
        self._saved, self._written = time.monotonic(), (self.step, self.finished)
        self._tick = self._saved  # the budget is for training

    def _write(self, state: dict[str, Any]) -> str | None:
        """Writes; returns what went wrong."""
        weights = [t for n in state["networks"].values() for t in tensors_in([n["weights"], n["average"]])]
        if not all(bool(t.isfinite().all()) for t in weights):
            return f"After step {self.step}, {self.name} has weights that are not finite numbers; they were not saved"
        path = checkpoint_path(self.folder, self.name, self.step)
        try:
            write_checkpoint(path, state)
        except OSError as error:
            return f"{self.name} stopped at step {self.step}: {error.strerror or error}"
        return None

    def _check_checkpoint(self, path: Path, state: dict[str, Any]) -> None:
        key = same_model(to_plain(self.config.model), state["config"]["model"])
        if key is not None:
            theirs, mine = state["config"]["model"][key], getattr(self.config.model, key)
            raise ValueError(
                f"{path} was made with model.{key} {theirs}, and the configuration has {mine}: "
                "choose another --folder, or set it back."
            )

    def _load(self, state: dict[str, Any]) -> None:
        # an export builds what it writes, and leaves out a critic
        missing = set(self.networks) - set(state["networks"])
        if not self.for_export:
            missing |= set(state["networks"]) - set(self.networks)
        if missing:
            raise ValueError(f"The checkpoint in {self.folder} and the stage differ in {', '.join(sorted(missing))}.")
        for name, network in self.networks.items():
            network.load(state["networks"][name])
        self.step, self.minutes = state["step"], state["minutes"]
        self._bad_in_row, self._written = state["bad_in_row"], (state["step"], state["finished"])
        same = len(state["random"]) == self.world.size
        if same:
            rng.restore(state["random"][self.world.rank])
        self.stage.load_state(state["stage_state"][self.world.rank] if same else None)

    # Pictures and figures

    def _sample(self) -> None:
        with rng.aside(self.config.run.seed, self.name, "sample"), torch.no_grad():
            picture = self.stage.sample(self)
        if picture is not None and self.world.first:
            folder = self.folder / "samples"
            folder.mkdir(exist_ok=True)
            part = folder / f"{self.name}-{self.step:08d}.part"
            try:
                picture.save(part, format="PNG")
                part.replace(part.with_suffix(".png"))
            finally:
                part.unlink(missing_ok=True)
        self._tick = time.monotonic()

    def _check(self) -> None:
        with rng.aside(self.config.run.seed, self.name, "check"), torch.no_grad():
            figures = dict(self.stage.check(self))
        if self.world.first:
            write_check(self.folder, self.name, self.step, figures)
            for line in check_lines(self.name, figures):
                self._note(line)
        self.world.barrier()  # the others read the file next


def _call(module: nn.Module, method: str) -> None:
    """Calls what networks of diffusers have and others may not."""
    found: Any = getattr(module, method, None)
    if found is not None:
        found()

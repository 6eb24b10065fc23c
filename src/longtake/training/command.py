"""``longtake train``: stages of training, one or all, and the export of what they made.

The same under torchrun: ``torchrun --nproc-per-node 8 -m longtake.training STAGE ...``. Nothing heavy is imported
before the configuration is checked.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longtake.cli_progress import Stop, say, tell, warn
from longtake.training.config import CONFIGS, Config, load_config
from longtake.training.registry import STAGE_CLASSES, info, make_stage, stage_names

if TYPE_CHECKING:
    from longtake.training.distributed import World

ALL, EXPORT = "pocket", "export"
_NAMES = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.yaml")))


@dataclass(frozen=True)
class TrainRequest:
    """What was typed; see :func:`train`."""

    stage: str | None = None
    config: str | None = None
    folder: Path | None = None
    changes: tuple[str, ...] = ()
    minutes: float | None = None
    steps: int | None = None
    out: Path | None = None
    of: str | None = None
    shard_size: str = "5GB"
    overwrite: bool = False
    listing: bool = False
    quiet: bool = False


def train(
    stage: Annotated[
        str | None,
        typer.Argument(
            metavar="STAGE", help="A stage (see --list); pocket: all stages in order; export: write a diffusers folder."
        ),
    ] = None,
    config: Annotated[
        str | None, typer.Option(metavar="FILE", help=f"A YAML file, or one that comes with Longtake: {_NAMES}.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where checkpoints, logs and samples go. Default: runs/NAME.")
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, like teacher.lr=1e-4.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="The stage's budget in minutes of training.")] = None,
    steps: Annotated[int | None, typer.Option(help="The stage's budget in steps.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="export: the folder to make.")] = None,
    of: Annotated[str | None, typer.Option(metavar="STAGE", help="export: of which stage. Default: the last.")] = None,
    shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="export: the most a file of weights has, like 16MB.")
    ] = "5GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="export: replace the folder if it exists.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="List the stages, and how far they are in --folder.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Train a model, stage by stage. The same command continues what was stopped, killed or is not finished.

    Under torchrun, with several GPUs or processes: torchrun --nproc-per-node N -m longtake.training STAGE ...
    """
    request = TrainRequest(
        stage, config, folder, tuple(change or ()), minutes, steps, out, of, shard_size, overwrite, listing, quiet
    )
    raise typer.Exit(train_command(request))


def train_command(request: TrainRequest) -> int:
    """Does what was asked for; returns the exit code: 2 for bad input, 1 for training that cannot go on."""
    try:
        if request.listing:
            return _list(request)
        if request.stage == EXPORT:
            return _export(request)
        config, names, folder = _plan(request)
    except (ValueError, OSError) as error:
        return _say(str(error), 2)
    return _train(request, config, names, folder)


def _plan(request: TrainRequest) -> tuple[Config, list[str], Path]:
    """The configuration, the stages and the folder, checked as far as that goes without torch.

    Raises:
        ValueError: one sentence.
    """
    if request.stage is None:
        raise ValueError(f"Which stage? One of {', '.join(stage_names())}; {ALL} for all, {EXPORT} for the result.")
    if request.stage != ALL:
        info(request.stage)
    if request.config is None:
        raise ValueError(f"Give a configuration with --config: a YAML file, or one of {_NAMES}.")
    if request.minutes is not None and request.steps is not None:
        raise ValueError("Give --minutes or --steps, not both.")
    budget = request.minutes if request.steps is None else request.steps
    if budget is not None and not 0 < budget < 1e9:
        raise ValueError("A budget must be above 0: --minutes 10, or --steps 1000.")
    config = load_config(request.config, request.changes)
    names = stage_names(config) if request.stage == ALL else [request.stage]
    for name in names:
        if request.minutes is not None or request.steps is not None:
            config = config.with_budget(name, steps=request.steps, minutes=request.minutes)
        if config.stage(name).steps is None and config.stage(name).minutes is None:
            raise ValueError(f"The stage {name!r} has no budget in {request.config}: give --steps or --minutes.")
    folder = request.folder or Path(config.run.folder or f"runs/{config.name}")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: --folder must be a folder, or one that can be made.")
    folder.mkdir(parents=True, exist_ok=True)
    return config, names, folder


def _train(request: TrainRequest, config: Config, names: list[str], folder: Path) -> int:
    import torch

    from longtake.quiet import quieten_libraries
    from longtake.training.checkpoint import Stopped
    from longtake.training.distributed import World

    quieten_libraries()
    stop = Stop("step")
    world = None
    try:
        for name in names:
            make_stage(name, config).check_config()
        with stop:
            world = World.start(config.run.device, config.run.fsdp)
            for name in names:
                if not _stage(request, config, name, folder, world, stop):
                    break
    except (ValueError, OSError) as error:
        return _say(str(error), 2)
    except Stopped as error:
        return _say(str(error), 1)
    except torch.OutOfMemoryError:
        return _say(
            "The memory is full: raise run.accumulate or lower run.batch, or set run.checkpointing=true. "
            f"To go on: {command_line(request)}",
            1,
        )
    except KeyboardInterrupt:
        _say(f"Stopped at once; what was saved last is kept. To go on: {command_line(request)}")
    finally:
        if world is not None:
            world.end()
    return 128 + stop.signal if stop.signal else 0


def _stage(request: TrainRequest, config: Config, name: str, folder: Path, world: World, stop: Stop) -> bool:
    """Trains one stage; returns whether the next one may begin."""
    from longtake.lock import Lock
    from longtake.training.checks import read_check
    from longtake.training.progress import TrainingProgress
    from longtake.training.run import Run

    lock = Lock(folder / f"{name}.csv") if world.first else None
    try:
        with TrainingProgress(name, request.quiet, mute=not world.first) as progress:
            run = Run(
                make_stage(name, config),
                config,
                folder,
                world,
                command=command_line(request, "{stage}"),
                note=progress.say,
                stop=stop,
                progress=progress.update,
            )
            run.open()
            report = read_check(folder, name)
            checked = report is not None and report.get("step") == run.step
            if world.gather_objects(run.finished and run.saved and checked)[0]:  # what the first process sees counts
                progress.say(f"The stage {name} is finished: {run.step} steps, {run.minutes:.1f} minutes.")
            else:
                with stop.gently():
                    done = run.train()
                report = read_check(folder, name)
                what = "is finished" if done else "was stopped, and saved,"
                progress.say(f"The stage {name} {what} after {run.step} steps, {run.minutes:.1f} minutes.")
                if not done:
                    progress.say(f"To go on: {command_line(request)}")
                    return False
        failed = report is not None and not report.get("passed", True)
        if failed and world.first:
            warn(f"The check of {name} failed; see {folder / (name + '.check.json')}.")
        return not (failed and config.run.failed_check == "stop")
    finally:
        if lock is not None:
            lock.release()


def _export(request: TrainRequest) -> int:
    if request.folder is None or request.out is None:
        raise ValueError("An export needs the run's --folder and an --out for the diffusers folder to make.")
    if request.of is not None:
        info(request.of)
    if not re.fullmatch(r"[1-9][0-9]*[kKMGT]i?B", request.shard_size):
        raise ValueError(f"--shard-size is written like 16MB or 5GB, not {request.shard_size!r}.")
    if not request.folder.is_dir():
        raise ValueError(f"There is no folder {request.folder}.")
    if request.out.exists() and not request.overwrite:
        raise ValueError(f"{request.out} exists: choose another --out, or give --overwrite.")
    from longtake.quiet import quieten_libraries
    from longtake.training.exporting import export

    quieten_libraries()
    size = request.shard_size.replace("k", "K")
    name, step = export(request.folder, request.out, request.of, shard_size=size, overwrite=request.overwrite)
    say(f"The stage {name} after {step} steps.")
    tell(str(request.out.absolute()))
    return 0


def _list(request: TrainRequest) -> int:
    states: Mapping[str, str] = {}
    if request.folder is not None:
        from longtake.training.checkpoint import newest

        found = {name: newest(request.folder, name) for name in STAGE_CLASSES}
        states = {
            name: f" [{'finished' if f[1]['finished'] else 'not finished'}: {f[1]['step']} steps, "
            f"{f[1]['minutes']:.1f} minutes]"
            if f
            else " [not begun]"
            for name, f in found.items()
        }
    for name in stage_names():
        tell(f"{name}: {info(name).title}{states.get(name, '')}")
    return 0


def command_line(request: TrainRequest, stage: str | None = None) -> str:
    """What was typed, to be typed again."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    start = f"torchrun --nproc-per-node {size} -m longtake.training" if size > 1 else "longtake train"
    words = []
    for name, value in (("--config", request.config), ("--folder", request.folder)):
        words += [name, str(value)] if value is not None else []
    for change in request.changes:
        words += ["--set", change]
    if request.steps is not None:
        words += ["--steps", str(request.steps)]
    if request.minutes is not None:
        words += ["--minutes", f"{request.minutes:g}"]
    rest = shlex.join(words).replace("{", "{{").replace("}", "}}") if stage == "{stage}" else shlex.join(words)
    return f"{start} {stage or request.stage} {rest}".rstrip()


def _say(text: str, code: int = 0) -> int:
    """Says it, once if all processes have the same to say, which they have about what was typed."""
    rank = int(os.environ.get("RANK", 0))
    if rank and code == 2:
        return code
    return say(text if not rank else f"(process {rank}) {text}", code)

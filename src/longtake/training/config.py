"""A training configuration: a YAML file, read into frozen dataclasses, checked before anything heavy is loaded.

``longtake train STAGE --config FILE --set section.key=value``. The sections are in :mod:`longtake.training.sections`;
the reference in ``docs/train.md`` is made from them by :func:`reference`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtake.training.sections import (
    Autoencoder,
    Causal,
    Consistency,
    Data,
    Decoder,
    Dmd,
    EchoLong,
    EchoShort,
    Long,
    Model,
    RunSection,
    StageSection,
    Teacher,
    TextEncoder,
)
from longtake.training.settings import build, describe, section, setting
from longtake.yamlfile import read_value, read_yaml

CONFIGS = Path(__file__).parent / "configs"
"""Where the configurations that come with Longtake lie."""

STAGES = (
    "autoencoder",
    "decoder",
    "text_encoder",
    "teacher",
    "causal",
    "consistency",
    "dmd",
    "long",
    "echo",
    "echo_long",
)
"""Sections that are stages, in the order of training."""

_DISTILLED: dict[str, Any] = {"betas": (0.0, 0.999), "weight_decay": 0.01, "clip": 10.0}
_SHORT = {**_DISTILLED, "lr": 2e-6, "ema_start": 200}
_LONG = {**_DISTILLED, "lr": 1e-5, "ema": None, "frames": 237}


@dataclass(frozen=True)
class Config:
    """A whole configuration. ``name`` is what it is about, for logs."""

    name: str = setting("training", "What this is, for people.")
    model: Model = section(Model, "The video model: sizes, or where published weights are.")
    data: Data = section(Data, "What is learned from.")
    run: RunSection = section(RunSection, "How training runs.")
    autoencoder: Autoencoder = section(Autoencoder, "Stage: the pocket model's autoencoder.")
    decoder: Decoder = section(Decoder, "Stage: its decoder alone, the latents staying as they are.")
    text_encoder: TextEncoder = section(TextEncoder, "Stage: the pocket model's text encoder.")
    teacher: Teacher = section(Teacher, "Stage: bidirectional flow matching over whole clips.")
    causal: Causal = section(Causal, "Stage: the causal student.")
    consistency: Consistency = section(Consistency, "Stage: the start for few steps.", lr=2e-6)
    dmd: Dmd = section(Dmd, "Stage: self-forcing with distribution matching.", **_SHORT)
    long: Long = section(Long, "Stage: the same on long takes.", **_LONG)
    echo: EchoShort = section(EchoShort, "Stage: Echo-Infinity's learned memory, on short takes.", **_SHORT)
    echo_long: EchoLong = section(EchoLong, "Stage: the same on long takes.", **_LONG)

    @property
    def parts_trained(self) -> tuple[str, ...]:
        """The stages that make what every later one works with: the latents and the text."""
        made = {"autoencoder": self.data.source == "world", "text_encoder": self.model.text == "stage"}
        return tuple(name for name, needed in made.items() if needed)

    def stage(self, name: str) -> StageSection:
        """The section of a stage.

        Raises:
            ValueError: if it has none.
        """
        found = getattr(self, name, None)
        if not isinstance(found, StageSection):
            raise ValueError(f"There is no stage {name!r}; the stages are {', '.join(STAGES)}.")
        return found

    def batch(self, name: str) -> int:
        """Samples per step of a stage, over all processes."""
        return self.stage(name).batch or self.run.batch

    def with_budget(self, stage: str, *, steps: int | None = None, minutes: float | None = None) -> Config:
        """The same configuration with another budget for one stage: steps or minutes, or none."""
        changed: Any = {stage: dataclasses.replace(self.stage(stage), steps=steps, minutes=minutes)}
        return dataclasses.replace(self, **changed)


def find_config(name: str | os.PathLike[str]) -> Path:
    """The file of a configuration: a path, or the name of one that comes with Longtake.

    Raises:
        ValueError: if there is neither; names those that there are.
    """
    path = Path(name)
    if path.exists():
        return path
    shipped = CONFIGS / f"{path.name}.yaml"
    if path.name == str(name) and shipped.is_file():
        return shipped
    there = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.yaml")))
    raise ValueError(f"There is no configuration {str(name)!r}: give a YAML file, or one of {there}.")


def load_config(name: str | os.PathLike[str], changes: Sequence[str] = ()) -> Config:
    """Reads and checks a configuration.

    Args:
        name: a YAML file, or the name of a configuration that comes with Longtake.
        changes: each ``section.key=value``, the value written as in the file.

    Raises:
        ValueError: one sentence that names the file or change, the key and what would be accepted.
    """
    path = find_config(name)
    config = build(Config, read_yaml(path), str(path))
    for change in changes:
        key, equals, text = change.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise ValueError(f"--set is written like model.layers=6, not {change!r}.")
        values: Any = read_value(text, f"--set {change}")
        if len(parts) == 2 and parts[0] in STAGES and parts[1] in ("steps", "minutes") and values is not None:
            config = config.with_budget(parts[0])  # the new budget is instead of the one in the file
        for part in reversed(parts):
            values = {part: values}
        config = build(Config, values, f"--set {change}", base=config)
    check(config, str(path))
    return config


def check(config: Config, source: str) -> None:
    """What no key alone can tell: sizes that do not divide, budgets given twice.

    Raises:
        ValueError: one sentence.
    """
    model = config.model
    for key in ("height", "width"):
        _divides(source, f"model.{key}", getattr(model, key), "model.patch", model.patch)
    _divides(source, "model.frames", model.frames, "model.chunk", model.chunk)
    _divides(source, "model.head_dim", model.head_dim, "2, for rotations", 2)
    if model.text == "components" and not (model.components or model.checkpoint):
        raise ValueError(
            f"{source}: model.text is components, and neither model.components nor model.checkpoint is set."
        )
    if config.data.source in ("latents", "prompts") and not config.data.path:
        raise ValueError(f"{source}: data.path must be given if data.source is {config.data.source}.")
    for name in STAGES:
        stage = config.stage(name)
        if stage.steps is not None and stage.minutes is not None:
            raise ValueError(f"{source}: {name} has both steps and minutes: give one of them as its budget.")
        batch = config.batch(name)
        key = "run.batch" if stage.batch is None else f"{name}.batch"
        _divides(source, key, batch, "run.accumulate", config.run.accumulate)
    for name in ("dmd", "long", "echo", "echo_long"):
        stage = getattr(config, name)
        _divides(source, f"{name}.frames", stage.frames, "model.chunk", model.chunk)
        if stage.min_step > stage.max_step:
            raise ValueError(f"{source}: {name}.min_step must not be above {name}.max_step.")
    if config.long.overlap >= config.long.clip_frames:
        raise ValueError(f"{source}: long.overlap must be less than long.clip_frames, {config.long.clip_frames}.")
    for name in config.run.stages or ():
        if name not in STAGES:
            raise ValueError(f"{source}: run.stages has {name!r}; the stages are {', '.join(STAGES)}.")


def _divides(source: str, key: str, value: int, by_key: str, by: int) -> None:
    if value % by:
        what = f"{by_key}, {by}" if not by_key.startswith("2") else by_key
        raise ValueError(f"{source}: {key} must be a multiple of {what}; {value} is not.")


def check_world(config: Config, stage: str, processes: int) -> None:
    """Refuses a batch that the processes cannot share evenly.

    Raises:
        ValueError: one sentence with the sizes that would do.
    """
    batch, parts = config.batch(stage), processes * config.run.accumulate
    if batch % parts:
        key = "run.batch" if config.stage(stage).batch is None else f"{stage}.batch"
        raise ValueError(
            f"{key} is {batch}, and {processes} processes with run.accumulate {config.run.accumulate} need a multiple "
            f"of {parts}: try {max(1, round(batch / parts)) * parts}."
        )


def reference() -> str:
    """Every key, what it accepts, its default and its meaning, as Markdown tables: one per section.

    The keys that all stages share are listed once.
    """
    shared = {d.key: d for d in describe(StageSection)}
    tables: dict[str, list[str]] = {}
    notes: dict[str, str] = {}
    for item in describe(Config):
        head, dot, key = item.key.partition(".")
        if not dot and not item.default:
            notes[head], tables[head] = item.doc, []
            continue
        if head in STAGES and key in shared and item.default == shared[key].default:
            continue
        name = head if dot else ""
        tables.setdefault(name, []).append(_row(key or head, item.accepted, item.default, item.doc))
    parts = ["### Top level\n", _table(tables.pop(""))]
    for name, rows in tables.items():
        title = f"### `{name}`\n\n{notes[name]}"
        if name in STAGES:
            title += " Besides the keys of every stage:" if rows else " It has the keys of every stage."
        parts += [title + "\n", _table(rows)] if rows else [title + "\n"]
    parts += ["### Every stage\n", _table([_row(d.key, d.accepted, d.default, d.doc) for d in shared.values()])]
    return "\n".join(parts).rstrip() + "\n"


def _row(*cells: str) -> str:
    key, accepted, default, doc = (cell.replace("|", "\\|") for cell in cells)
    return f"| `{key}` | {accepted} | {f'`{default}`' if default else ''} | {doc} |"


def _table(rows: Sequence[str]) -> str:
    return "\n".join(["| key | accepted | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


def same_model(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """The first key in which two ``model`` sections (as plain values) differ, if any."""
    return next((key for key in mine if key in theirs and mine[key] != theirs[key]), None)

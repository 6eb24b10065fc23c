"""The stages that there are. Imports nothing heavy."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from longtake.training.config import STAGES, Config

if TYPE_CHECKING:
    from longtake.training.stage import Stage


@dataclass(frozen=True)
class StageInfo:
    """Where a stage is.

    Attributes:
        module, attribute: of its class.
        title: one line.
    """

    module: str
    attribute: str
    title: str


STAGE_CLASSES: dict[str, StageInfo] = {
    "autoencoder": StageInfo(
        "longtake.training.autoencoder_stage",
        "AutoencoderStage",
        "the pocket model's autoencoder, on rendered clips",
    ),
    "decoder": StageInfo(
        "longtake.training.autoencoder_stage",
        "DecoderStage",
        "its decoder alone: the latents stay as the other stages know them",
    ),
    "text_encoder": StageInfo(
        "longtake.training.text_stage",
        "TextEncoderStage",
        "the pocket model's text encoder, by what captions of the world tell",
    ),
    "teacher": StageInfo(
        "longtake.training.teacher", "TeacherStage", "a bidirectional model by flow matching over whole clips"
    ),
    "causal": StageInfo(
        "longtake.training.causal_stage",
        "CausalStage",
        "the causal student, by teacher forcing or diffusion forcing through its memories",
    ),
    "consistency": StageInfo(
        "longtake.training.consistency_stage",
        "ConsistencyStage",
        "the causal student's start in few steps, by consistency or ODE trajectories",
    ),
    "dmd": StageInfo(
        "longtake.training.dmd_stage",
        "DmdStage",
        "self-forcing with distribution matching, through the memories",
    ),
    "long": StageInfo(
        "longtake.training.long_stage",
        "LongStage",
        "the same on long takes that go on from step to step, with changes of prompt",
    ),
    "echo": StageInfo("longtake.training.echo_stage", "EchoStage", "Echo-Infinity's learned memory, on short takes"),
    "echo_long": StageInfo(
        "longtake.training.echo_stage",
        "EchoLongStage",
        "the same on long takes that go on from step to step, with changes of prompt",
    ),
}
"""By name; to add one, write the class and enter it here. Its section is in :mod:`longtake.training.sections`."""


def stage_names(config: Config | None = None) -> list[str]:
    """The stages of ``longtake train pocket``, in order: all, or those that the configuration lists.

    Raises:
        ValueError: if it lists one that is not there.
    """
    known = [name for name in STAGES if name in STAGE_CLASSES]
    if config is None or config.run.stages is None:
        return known
    for name in config.run.stages:
        info(name)
    return [name for name in known if name in config.run.stages]


def info(name: str) -> StageInfo:
    """Of a stage.

    Raises:
        ValueError: if there is none of that name; lists them.
    """
    if name not in STAGE_CLASSES:
        raise ValueError(f"There is no stage {name!r}; the stages are {', '.join(stage_names())}.")
    return STAGE_CLASSES[name]


def make_stage(name: str, config: Config) -> Stage:
    """A stage, loading what it needs; see :func:`info` for what is raised."""
    found = info(name)
    made: Stage = getattr(importlib.import_module(found.module), found.attribute)(config)
    return made

"""What was trained, as an ordinary diffusers folder."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch

from longtake.training.checkpoint import newest
from longtake.training.config import Config
from longtake.training.registry import make_stage, stage_names
from longtake.training.run import Run
from longtake.training.settings import build

WHOLE = {"tokenizer", "text_encoder", "vae", "transformer", "scheduler"}
"""The parts of a pipeline that can be loaded by itself."""


def export(
    folder: Path,
    out: Path,
    stage: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    shard_size: str = "5GB",
    overwrite: bool = False,
) -> tuple[str, int]:
    """Writes the averaged weights of a stage as a diffusers folder; there whole or not at all.

    Args:
        folder: of the run.
        out: the folder to make: ``transformer/`` and so on, and ``model_index.json`` if all parts are there.
        stage: whose; the last that has a checkpoint by default.
        dtype: of all weights.
        shard_size: the most a safetensors file has (unless a single tensor is larger), like ``16MB``.
        overwrite: replace ``out`` if it exists.

    Returns:
        The stage, and its steps.

    Raises:
        ValueError: one sentence, if there is nothing to export, or something in the way.
        OSError: if the disk is full.
    """
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists: choose another --out, or give --overwrite.")
    name, state = _chosen(folder, stage)
    config = build(Config, state["config"], str(folder))
    run_settings = dataclasses.replace(config.run, device="cpu", precision="fp32", compile=False)
    config = dataclasses.replace(config, run=run_settings)
    run = Run(make_stage(name, config), config, folder, for_export=True)
    run.open()
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with torch.no_grad():
            _write(dict(run.stage.outputs(run)), part, dtype, shard_size, config, name)
        if out.exists():
            shutil.rmtree(out)
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return name, run.step


def _chosen(folder: Path, stage: str | None) -> tuple[str, dict[str, Any]]:
    names = [stage] if stage else stage_names()[::-1]
    for name in names:
        found = newest(folder, name)
        if found is not None:
            return name, found[1]
    raise ValueError(f"{folder} has no checkpoint of {stage or 'any stage'}: there is nothing to export.")


def _write(
    parts: dict[str, Any], folder: Path, dtype: torch.dtype, shard_size: str, config: Config, stage: str
) -> None:
    if not parts:
        raise ValueError("This stage has nothing that can be exported.")
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.to(dtype)
    memory = parts.pop("memory_encoder", None)
    if set(parts) >= WHOLE:
        from longtake.pipeline import LongTakePipeline

        model, spatial = config.model, parts["vae"].config.scale_factor_spatial
        pipe = LongTakePipeline(
            **parts,
            denoising_steps=getattr(config.stage(stage), "timesteps", config.dmd.timesteps),
            chunk_frames=model.chunk,
            default_size=(model.height * spatial, model.width * spatial),
        )
        pipe.memory_encoder = memory
        pipe.save_pretrained(folder, max_shard_size=shard_size)
        return
    for name, part in parts.items():
        more = {"max_shard_size": shard_size} if isinstance(part, torch.nn.Module) else {}
        part.save_pretrained(folder / name, **more)
    if memory is not None:
        from longtake.checkpoints.memory_file import FOLDER
        from longtake.checkpoints.memory_weights import model_card, save_memory

        save_memory(memory, folder / FOLDER, model_card(memory, config.name, ""))

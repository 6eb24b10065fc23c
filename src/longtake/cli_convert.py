"""``longtake convert``: a published checkpoint, written as a diffusers folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longtake.checkpoints.convert import check_conversion, convert
from longtake.checkpoints.hub import download
from longtake.checkpoints.registry import load_registry
from longtake.checkpoints.sources import parse_lora
from longtake.cli_progress import Stop, say, tell
from longtake.facts import ModelFacts
from longtake.plan import DTYPE_BYTES, format_bytes

KEEP = "keep"
DTYPES = (KEEP, *DTYPE_BYTES)


def convert_command(
    source: Path,
    out: Path,
    key: str | None = None,
    components: Path | None = None,
    loras: Sequence[str] = (),
    dtype: str = KEEP,
    overwrite: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> int:
    """Converts, says what it does on stderr and what it made on stdout; returns the exit code.

    Args:
        source: a file or folder, or a name of the registry, which brings its own LoRAs and settings.
        out, key, components, overwrite, settings: see :func:`longtake.checkpoints.convert.convert`.
        loras: each ``PATH[:scale]``.
        dtype: one of :data:`DTYPES`.
    """
    stop = Stop()
    try:
        if dtype not in DTYPES:
            raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, not {dtype!r}.")
        files = tuple(parse_lora(text) for text in loras)
        with stop:
            if not source.exists() and str(source) in load_registry():
                facts = ModelFacts.read(str(source))
                parts = download(facts.info, say=_note)
                source, key = parts.transformer, key or parts.key
                components, files = components or parts.components, (*parts.loras, *files)
                settings = {
                    "denoising_steps": list(facts.denoising_steps),
                    "chunk_frames": facts.chunk,
                    "fps": facts.fps,
                    "default_size": list(facts.size),
                    "shift": facts.shift,
                } | dict(settings or {})
            given: dict[str, Any] = {
                "components": components,
                "loras": files,
                "settings": settings,
                "overwrite": overwrite,
            }
            check_conversion(source, out, **given)
            import torch

            from longtake.quiet import quieten_libraries

            quieten_libraries()
            kind = None if dtype == KEEP else getattr(torch, dtype)
            made = convert(source, out, key=key, dtype=kind, on_step=_step, **given)
    except (ValueError, OSError) as error:
        return say(str(error), 2)
    except KeyboardInterrupt:
        say("Stopped; nothing was written.")
        return 128 + stop.signal if stop.signal else 130
    say(f"A transformer of {made.parameters:,} weights in {made.dtype}, {format_bytes(made.size)} in all.")
    if not made.whole:
        say("It has no tokenizer, text encoder and autoencoder: give --components to have them in it.")
    tell(str(made.folder.absolute()))
    return 0


def _note(text: str) -> None:
    say(text)


def _step(text: str) -> None:
    say(f"{text[:1].upper()}{text[1:]} ...")

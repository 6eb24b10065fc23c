"""Weights of a learned memory: from published files, recordings and our own to a ``MemoryEncoder``, and back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from longtake.checkpoints.layout import some, transformer_files
from longtake.checkpoints.memory_file import FILE, FOLDER, FORMAT, KEY, check_saved, memory_path
from longtake.checkpoints.published import KEYS, check_complete
from longtake.checkpoints.sources import LoraFile
from longtake.checkpoints.weights import bare_name, check_dtypes, read_file
from longtake.memory.echo_encoder import MemoryEncoder

PUBLISHED = "query_memory_encoder"
_PREFIX = re.compile(rf"(?:^|.*\.){PUBLISHED}\.(.+)")
_MOST = 1024  # groups or layers: more can only be a name made up


def published_memory(path: Path) -> dict[str, Tensor]:
    """The memory's weights in a published checkpoint, under their own names; empty if there are none.

    They lie among the generator's (``generator``, with or without the prefixes of trainers; where the rest comes from
    ``generator_ema``, the memory is still there), or beside it (``query_memory_encoder`` at the top of a LoRA file).

    Args:
        path: a .pt, .pth or .safetensors file.

    Raises:
        ValueError: if the file cannot be read, or a weight is there twice.
    """
    content = read_file(path)[0]
    if not isinstance(content, Mapping):
        return {}
    sets: list[Any] = [{PUBLISHED: content.get(PUBLISHED)}]
    sets += [content.get(key) for key in ("generator", *KEYS)]
    for weights in (*sets, content):
        if isinstance(weights, Mapping) and (found := _memory_part(weights, str(path))):
            return found
    return {}


def _memory_part(weights: Mapping[Any, Any], source: str) -> dict[str, Tensor]:
    flat = {str(name): x for name, x in weights.items() if isinstance(x, Tensor)}
    if isinstance(inner := weights.get(PUBLISHED), Mapping):
        flat |= {f"{PUBLISHED}.{name}": x for name, x in inner.items() if isinstance(x, Tensor)}
    found: dict[str, Tensor] = {}
    for name, x in flat.items():
        match = _PREFIX.fullmatch(name)
        if match is not None and found.setdefault(bare_name(match[1]), x) is not x:
            raise ValueError(f"{source} holds the memory weight {match[1]} twice.")
    return found


def encoder_config(
    weights: Mapping[str, Tensor], heads: int, grid: tuple[int, int] | int | None, frames: int | None, source: str
) -> dict[str, Any]:
    """Arguments of ``MemoryEncoder`` that fit weights, told from their names and shapes.

    Args:
        weights: under their own names (``query_init``, ``layers.0.q.weight``).
        heads: of the transformer, which shapes do not tell.
        grid: tokens per frame, or ``frames``: one of them must be known; the other follows.
        source: for messages.

    Raises:
        ValueError: if these cannot be the weights of one.
    """
    queries = [name for name in weights if re.fullmatch(r"query_init|query_inits\.\d+", name)]
    shapes = {tuple(weights[name].shape) for name in queries}
    depth = len({name.split(".")[1] for name in weights if re.match(r"layers\.\d+\.", name)})
    if len(shapes) != 1 or len(shape := shapes.pop()) != 3 or shape[0] != 1 or 0 in shape or not 0 < depth <= _MOST:
        raise ValueError(f"{source} holds no learned memory: it has no query_init of three dimensions, and layers.")
    _, tokens, width = shape
    if width % heads or len(queries) > _MOST:
        raise ValueError(f"{source} holds a learned memory of width {width}, which {heads} attention heads do not fit.")
    if frames is None:
        assert grid is not None
        per_frame = grid if isinstance(grid, int) else grid[0] * grid[1]
        frames = tokens // per_frame
    else:
        per_frame = tokens // frames
    if frames < 1 or tokens != frames * per_frame:
        raise ValueError(f"{source} holds a memory of {tokens} tokens, which are no whole frames of {per_frame}.")
    return {
        "heads": heads,
        "head_dim": width // heads,
        "frames": frames,
        "grid": per_frame if grid is None else grid,
        "groups": len(queries),
        "normalize_keys": any(name.startswith("norm_k_out") for name in weights),
        "depth": depth,
    }


def build_encoder(weights: Mapping[str, Tensor], config: Mapping[str, Any], source: str) -> MemoryEncoder:
    """The encoder of these weights, in their dtypes, in eval mode and without gradients.

    Args:
        weights: under their own names.
        config: arguments of ``MemoryEncoder``.
        source: for messages.

    Raises:
        ValueError: names what is missing, too much, of another size, or not finite.
    """
    check_dtypes(weights, source)
    settings = dict(config)
    if not isinstance(settings["grid"], int):
        settings["grid"] = tuple(settings["grid"])
    with torch.device("meta"):  # sizes alone
        encoder = MemoryEncoder(**settings)
    shapes = {name: tuple(x.shape) for name, x in encoder.state_dict().items()}
    check_complete(weights, shapes, source)
    broken = [name for name, x in weights.items() if not bool(x.isfinite().all())]
    if broken:
        raise ValueError(f"The weights in {source} are not all finite numbers: {some(broken)}.")
    encoder.load_state_dict({name: weights[name].clone() for name in shapes}, strict=True, assign=True)
    encoder.trained = True
    return encoder.eval().requires_grad_(False)


def load_memory(
    path: Path, heads: int, grid: tuple[int, int] | None = None, dtype: torch.dtype | None = None
) -> MemoryEncoder:
    """Reads memory weights, every one of them accounted for.

    Args:
        path: a folder or file of :func:`save_memory`, or a published checkpoint with a ``query_memory_encoder``.
        heads: of the transformer; published files do not say how many there are.
        grid: tokens per frame as (rows, columns), which they do not say either; by default the memory is taken to have
            three frames, as all that are published have.
        dtype: of the weights; None: as in the file.

    Raises:
        ValueError: if these are not the weights of a memory, in one sentence.
    """
    file = memory_path(path)
    content, metadata = read_file(file)
    if KEY in metadata:
        data = check_saved(metadata[KEY], str(file))
        encoder = build_encoder(content, data["config"], str(file))
        encoder.trained = data["trained"]
    else:
        weights = published_memory(file)
        if not weights:
            raise ValueError(f"{file} holds no learned memory: it has no {PUBLISHED}.")
        frames = 3 if grid is None else None
        encoder = build_encoder(weights, encoder_config(weights, heads, grid, frames, str(file)), str(file))
    return encoder if dtype is None else encoder.to(dtype)


def save_memory(encoder: MemoryEncoder, folder: Path, card: str) -> Path:
    """Writes memory weights as an adapter: ``memory.safetensors``, which says what it is for, and a model card.

    Args:
        encoder: its ``trained`` is saved with it.
        folder: made if it is not there; older weights in it are replaced.
        card: text of the card, ``README.md``.

    Returns:
        The file of weights.

    Raises:
        OSError: if the disk does not take it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = {"format": FORMAT, "config": encoder.config, "trained": encoder.trained}
    part = folder / f"{FILE}.part"
    tensors = {name: x.detach().cpu().contiguous() for name, x in encoder.state_dict().items()}
    save_file(tensors, part, metadata={KEY: json.dumps(data), "format": "pt"})
    part.replace(folder / FILE)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder / FILE


def memory_of(memory: Path | None, transformer: Path, components: Path, loras: Sequence[LoraFile]) -> Path | None:
    """Where the memory weights of a model lie: in the file that was named; else in the last LoRA that has some (a long
    variant brings its own); else beside the transformer, or in its file; None if nowhere."""
    if memory is not None:
        return memory_path(memory)
    for lora in reversed(loras):
        if published_memory(lora.path):
            return lora.path
    for folder in (transformer, components):
        if (found := folder / FOLDER / FILE).is_file():
            return found
    if not transformer.is_dir():
        (file,) = transformer_files(transformer)
        if published_memory(file):
            return file
    return None


def model_card(encoder: MemoryEncoder, name: str, notes: str = "") -> str:
    """The card of memory weights: what they are, for which model, and how to use them.

    Args:
        name: of the model that they were trained with.
        notes: on how, and how good they are.
    """
    config = encoder.config
    numbers = sum(x.numel() for x in encoder.parameters())
    rows, columns = (config["grid"], 1) if isinstance(config["grid"], int) else config["grid"]
    layers = "a number of layers that is not known" if encoder.num_layers is None else f"{encoder.num_layers} layers"
    return f"""---
library_name: longtake
tags: [video-generation, memory, echo-infinity]
---

# A learned memory for {name}

Weights of an Echo-Infinity memory (arXiv 2606.04527): {numbers:,} numbers that say what a video model remembers of the
frames that leave its window. {"" if encoder.trained else "**Untrained: of no use for generation.** "}They are for a
Wan transformer of width {encoder.width} in {encoder.heads} heads and {layers}, with {rows * columns} tokens per latent
frame.

| memory frames | groups of layers | keys normalised |
|---|---|---|
| {encoder.frames} | {encoder.groups} | {"yes" if encoder.normalize_keys else "no"} |

```python
pipe.load_memory("path/to/this/folder")
video = pipe("...", seconds=60, memory="echo:frames={encoder.frames}").frames[0]
```

{notes or "Nothing was said about how they were trained."}
"""

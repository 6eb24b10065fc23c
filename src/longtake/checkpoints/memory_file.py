"""Files of memory weights, as far as their headers tell. Loads no torch: what does not fit is refused at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longtake.checkpoints.layout import file_kind
from longtake.snapshot import read_header

FILE = "memory.safetensors"
FOLDER = "memory"  # beside a model's other parts
KEY = "longtake_memory"  # in the metadata of the file
FORMAT = 1
ACCEPTED = "a folder or file of save_memory, or a published .pt, .pth or .safetensors with a query_memory_encoder"
_SIZES = ("heads", "head_dim", "frames", "groups", "depth")


def memory_path(path: Path) -> Path:
    """The file that a path stands for: itself, or the one in a folder.

    Raises:
        ValueError: if there is none.
    """
    path = path.expanduser()
    for found in (path / FILE, path / FOLDER / FILE):
        if found.is_file():
            return found
    if path.is_dir():
        raise ValueError(f"{path} has no memory weights in it; accepted is {ACCEPTED}.")
    file_kind(path, ACCEPTED)
    return path


def saved_config(path: Path) -> dict[str, Any] | None:
    """What the header of a file of ``save_memory`` says: ``config``, the arguments of ``MemoryEncoder``, and
    ``trained``; None for any other file.

    Raises:
        ValueError: if it is one, and damaged or of another version.
    """
    if file_kind(path, ACCEPTED) != "safetensors":
        return None
    header = read_header(path)
    if header is None:
        raise ValueError(f"{path} is damaged or cut short.")
    metadata = header.get("__metadata__", {})
    return None if KEY not in metadata else check_saved(metadata[KEY], str(path))


def check_saved(text: str, source: str) -> dict[str, Any]:
    """The metadata of a file of ``save_memory``.

    Raises:
        ValueError: if it is not such a one's.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError, TypeError):
        data = None
    if isinstance(data, dict) and data.get("format") != FORMAT:
        raise ValueError(
            f"{source} is of another version of Longtake; this one reads memory weights of format {FORMAT}."
        )
    if not isinstance(data, dict) or not _is_config(data.get("config")) or not isinstance(data.get("trained"), bool):
        raise ValueError(f"{source} is damaged: it does not say what its memory weights are for.")
    return data


def _is_config(config: object) -> bool:
    if not isinstance(config, Mapping) or set(config) != {*_SIZES, "grid", "normalize_keys", "num_layers"}:
        return False
    grid, layers = config["grid"], config["num_layers"]
    sizes = [config[name] for name in _SIZES]
    if isinstance(grid, list):
        sizes += grid if len(grid) == 2 else [0]
    else:
        sizes.append(grid)
    if layers is not None:
        sizes.append(layers)
    return all(type(n) is int and 1 <= n < 1 << 20 for n in sizes) and isinstance(config["normalize_keys"], bool)

"""Snapshots: tensors and JSON in one safetensors file that is there whole or not at all.

Loading this module does not load torch, nor does reading the JSON part: a snapshot that cannot be used must be
refused before anything heavy starts.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
_KEY = "longtake"
_SUM = "sha256"  # of the tensors' bytes, beside the snapshot's own data
# What a take's data must be, where it is there.
_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("model", "dtype", "policy", "on_change"), str),
    **dict.fromkeys(("seed", "height", "width", "index"), int),
    **dict.fromkeys(("script", "memory", "decoder", "extra"), dict),
    "prompt": (str, type(None)),
}
_LARGEST_HEADER = 100_000_000  # bytes; what safetensors itself accepts


def write_snapshot(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
    """Writes under a temporary name, flushes to the disk, then renames: a crash leaves the old file or the new one.

    Raises:
        OSError: if the disk does not take it; the old file is untouched.
    """
    from safetensors.torch import save

    path = Path(path)
    part = path.with_name(path.name + ".part")
    content = save({name: x.detach().cpu().contiguous() for name, x in tensors.items()})
    (size,) = struct.unpack("<Q", content[:8])
    body = memoryview(content)[8 + size :]
    metadata = {_KEY: json.dumps({"format": FORMAT, **data}), _SUM: hashlib.sha256(body).hexdigest()}
    header = json.dumps({"__metadata__": metadata, **json.loads(content[8 : 8 + size])}).encode()
    header += b" " * (-len(header) % 8)  # the tensors begin at a multiple of 8
    try:
        with part.open("wb") as f:
            f.write(struct.pack("<Q", len(header)) + header)
            f.write(body)
            f.flush()
            os.fsync(f.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name itself must survive a power cut
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_header(path: Path) -> Any:
    """The JSON header of a safetensors file; None if it is none, or has not the length that its header says."""
    try:
        with path.open("rb") as f:
            (size,) = struct.unpack("<Q", f.read(8))
            if size > _LARGEST_HEADER:
                return None
            header = json.loads(f.read(size))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            if not all(isinstance(entry, dict) for entry in header.values()):
                return None
            return header if 8 + size + max(ends, default=0) == os.fstat(f.fileno()).st_size else None
    except (OSError, struct.error, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None


def read_snapshot_data(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON part of a snapshot, read without its tensors (and without the model).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, cut off, or not a snapshot, in one sentence.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no snapshot {path}.")
    header = read_header(path)
    if header is None:
        raise ValueError(f"{path} is damaged, cut off, or not a Longtake snapshot.")
    try:
        data = json.loads(header["__metadata__"][_KEY])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ValueError(f"{path} is not a Longtake snapshot.") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"{path} is a snapshot of another version of Longtake; this one reads format {FORMAT}.")
    for key, kind in _TYPES.items():
        if key in data and (not isinstance(data[key], kind) or isinstance(data[key], bool)):
            raise ValueError(f"{path} is damaged: its {key} is {_shown(data[key])}.")
    return data


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _check_sum(path: Path) -> None:
    """The tensors are those that were written; raises ValueError if not."""
    with path.open("rb") as f:
        (size,) = struct.unpack("<Q", f.read(8))
        wanted = json.loads(f.read(size))["__metadata__"].get(_SUM)
        digest = hashlib.sha256()
        while block := f.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != wanted:
        raise ValueError(f"{path} is damaged: its tensors are not those that were written.")


def read_snapshot(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and data of a snapshot. Raises as :func:`read_snapshot_data` does."""
    data = read_snapshot_data(path)
    from safetensors import SafetensorError, safe_open

    try:
        _check_sum(Path(path))
        with safe_open(str(path), framework="pt") as f:
            return {name: f.get_tensor(name) for name in f.keys()}, data  # noqa: SIM118
    except (SafetensorError, OSError):
        raise ValueError(f"{path} is damaged or not a Longtake snapshot.") from None

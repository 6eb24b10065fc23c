"""JSON files that are whole or not there, and what identifies other files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def read_json_file(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: in one sentence, if the file is none, or cannot be read.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is damaged"
        raise ValueError(f"{path} cannot be read ({reason}).") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} cannot be read (it is no JSON object).")
    return data


def write_json_file(path: Path, data: Mapping[str, Any]) -> None:
    """Writes JSON so that whoever reads finds the old content or the new, also after a crash.

    Raises:
        OSError: the disk does not take it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".new")
    with aside.open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def sha256_of(paths: Sequence[Path]) -> str:
    """Of the content of files, or of all files in folders, in the order of their names."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            digest.update(file.name.encode())
            with file.open("rb") as content:
                while block := content.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()

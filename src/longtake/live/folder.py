"""The data folder: what belongs to a take, and nothing outside of it is ever touched.

FOLDER/
  server.lock           one server per folder
  takes/ID/
    take.json           what was asked for
    timeline.jsonl      what was said when (``Timeline``)
    take.mp4            the recording, its snapshot and its lock beside it
    thumbnails/K.jpg    one picture every few seconds
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from longtake.record import snapshot_path

_ID = re.compile(r"[0-9a-f]{16}")
_GONE = ".deleted"


def is_id(text: str) -> bool:
    """Whether a text can be the id of a take: 16 hexadecimal digits, made by the server."""
    return _ID.fullmatch(text) is not None


class TakeFolder:
    """The files of one take.

    Args:
        path: the folder; its name is the take's id.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name
        self.video = path / "take.mp4"
        self.snapshot = snapshot_path(self.video)
        self.timeline = path / "timeline.jsonl"

    def thumbnail(self, number: int) -> Path:
        """Where picture ``number`` of those to look back on lies."""
        return self.path / "thumbnails" / f"{number:08d}.jpg"

    def write(self, data: Mapping[str, Any]) -> None:
        """Keeps what was asked for; there whole or not at all."""
        write_whole(self.path / "take.json", json.dumps(data, indent=1).encode(), sync=True)

    def read(self) -> dict[str, Any]:
        """What :meth:`write` kept.

        Raises:
            ValueError: if it is not there or damaged.
        """
        try:
            data = json.loads((self.path / "take.json").read_bytes())
        except (OSError, ValueError):
            data = None
        if not isinstance(data, dict):
            raise ValueError(f"{self.path} is no take: its take.json is missing or damaged.")
        return data

    def delete(self) -> None:
        """Removes all files. The folder gets another name first, so that half a take is never found."""
        gone = self.path.with_name(f"{self.id}{_GONE}")
        self.path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


class Folder:
    """All takes of a server.

    Args:
        path: made if it is not there.

    Raises:
        OSError: if it cannot be made or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._takes = path / "takes"
        self._takes.mkdir(parents=True, exist_ok=True)

    def create(self) -> TakeFolder:
        """A folder for a new take, with an id that nobody can guess."""
        while True:
            path = self._takes / secrets.token_hex(8)
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                (path / "thumbnails").mkdir()
                return TakeFolder(path)

    def takes(self) -> Iterator[TakeFolder]:
        """Those that are there. What a killed server had begun to delete is deleted now."""
        for path in sorted(self._takes.iterdir()):
            if path.is_symlink() or not path.is_dir():
                continue
            if is_id(path.name):
                yield TakeFolder(path)
            elif path.name.endswith(_GONE) and is_id(path.name.removesuffix(_GONE)):
                shutil.rmtree(path, ignore_errors=True)

    def free(self) -> int:
        """Bytes that are free on its disk."""
        return shutil.disk_usage(self.path).free


def write_whole(path: Path, content: bytes, sync: bool = False) -> None:
    """Writes a file that is there whole or not at all, and if ``sync`` also after a power cut."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(content)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    part.replace(path)

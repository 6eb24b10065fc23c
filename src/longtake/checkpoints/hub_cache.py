"""The Hugging Face hub's cache on this computer: what of a model lies there. Makes no request, loads no torch."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from huggingface_hub import constants

from longtake.checkpoints.registry import BaseInfo, HubFile, ModelInfo
from longtake.checkpoints.sources import LoraFile, Sources

_READ = 1 << 22

# The cache's layout (https://huggingface.co/docs/huggingface_hub/guides/manage-cache): blobs/HASH,
# snapshots/COMMIT/PATH (a link to a blob) and refs/BRANCH (a commit).


def cache_folder() -> Path:
    """The hub's cache: ``HF_HUB_CACHE``, or ``hub`` in ``HF_HOME``, or ``~/.cache/huggingface/hub``."""
    return Path(constants.HF_HUB_CACHE)


def repo_folder(repo: str) -> Path:
    """Where the cache keeps a repository."""
    return cache_folder() / f"models--{repo.replace('/', '--')}"


def _snapshot(repo: str, revision: str) -> Path | None:
    folder = repo_folder(repo)
    if len(revision) != 40 or not (folder / "snapshots" / revision).is_dir():
        try:
            revision = (folder / "refs" / revision).read_text().strip()
        except (OSError, ValueError):
            return None
    found = folder / "snapshots" / revision
    return found if revision and found.is_dir() else None


def find(part: HubFile | Path) -> Path | None:
    """A file, or the snapshot that a pattern is complete in."""
    if isinstance(part, Path):
        return part if part.exists() else None
    snapshot = _snapshot(part.repo, part.revision)
    if snapshot is None:
        return None
    if part.is_folder:
        return snapshot if _is_complete(snapshot / part.path[:-2]) else None
    path = snapshot / part.path
    fits = path.is_file() and (part.size is None or path.stat().st_size == part.size)
    return path if fits else None


def find_base(base: BaseInfo) -> Path | None:
    """The folder that a base is complete in."""
    if base.folder is not None:
        return base.folder if base.folder.is_dir() else None
    if any(find(file) is None for file in base.files):
        return None
    return _snapshot(base.repo, base.revision)


def _is_complete(folder: Path) -> bool:
    """Whether a part of a diffusers model is all there: the weights come last, and their index names all of them."""
    try:
        names = {path.name for path in folder.iterdir() if path.is_file()}
        for index in (name for name in names if name.endswith(".index.json")):
            if not set(json.loads((folder / index).read_text())["weight_map"].values()) <= names:
                return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    weights = any(name.endswith((".safetensors", ".bin")) for name in names)
    return bool(names) and (weights or "config.json" not in names)


def locate(info: ModelInfo) -> Sources | None:
    """Where the parts of a model lie on this computer; None if any is missing. Makes no request."""
    if info.folder is not None:
        transformer = components = info.folder if (info.folder / "model_index.json").is_file() else None
    else:
        transformer = None if info.transformer is None else find(info.transformer)
        components = find_base(base) if (base := info.parts_from) else info.components
    loras = [(find(lora.file), lora) for lora in info.loras]
    memory = None if info.memory_weights is None else find(info.memory_weights)
    if transformer is None or components is None or (memory is None) != (info.memory_weights is None):
        return None
    found = tuple(LoraFile(path, lora.scale, lora.key) for path, lora in loras if path is not None)
    if info.memory_weights == info.transformer:
        memory = None  # found there anyway, unless a LoRA brings others
    return Sources(transformer, components, info.key, found, memory) if len(found) == len(loras) else None


def free_bytes(folder: Path) -> int | None:
    """Bytes free on the disk of a folder that may not be there yet."""
    for place in (folder, *folder.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return None
    return None


def partial_file(file: HubFile) -> Path:
    """Where the beginning of a large file is kept until it is whole (older versions of the library use this name)."""
    return repo_folder(file.repo) / "blobs" / f"{file.sha256}.incomplete"


def partial_bytes(file: HubFile) -> int:
    """Bytes of a large file that an earlier download has left."""
    try:
        size = partial_file(file).stat().st_size if file.sha256 else 0
    except OSError:
        return 0
    return size if file.size is None or size <= file.size else 0  # too long, it is of no use


def is_right(path: Path, file: HubFile) -> bool:
    """Whether size and hash are those of the registry or the hub, as far as known."""
    if file.size is not None and path.stat().st_size != file.size:
        return False
    if file.sha256 is None:
        return True
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while block := content.read(_READ):
            digest.update(block)
    return digest.hexdigest() == file.sha256


def discard(path: Path) -> None:
    """Removes a file from the cache, the blob behind a link too."""
    blob = path.resolve()
    path.unlink(missing_ok=True)
    if blob != path and blob.parent.name == "blobs":
        blob.unlink(missing_ok=True)

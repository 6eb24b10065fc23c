"""The models that are known by name, read from ``registry.yaml`` and from a file of the user's own.

Imports nothing heavy. What a model needs is downloaded and found by :mod:`longtake.checkpoints.hub`.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from longtake.yamlfile import read_yaml, shown

_BUILT_IN = Path(__file__).with_name("registry.yaml")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_PATTERN = re.compile(r"[\w.-]+(/[\w.-]+)*(/\*)?")


@dataclass(frozen=True)
class HubFile:
    """A file of a repository on the Hugging Face hub, or (``path`` ends in ``/*``) all files of a folder of one.

    Attributes:
        revision: a commit, or a branch whose content may change.
        size: in bytes, and ``sha256`` of the content: exact, checked after a download; None where nobody has said.
        about: roughly the size in bytes, for planning, where ``size`` is not known.
    """

    repo: str
    path: str
    revision: str = "main"
    size: int | None = None
    sha256: str | None = None
    about: int | None = None

    @property
    def pinned(self) -> bool:
        """Whether what will be downloaded is fixed."""
        return _COMMIT.fullmatch(self.revision) is not None

    @property
    def is_folder(self) -> bool:
        return self.path.endswith("/*")

    def matches(self, path: str) -> bool:
        """Whether this stands for the file ``path`` of the repository."""
        return path == self.path or (self.is_folder and path.startswith(self.path[:-1]))


@dataclass(frozen=True)
class BaseInfo:
    """What the models of a family share: text encoder, tokenizer, autoencoder and the shape of the transformer.

    Attributes:
        repo, revision: a repository in diffusers' layout on the hub; ``folder``: or a folder here instead.
        files: what is needed of the repository; the weights of its own transformer are not.
        about: bytes of these files, roughly, where not all of them state their size.
        transformer, vae, text_encoder: what their ``config.json`` say, for planning before anything is downloaded.
    """

    name: str
    repo: str
    revision: str
    license: str
    files: tuple[HubFile, ...]
    about: int | None
    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    folder: Path | None = None

    @property
    def bytes(self) -> int | None:
        """Bytes of its files: exact if the registry states them all, else about; None if nobody has said."""
        return _sum(self.files) if all(f.size is not None for f in self.files) else self.about


@dataclass(frozen=True)
class LoraInfo:
    """A LoRA that belongs to a model: its file, the top-level key of its weights, and how strongly it acts."""

    file: HubFile | Path
    key: str | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class ModelInfo:
    """A model that is known by name.

    Attributes:
        description: one line on what it is; ``source``: where its weights come from, a URL where there is one.
        license: of the weights, as stated where they are distributed.
        parameters: of the transformer.
        size: (height, width) in pixels; ``fps``: frames per second; ``chunk``: latent frames per chunk.
        denoising_steps: of 1000, before they are warped by ``shift``.
        memory: the default, as :func:`longtake.memory.parse_memory` reads it.
        folder: a diffusers folder on this computer that is the whole model; None where the rest says what it is.
        base: name of a :class:`BaseInfo`.
        transformer: its weights, on the hub or on this computer; ``key``: under which top-level key, None to find out.
        loras: fused into it, in this order.
        origin: the file that the entry is from.
        components: a folder here for everything but the transformer, in place of the base's.
        memory_weights: of a learned memory; may lie in the transformer's file. None where a folder has them beside the
            other parts, or there are none.
        said: which of its settings the entry has itself; the others are what models of this kind usually have.
    """

    name: str
    description: str
    license: str
    source: str
    parameters: int | None
    size: tuple[int, int]
    fps: int
    chunk: int
    denoising_steps: tuple[float, ...]
    shift: float
    memory: str
    folder: Path | None
    base: str | None
    transformer: HubFile | Path | None
    key: str | None
    loras: tuple[LoraInfo, ...]
    origin: Path
    components: Path | None = None
    said: frozenset[str] = frozenset()
    memory_weights: HubFile | Path | None = None

    @property
    def parts_from(self) -> BaseInfo | None:
        """The base that its other parts come from; None if they are in a folder here."""
        return bases()[self.base] if self.base and self.components is None else None

    @property
    def ships(self) -> bool:
        """Whether its weights come with the package."""
        return self.folder is not None and self.origin == _BUILT_IN

    @property
    def hub_files(self) -> tuple[HubFile, ...]:
        """What it needs of the hub, its base not counted."""
        parts = (self.transformer, *(lora.file for lora in self.loras), self.memory_weights)
        return tuple(part for part in dict.fromkeys(parts) if isinstance(part, HubFile))


def _sum(files: Iterable[HubFile]) -> int:
    return sum(file.size or file.about or 0 for file in files)


def user_file() -> Path | None:
    """The user's registry, if there is one: what ``LONGTAKE_MODELS`` names, else ``~/.config/longtake/models.yaml``.

    Raises:
        ValueError: if ``LONGTAKE_MODELS`` names a file that is not there.
    """
    named = os.environ.get("LONGTAKE_MODELS")
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise ValueError(f"LONGTAKE_MODELS names the file {path}, which is not there.")
        return path
    path = default_user_file()
    return path if path.is_file() else None


def default_user_file() -> Path:
    """Where the user's own registry is looked for (``XDG_CONFIG_HOME`` is honoured)."""
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(config).expanduser() / "longtake" / "models.yaml"


def load_registry() -> dict[str, ModelInfo]:
    """All models by name: the built-in ones, then the user's, which replace those of the same name.

    Raises:
        ValueError: in one sentence that names the file and the entry, if the user's file has anything in it that is
            not accepted.
    """
    return _read_all()[0]


def bases() -> dict[str, BaseInfo]:
    """All bases by name. Raises as :func:`load_registry`."""
    return _read_all()[1]


def find_info(name: str) -> ModelInfo:
    """The model of a name.

    Raises:
        ValueError: if there is none; names those that there are.
    """
    known = load_registry()
    if name not in known:
        raise ValueError(f"There is no model {name!r}; known by name are {', '.join(known)}.")
    return known[name]


def _read_all() -> tuple[dict[str, ModelInfo], dict[str, BaseInfo]]:
    own = user_file()
    try:
        changed = None if own is None else (own.stat().st_mtime_ns, own.stat().st_size)
    except OSError as error:
        raise ValueError(f"The file {own} cannot be read: {error.strerror or error}.") from None
    models, parts = _merge(own, changed)
    return dict(models), dict(parts)


@lru_cache(maxsize=8)
def _merge(own: Path | None, changed: object) -> tuple[dict[str, ModelInfo], dict[str, BaseInfo]]:
    models: dict[str, ModelInfo] = {}
    parts: dict[str, BaseInfo] = {}
    for path in (_BUILT_IN, own):
        if path is None:
            continue
        content = _Entry(path, "", read_yaml(path))
        content.only("models", "bases")
        for name, entry in content.entries("bases", "base"):
            parts[name] = _base(name, entry)
        for name, entry in content.entries("models", "model"):
            models[name] = _model(name, entry, parts)
    return models, parts


class _Entry:
    """A mapping in a registry file, and sentences about it."""

    def __init__(self, path: Path, what: str, content: object) -> None:
        self.path, self.what = path, what
        if not isinstance(content, dict):
            raise self.refused(f"must have lines like 'key: value', not be {shown(content)}")
        self.content: dict[str, Any] = content

    def refused(self, why: str) -> ValueError:
        return ValueError(f"{self.path}: {self.what or 'the file'} {why}.")

    def only(self, *keys: str) -> None:
        """Nothing but these."""
        for key in self.content:
            if key not in keys:
                raise self.refused(f"has the unknown key {shown(key)}; accepted are {', '.join(keys)}")

    def entries(self, key: str, kind: str) -> list[tuple[str, _Entry]]:
        """The named mappings below a key."""
        found = self.content.get(key)
        below = _Entry(self.path, key, {} if found is None else found)
        for name in below.content:
            if not _NAME.fullmatch(name):
                raise below.refused(f"have the name {shown(name)}, and names are made of letters, digits, '-' and '.'")
        return [(name, _Entry(self.path, f"the {kind} {name!r}", entry)) for name, entry in below.content.items()]

    def within(self, what: str, content: object) -> _Entry:
        return _Entry(self.path, f"{what} of {self.what}", content)

    def get(self, key: str, accepts: Callable[[Any], bool], wanted: str, default: Any = ...) -> Any:
        """A value; ``...`` as default means that it must be there."""
        value = self.content.get(key)
        if value is None:
            if default is ...:
                raise self.refused(f"lacks {key!r}, {wanted}")
            return default
        if not accepts(value):
            raise self.refused(f"has {key}: {shown(value)}, and accepted is {wanted}")
        return value

    def text(self, key: str, default: Any = ...) -> Any:
        return self.get(
            key, lambda v: isinstance(v, str) and v.strip() != "" and "\n" not in v, "a line of text", default
        )

    def whole(self, key: str, default: Any = ...) -> Any:
        return self.get(key, _is_whole, "a whole number of 1 or more", default)

    def number(self, key: str, default: Any = ..., least: float = -1e6) -> float:
        wanted = "a number" if least < 0 else f"a number above {least:g}"
        return float(self.get(key, lambda v: _is_number(v) and least < v <= 1e6, wanted, default))

    def mapping(self, key: str) -> dict[str, Any]:
        return dict(self.get(key, lambda v: isinstance(v, dict), "lines like 'key: value'", {}))

    def here(self, text: str) -> Path:
        """A path on this computer, relative ones from the file's folder."""
        return Path(os.path.normpath(self.path.absolute().parent / Path(text).expanduser()))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**63


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _hub_file(entry: _Entry, repo: str | None = None, revision: str | None = None) -> HubFile:
    keys = ("path", "size", "sha256", "about")
    entry.only(*keys, *(("repo", "revision") if repo is None else ()))
    if repo is None:
        repo = entry.get("repo", _is_repo, "the name of a repository such as owner/name")
        revision = entry.text("revision", "main")
    return HubFile(
        repo,
        entry.get("path", _is_path, "a file of the repository such as folder/file.pt, or folder/*"),
        revision or "main",
        entry.whole("size", None),
        entry.get("sha256", lambda v: isinstance(v, str) and bool(_SHA256.fullmatch(v)), "64 digits in quotes", None),
        entry.whole("about", None),
    )


def _is_repo(value: object) -> bool:
    return isinstance(value, str) and bool(_REPO.fullmatch(value)) and ".." not in value


def _is_path(value: object) -> bool:
    return isinstance(value, str) and bool(_PATTERN.fullmatch(value)) and not {"..", "."} & set(value.split("/"))


def _place(entry: _Entry, key: str, must: bool = False) -> HubFile | Path | None:
    """A file on the hub or here."""
    value = entry.get(
        key,
        lambda v: isinstance(v, dict) or (isinstance(v, str) and v.strip() != ""),
        "a path on this computer, or repo, path and revision of a file on the hub",
        ... if must else None,
    )
    if value is None:
        return None
    return entry.here(value) if isinstance(value, str) else _hub_file(entry.within(f"the {key}", value))


def _base(name: str, entry: _Entry) -> BaseInfo:
    entry.only("repo", "revision", "folder", "license", "files", "about", "transformer", "vae", "text_encoder")
    folder = entry.text("folder", None)
    repo = revision = ""
    files: list[HubFile] = []
    if folder is None:
        repo = entry.get("repo", _is_repo, "the name of a repository such as owner/name, unless there is a 'folder'")
        revision = entry.text("revision", "main")
        listed = entry.get(
            "files", lambda v: isinstance(v, list) and bool(v), "a list of files, or patterns like vae/*"
        )
        for file in listed:
            content = {"path": file} if isinstance(file, str) else file
            files.append(_hub_file(entry.within("a file", content), repo, revision))
    return BaseInfo(
        name,
        repo,
        revision,
        entry.text("license", "not stated"),
        tuple(files),
        entry.whole("about", None),
        entry.mapping("transformer"),
        entry.mapping("vae"),
        entry.mapping("text_encoder"),
        None if folder is None else entry.here(folder),
    )


_MODEL_KEYS = (
    "description", "license", "source", "parameters", "size", "fps", "chunk", "denoising_steps", "shift", "memory",
    "memory_weights", "folder", "base", "transformer", "key", "loras",
)  # fmt: skip


def _model(name: str, entry: _Entry, parts: Mapping[str, BaseInfo]) -> ModelInfo:
    entry.only(*_MODEL_KEYS)
    folder = entry.text("folder", None)
    transformer = _place(entry, "transformer")
    if (folder is None) == (transformer is None):
        raise entry.refused("needs either a 'folder' (a whole diffusers model) or a 'transformer' (with a 'base')")
    base = entry.text("base", None)
    if transformer is not None and base is None:
        raise entry.refused(f"needs a 'base', which may be {', '.join(parts)}")
    if base is not None and base not in parts:
        raise entry.refused(f"has the base {shown(base)}, and known are {', '.join(parts)}")
    loras = []
    for lora in entry.get("loras", lambda v: isinstance(v, list), "a list of files", []):
        below = entry.within("a LoRA", lora)
        below.only("file", "key", "scale")
        file = _place(below, "file", must=True)
        assert file is not None
        loras.append(LoraInfo(file, below.text("key", None), below.number("scale", 1.0)))
    size = entry.get(
        "size",
        lambda v: isinstance(v, list) and len(v) == 2 and all(_is_whole(n) for n in v),
        "[height, width] in pixels",
        [480, 832],
    )
    steps = entry.get("denoising_steps", _are_steps, "a falling list of numbers from 1000 to 1", [1000, 750, 500, 250])
    return ModelInfo(
        name,
        entry.text("description", "an entry without description"),
        entry.text("license", "not stated"),
        entry.text("source", f"your file {entry.path.name}"),
        entry.whole("parameters", None),
        (size[0], size[1]),
        entry.whole("fps", 16),
        entry.whole("chunk", 3),
        tuple(float(step) for step in steps),
        entry.number("shift", 5.0, least=0.0),
        entry.text("memory", "memrope"),
        None if folder is None else entry.here(folder),
        base,
        transformer,
        entry.text("key", None),
        tuple(loras),
        entry.path,
        said=frozenset(key for key, value in entry.content.items() if value is not None),
        memory_weights=_place(entry, "memory_weights"),
    )


def _are_steps(value: object) -> bool:
    if not isinstance(value, list) or not value or not all(_is_number(n) and 1 <= n <= 1000 for n in value):
        return False
    return all(a > b for a, b in itertools.pairwise(value))

"""YAML files of settings, read so that nothing in them can surprise. Imports nothing heavy.

Plain values only: no tags (they can ask for Python objects), no aliases (a few lines of them can stand for gigabytes),
no key twice. Numbers are read as OmegaConf reads them, for which the files of the published projects were written:
``1e-5`` is a number, a date is text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 100_000  # a hundred times what such files have
_TIMESTAMP, _FLOAT = "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float"
_WITHOUT_POINT = re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$")
_SIMPLE = re.compile(r"\$\{\s*([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\s*\}")
_MOST_CHARACTERS = 10_000


class _Refused(Exception):
    """What is wrong, as the end of a sentence."""


class _Loader(yaml.SafeLoader):
    """The safe loader, stricter."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise _Refused(f"uses the alias *{event.anchor}: only values that are written out are accepted")
        tag = getattr(self.peek_event(), "tag", None)
        if tag is not None:  # said in the file; those that are found from how a value looks come later
            name = tag.replace("tag:yaml.org,2002:", "!!")[:60]
            raise _Refused(f"uses the tag {name}: only plain values are accepted, as they are written without a tag")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = key.value
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                shown = repr(name)[:40] if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise _Refused(f"has a key that is not a name, {shown}, in line {key.start_mark.line + 1}")
            if name in seen:
                raise _Refused(f"has the key {name!r} twice, again in line {key.start_mark.line + 1}")
            seen.add(name)
        return super().construct_mapping(node, deep)


# Changed on copies: the lists belong to all of PyYAML's loaders.
_Loader.yaml_implicit_resolvers = {
    first: [item for item in items if item[0] != _TIMESTAMP]
    for first, items in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_FLOAT, _WITHOUT_POINT, list("-+0123456789"))


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a YAML file: one mapping of names to plain values.

    Raises:
        ValueError: in one sentence, if there is no such file, it is too large, no UTF-8, no YAML or no mapping, if a
            key is there twice or is no name, or if it has tags or aliases.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"There is no file {path}.")
    if not path.is_file():
        raise ValueError(f"{path} is not a file: settings are read from a YAML file.")
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from None
    if len(content) > MOST_BYTES:
        raise ValueError(f"{path} is larger than the {MOST_BYTES // 1000} kB that a file of settings may have.")
    try:
        data = yaml.load(content.decode("utf-8-sig"), _Loader)  # a safe loader, see above
    except _Refused as error:
        raise ValueError(f"{path} {error}.") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a YAML file: it is not text in UTF-8.") from None
    except RecursionError:
        raise ValueError(f"{path} is no file of settings: it is nested too deeply.") from None
    except yaml.YAMLError as error:
        problem = " ".join(str(getattr(error, "problem", None) or getattr(error, "reason", "cannot be read")).split())
        raise ValueError(f"{path} is not a YAML file{_where(error)}: {problem}.") from None
    except (ValueError, OverflowError):  # a number with thousands of digits
        raise ValueError(f"{path} has a number in it that is too long to be one.") from None
    if data is None:
        raise ValueError(f"{path} is empty: settings are lines like 'seed: 0'.")
    if not isinstance(data, dict):
        kind = "a list" if isinstance(data, list) else "a single value"
        raise ValueError(f"{path} is {kind}, and settings are lines like 'seed: 0'.")
    return data


def _where(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return "" if mark is None else f" (line {mark.line + 1})"


def resolve(value: Any, root: Mapping[str, Any]) -> Any:
    """A value with ``${key}`` and ``${key.inner}`` replaced by what the file has there (OmegaConf's interpolation).

    Raises:
        ValueError: as the end of a sentence, if it is another kind of interpolation, goes round in a circle or
            stands for something that is not there or is no plain value.
    """
    return _resolve(value, root, ())


def _resolve(value: Any, root: Mapping[str, Any], trail: tuple[str, ...]) -> Any:
    if not isinstance(value, str) or "${" not in value:
        return value
    if "${" in _SIMPLE.sub("", value):
        raise ValueError(f"{shown(value)}, of which only ${{key}} and ${{key.inner}} are understood")

    def look_up(name: str) -> Any:
        if name in trail or len(trail) > 50:
            raise ValueError(f"{shown(value)}, which stands for itself")
        found: Any = root
        for part in name.split("."):
            if not isinstance(found, Mapping) or part not in found:
                raise ValueError(f"{shown(value)}, and there is no key {name}")
            found = found[part]
        if isinstance(found, Mapping | list):
            raise ValueError(f"{shown(value)}, and {name} is not a plain value")
        return _resolve(found, root, (*trail, name))

    whole = _SIMPLE.fullmatch(value)
    if whole:
        return look_up(whole[1])
    made = ""
    end = 0
    for match in _SIMPLE.finditer(value):
        made += value[end : match.start()] + str(look_up(match[1]))
        end = match.end()
        if len(made) > _MOST_CHARACTERS:  # a few lines that double one another are a long text
            raise ValueError(f"{shown(value)}, which is too long when written out")
    return made + value[end:]


def shown(value: Any) -> str:
    """A value for a message: in one line, shortened."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else _repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except (ValueError, RecursionError):  # too many digits, too deep
        return "something very long"


class Keys:
    """The keys of a file. Reads each with its type, and remembers which were read and what there is to say of them.

    A key is a name, or for one in a group ``group.name``. One that is not there, or is null, is its default. All
    methods that read raise ValueError, in one sentence that names file, key, value and what would be accepted.

    Args:
        data: of `read_yaml`.
        path: of the file.
    """

    def __init__(self, data: Mapping[str, Any], path: Path) -> None:
        self.data, self.path = data, path
        self.read: set[str] = set()
        self.notes: list[tuple[str, str]] = []

    def wrong(self, key: str, accepted: str, value: object) -> ValueError:
        return ValueError(f"{self.path}: {key} must be {accepted}, not {shown(value)}.")

    def note(self, key: str, sentence: str) -> None:
        self.notes.append((key, sentence))

    def value(self, key: str) -> Any:
        """What the file has for a key, or for a key in a group (``model_kwargs.sink_size``); None for nothing."""
        self.read.add(key)
        group, dot, inner = key.rpartition(".")
        holder = self.group(group) if dot else self.data
        try:
            value = resolve(holder.get(inner), self.data)
        except ValueError as error:
            raise ValueError(f"{self.path}: {key} is {error}.") from None
        if value == "???":  # OmegaConf's mark of a value that must be given
            raise ValueError(f"{self.path}: {key} has no value yet, only '???'.")
        return value

    def group(self, key: str) -> Mapping[str, Any]:
        value = self.data.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, "a group of keys", value)
        return value or {}

    def whole(self, key: str, default: int, least: int, most: int) -> int:
        value = self.value(key)
        if value is None:
            return default
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(key, f"a whole number from {least} to {most}", value)
        return value

    def number(self, key: str, default: float, most: float) -> float:
        value = self.value(key)
        if value is None:
            return default
        if type(value) not in (int, float) or not 0 < value <= most:  # no order with "not a number"
            raise self.wrong(key, f"a number above 0 and at most {most:g}", value)
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.value(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false", value)
        return value

    def text(self, key: str, default: str | None = None) -> str | None:
        value = self.value(key)
        if value is None:
            return default
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise self.wrong(key, "a text that is not empty", value)
        return value


def read_value(text: str, source: str) -> Any:
    """One plain value, written as in a YAML file: ``3``, ``1e-4``, ``[0, 0.999]``, ``null``.

    Args:
        source: what it comes from, the beginning of every sentence.

    Raises:
        ValueError: in one sentence, if it is no such value.
    """
    try:
        return yaml.load(text, _Loader)  # a safe loader, see above
    except _Refused as error:
        raise ValueError(f"{source} {error}.") from None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError):
        raise ValueError(f"{source} has no value that can be read: write it as in the file.") from None

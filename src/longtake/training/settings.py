"""Settings as nested frozen dataclasses: read from plain values, checked, described. Imports nothing heavy.

A field made by :func:`setting` knows what it means and which values it accepts; :func:`build` turns a mapping of plain
values (from a YAML file) into the dataclass, :func:`describe` lists the fields for the documentation. Whatever is
wrong is one sentence that names the key and what would be accepted.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

from longtake.yamlfile import shown

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What a field accepts besides its type.

    Attributes:
        doc: one line on what it means.
        least, most: of a number, both accepted; of a list: of its entries.
        above: a number must be larger.
        choices: the accepted texts.
        unit: said after the type.
    """

    doc: str
    least: float | None = None
    most: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    unit: str = ""


def setting(
    default: Any,
    doc: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    choices: Sequence[str] = (),
    unit: str = "",
) -> Any:
    """A dataclass field with a meaning and limits; see :class:`Limits`."""
    metadata = {"limits": Limits(doc, least, most, above, tuple(choices), unit)}
    return field(default=default, metadata=metadata)


def section(kind: type, doc: str, **changed: Any) -> Any:
    """A dataclass field that is itself a group of settings, with other defaults for some of them."""
    return field(default_factory=lambda: kind(**changed), metadata={"limits": Limits(doc)})


def build(kind: type[T], values: Mapping[str, Any], source: str, prefix: str = "", base: T | None = None) -> T:
    """The dataclass ``kind`` from plain values.

    Args:
        values: by field name; a field that is not there keeps its default.
        source: what the values come from, the beginning of every sentence.
        prefix: of the keys in sentences, like ``teacher.``.
        base: whose values are the defaults.

    Raises:
        ValueError: one sentence, for an unknown key or a value that is not accepted.
    """
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    hints = _hints_of(kind)
    base = kind() if base is None else base
    made: dict[str, Any] = {name: getattr(base, name) for name in known}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"{source}: there is no key {prefix}{key}; {_near(key, known, prefix)}")
        hint = hints[key]
        if is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise ValueError(f"{source}: {prefix}{key} must be a group of keys, not {shown(value)}.")
            made[key] = build(hint, value, source, f"{prefix}{key}.", made[key])  # type: ignore[arg-type]
        else:
            made[key] = _value(value, hint, _limits(known[key]), f"{source}: {prefix}{key}")
    return kind(**made)


def _hints_of(kind: Any) -> dict[str, Any]:
    return _hints(kind)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _limits(f: Field[Any]) -> Limits:
    found = f.metadata.get("limits", Limits(""))
    assert isinstance(found, Limits)
    return found


def _near(key: str, known: Mapping[str, Any], prefix: str) -> str:
    close = difflib.get_close_matches(key, known, 1, 0.6)
    if close:
        return f"did you mean {prefix}{close[0]}?"
    return f"the keys here are {', '.join(known)}."


def _value(value: Any, hint: Any, limits: Limits, where: str) -> Any:
    """``value`` in the type of ``hint``; refuses anything else."""
    optional, core, entry = _parts(hint)
    if value is None and optional:
        return None
    if entry is None:
        good, made = _plain(value, core, limits)
    else:
        pairs = [_plain(item, entry, limits) for item in value] if isinstance(value, list | tuple) else []
        good, made = isinstance(value, list | tuple) and all(p[0] for p in pairs), tuple(p[1] for p in pairs)
        length = _length(hint)
        good = good and (length is None or len(made) == length)
    if not good:
        raise ValueError(f"{where} must be {accepted(hint, limits)}, not {shown(value)}.")
    return made


def _parts(hint: Any) -> tuple[bool, Any, Any]:
    """Whether None is accepted, the plain type, and for a tuple the type of its entries."""
    optional = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [k for k in typing.get_args(hint) if k is not type(None)]
        optional, hint = True, kinds[0]
    if typing.get_origin(hint) is tuple:
        return optional, tuple, typing.get_args(hint)[0]
    return optional, hint, None


def _length(hint: Any) -> int | None:
    kinds = typing.get_args(hint)
    return None if Ellipsis in kinds or typing.get_origin(hint) is not tuple else len(kinds)


def _plain(value: Any, kind: Any, limits: Limits) -> tuple[bool, Any]:
    if kind is bool:
        return isinstance(value, bool), value
    if kind is str:
        good = isinstance(value, str) and bool(value.strip()) and "\0" not in value
        return good and (not limits.choices or value in limits.choices), value
    if type(value) not in (int, float) or (kind is int and type(value) is not int):
        return False, value
    good = abs(value) < 1e15  # which "not a number" and infinity are not
    good = good and (limits.least is None or value >= limits.least) and (limits.most is None or value <= limits.most)
    return good and (limits.above is None or value > limits.above), kind(value) if good else value


def accepted(hint: Any, limits: Limits) -> str:
    """What a field accepts, in words: ``a whole number of at least 1``."""
    optional, core, entry = _parts(hint)
    core = core if entry is None else entry
    one = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[core]
    if limits.choices:
        one = (
            " or ".join([", ".join(limits.choices[:-1]), limits.choices[-1]])
            if limits.choices[1:]
            else "".join(limits.choices)
        )
    bounds = []
    if limits.least is not None and limits.most is not None:
        bounds.append(f"from {_number(limits.least)} to {_number(limits.most)}")
    else:
        bounds += [f"above {_number(limits.above)}"] if limits.above is not None else []
        bounds += [f"of at least {_number(limits.least)}"] if limits.least is not None else []
        bounds += [f"{'and ' if bounds else ''}of at most {_number(limits.most)}"] if limits.most is not None else []
    one = " ".join([one, *bounds])
    if entry is not None:
        length = _length(hint)
        one = f"a list of {length or 'values'}, each {one}"
    return one + (" or null" if optional else "")


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


@dataclass(frozen=True)
class Described:
    """One key of the reference: its name with sections, what it accepts, its default and its meaning."""

    key: str
    accepted: str
    default: str
    doc: str


def describe(kind: type, prefix: str = "") -> Iterator[Described]:
    """Every key of a dataclass of settings and of the groups in it, in the order of the file.

    A group's own defaults count: two groups of one class may differ in them.
    """
    yield from _describe(kind(), prefix)


def _describe(values: Any, prefix: str) -> Iterator[Described]:
    hints = _hints_of(type(values))
    for f in fields(values):
        value = getattr(values, f.name)
        if is_dataclass(value):
            yield Described(f"{prefix}{f.name}", "a group of keys", "", _limits(f).doc)
            yield from _describe(value, f"{prefix}{f.name}.")
        else:
            limits = _limits(f)
            doc = f"{limits.doc} ({limits.unit})" if limits.unit else limits.doc
            yield Described(f"{prefix}{f.name}", accepted(hints[f.name], limits), plain_text(value), doc)


def plain_text(value: Any) -> str:
    """A value as the file would have it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return "[" + ", ".join(plain_text(v) for v in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def to_plain(values: Any) -> dict[str, Any]:
    """A dataclass of settings as nested plain values, as :func:`build` reads them back."""
    made: dict[str, Any] = {}
    for f in fields(values):
        value = getattr(values, f.name)
        if is_dataclass(value):
            made[f.name] = to_plain(value)
        else:
            made[f.name] = list(value) if isinstance(value, tuple) else value
    return made

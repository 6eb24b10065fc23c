"""Memories by name, and the one-line syntax that selects them. Imports no torch: bad input is refused at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from longtake.memory.deep_forcing import DeepForcing
from longtake.memory.echo import Echo
from longtake.memory.memrope import MemRoPE
from longtake.memory.policy import MemoryPolicy
from longtake.memory.sliding import Sliding


@dataclass(frozen=True)
class MemoryInfo:
    """A named memory: one line on what it does, where it was published, and the policy with its defaults."""

    description: str
    paper: str
    policy: type[MemoryPolicy]
    defaults: Mapping[str, object] = field(default_factory=dict)

    def create(self, **settings: object) -> MemoryPolicy:
        """The policy with these settings in place of the defaults. Raises ValueError if one is out of range."""
        return self.policy(**{**self.defaults, **settings})


MEMORIES: Mapping[str, MemoryInfo] = MappingProxyType(
    {
        "memrope": MemoryInfo(
            "sink frames, a slow and a fast running average of all that left, and recent frames",
            "MemRoPE, arXiv 2603.12513",
            MemRoPE,
        ),
        "sliding": MemoryInfo(
            "a window of recent frames with any number of sink frames, at absolute, relative or unified ids",
            "the general form of the next three",
            Sliding,
        ),
        "self-forcing": MemoryInfo(
            "the last 21 frames and nothing else, at absolute ids",
            "Self-Forcing, arXiv 2506.08009",
            Sliding,
            {"window": 21, "sink": 0, "ids": "absolute"},
        ),
        "longlive": MemoryInfo(
            "3 sink frames and a window, 12 frames in all, at absolute ids",
            "LongLive, arXiv 2509.22622",
            Sliding,
            {"window": 12, "sink": 3, "ids": "absolute"},
        ),
        "infinity-rope": MemoryInfo(
            "1 sink frame and a short window, 6 frames in all, at relative ids",
            "Infinity-RoPE, arXiv 2511.20649",
            Sliding,
            {"window": 6, "sink": 1, "ids": "relative"},
        ),
        "deep-sink": MemoryInfo(
            "10 sink frames and a window, 21 frames in all, at relative ids: Deep Forcing without its compression",
            "Deep Forcing, arXiv 2512.05081, section 4.2",
            Sliding,
            {"window": 21, "sink": 10, "ids": "relative"},
        ),
        "deep-forcing": MemoryInfo(
            "10 sink frames, recent frames, and of those in between the tokens that these look at; as in the paper",
            "Deep Forcing, arXiv 2512.05081",
            DeepForcing,
        ),
        "deep-forcing-released": MemoryInfo(
            "the same as in the released code: absolute ids, and no token is chosen more than 7 times",
            "Deep Forcing, arXiv 2512.05081, repository cvlab-kaist/DeepForcing",
            DeepForcing,
            {"ids": "released", "reuse": 7},
        ),
        "echo": MemoryInfo(
            "sink frames, a few frames of a learned memory of all that left, and recent frames; needs trained weights",
            "Echo-Infinity, arXiv 2606.04527",
            Echo,
        ),
    }
)


def parse_memory(spec: str, chunk: int = 3) -> MemoryPolicy:
    """Read ``name`` or ``name:key=value,key=value``, e.g. ``sliding:window=12,sink=3,ids=relative``.

    Args:
        spec: the text. Names are the keys of ``MEMORIES``; keys are the settings of the policy.
        chunk: latent frames per chunk, to check that they fit.

    Raises:
        ValueError: for an unknown name, key or value, in one sentence that says what is accepted.
    """
    name, colon, rest = spec.strip().partition(":")
    info = MEMORIES.get(name.strip())
    if info is None:
        raise ValueError(f"Unknown memory {name.strip()!r}; accepted are {', '.join(MEMORIES)}.")
    defaults = {f.name: f.default for f in fields(info.policy)}  # type: ignore[arg-type]
    settings: dict[str, object] = {}
    for item in rest.split(",") if colon else []:
        key, equals, text = (part.strip() for part in item.partition("="))
        if not equals:
            raise ValueError(f"{name}: write settings as key=value, separated by commas, not {item.strip()!r}.")
        if key not in defaults:
            raise ValueError(f"{name}: unknown setting {key!r}; accepted are {', '.join(defaults)}.")
        if key in settings:
            raise ValueError(f"{name}: {key} is given twice.")
        settings[key] = _read(name, key, text, defaults[key])
    policy = info.create(**settings)
    policy.capacity(chunk)
    return policy


def _read(name: str, key: str, text: str, default: object) -> object:
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{name}: {key} must be true or false, not {text!r}.")
        return text.lower() == "true"
    kind: type[Any] = type(default)
    try:
        return kind(text)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name}: {key} must be {wanted}, not {text!r}.") from None

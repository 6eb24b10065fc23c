"""What is compared, as it stands in ``comparison.json``, and the jobs that this makes. Imports no torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from longtake.comparison.files import read_json_file
from longtake.comparison.grammar import Entry
from longtake.evaluation.settings import Boundaries, Settings

FORMAT = 1
FILE = "comparison.json"


@dataclass(frozen=True)
class Job:
    """One video to be made and measured.

    Attributes:
        label, memory: what it is made with; ``weights``: of a learned memory, if not the model's own.
        script: what is said when; ``seed``: of all noise.
        name: of its files, without ending and relative to their folders.
    """

    label: str
    memory: str
    weights: str | None
    script: str
    seed: int
    name: str

    @property
    def pair(self) -> tuple[str, int]:
        """Jobs of one pair differ in the memory only: their noise is the same."""
        return self.script, self.seed

    def video(self, folder: Path) -> Path:
        """Its video."""
        return folder / "videos" / f"{self.name}.mp4"

    def result(self, folder: Path) -> Path:
        """What was found, see :mod:`longtake.comparison.result`."""
        return folder / "results" / f"{self.name}.json"

    def strip(self, folder: Path) -> Path:
        """Pictures of it."""
        return folder / "results" / f"{self.name}.jpg"

    def log(self, folder: Path) -> Path:
        """What its process said."""
        return folder / "logs" / f"{self.name}.log"


@dataclass(frozen=True)
class Comparison:
    """Everything that was asked for, and what it meant.

    Attributes:
        model: a name or an absolute path; ``signature``: of its files, None before they are downloaded.
        entries: the memories.
        weights: of learned memories, by label; ``weights_sha256``: of these files, by label.
        baseline: label of the memory that others are compared with.
        scripts: prompts, each as `longtake.prompts.parse_script` reads it.
        seeds, lengths: of every video; in seconds.
        options: of ``longtake generate``, by the names of its request.
        settings: how videos are measured.
        height, width, fps: of all videos; ``chunk``: latent frames of a chunk, as memories count them.
    """

    model: str
    signature: str | None
    entries: tuple[Entry, ...]
    baseline: str
    scripts: tuple[str, ...]
    seeds: tuple[int, ...]
    lengths: tuple[float, ...]
    height: int
    width: int
    fps: float
    chunk: int
    settings: Settings = field(default_factory=Settings)
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    weights_sha256: Mapping[str, str] = field(default_factory=dict)

    def jobs(self) -> list[Job]:
        """All of them: for every prompt and seed, all memories in turn, so that a run that is stopped has pairs."""
        return [
            self._job(entry, script, seed) for seed in self.seeds for script in self.scripts for entry in self.entries
        ]

    def _job(self, entry: Entry, script: str, seed: int) -> Job:
        weights = self.weights.get(entry.label)
        kind = f"{entry.memory} {self.weights_sha256.get(entry.label, '')}"
        name = f"{short_name(entry.label, kind, 40)}/{short_name(script, script, 60)}-s{seed}"
        return Job(entry.label, entry.memory, weights, script, seed, name)

    def labels(self) -> list[str]:
        """Of the memories, the baseline first."""
        return [self.baseline, *(entry.label for entry in self.entries if entry.label != self.baseline)]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Comparison:
        """What :meth:`to_dict` made this of.

        Raises:
            ValueError: it did not, or by another version.
        """
        try:
            if data["format"] != FORMAT:
                raise ValueError(f"It has format {data['format']!r}, and this version of Longtake reads {FORMAT}.")
            values = {key: value for key, value in data.items() if key != "format"}
            settings = dict(values["settings"])
            for name in ("chunk", "decoder"):
                settings[name] = None if settings[name] is None else Boundaries(**settings[name])
            made = cls(
                **{
                    **values,
                    "settings": Settings(**settings),
                    "entries": tuple(Entry(**entry) for entry in values["entries"]),
                    **{name: tuple(values[name]) for name in ("scripts", "seeds", "lengths")},
                }
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"It is no comparison ({error}).") from None
        if made.baseline not in [entry.label for entry in made.entries]:
            raise ValueError(f"It has no memory {made.baseline!r}.")
        return made

    def check_continues(self, other: Comparison, folder: Path) -> None:
        """Refuses a folder whose videos were made otherwise. Memories, prompts, seeds, lengths and how videos are
        measured may change: what is there is used, and what is missing is made.

        Raises:
            ValueError: in one sentence that says what differs.
        """
        mine, theirs = (
            {
                "model": place.model,
                "height": place.height,
                "width": place.width,
                **{option: value for option, value in place.options.items() if option not in _FREE},
            }
            for place in (self, other)
        )
        for name in dict.fromkeys([*mine, *theirs]):
            if mine.get(name) != theirs.get(name):
                then, now = (
                    "without it" if place.get(name) is None else f"with {place[name]}" for place in (theirs, mine)
                )
                raise ValueError(
                    f"The comparison in {folder} was begun {_said(name, then)}, not {now}: "
                    "choose another folder with --out."
                )
        if None not in (self.signature, other.signature) and self.signature != other.signature:
            raise ValueError(
                f"The comparison in {folder} was begun with another {self.model} than there is now: "
                "choose another folder with --out."
            )


_FREE = ("threads", "every")  # change nothing about a video


def _said(name: str, how: str) -> str:
    return how if name == "model" else f"with another --{name.replace('_', '-')} ({how})"


def short_name(text: str, identity: str, most: int) -> str:
    """A name for files: the first words of a text for people, and six digits that tell identities apart."""
    words = "-".join(re.findall(r"\w+", text.lower()))[:most].strip("-")
    return f"{words or 'x'}-{hashlib.sha256(f'{text} {identity}'.encode()).hexdigest()[:6]}"


def read_definition(folder: Path) -> Comparison | None:
    """The comparison in a folder; None if there is none.

    Raises:
        ValueError: in one sentence, if what is there cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return Comparison.from_dict(read_json_file(path))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read. {error}") from None

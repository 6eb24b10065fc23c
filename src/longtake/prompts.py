"""Scripts: what is shown when, in one line of text.

    a red ball rolls over a meadow [10s] | a blue ball bounces on snow [1m30s]

Segments are separated by ``|`` and end with their duration in brackets. ``\\|`` and ``\\[`` stand for the characters
themselves. Times are kept to the millisecond; runs of white space count as one space.

A segment after others may begin with what becomes of the past when it begins, one of :data:`CHANGES` in brackets:

    a red ball rolls over a meadow [10s] | [cut] a blue ball bounces on snow [20s]

Other words in brackets at the beginning are part of the prompt (``[wide shot] a dog``), and so is ``\\[cut]``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

CHANGES = ("keep", "recache", "flush", "cut")
"""What a new prompt can do to the past; see ``docs/memories.md`` and :class:`longtake.take.Take`."""

_ACCEPTED = "write a duration like [10s], [1.5s], [2m], [1m30s] or [500ms]"
_NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_DURATION = re.compile(
    rf"(?:({_NUMBER})\s*h)?\s*(?:({_NUMBER})\s*m(?!s))?\s*(?:({_NUMBER})\s*s)?\s*(?:({_NUMBER})\s*ms)?", re.IGNORECASE
)
_UNITS = (3_600_000.0, 60_000.0, 1000.0, 1.0)  # milliseconds in h, m, s, ms
_LONGEST = 366 * 24 * 3_600_000  # milliseconds; far below where floats stop being exact
_END = re.compile(r"(?<!\\)\[([^\[\]]*)\]\s*$")
# Looser than what is accepted: whoever writes [-5s] or [5s3m] in the middle of a prompt meant a duration.
_ALIKE = re.compile(rf"(?<!\\)\[\s*[-+]?\s*(?:(?:{_NUMBER}|nan|inf)\s*(?:ms|s|m|h)\s*)+\]", re.IGNORECASE)

_CHANGE = re.compile(rf"\[\s*({'|'.join(CHANGES)})\s*\]\s*", re.IGNORECASE)


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def parse_duration(text: str | float) -> float:
    """Seconds, to the millisecond, from "1m30s", "1.5s", "2m", "1h", "500ms" or a plain number of seconds.

    Raises:
        ValueError: anything else, or a duration that is not between 1 ms and 366 days.
    """
    if isinstance(text, str):
        clean = text.strip()
        match = _DURATION.fullmatch(clean)
        if re.fullmatch(_NUMBER, clean):
            value = float(clean) * 1000
        elif clean and match:
            value = sum(float(part) * unit for part, unit in zip(match.groups(), _UNITS, strict=True) if part)
        else:
            raise ValueError(f"{text!r} is not a duration: write one like 10s, 1.5s, 2m, 1m30s or 500ms.")
    else:
        value = float(text) * 1000 if abs(text) <= _LONGEST else math.inf
    if not (math.isfinite(value) and 1 <= round(value) <= _LONGEST):
        raise ValueError(f"A duration must be from 1ms to 366 days, not {text}.")
    return round(value) / 1000


@dataclass(frozen=True)
class Segment:
    """One prompt and when it holds: from `start` to `end` in seconds, or without end if that is None.

    `change` is what becomes of the past when it begins, one of :data:`CHANGES`, or None for the take's own way. Given
    one, the change happens even if the prompt is the one before.

    Raises:
        ValueError: an empty prompt, a negative start, an end that is not after the start, or an unknown change.
    """

    prompt: str
    start: float
    end: float | None = None
    change: str | None = None

    def __post_init__(self) -> None:
        prompt = " ".join(self.prompt.split())
        if not prompt:
            raise ValueError("Every segment of a script needs a prompt: write like 'a red ball [10s] | a blue ball'.")
        for name, time in (("start", self.start), ("end", self.end)):
            if time is not None and not (math.isfinite(time) and 0 <= time <= 1000 * _LONGEST):
                raise ValueError(f"The {name} of a segment must be a number of seconds from 0 on, not {time}.")
            object.__setattr__(self, name, None if time is None else _milliseconds(time) / 1000)
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"A segment must end after it starts, not go from {self.start}s to {self.end}s.")
        if self.change is not None and self.change not in CHANGES:
            raise ValueError(f"A prompt change is one of {', '.join(CHANGES)}, not {self.change!r}.")
        object.__setattr__(self, "prompt", prompt)


@dataclass(frozen=True)
class Script:
    """Prompts that follow one another without a gap, the first from 0 seconds on.

    Raises:
        ValueError: no segments, segments that leave gaps, overlap or follow one without end, or a first segment
            that says how to change from what was before it.
    """

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", tuple(self.segments))
        if not self.segments:
            raise ValueError("A script needs at least one prompt.")
        if (change := self.segments[0].change) is not None:
            raise ValueError(
                f"The first segment of a script follows nothing, so it cannot begin with [{change}]: "
                rf"leave that out, or write \[{change}] if it belongs to the prompt."
            )
        expected: float | None = 0.0
        for segment in self.segments:
            if segment.start != expected:
                raise ValueError("The segments of a script must follow one another without gaps, from 0 seconds on.")
            expected = segment.end

    @property
    def seconds(self) -> float | None:
        """Length of the whole; None if it has no end."""
        return self.segments[-1].end

    def at(self, seconds: float) -> Segment:
        """The segment that holds at a time; the last one also at the end and after it.

        Raises:
            ValueError: a time that is negative or not a number.
        """
        if not 0 <= seconds < math.inf:
            raise ValueError(f"A time in a script is a number of seconds from 0 on, not {seconds}.")
        # Compared in milliseconds: times summed in floats miss a boundary by their rounding.
        now = _milliseconds(seconds)
        found = self.segments[0]
        for segment in self.segments:
            if _milliseconds(segment.start) <= now:
                found = segment
        return found

    def format(self) -> str:
        """The script as text; `parse_script` makes the same script of it."""
        return " | ".join(_format_segment(segment) for segment in self.segments)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, texts and numbers, for JSON."""
        return {"segments": [asdict(segment) for segment in self.segments]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Script:
        """The script that `to_dict` made this of; older versions wrote no `change`.

        Raises:
            ValueError: it did not.
        """
        try:
            return cls(tuple(Segment(s["prompt"], s["start"], s["end"], s.get("change")) for s in data["segments"]))
        except (KeyError, TypeError, AttributeError):
            raise ValueError("A saved script must be a list of segments with prompt, start and end.") from None


def _format_segment(segment: Segment) -> str:
    prompt = segment.prompt
    # Brackets stay as they are where nothing would read them as a duration or as escaped.
    read = {match.start() for match in _ALIKE.finditer(prompt)}
    read |= {match.end() - 1 for match in re.finditer(r"\\\[", prompt)}
    if _CHANGE.match(prompt):
        read.add(0)
    if segment.end is None:
        read |= {match.start() for match in _END.finditer(prompt)}
    text = "".join("\\" + char if char == "|" or index in read else char for index, char in enumerate(prompt))
    if segment.change is not None:
        text = f"[{segment.change}] {text}"
    if segment.end is None:
        return text
    length = _milliseconds(segment.end) - _milliseconds(segment.start)
    number = f"{length // 1000}.{length % 1000:03d}".rstrip("0").rstrip(".")
    return f"{text} [{number}s]"


def _shown(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 40 else prompt[:37] + "...")


def _parse_segment(text: str) -> tuple[str, int | None, str | None]:
    """Prompt, milliseconds and change of one segment."""
    text = " ".join(text.split())
    change = None
    if began := _CHANGE.match(text):
        change, text = began[1].lower(), text[began.end() :]
        if again := _CHANGE.match(text):
            raise ValueError(
                rf"A segment can begin with one way to change only, not with '{began[0].strip()} {again[0].strip()}'; "
                rf"write \{again[0].strip()} if that belongs to the prompt."
            )
    found = _END.search(text)
    length = None
    if found:
        try:
            length = _milliseconds(parse_duration(found[1]))
        except ValueError:
            raise ValueError(
                f"'[{found[1]}]' at the end of a segment is no duration above zero: {_ACCEPTED}, "
                r"or \[ for a bracket that belongs to the prompt."
            ) from None
        text = text[: found.start()].strip()
    stray = _ALIKE.search(text)
    if stray:
        raise ValueError(
            rf"{stray[0]!r} must stand at the end of a segment to be its duration, "
            rf"or be written \{stray[0]} to belong to the prompt."
        )
    prompt = re.sub(r"\\([|\[])", r"\1", text)
    if not prompt:
        raise ValueError(f"A segment has no prompt: write 'a red ball [10s] | a blue ball [5s]', and {_ACCEPTED}.")
    return prompt, length, change


def parse_script(text: str, seconds: float | None = None, *, default_seconds: float | None = None) -> Script:
    """Reads a script.

    Args:
        text: segments separated by ``|``, each a prompt with its duration in brackets, all but the first with a
            change in brackets before it if wanted.
        seconds: length of the whole. The last segment then needs no duration: it lasts to the end, or is cut there.
        default_seconds: length of a single prompt that has no duration when there is no `seconds`; a last segment
            after others must then have one. With None, a script whose last segment has no duration has no end.

    Raises:
        ValueError: one sentence that says what is wrong and what would be accepted.
    """
    parts = [_parse_segment(part) for part in re.split(r"(?<!\\)\|", text)]
    for prompt, length, _ in parts[:-1]:
        if length is None:
            raise ValueError(f"The segment {_shown(prompt)} needs a duration, as others follow it: {_ACCEPTED}.")
    whole = None if seconds is None else _milliseconds(parse_duration(seconds))
    if whole is None and parts[-1][1] is None:
        if len(parts) > 1 and default_seconds is not None:
            raise ValueError(
                f"The last segment {_shown(parts[-1][0])} needs a duration, or the script a length: {_ACCEPTED}."
            )
        if default_seconds is not None:
            whole = _milliseconds(parse_duration(default_seconds))
    segments, start = [], 0
    for index, (prompt, length, change) in enumerate(parts):
        if whole is not None and start >= whole:
            raise ValueError(
                f"The segment {_shown(prompt)} would never be shown, as it starts at {start / 1000:g}s and the length "
                f"asked for is {whole / 1000:g}s: ask for more or shorten the script."
            )
        last = index == len(parts) - 1
        end = whole if last and whole is not None else None if length is None else start + length
        segments.append(Segment(prompt, start / 1000, None if end is None else end / 1000, change))
        start = end or 0
    return Script(tuple(segments))

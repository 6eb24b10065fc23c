"""What ``longtake generate`` is to say when, and what of it will not be understood. Loads no torch."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING

from longtake.facts import ModelFacts
from longtake.plan import format_seconds
from longtake.prompts import CHANGES, Script, parse_script
from longtake.record import Recorded

if TYPE_CHECKING:
    from longtake.cli_prepare import Request

DEFAULT_SECONDS = 30.0


def script_of(request: Request, found: Recorded | None, seconds: float | None, facts: ModelFacts) -> Script:
    """What is said when; what was said until the snapshot cannot be changed."""
    if request.prompt is None:
        if found is None:
            raise ValueError(
                f"There is nothing to continue at {request.out}, and a new take needs a prompt: "
                'longtake generate "a red ball rolls over a meadow".'
            )
        return Script.from_dict(found.data["script"])
    kept = None if found is None else found.settings.get("seconds")
    script = parse_script(request.prompt, seconds, default_seconds=kept or DEFAULT_SECONDS)
    if found is not None:
        old, now = Script.from_dict(found.data["script"]), found.frames / facts.fps
        for time in sorted({s.start for s in (*old.segments, *script.segments) if s.start < now}):
            if old.at(time).prompt != script.at(time).prompt:
                raise ValueError(
                    f"At {format_seconds(time)} the snapshot was made with {old.at(time).prompt!r}, not "
                    f"{script.at(time).prompt!r}: only what comes after {format_seconds(now)} can be changed."
                )
    return script


def check_words(script: Script, facts: ModelFacts) -> list[str]:
    """Warnings of what in the prompts will not be understood.

    Raises:
        ValueError: if a prompt cannot be read at all.
    """
    warnings = _misspelt(script)
    for prompt in dict.fromkeys(segment.prompt for segment in script.segments):
        warnings += facts.check_prompt(prompt)
    return warnings


def _misspelt(script: Script) -> list[str]:
    """Warnings of what looks like a way to change a prompt, and is read as text."""
    found = []
    for segment in script.segments:
        word = re.match(r"\[(\w+)\]", segment.prompt)
        if word is not None and (near := get_close_matches(word[1].lower(), CHANGES, 1)):
            found.append(f"{word[0]} is read as a part of the prompt; did you mean [{near[0]}]?")
    return found

"""What the pocket model knows: its vocabulary, and captions made of it. Imports nothing heavy.

The first word of each group is the concept's name; the others are ways to say it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

COLORS: dict[str, tuple[str, ...]] = {
    "red": ("red",),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
}
SHAPES: dict[str, tuple[str, ...]] = {
    "ball": ("ball", "sphere"),
    "box": ("box", "square"),
    "star": ("star",),
    "triangle": ("triangle",),
}
PATTERNS: dict[str, tuple[str, ...]] = {"plain": ("", "plain"), "striped": ("striped",)}
MOTIONS: dict[str, tuple[str, ...]] = {
    "rolls": ("rolls", "rolling"),
    "bounces": ("bounces", "bouncing", "jumps"),
    "circles": ("circles", "circling"),
    "swings": ("swings", "swinging"),
    "grows": ("grows and shrinks", "growing and shrinking", "pulses"),
}
PLACES: dict[str, tuple[str, ...]] = {
    "meadow": ("over a meadow", "on the grass", "in a meadow", "on a meadow", "over the meadow"),
    "snow": ("in the snow", "on snow", "over the snow"),
    "beach": ("on a beach", "at the beach", "on the sand"),
    "night": ("at night", "in the night", "in the dark"),
    "room": ("in a room", "in the room"),
}
_EXTRA = ("a", "an", "the", "and", "across", "through", "by", "under", "with", "is", "above", "while", "of", "to")


def vocabulary() -> tuple[str, ...]:
    """Every word the model was trained on, in a fixed order."""
    words: list[str] = []
    for group in (COLORS, SHAPES, PATTERNS, MOTIONS, PLACES):
        for ways in group.values():
            for way in ways:
                words += way.split()
    words += ["a", "an", "the", "and"]
    return tuple(dict.fromkeys(words))


def split_words(prompt: str) -> list[str]:
    """The prompt's words, lower case, without punctuation."""
    return re.findall(r"[a-z0-9']+", prompt.lower())


def unknown_words(prompt: str) -> list[str]:
    """Words of the prompt that the model has never seen, each once, in order; filler words are let pass."""
    known = {*vocabulary(), *_EXTRA}
    return list(dict.fromkeys(w for w in split_words(prompt) if w not in known))


def content_words(prompt: str) -> list[str]:
    """Known words of the prompt that say something (not articles and the like)."""
    filler = {*_EXTRA, "over", "on", "in", "at"}
    known = {w for w in vocabulary() if w not in filler}
    return [w for w in split_words(prompt) if w in known]


def what_it_knows() -> str:
    """One line that tells a user which words may be used."""

    def names(group: Iterable[str]) -> str:
        return ", ".join(n for n in group if n != "plain")

    return (
        f"colours {names(COLORS)}; shapes {names(SHAPES)} (also striped); "
        f"motions {names(MOTIONS)}; places {names(PLACES)}"
    )


def caption(color: str, shape: str, pattern: str, motion: str, place: str, rng: random.Random | None = None) -> str:
    """A caption of one scene, by the concepts' names; without ``rng`` the plainest wording."""

    def say(ways: tuple[str, ...]) -> str:
        return ways[0] if rng is None else rng.choice(ways)

    noun = " ".join(w for w in (say(PATTERNS[pattern]), say(COLORS[color]), say(SHAPES[shape])) if w)
    article = "an" if noun[0] in "aeiou" else "a"
    if rng is not None and rng.random() < 0.2:
        article = "the"
    text = f"{article} {noun} {say(MOTIONS[motion])} {say(PLACES[place])}"
    if rng is not None and rng.random() < 0.1:
        place_first = say(PLACES[place])
        text = f"{place_first} {article} {noun} {say(MOTIONS[motion])}"
    return text

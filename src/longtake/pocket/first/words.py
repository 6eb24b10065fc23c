"""What the pocket model knows: its vocabulary, and captions made of it. Imports nothing heavy.

The first word of each group is the concept's name; the others are ways to say it.
"""

from __future__ import annotations

import random
import re
import unicodedata
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
_ARTICLES = ("a", "an", "the", "and")
_FILLER = {*_ARTICLES, "over", "on", "in", "at"}
MAX_WORDS = 23  # the text encoder was trained on 24 tokens, the end included


def vocabulary() -> tuple[str, ...]:
    """Every word the model was trained on, in a fixed order."""
    words: list[str] = []
    for group in (COLORS, SHAPES, PATTERNS, MOTIONS, PLACES):
        for ways in group.values():
            for way in ways:
                words += way.split()
    words += _ARTICLES
    return tuple(dict.fromkeys(words))


def split_words(prompt: str) -> list[str]:
    """The prompt's words in any script, lower case, without punctuation but for apostrophes inside."""
    text = unicodedata.normalize("NFKC", prompt).lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text)


def unknown_words(prompt: str) -> list[str]:
    """Words of the prompt that the model has never seen, each once, in order."""
    known = set(vocabulary())
    return list(dict.fromkeys(w for w in split_words(prompt) if w not in known))


def content_words(prompt: str) -> list[str]:
    """Known words of the prompt that say something (not articles and the like)."""
    known = set(vocabulary()) - _FILLER
    return [w for w in split_words(prompt) if w in known]


def words_too_many(prompt: str) -> int:
    """How many words at the end of the prompt the model does not read, as it reads ``MAX_WORDS`` at most."""
    pieces = sum(len(word.split("'")) for word in split_words(prompt))  # an apostrophe separates what the model reads
    return max(0, pieces - MAX_WORDS)


def what_it_knows() -> str:
    """One line that tells a user which words may be used."""

    def names(group: Iterable[str]) -> str:
        return ", ".join(n for n in group if n != "plain")

    return (
        f"colours {names(COLORS)}; shapes {names(SHAPES)} (also striped); "
        f"motions {names(MOTIONS)}; places {names(PLACES)}"
    )


def groups() -> dict[str, tuple[str, ...]]:
    """What may be said, by kind: the plainest way for each concept."""
    kinds = {"colours": COLORS, "patterns": PATTERNS, "shapes": SHAPES, "motions": MOTIONS, "places": PLACES}
    return {kind: tuple(next(way for way in ways if way) for ways in group.values()) for kind, group in kinds.items()}


def examples() -> tuple[str, ...]:
    """A few prompts to begin with, in which every kind of thing occurs."""
    return (
        caption("red", "ball", "plain", "rolls", "meadow"),
        caption("purple", "star", "striped", "swings", "beach"),
        caption("blue", "box", "plain", "bounces", "room"),
        caption("yellow", "triangle", "plain", "circles", "night"),
        caption("green", "ball", "striped", "grows", "snow"),
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

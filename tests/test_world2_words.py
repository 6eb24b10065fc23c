"""Captions of the second edition: what they say is what is there, and is understood."""

from __future__ import annotations

import random
import re
import subprocess
import sys

import pytest

from longtake.pocket.world import caption, caption_and_told, facts, sample_scenes
from longtake.pocket.world.names import COLORS, MOTIONS, PLACES, SHAPES
from longtake.pocket.world.words import (
    MAX_WORDS,
    content_words,
    understand,
    unknown_words,
    vocabulary,
    what_it_knows,
    words_too_many,
)

COUNT = 3000


@pytest.fixture(scope="module")
def captions() -> list[tuple[str, dict[str, str], dict[str, str]]]:
    """Captions of random scenes with what they claim to tell, and all that is so."""
    scenes, rng = sample_scenes(COUNT, 21), random.Random(4)
    return [(*caption_and_told(scenes, i, rng), facts(scenes, i)) for i in range(COUNT)]


def test_every_caption_is_understood_as_what_it_tells(
    captions: list[tuple[str, dict[str, str], dict[str, str]]],
) -> None:
    for text, told, _ in captions:
        assert understand(text) == told, text


def test_no_caption_tells_what_is_not_so(captions: list[tuple[str, dict[str, str], dict[str, str]]]) -> None:
    for text, _, all_there_is in captions:
        for name, value in understand(text).items():
            assert all_there_is[name] == value, text


def test_words_and_articles(captions: list[tuple[str, dict[str, str], dict[str, str]]]) -> None:
    known = vocabulary()
    assert len(known) == len(set(known)) and 120 <= len(known) <= 200
    used: set[str] = set()
    for text, _, _ in captions:
        words = text.split()
        used |= set(words)
        assert len(words) <= MAX_WORDS and words_too_many(text) == 0
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  |\ba$", text), text
    assert used <= set(known)
    assert len(used) > 0.93 * len(known)  # hardly a word that no caption has


def test_captions_vary_and_leave_things_out(captions: list[tuple[str, dict[str, str], dict[str, str]]]) -> None:
    assert len({text for text, _, _ in captions}) > 0.97 * COUNT
    for name, low, high in (("color", 0.9, 0.96), ("size", 0.4, 0.6), ("place", 0.9, 0.98), ("motion", 0.9, 0.98)):
        share = sum(name in told for _, told, _ in captions) / COUNT
        assert low < share < high, name
    assert any(text.split()[0] in ("in", "on", "at") for text, _, _ in captions)


def test_the_plainest_caption_is_always_the_same() -> None:
    scenes = sample_scenes(50, 3)
    for i in range(50):
        text = caption(scenes, i)
        assert text == caption(scenes, i)
        said = understand(text)
        there = facts(scenes, i)
        assert {"color", "shape", "motion", "place"} <= set(said)
        assert said["shape"] == there["shape"] and ("shape2" in said) == bool(scenes.second[i])


def test_prompts_by_people() -> None:
    said = understand("A HUGE striped, violet robot -- strolling on the beach; at sunset, while a kitten orbits it!")
    assert said == {
        "size": "big",
        "pattern": "striped",
        "color": "purple",
        "shape": "robot",
        "motion": "walks",
        "place": "beach",
        "light": "dusk",
        "shape2": "cat",
        "motion2": "orbits",
    }
    assert unknown_words("a red dragon eats a red car") == ["dragon", "eats"]
    assert content_words("the dragon and a red car") == ["red", "car"]
    assert understand("in the dark as day turns to night")["light"] == "turning"
    assert understand("") == {} and unknown_words("") == []
    assert words_too_many("red " * (MAX_WORDS + 3)) == 3
    for name in (*COLORS, *SHAPES, *MOTIONS, *PLACES):
        assert name in what_it_knows()


def test_words_load_no_torch() -> None:
    code = "import sys, longtake.pocket.world.words as w; w.understand('a red ball'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

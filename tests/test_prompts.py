"""The script syntax: what it accepts, what it refuses and that its text form says everything."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.prompts import CHANGES, Script, Segment, parse_duration, parse_script


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10), ("1.5s", 1.5), (".5s", 0.5), ("2m", 120), ("1m30s", 90), ("1m 30 s", 90), ("500ms", 0.5),
        ("1h", 3600), ("1h2m3s4ms", 3723.004), ("1M30S", 90), ("12", 12), (" 2.5 ", 2.5), (7, 7), (0.75, 0.75),
        ("0.1s", 0.1),
    ],
)  # fmt: skip
def test_durations(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "s", "abc", "0", "0s", "-5s", "nan", "inf", "1e3", "5 minutes", "30s1m", "1s1s", "1m30", "0.0001s",
     "9999999h", "1" * 400, "٣s", 0, -1.0, float("nan"), float("inf"), 10**400],
)  # fmt: skip
def test_durations_refused(text: str | float) -> None:
    with pytest.raises(ValueError, match=r"duration.*\.$"):
        parse_duration(text)


def times(script: Script) -> list[tuple[str, float, float | None]]:
    return [(s.prompt, s.start, s.end) for s in script.segments]


def test_segments_follow_one_another() -> None:
    script = parse_script("a red ball rolls over a meadow [10s] |\n a blue  ball bounces on snow [1m30s] | end [500ms]")
    assert times(script) == [
        ("a red ball rolls over a meadow", 0, 10),
        ("a blue ball bounces on snow", 10, 100),
        ("end", 100, 100.5),
    ]
    assert script.seconds == 100.5


@pytest.mark.parametrize(
    ("text", "seconds", "expected"),
    [
        ("a", 8, [("a", 0, 8)]),
        ("a [3s]", 8, [("a", 0, 8)]),
        ("a [30s]", 8, [("a", 0, 8)]),
        ("a [3s] | b", 8, [("a", 0, 3), ("b", 3, 8)]),
        ("a [3s] | b [1s]", 8, [("a", 0, 3), ("b", 3, 8)]),
        ("a [3s] | b [100s]", 8, [("a", 0, 3), ("b", 3, 8)]),
    ],
)
def test_given_length_ends_the_last_segment(text: str, seconds: float, expected: list[object]) -> None:
    assert times(parse_script(text, seconds)) == expected


def test_single_prompt_needs_no_duration() -> None:
    assert times(parse_script("a cat", default_seconds=5)) == [("a cat", 0, 5)]
    assert times(parse_script("a cat [2s]", default_seconds=5)) == [("a cat", 0, 2)]
    endless = parse_script("a cat")
    assert times(endless) == [("a cat", 0, None)]
    assert endless.seconds is None
    assert endless.at(1e6).prompt == "a cat"


@pytest.mark.parametrize(
    ("text", "seconds", "says"),
    [
        ("", None, "no prompt"),
        ("  [3s]", None, "no prompt"),
        ("a [3s] | | b [3s]", None, "no prompt"),
        ("a [3s] |", 10, "no prompt"),
        ("a | b [3s]", None, "'a' needs a duration"),
        ("a | b [3s]", 10, "'a' needs a duration"),
        ("a [abc]", None, r"\[abc\].*\[10s\]"),
        ("a []", 4, r"\[10s\]"),
        ("a [0s]", None, "above zero"),
        ("a [-3s]", None, "above zero"),
        ("a [nans]", None, "above zero"),
        ("a [10s] ball", 4, r"at the end.*\\\[10s\]"),
        ("[10s] a ball", 4, "at the end"),
        ("a [ -2 m ] ball", 4, "at the end"),
        ("a [10s] [5s]", None, "at the end"),
        ("a [4s] | bee [4s] | c [4s]", 8, "'c' would never be shown.*8s"),
        ("a [9s] | b", 8, "'b' would never be shown"),
        ("a", 0, "duration"),
        ("a", float("nan"), "duration"),
    ],
)
def test_refused_in_one_sentence(text: str, seconds: float | None, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        parse_script(text, seconds)
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message
    assert not re.search(r"\. [A-Z]", message)


def test_characters_of_the_syntax_can_be_written() -> None:
    assert times(parse_script(r"this \| that \[10s] [2s] | a [red] ball, C:\dir [1s]")) == [
        ("this | that [10s]", 0, 2),
        (r"a [red] ball, C:\dir", 2, 3),
    ]
    assert parse_script("room [101] door").segments[0].prompt == "room [101] door"


def changes(text: str) -> list[tuple[str, str | None]]:
    return [(s.prompt, s.change) for s in parse_script(text).segments]


def test_a_segment_says_how_the_prompt_changes() -> None:
    assert changes("a [1s] | [cut] b [1s] | [ Flush ]c [1s] | [keep] d [1s] | [recache] e [1s] | f") == [
        ("a", None), ("b", "cut"), ("c", "flush"), ("d", "keep"), ("e", "recache"), ("f", None),
    ]  # fmt: skip
    assert CHANGES == ("keep", "recache", "flush", "cut")
    script = parse_script("a [3s] | [cut] b [2s]", 9)
    assert (script.at(3).change, script.at(8).change, script.at(2).change) == ("cut", "cut", None)


def test_other_brackets_belong_to_the_prompt() -> None:
    text = r"[wide shot] a dog [1s] | \[cut] paper [1s] | [cutt] b [1s] | a [cut] c [1s] | [cut] \[flush] d"
    assert changes(text) == [
        ("[wide shot] a dog", None), ("[cut] paper", None), ("[cutt] b", None), ("a [cut] c", None),
        ("[flush] d", "cut"),
    ]  # fmt: skip
    assert changes(r"\[cut] paper") == [("[cut] paper", None)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[cut] a [1s] | b", r"first segment .*\\\[cut\]"),
        ("[keep] a", "first segment"),
        ("a [1s] | [cut]", "no prompt"),
        ("a [1s] | [cut] [2s]", "no prompt"),
        ("a [1s] | [cut] [flush] b", "one way to change only"),
        ("a [1s] | b [cut]", "no duration"),
    ],
)
def test_changes_refused_in_one_sentence(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        parse_script(text)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_changes_that_do_not_exist() -> None:
    for odd in ("jump", "", 3, [], "CUT"):
        with pytest.raises(ValueError, match="one of keep, recache, flush, cut"):
            Segment("a", 1, None, odd)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="first segment"):
        Script((Segment("a", 0, None, "cut"),))
    old = {"segments": [{"prompt": "a", "start": 0.0, "end": 1.0}, {"prompt": "b", "start": 1.0, "end": None}]}
    assert Script.from_dict(old) == parse_script("a [1s] | b")


def test_at() -> None:
    script = parse_script("a [0.3s] | b [10s] | c [5s]")
    assert [script.at(t).prompt for t in (0, 0.29, 0.3, 0.1 + 0.1 + 0.1, 10.29, 10.3, 15.3, 99)] == list("aabbbccc")
    assert script.at(0.9 / 3).prompt == "b"  # 0.3 less one rounding
    for time in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="time"):
            script.at(time)


def test_scripts_that_make_no_sense() -> None:
    for segments in (
        (),
        (Segment("a", 1, 2),),
        (Segment("a", 0, 2), Segment("b", 3, 4)),
        (Segment("a", 0), Segment("b", 3, 4)),
    ):
        with pytest.raises(ValueError, match=r"\.$"):
            Script(segments)
    for arguments in (("", 0.0, 1.0), ("a", -1.0, 1.0), ("a", 1.0, 1.0), ("a", float("nan"), None)):
        with pytest.raises(ValueError, match=r"\.$"):
            Segment(*arguments)
    for data in ({}, {"segments": 3}, {"segments": [{"prompt": "a"}]}, {"segments": [{"prompt": 1, "start": 0}]}):
        with pytest.raises(ValueError, match="saved script"):
            Script.from_dict(data)


# Mostly characters that mean something, so that the odd corners come up.
pieces = st.one_of(st.text(alphabet="ab1.s[]|\\ -m", max_size=12), st.sampled_from(["[cut]", "[ keep ]", "[FLUSH] "]))
prompts = st.one_of(st.lists(pieces, max_size=3).map("".join), st.text(max_size=20)).filter(lambda t: t.split())


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    count = draw(st.integers(1, 5))
    segments, start = [], 0
    for index in range(count):
        end = start + draw(st.integers(1, 10**9))
        endless = count == 1 and index == 0 and draw(st.booleans())
        change = draw(st.sampled_from([None, *CHANGES])) if index else None
        segments.append(Segment(draw(prompts), start / 1000, None if endless else end / 1000, change))
        start = end
    return Script(tuple(segments))


@given(scripts())
def test_text_and_json_say_everything(script: Script) -> None:
    assert parse_script(script.format()) == script
    assert Script.from_dict(json.loads(json.dumps(script.to_dict()))) == script


@given(
    st.lists(st.one_of(st.text(alphabet="ab1.s[]|\\ -m0", max_size=30), st.just("[cut]"))).map("".join),
    st.one_of(st.none(), st.floats()),
)
def test_any_text_gives_a_script_or_one_sentence(text: str, seconds: float | None) -> None:
    try:
        script = parse_script(text, seconds)
    except ValueError as error:
        assert str(error).endswith(".")
        return
    assert parse_script(script.format()) == script


def test_an_open_last_segment_has_no_end_unless_a_length_is_wanted() -> None:
    script = parse_script("a [3s] | b")
    assert script.seconds is None
    assert [script.at(t).prompt for t in (0, 2.9, 3, 1e6)] == ["a", "a", "b", "b"]
    with pytest.raises(ValueError, match="'b' needs a duration"):
        parse_script("a [3s] | b", default_seconds=30)

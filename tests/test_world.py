"""The pocket world against its own description: pictures, laws of motion, captions, words."""

import random
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longtake.pocket.first import words
from longtake.pocket.first.words import COLORS, MOTIONS, PATTERNS, PLACES, SHAPES
from longtake.pocket.first.world import FPS, PERIODS, SIZE, Pose, Scenes, backgrounds, pose, render, sample_scenes
from longtake.pocket.model import TEXT_TOKENS, build_tokenizer

HOUR = 3600 * FPS


def all_kinds() -> list[tuple[str, str, str, str, str]]:
    return [(c, s, p, m, w) for c in COLORS for s in SHAPES for p in PATTERNS for m in MOTIONS for w in PLACES]


def scene(**told: Any) -> Scenes:
    """One scene, the plainest by default."""
    values = {"place": 0, "shape": 0, "color": 0, "pattern": 0, "motion": 1, "size": 0.4, "phase": 0.0}
    values |= {"way": 1.0, "offset": 0.0, **told}
    return Scenes(**{f.name: torch.tensor([values[f.name]]) for f in fields(Scenes)})


def frames(*at: int) -> Tensor:
    return torch.tensor(at)


# Rendering


def test_scenes_are_drawn_from_their_seed() -> None:
    one, again, other = sample_scenes(20, 3), sample_scenes(20, 3), sample_scenes(20, 4)
    assert all(torch.equal(getattr(one, f.name), getattr(again, f.name)) for f in fields(Scenes))
    assert not torch.equal(one.size, other.size)
    assert torch.equal(render(one, frames(0, 7))[0], render(again, frames(0, 7))[0])


def test_every_kind_of_scene_is_drawn_evenly() -> None:
    many = sample_scenes(6000, 0)
    for name, group in (("place", PLACES), ("shape", SHAPES), ("color", COLORS), ("motion", MOTIONS)):
        shares = torch.bincount(getattr(many, name), minlength=len(group)) / len(many)
        assert len(shares) == len(group)
        assert (shares - 1 / len(group)).abs().max() < 0.03
    assert set(many.way.tolist()) == {-1.0, 1.0}
    for values, low, high in ((many.phase, 0, 1), (many.offset, -1, 1), (many.size, 0.36, 0.44)):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high


def test_rendering_does_not_depend_on_what_else_is_asked_for() -> None:
    scenes = sample_scenes(6, 5)
    video, cover = render(scenes, torch.arange(990, 1010))
    for i in range(6):
        alone, alone_cover = render(scenes.select(torch.tensor([i])), frames(1000))
        assert torch.equal(alone[0, 0], video[i, 10])
        assert torch.equal(alone_cover[0, 0], cover[i, 10])
    own = torch.stack([torch.arange(990, 1010).roll(i) for i in range(6)])  # every scene its own frames
    shuffled = render(scenes, own)[0]
    assert all(torch.equal(shuffled[i], video[i].roll(i, 0)) for i in range(6))
    assert video.shape == (6, 20, 3, SIZE, SIZE)
    assert cover.shape == (6, 20, 1, SIZE, SIZE)
    assert video.min() >= 0 and video.max() <= 1


def test_where_nothing_covers_there_is_the_place() -> None:
    scenes = sample_scenes(40, 6)
    video, cover = render(scenes, torch.arange(0, 48, 5))
    ground = backgrounds()[scenes.place][:, None].expand_as(video)
    bare = (cover == 0).expand_as(video)
    assert torch.equal(video[bare], ground[bare])
    inside = (cover == 1).expand_as(video)
    assert (video[inside] - ground[inside]).abs().mean() > 0.1


def test_a_larger_picture_is_the_same_picture() -> None:
    scenes = sample_scenes(12, 7)
    small, large = render(scenes, frames(3, 11))[0], render(scenes, frames(3, 11), 2 * SIZE)[0]
    averaged = torch.nn.functional.avg_pool2d(large.flatten(0, 1), 2).view_as(small)
    assert (averaged - small).abs().mean() < 0.01


# The laws


@pytest.mark.parametrize("motion", range(len(MOTIONS)))
def test_each_motion_has_its_period_and_no_shorter_one(motion: int) -> None:
    one = scene(motion=motion, phase=0.3, offset=0.5, pattern=1, shape=2)
    period = int(PERIODS[motion])
    cycle = render(one, torch.arange(period))[0][0]
    again = render(one, torch.arange(period, 2 * period))[0][0]
    assert (again - cycle).abs().max() < 0.02
    for shorter in range(1, period):
        if period % shorter == 0:
            assert (cycle.roll(shorter, 0) - cycle).abs().max() > 0.1
    assert period % 12 == 0  # whole chunks


@pytest.mark.parametrize("motion", range(len(MOTIONS)))
def test_an_hour_in_it_is_still_exact(motion: int) -> None:
    """Frame t an hour later is frame t, as an hour is a whole number of periods."""
    scenes = sample_scenes(8, 8)
    scenes.motion[:] = motion
    assert HOUR % int(PERIODS[motion]) == 0
    early, late = pose(scenes, torch.arange(24)), pose(scenes, HOUR + torch.arange(24))
    for f in fields(Pose):
        assert (getattr(early, f.name) - getattr(late, f.name)).abs().max() < 3e-3  # a tenth of a pixel
    scenes.pattern[:] = 0  # stripes have hard edges, where a hair's breadth shows
    pictures = [render(scenes, start + torch.arange(24))[0] for start in (0, HOUR)]
    assert (pictures[0] - pictures[1]).abs().max() < 0.05


def test_the_path_of_every_motion() -> None:
    """Against the sentences that describe them, at the quarters of a period."""

    def at(name: str, quarter: int, **told: Any) -> Pose:
        number = list(MOTIONS).index(name)
        return pose(scene(motion=number, **told), frames(quarter * int(PERIODS[number]) // 4))

    ground = 0.55 - 0.4
    rolls = [at("rolls", q) for q in range(4)]
    assert all(float(p.y) == pytest.approx(ground) for p in rolls)
    assert float(rolls[0].x) < -1.39  # out of the picture, with all of its radius
    assert float(rolls[2].x) == pytest.approx(0)
    assert [float(p.angle) for p in rolls] == pytest.approx([float(p.x) / 0.4 for p in rolls])  # no slipping
    bounces = [at("bounces", q) for q in range(4)]
    assert [float(p.y) for p in bounces] == pytest.approx([ground, ground - 0.525, ground - 0.7, ground - 0.525])
    circles = [at("circles", q) for q in range(4)]
    assert [float(p.x) for p in circles] == pytest.approx([0.45, 0, -0.45, 0], abs=1e-6)
    assert [float(p.y) + 0.15 for p in circles] == pytest.approx([0, 0.36, 0, -0.36], abs=1e-6)
    swings = [at("swings", q) for q in range(4)]
    assert [float(p.x) for p in swings] == pytest.approx([0, 0.55, 0, -0.55], abs=1e-6)
    assert float(swings[0].y) > float(swings[1].y)  # lowest in the middle
    grows = [at("grows", q) for q in range(4)]
    assert [float(p.scale) for p in grows] == pytest.approx([0.95, 1.35, 0.95, 0.55])
    for name in ("rolls", "circles", "swings"):
        for quarter in range(4):
            assert float(at(name, quarter, way=-1.0).x) == pytest.approx(-float(at(name, quarter).x), abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 3), st.integers(0, 4), st.integers(0, 1), st.floats(0, 0.99), st.sampled_from([-1.0, 1.0]),
    st.floats(-1, 1), st.integers(0, 10_000),
)  # fmt: skip
def test_what_is_covered_is_where_the_law_says(
    shape: int, motion: int, pattern: int, phase: float, way: float, offset: float, time: int
) -> None:
    one = scene(shape=shape, motion=motion, pattern=pattern, phase=phase, way=way, offset=offset)
    where = pose(one, frames(time))
    x, y, radius = float(where.x), float(where.y), 0.4 * float(where.scale)
    cover = render(one, frames(time))[1][0, 0, 0]
    line = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    if max(abs(x), abs(y)) + 1.3 * radius < 1:  # all of it in the picture
        assert float((cover.sum(0) * line).sum() / cover.sum()) == pytest.approx(x, abs=0.02)
        assert float((cover.sum(1) * line).sum() / cover.sum()) == pytest.approx(y, abs=0.02)
        # areas of the unit shapes: circle, square, star of ten corners, equilateral triangle
        star = 10 * 0.5 * 1.2 * 0.62 * 0.5877853
        area = [3.14159 * 0.95**2, 1.68**2, star, 3 * 3**0.5 * 0.56**2][shape]
        assert float(cover.sum()) * (2 / SIZE) ** 2 == pytest.approx(area * radius**2, rel=0.04)
    elif abs(x) > 1 + 1.3 * radius:
        assert cover.sum() == 0


def test_the_subject_has_the_colour_that_is_named() -> None:
    """Hue of the covered pixels: nearest to that of the named colour, and in the right part of the circle."""
    hues = {"red": 0, "orange": 32, "yellow": 53, "green": 133, "blue": 231, "purple": 283}
    assert list(hues) == list(COLORS)
    for index, hue in enumerate(hues.values()):
        for pattern in (0, 1):
            for place in range(len(PLACES)):
                video, cover = render(scene(color=index, pattern=pattern, place=place, shape=1), frames(12))
                r, g, b = video[0, 0][:, cover[0, 0, 0] == 1].double().mean(1)
                angle = float(torch.rad2deg(torch.atan2(3**0.5 * (g - b), 2 * r - g - b))) % 360
                apart = {n: min(abs(angle - h), 360 - abs(angle - h)) for n, h in hues.items()}
                assert min(apart, key=lambda n: apart[n]) == list(hues)[index], (angle, hue)
                assert apart[list(hues)[index]] < 12


def test_stripes_show_and_shapes_differ() -> None:
    plain, striped = (render(scene(pattern=p, shape=1), frames(12))[0] for p in (0, 1))
    assert (plain - striped).abs().amax(2).gt(0.2).sum() > 50
    covers = [render(scene(shape=s), frames(12))[1] for s in range(4)]
    for i, one in enumerate(covers):
        for other in covers[:i]:
            assert (one - other).abs().sum() > 0.1 * one.sum()


# Captions and words


def test_captions_use_only_words_that_are_known() -> None:
    rng = random.Random(0)
    known = set(words.vocabulary())
    seen: set[str] = set()
    for kind in all_kinds():
        for text in (words.caption(*kind), *(words.caption(*kind, rng=rng) for _ in range(4))):
            said = text.split()
            assert set(said) <= known
            assert words.unknown_words(text) == []
            assert len(said) < TEXT_TOKENS  # and the end of the sentence
            seen |= set(said)
    assert seen == known  # nothing in the vocabulary that is never said
    assert len(known) < 100


def test_captions_say_what_they_show() -> None:
    assert words.caption("red", "ball", "plain", "rolls", "meadow") == "a red ball rolls over a meadow"
    assert words.caption("orange", "star", "plain", "grows", "night") == "an orange star grows and shrinks at night"
    assert words.caption("blue", "box", "striped", "swings", "room") == "a striped blue box swings in a room"
    rng = random.Random(1)
    groups = (COLORS, SHAPES, PATTERNS, MOTIONS, PLACES)
    for kind in all_kinds()[::7]:
        text = f" {words.caption(*kind, rng=rng)} "
        for group, name in zip(groups, kind, strict=True):
            assert any(f" {way} " in text or not way for way in group[name])
        # the colour, shape and motion said are no other's
        for group, name in zip(groups[:2], kind[:2], strict=True):
            others = [w for n, ways in group.items() if n != name for w in ways]
            assert not any(f" {w} " in text for w in others)
    assert " an orange" in f" {words.caption('orange', 'ball', 'plain', 'rolls', 'snow')}"


def test_different_scenes_have_different_captions() -> None:
    kinds = all_kinds()
    assert len({words.caption(*kind) for kind in kinds}) == len(kinds)


def test_words_that_are_not_known() -> None:
    assert words.unknown_words("A red DRAGON, rolls under the red dragon's moon!") == [
        "dragon",
        "under",
        "dragon's",
        "moon",
    ]
    assert words.unknown_words("красный RED шар, 日本 ｒｅｄ ball_star") == ["красный", "шар", "日本"]
    assert words.unknown_words("the ball’s 'red' --- crème brûlée") == ["ball's", "crème", "brûlée"]
    assert words.unknown_words("") == []
    assert words.content_words("the Red ball, while it rolls on a meadow") == ["red", "ball", "rolls", "meadow"]
    assert words.content_words("over the and on a") == []
    assert words.content_words("красный") == []
    assert all(name in words.what_it_knows() for g in (COLORS, SHAPES, MOTIONS, PLACES) for name in g)


def test_the_tokenizer_knows_every_caption() -> None:
    tokenizer = build_tokenizer()
    rng = random.Random(2)
    unknown = tokenizer.unk_token_id
    for kind in all_kinds()[::3]:
        text = words.caption(*kind, rng=rng)
        ids = tokenizer(text)["input_ids"]
        assert unknown not in ids
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert tokenizer(f"  {text.title()}! ")["input_ids"] == ids
    assert len(tokenizer) == len(words.vocabulary()) + 3
    assert len(set(tokenizer.get_vocab().values())) == len(tokenizer)


def test_the_tokenizer_marks_what_it_does_not_know(tmp_path: Any) -> None:
    tokenizer = build_tokenizer()
    ids = tokenizer("a red dragon rolls")["input_ids"]
    assert [i == tokenizer.unk_token_id for i in ids] == [False, False, True, False, False]
    # what is named as unknown is what the tokenizer does not know
    for prompt in ("a ball with a box under the star", "красный red 日本", "the dragon’s ball; a RED_box"):
        known = [i for i in tokenizer(prompt)["input_ids"] if i != tokenizer.unk_token_id]
        assert len(known) - 1 == len([w for w in words.split_words(prompt) if w not in words.unknown_words(prompt)])
    # and what is too long for it is what is called too long
    for count in (words.MAX_WORDS - 1, words.MAX_WORDS, words.MAX_WORDS + 2):
        for prompt in (" ".join(["red"] * count), " ".join(["ball's"] * count)):
            assert words.words_too_many(prompt) == max(0, len(tokenizer(prompt)["input_ids"]) - TEXT_TOKENS)
    padded = tokenizer("a red ball", padding="max_length", max_length=TEXT_TOKENS)
    assert padded["attention_mask"] == [1] * 4 + [0] * (TEXT_TOKENS - 4)
    assert padded["input_ids"][4:] == [tokenizer.pad_token_id] * (TEXT_TOKENS - 4)
    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    assert loaded("a red dragon rolls")["input_ids"] == ids

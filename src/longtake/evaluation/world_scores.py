"""What the memory benchmark of the pocket world measures: every score with its formula and direction. Imports nothing
heavy."""

from __future__ import annotations

from longtake.evaluation.registry import Metric

GROUP = "world"
_SOURCE = "pocket world, docs/world.md"


def _score(name: str, title: str, formula: str, unit: str = "", direction: str = "higher") -> Metric:
    return Metric(name, title, formula, unit, direction, _SOURCE, GROUP)


_AGAIN = "1 if it is read after as it was before (as it is, where the beginning was given), 0 if not or if unsure"
_SCORES = (
    _score("recall", "hidden attributes recalled", "mean of the recall_... that were asked of the subject"),
    _score("recall_color", "colour recalled", _AGAIN),
    _score("recall_pattern", "pattern recalled", _AGAIN),
    _score("recall_size", "small or big recalled", _AGAIN),
    _score("recall_accessory", "hat, scarf or nothing recalled", _AGAIN),
    _score("recall_accessory_color", "colour of hat or scarf recalled", f"{_AGAIN}; asked of subjects that wear one"),
    _score("radius_error", "change of size", "|log(radius after / radius before)|", "", "lower"),
    _score(
        "shade_error",
        "change of shade",
        "mean over R, G, B of |after - before| of the more colourful half of the subject's inside",
        "",
        "lower",
    ),
    _score("returned", "the subject is there again", "1 if two frames or more show it clearly after, else 0"),
    _score("left", "the subject left", "1 if it is out of sight for two seconds or more after a sight, else 0"),
    _score("told", "what the prompt names is there", "share of shape, place and light that is read as named"),
    _score("recall_landmark", "landmark recalled", _AGAIN + ", or if the place is another"),
    _score(
        "recall_place",
        "place recalled",
        "1 - d(after, before) / d(another arrangement, before), d the mean absolute difference of the middle pictures "
        "over time of what was out of sight; held to [0, 1]",
    ),
    _score("identity", "the subject stays the same", "share of hidden attributes read as in the first look, all later"),
    *(
        _score(f"identity_{n}s", f"the same after {n} s", f"identity of the looks from {0.8 * n:g} to {n} s")
        for n in (60, 600, 3600)
    ),
    _score("identity_seconds", "how long it is the same", "second of the first look that differs, or the length", "s"),
    _score("in_sight", "the subject is in sight", "share of looks that show it clearly"),
    _score("world_sharpness", "sharpness", "at the end, over that of the world's own pictures of place and light", "x"),
    _score(
        "world_saturation", "saturation", "at the end, over that of the world's own of place and light", "x", "none"
    ),
    _score("obeyed", "new prompts obeyed", "share of told attributes that changed and are read as told"),
    _score("left_alone", "the rest left alone", "share of told attributes that did not change and are read as told"),
    _score(
        "hidden_kept",
        "what is worn stays",
        "share of looks after changes in which what is worn is as at first",
    ),
    _score("law", "motion as told", "share of looks of 4 s whose track fits the law of the motion that is told best"),
    _score(
        "law_error",
        "distance to the law",
        "root of the mean squared distance of the track to the best fit of that law, in half heights of the picture",
        "",
        "lower",
    ),
)
SCORES: dict[str, Metric] = {score.name: score for score in _SCORES}

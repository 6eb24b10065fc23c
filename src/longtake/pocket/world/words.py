"""The words of the pocket world: captions built by a grammar, and what a prompt says. Imports nothing heavy.

Every word belongs to one concept, or says nothing: so a prompt can be understood word by word (`understand`), and a
caption names exactly what its words say (`compose`).
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Mapping, Sequence

from longtake.pocket.world.names import MOTIONS, PATTERNS, PLACES, SHAPES

MAX_WORDS = 40  # the text encoder is trained on 41 tokens, the end included

# ways to say each concept; the plainest first
_COLORS = {
    "red": ("red", "crimson"),
    "orange": ("orange",),
    "yellow": ("yellow", "golden"),
    "green": ("green",),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rosy"),
}
_SHAPES = {
    "ball": ("ball", "sphere"),
    "box": ("box", "cube"),
    "star": ("star",),
    "fish": ("fish",),
    "bird": ("bird",),
    "cat": ("cat", "kitten"),
    "robot": ("robot", "android"),
    "balloon": ("balloon", "airship"),
    "car": ("car", "automobile"),
    "butterfly": ("butterfly", "moth"),
}
_PATTERNS = {
    "plain": ("plain",),
    "striped": ("striped", "stripy"),
    "spotted": ("spotted", "dotted"),
    "checked": ("checked", "chequered"),
}
_SIZES = {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")}
# as a sentence, and as part of one ("a ball that is seen rolling")
_MOTIONS = {
    "rolls": (("rolls", "tumbles"), ("rolling", "tumbling")),
    "bounces": (("bounces", "jumps", "hops"), ("bouncing", "jumping", "hopping")),
    "circles": (("circles", "loops"), ("circling", "looping")),
    "swims": (("swims", "drifts"), ("swimming", "drifting")),
    "flies": (("flies", "flutters"), ("flying", "fluttering")),
    "walks": (("walks", "strolls", "wanders"), ("walking", "strolling", "wandering")),
    "swings": (("swings", "sways"), ("swinging", "swaying")),
    "leaves": (("leaves and returns", "goes away and comes back"), ("leaving and returning", "going away and back")),
    "hides": (("hides", "passes behind"), ("hiding", "passing behind")),
    "orbits": (("orbits it", "revolves around it"), ("orbiting it", "revolving around it")),
}
_PLACES = {
    "meadow": ("on a meadow", "in a meadow", "on the grass", "in a field", "over the meadow"),
    "forest": ("in a snowy forest", "in the snow", "among the pines", "in the woods", "in a winter forest"),
    "beach": ("on a beach", "at the beach", "on the sand", "by the shore", "at the seaside"),
    "desert": ("in a desert", "in the desert", "among the dunes"),
    "city": ("in a city", "in the street", "in town", "on the road"),
    "sea": ("under water", "underwater", "in the sea", "in the ocean"),
    "room": ("in a room", "indoors", "in the house", "inside the room"),
}
_LIGHTS = {
    "day": ("by day", "in daylight", "in sunshine", "on a sunny day"),
    "dusk": ("at dusk", "in the evening", "at sunset", "at twilight"),
    "night": ("at night", "by night", "in the dark", "under the moon", "in moonlight"),
    "turning": ("as day turns to night", "while night falls", "as it slowly gets dark", "until night comes"),
}
_CAMERAS = {
    "still": ("the camera stays still", "the view rests"),
    "pan": ("the camera pans", "the camera looks around", "the view moves aside"),
}
_TURNING = ("turns", "falls", "gets", "until")  # of day and night together, these say which it is
_SAYS_NOTHING = (
    *("a", "an", "the", "and", "while", "as", "to", "it", "in", "on", "at", "by", "of", "under", "over", "among"),
    *(
        "inside",
        "there",
        "is",
        "with",
        "seen",
        "slowly",
        "comes",
        "back",
        "behind",
        "around",
        "aside",
        "one",
        "another",
    ),
)
# words of several concepts, which the words beside them tell apart
_LIGHT_WORDS = {"day": "day", "daylight": "day", "sunshine": "day", "sunny": "day", "dusk": "dusk", "evening": "dusk"}
_LIGHT_WORDS |= {"sunset": "dusk", "twilight": "dusk", "night": "night", "dark": "night", "moon": "night"}
_LIGHT_WORDS |= {"moonlight": "night"}


def _keywords() -> dict[str, tuple[str, str]]:
    """The attribute and the concept that a word stands for."""
    table: dict[str, tuple[str, str]] = {}
    groups: list[tuple[str, Mapping[str, Sequence[str]]]] = [
        ("color", _COLORS),
        ("shape", _SHAPES),
        ("pattern", _PATTERNS),
        ("size", _SIZES),
        ("motion", {name: finite + going for name, (finite, going) in _MOTIONS.items()}),
        ("place", _PLACES),
        ("camera", _CAMERAS),
    ]
    for attribute, group in groups:
        for concept, ways in group.items():
            for word in " ".join(ways).split():
                if word in _SAYS_NOTHING or word in ("camera", "view"):
                    continue
                known = table.setdefault(word, (attribute, concept))
                if known != (attribute, concept):
                    raise AssertionError(f"the word {word} stands for two things")
    table |= {word: ("light", concept) for word, concept in _LIGHT_WORDS.items()}
    table |= {word: ("light", "turning") for word in _TURNING}
    table["water"] = ("place", "sea")
    return table


_KEYWORDS = _keywords()


def vocabulary() -> tuple[str, ...]:
    """Every word a caption may have, in a fixed order."""
    words: list[str] = []
    for group in (_COLORS, _SHAPES, _PATTERNS, _SIZES, _PLACES, _LIGHTS, _CAMERAS):
        words += " ".join(way for ways in group.values() for way in ways).split()
    words += " ".join(way for both in _MOTIONS.values() for ways in both for way in ways).split()
    words += _SAYS_NOTHING
    return tuple(dict.fromkeys(words))


def split_words(prompt: str) -> list[str]:
    """The prompt's words in any script, lower case, without punctuation but for apostrophes inside."""
    text = unicodedata.normalize("NFKC", prompt).lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text)


def unknown_words(prompt: str) -> list[str]:
    """Words of the prompt that no caption has, each once, in order."""
    known = set(vocabulary())
    return list(dict.fromkeys(w for w in split_words(prompt) if w not in known))


def content_words(prompt: str) -> list[str]:
    """Words of the prompt that stand for something (not articles and the like)."""
    return [w for w in split_words(prompt) if w in _KEYWORDS]


def words_too_many(prompt: str) -> int:
    """How many words at the end of the prompt a model does not read, as it reads `MAX_WORDS` at most."""
    pieces = sum(len(word.split("'")) for word in split_words(prompt))  # an apostrophe separates what the model reads
    return max(0, pieces - MAX_WORDS)


def what_it_knows() -> str:
    """One line that tells a user which words may be used."""
    return (
        f"colours {', '.join(_COLORS)}; subjects {', '.join(SHAPES)} (small or big; {', '.join(PATTERNS[1:])}), one or "
        f"two of them; motions {', '.join(MOTIONS)}; places {', '.join(PLACES)}; by day, at dusk, at night, "
        "as day turns to night; the camera pans"
    )


def groups() -> dict[str, tuple[str, ...]]:
    """What may be said, by kind: the plainest way for each concept."""
    kinds: dict[str, Mapping[str, Sequence[str]]] = {
        "colours": _COLORS,
        "patterns": _PATTERNS,
        "sizes": _SIZES,
        "subjects": _SHAPES,
        "motions": {name: finite for name, (finite, _) in _MOTIONS.items()},
        "places": _PLACES,
        "light": _LIGHTS,
        "camera": _CAMERAS,
    }
    return {kind: tuple(ways[0] for ways in group.values()) for kind, group in kinds.items()}


def examples() -> tuple[str, ...]:
    """A few prompts to begin with, in which every kind of thing occurs."""
    day = {"light": "day", "camera": "still"}
    scenes: tuple[dict[str, str], ...] = (
        {"color": "red", "shape": "ball", "motion": "rolls", "place": "meadow", **day},
        {"color": "orange", "pattern": "striped", "shape": "cat", "motion": "walks", "place": "city", **day},
        {"color": "blue", "pattern": "spotted", "shape": "fish", "motion": "swims", "place": "sea", **day},
        {"color": "green", "shape": "robot", "motion": "walks", "place": "desert", **day, "light": "dusk"},
        {"color": "purple", "shape": "butterfly", "motion": "flies", "place": "room", **day},
        {"color": "yellow", "shape": "bird", "motion": "flies", "place": "forest", **day, "camera": "pan"},
    )
    return tuple(compose(scene)[0] for scene in scenes)


def understand(prompt: str) -> dict[str, str]:
    """What a prompt says, as attributes and the names of :mod:`names`.

    Attributes of the first subject are ``shape``, ``color``, ``pattern``, ``size`` and ``motion``; of the second the
    same with a 2 (``shape2``); ``place``, ``light`` and ``camera`` belong to the scene. Adjectives go with the
    subject that follows, motions with the one before. Unknown words are passed over; what is said twice counts once,
    the first time.
    """
    said: dict[str, str] = {}
    waiting: dict[str, str] = {}
    subjects = 0
    for word in split_words(prompt):
        attribute, concept = _KEYWORDS.get(word, ("", ""))
        if attribute in ("color", "pattern", "size"):
            waiting.setdefault(attribute, concept)
        elif attribute == "shape":
            subjects += 1
            ending = "" if subjects == 1 else "2"
            for name, value in {**waiting, "shape": concept}.items():
                said.setdefault(name + ending, value)
            waiting = {}
        elif attribute == "motion":
            said.setdefault("motion" if subjects < 2 else "motion2", concept)
        elif attribute == "light" and concept == "turning":
            said["light"] = concept
        elif attribute:
            said.setdefault(attribute, concept)
    return said


def compose(facts: Mapping[str, str], rng: random.Random | None = None) -> tuple[str, dict[str, str]]:
    """A caption of a scene, and what of it the caption names.

    Args:
        facts: everything that may be told, keys and values as `understand` gives them: shape, motion, place, light
            and camera, and what else is there of colour, pattern, size, and of a second subject.
        rng: chooses words, order and what is left out; without it the plainest wording, which leaves out what goes
            without saying (the plain pattern, daylight, a still camera).
    """
    told: dict[str, str] = {}

    def maybe(share: float, plainest: bool = True) -> bool:
        return plainest if rng is None else rng.random() < share

    def say(ways: Sequence[str]) -> str:
        return ways[0] if rng is None else rng.choice(ways)

    def subject(ending: str) -> str:
        words = []
        if not ending and "size" in facts and maybe(0.5, False):
            told["size"] = facts["size"]
            words.append(say(_SIZES[facts["size"]]))
        pattern = facts.get("pattern" + ending)
        if pattern and (maybe(0.15, False) if pattern == "plain" else maybe(0.8 if not ending else 0.5)):
            told["pattern" + ending] = pattern
            words.append(say(_PATTERNS[pattern]))
        if "color" + ending in facts and maybe(0.93):
            told["color" + ending] = facts["color" + ending]
            words.append(say(_COLORS[facts["color" + ending]]))
            if len(words) == 3 and maybe(0.2, False):
                words[0], words[1] = words[1], words[0]
        told["shape" + ending] = facts["shape" + ending]
        words.append(say(_SHAPES[facts["shape" + ending]]))
        article = "an" if words[0][0] in "aeiou" else "a"
        return " ".join([article if maybe(0.85) else "the", *words])

    def acts(ending: str, going: bool) -> str:
        told["motion" + ending] = facts["motion" + ending]
        return say(_MOTIONS[facts["motion" + ending]][int(going)])

    lead = subject("")
    clause = lead
    if maybe(0.95):
        going = maybe(0.3, False)
        clause = f"{lead} {acts('', going)}"
    elif maybe(0.5, False):
        clause = f"there is {lead}"
    settings = []
    if maybe(0.95):
        told["place"] = facts["place"]
        settings.append(say(_PLACES[facts["place"]]))
    if maybe(0.4, False) if facts["light"] == "day" else maybe(0.92):
        told["light"] = facts["light"]
        settings.append(say(_LIGHTS[facts["light"]]))
    # "a ball rolls on a meadow at night", "at night on a meadow a ball rolls", "on a meadow a ball rolls at night"
    if rng is not None and len(settings) == 2 and rng.random() < 0.3:
        settings.reverse()
    front = [settings.pop(0)] if rng is not None and settings and rng.random() < 0.2 else []
    sentence = " ".join([*front, clause, *settings])
    if "shape2" in facts and maybe(0.95):
        link = say(("while", "and"))
        other = subject("2")
        # the second subject's motion follows it: whatever comes later would be read as its own
        sentence = f"{sentence} {link} {other}"
        if maybe(0.9):
            sentence += " " + acts("2", link == "and" and maybe(0.3, False))
    if maybe(0.05, False) if facts["camera"] == "still" else maybe(0.8):
        told["camera"] = facts["camera"]
        link = say(("and", "while", "as"))
        sentence = f"{sentence} {link} {say(_CAMERAS[facts['camera']])}"
    return sentence, told

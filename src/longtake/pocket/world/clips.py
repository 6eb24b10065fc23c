"""What a few frames show together: small networks look at each, and the frames in which a subject is clearly in sight
vote. What they do not agree on is not said.

    from longtake.pocket.world import read_clip
    read_clip(video[:24]).values      # {"shape": "cat", "color": "red", "pattern": None, ...}
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from longtake.pocket.world import names
from longtake.pocket.world.networks import HEIGHT, MIDDLE_RADIUS, OF_SUBJECT, Readers, readers
from longtake.pocket.world.segment import working_size

FOUND = 0.5
"""How certain a subject must be found to be there."""
CLEAR = 0.75
"""How much of a subject must be in sight for its frame to vote."""
LEAST = 2
"""With fewer such frames nothing is said of the subject."""
SURE = 0.6
"""Mean probability below which an attribute is not said."""
_BATCH = 64


@dataclass
class Looks:
    """What the networks say of each of some frames, everything ``[frames, ...]``.

    Attributes:
        found: how certain there is a subject, in [0, 1].
        shown: the share of it that can be seen, in [0, 1].
        x, y: its middle, y in [-1, 1] over the picture, x in the same units from its middle. radius: the same units.
        subject: probabilities by name of `networks.OF_SUBJECT`, ``[frames, values]``.
        place, light: probabilities ``[frames, values]``.
        landmarks: of the two spots in the middle, given the place that is likeliest in all frames, ``[frames, 2, 4]``.
    """

    found: Tensor
    shown: Tensor
    x: Tensor
    y: Tensor
    radius: Tensor
    subject: dict[str, Tensor]
    place: Tensor
    light: Tensor
    landmarks: Tensor

    @property
    def clear(self) -> Tensor:
        """Frames in which a subject is clearly in sight, bool."""
        return (self.found > FOUND) & (self.shown > CLEAR)


@dataclass(frozen=True)
class Clip:
    """What some frames show.

    Attributes:
        values: by attribute, a name; None where the frames do not agree. Of a subject (`networks.OF_SUBJECT`), all None
            if none is clearly in sight; of the place: ``place``, ``light``, ``landmark2`` and ``landmark3`` (the spots
            that a resting camera sees, meant only if it rests).
        sure: mean probability of the likeliest value, by attribute.
        radius: of the subject, in units of half the picture's height; None if none is clearly in sight.
        seen: share of the frames with a subject. clear: how many frames voted on the subject.
    """

    values: dict[str, str | None]
    sure: dict[str, float]
    radius: float | None
    seen: float
    clear: int


def look_at(frames: Tensor, networks: Readers | None = None) -> Looks:
    """Looks at frames ``[frames, 3, height, width]`` in [0, 1], at least 32 pixels high, one by one.

    Args:
        frames: on any device.
        networks: other than the shipped ones.

    Raises:
        ValueError: another shape, or no frames.
    """
    if frames.dim() != 4 or frames.shape[1] != 3 or frames.shape[2] < 32 or not len(frames):
        raise ValueError(
            "Frames to read are [frames, 3, height, width], at least one and at least 32 pixels high, "
            f"not of shape {tuple(frames.shape)}."
        )
    networks = readers(frames.device) if networks is None else networks
    with torch.no_grad():
        parts = [_look(part, networks) for part in frames.float().split(_BATCH)]
    plain = {f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Looks) if f.name != "subject"}
    place = int(plain["place"].mean(0).argmax())
    plain["landmarks"] = plain["landmarks"][:, :, place].softmax(-1)
    return Looks(subject={name: torch.cat([p.subject[name] for p in parts]) for name in OF_SUBJECT}, **plain)


def _look(frames: Tensor, networks: Readers) -> Looks:
    pictures = working_size(frames).contiguous(memory_format=torch.channels_last)
    found, x, y = networks.find(pictures)
    told, around = networks.look(pictures, x, y), networks.survey(pictures)
    spots = torch.stack([around["landmark2"], around["landmark3"]], 1)
    return Looks(
        found=found,
        shown=told["shown"][:, 0].sigmoid(),
        x=(x * 2 - pictures.shape[-1]) / HEIGHT,
        y=(y * 2 - HEIGHT) / HEIGHT,
        radius=MIDDLE_RADIUS * told["radius"][:, 0].exp(),
        subject={name: told[name].softmax(1) for name in OF_SUBJECT},
        place=around["place"].softmax(1),
        light=around["light"].softmax(1),
        landmarks=spots.unflatten(2, (len(names.PLACES), -1)),
    )


def read_clip(frames: Tensor, networks: Readers | None = None) -> Clip:
    """Reads some frames of one take, ``[frames, 3, height, width]`` in [0, 1], in any order; see `Clip`.

    Raises:
        ValueError: as `look_at` does.
    """
    return vote(look_at(frames, networks))


def vote(looks: Looks) -> Clip:
    """What frames say together: the mean of their probabilities."""
    clear = looks.clear
    values: dict[str, str | None] = {}
    sure: dict[str, float] = {}

    def say(name: str, probabilities: Tensor, kinds: tuple[str, ...]) -> None:
        best = probabilities.mean(0).max(0)
        sure[name] = float(best.values)
        values[name] = kinds[int(best.indices)] if sure[name] >= SURE else None

    enough = int(clear.sum()) >= LEAST
    for name, kinds in OF_SUBJECT.items():
        values[name], sure[name] = None, 0.0
        if enough:
            say(name, looks.subject[name][clear], kinds)
    if values["accessory"] in (None, "none"):
        values["accessory_color"] = values["accessory"]
    place = names.PLACES[int(looks.place.mean(0).argmax())]
    say("place", looks.place, names.PLACES)
    say("light", looks.light, names.LIGHTS[:3])
    for number, name in enumerate(("landmark2", "landmark3")):
        say(name, looks.landmarks[:, number], names.LANDMARKS[place])
    radius = float(looks.radius[clear].median()) if enough else None
    return Clip(values, sure, radius, float((looks.found > FOUND).float().mean()), int(clear.sum()))

"""Small networks that read pictures of the pocket world: where a subject is, what it is like, and what is behind it.

Trained on rendered pictures by ``python -m longtake.training.world_readers``; the shipped weights are in
``weights/readers.safetensors``. :mod:`clips` puts what they say of several frames together.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtake.pocket.world import names

WEIGHTS = Path(__file__).parent / "weights" / "readers.safetensors"
HEIGHT = 96  # pixels at which pictures are read, whatever their size
WINDOW = 64  # side of the part that a subject is looked at in: 1.6 radii of the largest to each side
CELL = 8  # side of the cells of the finder's map
OF_SUBJECT = {
    "shape": names.SHAPES,
    "color": names.COLORS,
    "pattern": names.PATTERNS,
    "size": names.SIZES,
    "accessory": names.ACCESSORIES,
    "accessory_color": names.COLORS,
}
"""What is read of a subject, and its values. Eyes are not: of the smallest a pixel or two tells them apart."""
OF_PLACE = {"place": 7, "light": 3, "landmark2": 28, "landmark3": 28}
"""What is read of a place, and how many values there are; the two middle spots, which the resting camera sees, are
numbered as in `captions.hidden_facts`."""
MIDDLE_RADIUS = 0.33  # the radius that a network's number 0 means


def _layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Finder(nn.Module):
    """Where subjects are: for each cell of 8 x 8 pixels whether the middle of one is in it, and where there.

    Takes pictures ``[n, 3, 48, width / 2]``, half the working size; gives ``[n, 3, 12, width / 8]``: a logit, and x and
    y within the cell in [-0.5, 0.5].
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _layer(3, 16), _layer(16, 32, 2), _layer(32, 48, 2), _layer(48, 48), _layer(48, 48), _layer(48, 48)
        )
        self.head = nn.Conv2d(48, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(x))
        return found


class Gather(nn.Module):
    """Means of features ``[n, channels, height, width]``, each over where a map of its own says, and these maps follow
    from the features: ``[n, maps * channels]``."""

    def __init__(self, channels: int, maps: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(channels, maps, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.maps(x).flatten(2).softmax(2)
        return (weights @ x.flatten(2).transpose(1, 2)).flatten(1)


class Weave(nn.Module):
    """Which pattern a subject in the middle of a part of a picture ``[n, 3, 48, 48]`` in [0, 1] has, as logits.

    A network of its own: one that also tells shapes and colours learns patterns last and badly. Besides the colours it
    sees how much lighter than around it each point is, as a ratio, which of two tones is the same in any colour and
    light. A pattern is told by what there is of a feature, wherever it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _layer(4, 16), _layer(16, 32, 2), _layer(32, 48, 2), _layer(48, 48), _layer(48, 64)
        )  # fmt: skip
        self.gather = Gather(64, 8)
        self.head = nn.Sequential(
            nn.Linear(10 * 64, 64), nn.ReLU(inplace=True), nn.Linear(64, len(OF_SUBJECT["pattern"]))
        )

    def forward(self, x: Tensor) -> Tensor:
        light = (x.mean(1, keepdim=True) + 0.06).log()
        around = F.avg_pool2d(F.pad(light, (6, 6, 6, 6), "replicate"), 13, 1)
        features = self.body(torch.cat([x * 2 - 1, 2 * (light - around)], 1))
        told = torch.cat([features.mean((2, 3)), features.amax((2, 3)), self.gather(features)], 1)
        logits: Tensor = self.head(told)
        return logits


class Looker(nn.Module):
    """What a subject in the middle of a part of a picture ``[n, 3, 64, 64]`` in [0, 1] is like.

    Gives logits by name (`OF_SUBJECT`), ``shown``, the logit of the share of it that can be seen, and ``radius``, the
    logarithm of its radius over `MIDDLE_RADIUS`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(_layer(3, 16), _layer(16, 32, 2), _layer(32, 48, 2), _layer(48, 48))
        self.coarse = nn.Sequential(_layer(48, 64, 2), _layer(64, 64, 2))
        self.gather = Gather(48, 6)
        self.mix = nn.Sequential(nn.Linear(64 * 16 + 6 * 48, 96), nn.ReLU(inplace=True))
        self.sizes = {name: len(values) for name, values in OF_SUBJECT.items() if name != "pattern"}
        self.sizes |= {"shown": 1, "radius": 1}
        self.head = nn.Linear(96, sum(self.sizes.values()))
        self.weave = Weave()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.fine(x * 2 - 1)
        told = torch.cat([self.coarse(fine).flatten(1), self.gather(fine)], 1)
        parts = self.head(self.mix(told)).split(list(self.sizes.values()), 1)
        # no body reaches further from its middle than 24 pixels
        return dict(zip(self.sizes, parts, strict=True)) | {"pattern": self.weave(x[:, :, 8:-8, 8:-8])}


class Scenery(nn.Module):
    """Which place it is, the light, and what stands in the two spots that a resting camera sees.

    Takes the middle square of pictures, ``[n, 3, 48, 48]``, half the working size; gives logits by name (`OF_PLACE`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _layer(3, 16), _layer(16, 32, 2), _layer(32, 48, 2), _layer(48, 64), _layer(64, 24, 2)
        )
        self.mix = nn.Sequential(nn.Linear(24 * 36, 96), nn.ReLU(inplace=True))
        self.head = nn.Linear(96, sum(OF_PLACE.values()))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        parts = self.head(self.mix(self.body(x).flatten(1))).split(list(OF_PLACE.values()), 1)
        return dict(zip(OF_PLACE, parts, strict=True))


class Readers(nn.Module):
    """The three networks."""

    def __init__(self) -> None:
        super().__init__()
        self.finder, self.looker, self.scenery = Finder(), Looker(), Scenery()

    def find(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The middle of the most certain subject in each of some pictures ``[n, 3, 96, width]``: how certain, in
        [0, 1], and x and y in pixels, all ``[n]``."""
        maps = self.finder(F.avg_pool2d(pictures, 2) * 2 - 1)
        width = maps.shape[-1]
        best = maps[:, 0].flatten(1).argmax(1)
        logit, dx, dy = maps.flatten(2).gather(2, best[:, None, None].expand(-1, 3, 1))[..., 0].unbind(1)
        x = (best % width + 0.5 + dx.clamp(-0.5, 0.5)) * CELL
        y = (torch.div(best, width, rounding_mode="floor") + 0.5 + dy.clamp(-0.5, 0.5)) * CELL
        return logit.sigmoid(), x, y

    def look(self, pictures: Tensor, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """What is in the middle of windows around x and y, in pixels ``[n]``; see `Looker`."""
        found: dict[str, Tensor] = self.looker(windows(pictures, x, y))
        return found

    def survey(self, pictures: Tensor) -> dict[str, Tensor]:
        """What is told of places by the middle squares of pictures; see `Scenery`."""
        spare = pictures.shape[-1] - HEIGHT
        square = pictures[..., spare // 2 : spare // 2 + HEIGHT] if spare > 0 else pictures
        found: dict[str, Tensor] = self.scenery(F.adaptive_avg_pool2d(square, HEIGHT // 2) * 2 - 1)
        return found


def windows(pictures: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Squares of 64 pixels around points, ``[n, 3, 64, 64]``; outside of pictures everything is grey."""
    reach = WINDOW // 2
    height, width = pictures.shape[-2:]
    padded = F.pad(pictures, (WINDOW, WINDOW, WINDOW, WINDOW), value=0.5)
    line = torch.arange(WINDOW, device=pictures.device) - reach + WINDOW
    rows = y.round().long().clamp(-reach, height + reach)[:, None] + line
    columns = x.round().long().clamp(-reach, width + reach)[:, None] + line
    index = torch.arange(len(pictures), device=pictures.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@lru_cache(maxsize=4)
def readers(device: torch.device) -> Readers:
    """The shipped networks, ready to read.

    Raises:
        OSError: if their weights are not there.
    """
    return load_readers(WEIGHTS, device)


def load_readers(path: Path, device: torch.device | str = "cpu") -> Readers:
    """Networks from a file of weights.

    Raises:
        OSError: if there is no such file; RuntimeError: if it holds others.
    """
    from safetensors.torch import load_file

    networks = Readers()
    weights = load_file(path)
    counters = {name: x for name, x in networks.state_dict().items() if name.endswith("num_batches_tracked")}
    networks.load_state_dict({**counters, **{name: x.float() for name, x in weights.items()}})
    networks = networks.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return networks.eval().requires_grad_(False)


def save_readers(networks: Readers, path: Path) -> None:
    """Writes weights in half precision, whole or not at all."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: x for name, x in networks.state_dict().items() if not name.endswith("num_batches_tracked")}
    partial = path.with_name(path.name + ".part")
    save_file({name: x.detach().half().contiguous().cpu() for name, x in kept.items()}, partial)
    partial.replace(path)

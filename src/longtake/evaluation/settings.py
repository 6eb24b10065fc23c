"""What can be chosen about an evaluation. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Boundaries:
    """Where parts begin that were made at once: ``first`` frames, then ``rest`` at a time."""

    first: int
    rest: int

    def __post_init__(self) -> None:
        if not (1 <= self.first <= 10**6 and 1 <= self.rest <= 10**6):
            raise ValueError(f"Parts have 1 frame or more, not {self.first} and {self.rest}.")

    def at(self, frame: int) -> bool:
        """Whether a part begins with this frame (the video's first frame begins none)."""
        return frame >= self.first and (frame - self.first) % self.rest == 0

    def near(self, frame: int) -> bool:
        """Whether a part begins with this frame, the one before or the one after."""
        return any(self.at(f) for f in (frame - 1, frame, frame + 1))


def parse_boundaries(text: str, option: str) -> Boundaries | None:
    """ "9,12" as 9 frames and then 12 at a time, "12" as 12 at a time, "none" as None.

    Raises:
        ValueError: anything else; the sentence names the option.
    """
    if text.strip().lower() == "none":
        return None
    words = text.split(",")
    try:
        numbers = [int(word) for word in words]
        return Boundaries(numbers[0], *numbers[1:]) if len(numbers) == 2 else Boundaries(*numbers * 2)
    except (ValueError, TypeError):
        raise ValueError(
            f"{option} takes frames in the first part and in the later ones, like 9,12, or none; not {text!r}."
        ) from None


@dataclass(frozen=True)
class Settings:
    """How videos are measured. Two results compare only if these are the same.

    Attributes:
        window: seconds; trends are over windows, and the first one is the opening.
        chunk: where chunks begin, None to look for no seams there. Longtake's: 9 frames, then 12 (a chunk is 3 latent
            frames, and the first latent frame is one frame of video, later ones are four).
        decoder: where what the decoder makes of one latent frame begins, or None.
        samples: per second; features, flow and single pictures are looked at this often, or at every frame.
        windows: how many are kept; of longer videos, neighbouring ones are put together.
        references: how many earlier pictures a picture is compared with to find loops.
        lags: how many lags are looked at, of 1 / ``samples`` seconds each.

    Raises:
        ValueError: a number that cannot be.
    """

    window: float = 2.0
    chunk: Boundaries | None = Boundaries(9, 12)
    decoder: Boundaries | None = Boundaries(1, 4)
    features: str = "fixed"
    samples: float = 4.0
    windows: int = 512
    references: int = 256
    lags: int = 1 << 14

    def __post_init__(self) -> None:
        if not 0.25 <= self.window <= 600:
            raise ValueError(f"A window is from 0.25 seconds to 10 minutes, not {self.window:g} seconds.")
        if not 0.1 <= self.samples <= 1000:
            raise ValueError(f"Samples are from 0.1 to 1000 a second, not {self.samples:g}.")
        if self.windows < 4 or self.windows % 2:
            raise ValueError(f"Windows kept are an even number from 4 on, not {self.windows}.")
        if self.references < 4 or self.references % 2 or self.lags < 4:
            raise ValueError("References kept are an even number from 4 on, and lags at least 4.")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

"""What a take remembers, for people: the slots of its memory with their ages, and the frames to show for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longtake.memory import MEMORIES, MemRoPE, parse_memory
from longtake.plan import slots_of

if TYPE_CHECKING:
    from longtake.memory.policy import Place
    from longtake.take import Take

_PICTURE_WIDTH = 96


class Remembered:
    """Describes the memory of a running take after every chunk.

    Args:
        id: the take's, for the addresses of pictures.
        take: the generation.
    """

    def __init__(self, id: str, take: Take) -> None:
        self._id, self._take = id, take
        self._averaging_since: int | None = None  # chunk at which running averages began
        self._seen = False

    def after(self, chunk: int, first_frame: int, end: int | None = None) -> dict[str, Any]:
        """What chunk ``chunk`` attended to, itself included; call it when the chunk is made and no other has begun.

        Args:
            chunk: its index.
            first_frame: of video, that it was decoded to.
            end: frames of video that are kept, where the take ends within the chunk; None for all.

        Returns:
            The ``Memory`` of the live protocol.
        """
        memory = self._take.memory
        places = memory.layout()
        if not any(place.role in ("long", "short") for place in places):
            self._averaging_since = None
        elif self._averaging_since is None:
            self._averaging_since = chunk if self._seen else min(chunk, self._usual_start())
        self._seen = True
        return {
            "chunk": chunk,
            "first_frame": first_frame,
            "capacity": memory.capacity,
            "slots": [self._slot(place, chunk, end) for place in places],
        }

    def _slot(self, place: Place, chunk: int, end: int | None) -> dict[str, Any]:
        take, memory = self._take, self._take.memory
        per_second = take.pipe.config.fps / take.decoder.temporal  # latent frames
        newest = memory.frame - 1
        role = place.role
        slot: dict[str, Any] = {"latent": None, "frame": None, "age": None, "rate": None, "picture": None}
        if place.frame is not None:
            if place.frame >= memory.frame - memory.chunk:
                role = "current"  # it is of the past already, but was not for this chunk
            ratio = take.size // memory.chunk
            slot |= {"latent": place.frame, "age": (newest - place.frame) * ratio / per_second}
            first = take.decoder.frames_for(place.frame * ratio) - take.skip
            frame = max(0, take.decoder.frames_for((place.frame + 1) * ratio) - 1 - take.skip)
            if end is None or first < end:
                frame = frame if end is None else min(frame, end - 1)
                picture = f"/api/takes/{self._id}/frame.jpg?frame={frame}&width={_PICTURE_WIDTH}"
                slot |= {"frame": frame, "picture": picture}
        elif role in ("long", "short") and isinstance(take.policy, MemRoPE):
            rate = getattr(take.policy, role)
            slot |= {"rate": rate, "age": self._mean_age(rate, chunk) / per_second}
        return {"role": role, "id": place.id, **slot}

    def _usual_start(self) -> int:
        """The chunk at which frames leave the window for the first time, if no prompt change emptied it: for takes that
        were begun elsewhere."""
        memory = self._take.memory
        return (memory.capacity - memory.chunk) // memory.chunk + 1

    def _mean_age(self, rate: float, chunk: int) -> float:
        """Mean age in latent frames of what is in a running average.

        Frames leave the window a chunk at a time. The newest of them are ``left`` old; the ones that left ``k`` chunks
        before have weight ``rate * (1 - rate)**k``, and the first ones of all what remains.
        """
        size, policy = self._take.memory.chunk, self._take.policy
        assert isinstance(policy, MemRoPE)
        left = size - 1 + policy.recent + (size + 1) / 2
        folds = chunk - (chunk if self._averaging_since is None else self._averaging_since)
        return left + size * (1 - rate) / rate * (1 - (1 - rate) ** folds)


def describe_memories(chunk: int, learned: bool) -> list[dict[str, Any]]:
    """All memories by name, for ``/api/info``.

    Args:
        chunk: latent frames per chunk of the model.
        learned: whether there are weights of a learned memory.
    """
    found = []
    for name, info in MEMORIES.items():
        try:
            policy = parse_memory(name, chunk)
        except ValueError:  # no room for a chunk of this model
            continue
        slots = [{"role": role, "count": count} for role, count in slots_of(policy, chunk)]
        found.append(
            {
                "name": name,
                "description": info.description,
                "paper": info.paper,
                "available": learned or not policy.learned,
                "settings": policy.settings(),
                "slots": slots,
                "capacity": policy.capacity(chunk),
            }
        )
    return found

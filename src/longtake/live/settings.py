"""What may be set about a server, and what everybody who talks to it may ask for. Imports nothing heavy."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass
from pathlib import Path

PICTURES = ("jpeg", "webp")
PROTOCOL = 1


@dataclass(frozen=True)
class Limits:
    """How much of everything.

    Attributes:
        prompt_characters: of one prompt.
        prompt_changes: of one take.
        body_bytes: of a request.
        message_bytes: of a WebSocket message from a viewer.
        messages: from one viewer, per second.
        requests, orders: per second and client address; orders are those that create or steer. Twice as many at once.
        credit: frames that a viewer may allow at once.
        viewers_per_take: at the same time.
        connections: of all clients.
        behind: seconds that a live viewer may fall behind before frames are left out.
    """

    prompt_characters: int = 1000
    prompt_changes: int = 2000
    body_bytes: int = 64 * 1024
    message_bytes: int = 4096
    messages: float = 100
    requests: float = 50
    orders: float = 5
    credit: int = 256
    viewers_per_take: int = 64
    connections: int = 1000
    behind: float = 4.0


@dataclass(frozen=True)
class Settings:
    """A server.

    Attributes:
        folder: where all takes are kept.
        host, port: what it listens to.
        token: what requests must show; None for a server of this computer only.
        allow_hosts: names under which it is reached, beside ``localhost`` and numeric addresses.
        behind_proxy: whether to believe a proxy on this computer who its clients are.
        ahead: seconds of video that generation may be ahead of real time. A new prompt is seen that much later.
        idle_pause: seconds without viewers until a take pauses; infinite for never.
        turn: seconds that a take may hold its device while others wait; infinite for as long as it likes.
        queue: takes that may wait, per device.
        takes: that are kept.
        max_seconds: of a take.
        min_free: bytes that must stay free on the disk.
        snapshot_every: seconds of video between snapshots.
        thumbnail_every: seconds of video between the pictures to look back on.
        picture, quality: how frames are sent.

    Raises:
        ValueError: for what cannot be, in one sentence.
    """

    folder: Path
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    allow_hosts: tuple[str, ...] = ()
    behind_proxy: bool = False
    ahead: float = 1.0
    idle_pause: float = 60.0
    turn: float = math.inf
    queue: int = 8
    takes: int = 200
    max_seconds: float = 24 * 3600.0
    min_free: int = 500_000_000
    snapshot_every: float = 10.0
    thumbnail_every: float = 5.0
    picture: str = "jpeg"
    quality: int = 85
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        for option, value, least, most in (
            ("--port", self.port, 0, 65535),
            ("--ahead", self.ahead, 0, 60),
            ("--idle-pause", self.idle_pause, 1, math.inf),
            ("--turn", self.turn, 1, math.inf),
            ("--queue", self.queue, 0, 1000),
            ("--max-takes", self.takes, 1, 10_000),
            ("--quality", self.quality, 1, 100),
            ("--max-length", self.max_seconds, 1, 366 * 24 * 3600),
            ("--snapshot-every", self.snapshot_every, 0.1, 24 * 3600),
            ("--min-free", self.min_free, 0, math.inf),
        ):
            if not least <= value <= most:  # also refuses NaN
                upto = f" to {most}" if math.isfinite(most) else " or more"
                raise ValueError(f"{option} must be {least}{upto}, not {value:g}.")
        if self.picture not in PICTURES:
            raise ValueError(f"--picture must be one of {', '.join(PICTURES)}, not {self.picture!r}.")
        if self.token is not None and not (8 <= len(self.token) <= 200 and self.token.isascii() and _plain(self.token)):
            raise ValueError("A token is 8 to 200 letters, digits, '-' and '_'.")
        if self.token is None and not self.local:
            raise ValueError(
                f"On {self.host} others can reach the server, so it needs a token: give one with --token or in "
                "LONGTAKE_TOKEN, or listen to 127.0.0.1."
            )

    @property
    def local(self) -> bool:
        """Whether nobody but programs of this computer can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def _plain(token: str) -> bool:
    return all(char.isalnum() or char in "-_" for char in token)

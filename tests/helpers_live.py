"""A live server in this process, with the tiny model, and what talks to it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

from longtake import LongTakePipeline
from longtake.facts import ModelFacts
from longtake.live.app import make_server
from longtake.live.pictures import Header
from longtake.live.served import Served
from longtake.live.settings import Limits, Settings
from longtake.live.studio import Studio

PROMPT = "a red ball rolls over a meadow"
OTHER = "a blue box bounces in a room"
TOKEN = "a-token-for-tests"
PATIENCE = 300.0  # seconds; only a broken server needs them
LOOSE = Limits(requests=1e6, orders=1e6, messages=1e6)


def wait_for(what: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """The first true answer."""
    end = time.monotonic() + patience
    while not (answer := what()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return answer


class Live:
    """A server and a client of it."""

    def __init__(self, studio: Studio, port: int, headers: dict[str, str] | None = None) -> None:
        self.studio, self.port, self.headers = studio, port, headers or {}
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, headers=self.headers)

    def create(self, prompt: str = PROMPT, **settings: Any) -> str:
        answer = self.http.post("/api/takes", json={"prompt": prompt, "seed": 1, **settings})
        assert answer.status_code == 201, answer.text
        assert answer.headers["location"] == f"/api/takes/{answer.json()['id']}"
        return str(answer.json()["id"])

    def take(self, id: str) -> dict[str, Any]:
        answer = self.http.get(f"/api/takes/{id}")
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]

    def order(self, id: str, what: str, **body: Any) -> dict[str, Any]:
        answer = self.http.post(f"/api/takes/{id}/{what}", json=body or None)
        assert answer.status_code < 300, answer.text
        return answer.json()  # type: ignore[no-any-return]

    def wait(self, id: str, **values: Any) -> dict[str, Any]:
        """The take, once it has these values, and at least so many frames."""
        frames = values.pop("frames", 0)

        def there() -> dict[str, Any] | None:
            take = self.take(id)
            assert take["state"] != "failed" or values.get("state") == "failed", take
            return take if take["frames"] >= frames and all(take[k] == v for k, v in values.items()) else None

        return wait_for(there)  # type: ignore[no-any-return]

    def watch(self, id: str, query: str = "", **options: Any) -> ClientConnection:
        address = f"ws://127.0.0.1:{self.port}/api/takes/{id}/watch{query}"
        # With a queue that can be full, this client would not see the end of a connection for ten seconds.
        usual: dict[str, Any] = {"max_size": None, "max_queue": None, "open_timeout": PATIENCE, "close_timeout": 1}
        return connect(address, additional_headers=self.headers, **{**usual, **options})


@contextmanager
def serving(
    pipe: LongTakePipeline,
    model: Path,
    data: Path,
    devices: Mapping[str, Callable[[], LongTakePipeline]] | None = None,
    **settings: Any,
) -> Iterator[Live]:
    """A server on a free port, until the end of the block; with one device, unless others are given."""
    wanted = Settings(data, **{"port": 0, "limits": LOOSE, **settings})
    served = Served(ModelFacts.read(str(model)), "float32")
    studio = Studio(wanted, served, devices or {"cpu": lambda: pipe})
    server = make_server(studio)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive())
        port = server.servers[0].sockets[0].getsockname()[1]
        token = wanted.token
        yield Live(studio, port, {"Authorization": f"Bearer {token}"} if token else None)
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


def credit(socket: ClientConnection, frames: int) -> None:
    socket.send(json.dumps({"type": "credit", "frames": frames}))


def play(socket: ClientConnection, start: int | str) -> None:
    socket.send(json.dumps({"type": "play", "from": start}))


class Seen:
    """What a viewer was sent, in order."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.frames: list[tuple[Header, bytes]] = []
        self.messages: list[dict[str, Any]] = []

    def next(self, timeout: float = PATIENCE) -> Header | dict[str, Any]:
        message = self.socket.recv(timeout=timeout)
        if isinstance(message, bytes):
            header = Header.unpack(message)
            self.frames.append((header, message[40:]))
            return header
        self.messages.append(json.loads(message))
        return self.messages[-1]

    def until(self, done: Callable[[], Any]) -> Any:
        while not (answer := done()):
            self.next()
        return answer

    def until_frames(self, count: int) -> list[int]:
        """Indices of all frames, once there are so many."""
        self.until(lambda: len(self.frames) >= count)
        return [header.frame for header, _ in self.frames]

    def kind(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["type"] == kind]

    def quiet(self, seconds: float = 0.5) -> bool:
        """Whether no frame comes for a while."""
        before, end = len(self.frames), time.monotonic() + seconds
        try:
            while (left := end - time.monotonic()) > 0:
                self.next(left)
        except TimeoutError:
            pass
        return len(self.frames) == before

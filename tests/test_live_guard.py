"""Who may not do what: wrong origins, names, tokens and bodies, hostile messages, and what schemathesis thinks of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.config import SchemathesisConfig
from websockets.exceptions import ConnectionClosed, InvalidStatus

from longtake import LongTakePipeline
from longtake.live.folder import is_id
from longtake.live.settings import Limits
from longtake.prompts import CHANGES

from .helpers_live import OTHER, PATIENCE, PROMPT, TOKEN, Live, Seen, credit, serving, wait_for

Serving = Callable[..., AbstractContextManager[Live]]


@pytest.fixture(scope="module")
def start(tiny: LongTakePipeline, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Serving:
    return lambda **options: serving(tiny, tiny_folder, tmp_path_factory.mktemp("live") / "data", **options)


@pytest.fixture(scope="module")
def live(start: Serving) -> Iterator[Live]:
    with start() as live:
        yield live


@pytest.fixture(scope="module")
def secret(start: Serving) -> Iterator[Live]:
    with start(token=TOKEN, allow_hosts=("live.example.org",)) as live:
        yield live


def code(answer: httpx.Response) -> tuple[int, str]:
    error = answer.json()["error"]
    assert error["message"].endswith(".") and "\n" not in error["message"]
    return answer.status_code, error["code"]


# Names and origins


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:99", "[::1]:8000", "192.168.0.7:8000"])
def test_known_names(live: Live, host: str) -> None:
    assert live.http.get("/api/takes", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "a b", "[::1"]
)
@pytest.mark.parametrize("path", ["/api/takes", "/", "/healthz", "/?token=x"])
def test_unknown_names(live: Live, host: str, path: str) -> None:
    answer = live.http.get(path, headers={"Host": host})
    # An empty or impossible name may not even come as far as our own check.
    assert answer.status_code in (400, 421) and (answer.status_code == 421 or not host.isalpha())


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "https://127.0.0.1.evil.example",
        "null",
        "http://127.0.0.1:1",
        "http://localhost:{port}",  # another origin than the one in Host
        "ftp://127.0.0.1:{port}",
        "http://127.0.0.1:{port}@evil.example",
        "http://[",
    ],
)
def test_wrong_origins(live: Live, origin: str) -> None:
    origin = origin.format(port=live.port)
    for method, path in (("GET", "/api/takes"), ("POST", "/api/takes"), ("DELETE", "/api/takes/0000000000000000")):
        assert code(live.http.request(method, path, headers={"Origin": origin})) == (403, "forbidden")
    id = live.create()
    with pytest.raises(InvalidStatus) as refused, live.watch(id, origin=origin):  # type: ignore[arg-type]
        pass
    assert refused.value.response.status_code == 403
    assert live.take(id)["viewers"] == 0
    live.http.delete(f"/api/takes/{id}")


def test_own_origin(live: Live) -> None:
    origin = f"http://127.0.0.1:{live.port}"
    id = live.create()
    assert (
        live.http.post(f"/api/takes/{id}/steer", json={"prompt": OTHER}, headers={"Origin": origin}).status_code == 202
    )
    with live.watch(id, origin=origin) as socket:  # type: ignore[arg-type]
        assert json.loads(socket.recv())["type"] == "hello"
    live.http.delete(f"/api/takes/{id}")


def test_names_that_were_allowed(secret: Live) -> None:
    for headers in (
        {"Host": "live.example.org", "Origin": "https://live.example.org"},
        {"Host": "live.example.org:8443", "Origin": "https://live.example.org:8443"},
        {"Origin": "https://live.example.org"},  # a proxy that does not pass Host on
    ):
        assert secret.http.get("/api/takes", headers=headers).status_code == 200
    assert code(secret.http.get("/api/takes", headers={"Host": "other.example.org"}))[0] == 421


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_pictures_in_other_sites(live: Live, site: str) -> None:
    fetch = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
    assert code(live.http.get("/api/takes", headers=fetch)) == (403, "forbidden")
    assert live.http.get("/", headers={**fetch, "Sec-Fetch-Mode": "navigate"}).status_code == 200  # a link
    assert live.http.get("/api/takes", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200


# Tokens


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": "Bearer \xe4\xf6"},
        {"Cookie": "longtake_token=wrong"},
        {"Cookie": f"token={TOKEN}"},
        {"Cookie": ";=;;"},
    ],
)
def test_without_the_token(secret: Live, headers: dict[str, str]) -> None:
    raw = {k: v.encode("latin-1") for k, v in headers.items()}
    with httpx.Client(base_url=secret.http.base_url, headers=raw) as http:
        for path in ("/", "/api/info", "/api/takes", "/metrics", "/page/style.css", "/api/openapi.json", "/nothing"):
            assert code(http.get(path)) == (401, "unauthorized")
        assert code(http.post("/api/takes", json={"prompt": PROMPT})) == (401, "unauthorized")
        assert http.get("/healthz").status_code == 200 and http.get("/readyz").json() == {"status": "ready"}
    id = secret.create()
    address = Live(secret.studio, secret.port, {k: v for k, v in headers.items() if v.isascii()})
    with pytest.raises(InvalidStatus) as refused, address.watch(id):
        pass
    assert refused.value.response.status_code == 401
    secret.http.delete(f"/api/takes/{id}")


def test_the_token_becomes_a_cookie(secret: Live) -> None:
    with httpx.Client(base_url=secret.http.base_url) as http:
        assert code(http.get("/?token=wrong")) == (401, "unauthorized")
        answer = http.get(f"/?token={TOKEN}")
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie
        assert http.get("/api/takes").status_code == 200
        assert http.get("/").status_code == 200
        id = secret.create()
        there = Live(secret.studio, secret.port, {"Cookie": f"longtake_token={TOKEN}"})
        with there.watch(id) as socket:
            assert json.loads(socket.recv())["type"] == "hello"


def test_guesses_of_the_token_are_limited(start: Serving) -> None:
    with start(token=TOKEN, limits=Limits(requests=1e6, orders=2)) as live, httpx.Client() as http:
        address = f"http://127.0.0.1:{live.port}/"
        answers = [code(http.get(address, params={"token": f"guess-{number}"})) for number in range(100)]
        assert answers[0] == (401, "unauthorized") and (429, "too_many") in answers


# Bodies and rates


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        (b"{", "application/json", (400, "bad_request")),
        (b"\xff\xfe", "application/json", (400, "bad_request")),
        (b"[" * 10_000, "application/json", (400, "bad_request")),
        (b"{}", "text/plain", (415, "not_json")),
        (b"prompt=x", "application/x-www-form-urlencoded", (415, "not_json")),
        (b"{}", "application/json", (422, "invalid")),
        (b"null", "application/json", (422, "invalid")),
        (b'{"prompt": 7}', "application/json", (422, "invalid")),
        (b'{"prompt": "a red ball", "sede": 1}', "application/json", (422, "invalid")),
        (b'{"prompt": "a red ball", "seed": -1}', "application/json", (422, "invalid")),
        (b'{"prompt": "a red ball", "seed": 1.5}', "application/json", (422, "invalid")),
        (b'{"prompt": "a red ball", "seed": 1e400}', "application/json", (422, "invalid")),
        (b'{"prompt": "a red ball", "max_seconds": NaN}', "application/json", (422, "invalid")),
        (b'{"prompt": "a red ball", "width": 33}', "application/json", (422, "invalid")),
        (b'{"prompt": "a red ball", "width": 16384}', "application/json", (422, "invalid")),
        (b'{"prompt": "a red ball", "memory": "nonsense"}', "application/json", (422, "invalid")),
        (b'{"prompt": "a red ball", "memory": "memrope:recent=-1"}', "application/json", (422, "invalid")),
        (b'{"prompt": "a red ball", "on_change": "explode"}', "application/json", (422, "invalid")),
        (b'{"prompt": ""}', "application/json", (422, "invalid")),
        (b'{"prompt": " \\n "}', "application/json", (422, "invalid")),
        (b'{"prompt": "a red\\u0000 ball"}', "application/json", (422, "invalid")),
        (b'{"prompt": "a red \\ud800 ball"}', "application/json", (422, "invalid")),
        (b'{"prompt": "weather forecast"}', "application/json", (422, "invalid")),
        (b'{"prompt": "%s"}' % (b"red " * 300), "application/json", (422, "invalid")),
        (b'{"prompt": "%s"}' % (b"x" * 70_000), "application/json", (413, "too_large")),
    ],
)
def test_bodies(live: Live, body: bytes, kind: str, expected: tuple[int, str]) -> None:
    before = len(live.http.get("/api/takes").json()["takes"])
    assert code(live.http.post("/api/takes", content=body, headers={"Content-Type": kind})) == expected
    assert len(live.http.get("/api/takes").json()["takes"]) == before


def test_a_body_in_pieces(live: Live) -> None:
    pieces = (b"x" * 1000 for _ in range(100))  # chunked: nothing says beforehand how long it will be
    answer = live.http.post("/api/takes", content=pieces, headers={"Content-Type": "application/json"})
    assert code(answer) == (413, "too_large")


@pytest.mark.parametrize("id", ["..", "%2e%2e", "0000000000000000", "0" * 15, "G" * 16, "0" * 400, "take.json", "%00"])
@pytest.mark.parametrize(
    "what", ["", "/snapshot", "/video.mp4", "/thumbnails/0.jpg", "/thumbnails/..%2f..%2ftake.json"]
)
def test_ids_that_are_none(live: Live, id: str, what: str) -> None:
    answer = live.http.get(f"/api/takes/{id}{what}")
    assert answer.status_code in (404, 422) or (id in ("..", "%2e%2e") and what == "" and answer.status_code < 500)


def test_prompts_that_are_dangerous_elsewhere(live: Live) -> None:
    """They are kept as they are, and come back as data."""
    prompt = (
        "a red ball <script>alert(1)</script> $(rm -rf /) `id` '; DROP TABLE takes; -- ../../etc/passwd \u202e [cut] |"
    )
    id = live.create(prompt)
    live.wait(id, frames=9)
    live.order(id, "steer", prompt=prompt + " again")
    take = live.take(id)
    assert [entry["prompt"] for entry in take["timeline"]] == [prompt, prompt + " again"]
    assert live.http.get(f"/api/takes/{id}").headers["content-type"] == "application/json"
    assert [path.name for path in live.studio.folder.path.parent.iterdir()] == ["data"]
    live.http.delete(f"/api/takes/{id}")


def test_rates(start: Serving) -> None:
    with start(limits=Limits(requests=5, orders=2)) as live:
        orders = (live.http.post("/api/takes/0000000000000000/steer", json={"prompt": PROMPT}) for _ in range(100))
        assert code(next(orders)) == (404, "not_found")
        slow = next(answer for answer in orders if answer.status_code == 429)
        assert code(slow)[1] == "too_many" and slow.headers["retry-after"] == "1"
        assert any(live.http.get("/api/takes").status_code == 429 for _ in range(100))
        assert live.http.get("/healthz").status_code == 200


def test_prompt_changes_are_limited(start: Serving) -> None:
    with start(limits=Limits(requests=1e6, orders=1e6, prompt_changes=3)) as live:
        id = live.create()
        live.order(id, "steer", prompt=OTHER)
        live.order(id, "steer", prompt=PROMPT)
        assert code(live.http.post(f"/api/takes/{id}/steer", json={"prompt": OTHER})) == (429, "too_many")


# WebSockets

DEEP = "[" * 2000
HOSTILE: list[tuple[Any, int]] = [
    ("", 1008),
    ("nonsense", 1008),
    (DEEP, 1008),
    ("null", 1008),
    ("[1, 2]", 1008),
    ('"credit"', 1008),
    ("{}", 1008),
    ('{"type": "explode"}', 1008),
    ('{"type": ["credit"], "frames": 1}', 1008),
    ('{"type": "credit"}', 1008),
    ('{"type": "credit", "frames": 0}', 1008),
    ('{"type": "credit", "frames": -5}', 1008),
    ('{"type": "credit", "frames": 257}', 1008),
    ('{"type": "credit", "frames": 1e3}', 1008),
    ('{"type": "credit", "frames": true}', 1008),
    ('{"type": "credit", "frames": NaN}', 1008),
    ('{"type": "credit", "frames": %s}' % ("9" * 3000), 1008),
    ('{"type": "play", "from": -1}', 1008),
    ('{"type": "play", "from": 4294967296}', 1008),
    ('{"type": "play", "from": {"a": []}}', 1008),
    ('{"type": "play"}', 1008),
    (b"\x00\x01binary", 1008),
    ("x" * 5000, 1009),
]


def test_hostile_messages(live: Live) -> None:
    id = live.create()
    with live.watch(id, "?from=0&credit=5") as good:
        seen = Seen(good)
        seen.until_frames(5)
        for message, wanted in HOSTILE:
            with live.watch(id) as socket:
                socket.recv()
                socket.send(message)
                with pytest.raises(ConnectionClosed) as closed:
                    while True:
                        socket.recv(timeout=60)
                assert closed.value.rcvd is not None and closed.value.rcvd.code == wanted, message
        credit(good, 4)
        assert seen.until_frames(9) == [*range(9)]
        wait_for(lambda: live.take(id)["viewers"] == 1)
    live.http.delete(f"/api/takes/{id}")


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("0000000000000000/watch", 4404),
        ("nonsense/watch", 4404),
        ("{id}/watch?from=-1", 1008),
        ("{id}/watch?from=yesterday", 1008),
        ("{id}/watch?credit=1000", 1008),
        ("{id}/watch?credit=x", 1008),
    ],
)
def test_watching_what_cannot_be(live: Live, path: str, wanted: int) -> None:
    id = live.create()
    part, _, query = path.format(id=id).partition("/watch")
    with live.watch(part, query) as socket, pytest.raises(ConnectionClosed) as closed:
        socket.recv(timeout=60)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == wanted
    live.http.delete(f"/api/takes/{id}")


def test_too_many_viewers_and_messages(start: Serving) -> None:
    with start(limits=Limits(requests=1e6, orders=1e6, viewers_per_take=1, messages=3)) as live:
        id = live.create()
        with live.watch(id) as one:
            one.recv()
            with live.watch(id) as other, pytest.raises(ConnectionClosed) as closed:
                other.recv(timeout=60)
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 4429
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    credit(one, 1)
                    one.recv(timeout=60)
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 4429
        wait_for(lambda: live.take(id)["viewers"] == 0)


# Anything else


def test_whatever_schemathesis_thinks_of(live: Live) -> None:
    """Every operation with valid and invalid data: no answer may be undocumented or of another form."""
    id = live.create(max_seconds=1)
    live.wait(id, state="finished")
    address = f"http://127.0.0.1:{live.port}"
    # What fits the schema may still be refused: prompts and memories have a meaning.
    config = SchemathesisConfig.from_dict({"checks": {"positive_data_acceptance": {"enabled": False}}})
    tried = set()
    for result in schemathesis.openapi.from_url(f"{address}/api/openapi.json", config=config).get_all_operations():
        operation = result.ok()
        tried.add(operation.label)

        @settings(max_examples=6, deadline=None, database=None, derandomize=True, suppress_health_check=[*HealthCheck])
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            if is_id(str(case.path_parameters.get("id"))) and case.method != "DELETE":
                case.path_parameters["id"] = id  # one that is there
            case.call_and_validate(base_url=address, timeout=PATIENCE)

        check()
    assert len(tried) >= 18
    assert live.take(id)["state"] == "finished"


def test_changes_are_those_of_scripts(live: Live) -> None:
    assert tuple(change["name"] for change in live.http.get("/api/info").json()["changes"]) == CHANGES


@pytest.mark.parametrize("path", ["/", "/healthz", "/api/takes", "/page/main.js", "/api/takes/none"])
def test_head_is_get_without_the_body(live: Live, path: str) -> None:
    whole, head = live.http.get(path), live.http.head(path)
    assert head.status_code == whole.status_code and not head.content
    for name in ("content-type", "content-length", "content-security-policy"):
        assert head.headers[name] == whole.headers[name], name

"""What stands before the API: who may ask, from where, how much, how often ("Access" in ``docs/live-protocol.md``)."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from longtake.live.settings import Settings
from longtake.live.trouble import Trouble

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "longtake_token"
OPEN = ("/healthz", "/readyz")  # for those who look after the process; they say nothing else
_CLIENTS = 10_000  # addresses whose rates are remembered
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "media-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


class Bucket:
    """So much per second, and twice that at once.

    Args:
        rate: per second.
    """

    def __init__(self, rate: float) -> None:
        self._rate, self._left, self._at = rate, 2 * rate, time.monotonic()

    def take(self) -> bool:
        """Whether one more is allowed."""
        now = time.monotonic()
        self._left = min(2 * self._rate, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Guard:
    """ASGI middleware.

    Args:
        app: that is guarded.
        settings: of the server.
        refused: called with the code of every refusal.
    """

    def __init__(self, app: App, settings: Settings, refused: Callable[[str], None] | None = None) -> None:
        self._app, self._settings = app, settings
        self._refused = refused or (lambda code: None)
        self._buckets: OrderedDict[tuple[str, bool], Bucket] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or one WebSocket."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            if await self._log_in(scope, headers, send):
                return
            self._check(scope, headers)
        except Trouble as trouble:
            self._refused(trouble.code)
            await refuse(scope, send, trouble)
            return
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # as GET; the server leaves out the body
            scope = {**scope, "method": "GET"}
        await self._app(scope, self._limited(receive), _with_headers(send))

    async def _log_in(self, scope: Scope, headers: dict[str, str], send: Send) -> bool:
        """``/?token=...`` becomes a cookie, so that the token is in no address that the browser remembers."""
        if scope["type"] != "http" or scope["path"] != "/" or b"token=" not in scope["query_string"]:
            return False
        self._check_host(headers)
        self._check_rate(scope, True)  # as often as orders: who guesses is slow
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if self._settings.token is not None and not _same(given, self._settings.token):
            raise Trouble("unauthorized", "The token in this address is not the server's.")
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        answer = [(b"location", b"/"), (b"cache-control", b"no-store"), *HEADERS]
        if self._settings.token is not None:
            cookie = f"{COOKIE}={given}; HttpOnly; SameSite=Strict; Path=/; Max-Age=31536000{secure}"
            answer.append((b"set-cookie", cookie.encode()))
        await send({"type": "http.response.start", "status": 303, "headers": answer})
        await send({"type": "http.response.body", "body": b""})
        return True

    def _check(self, scope: Scope, headers: dict[str, str]) -> None:
        path, method = scope["path"], scope.get("method", "GET")
        self._check_host(headers)
        self._check_origin(scope, headers)
        order = method in ("POST", "DELETE", "PUT", "PATCH")
        if path not in OPEN:
            self._check_rate(scope, order)
            self._check_token(headers)
        if not order:
            return
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._settings.limits.body_bytes:
            raise Trouble("too_large", f"A request may have {self._settings.limits.body_bytes} bytes at most.")
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if kind != "application/json" and (int(length) or "transfer-encoding" in headers or kind):
            raise Trouble("not_json", "Bodies must be JSON, with the header Content-Type: application/json.")

    def _check_host(self, headers: dict[str, str]) -> None:
        # A page of another name that has itself resolved to this computer must not be served (DNS rebinding). Numbers
        # cannot be re-bound.
        host = host_name(headers.get("host", ""))
        known = ("localhost", self._settings.host, *self._settings.allow_hosts)
        if host is None or not (host in (name.lower() for name in known) or _is_number(host)):
            raise Trouble("wrong_host", "This server is not known by that name: give it with --allow-host.")

    def _check_origin(self, scope: Scope, headers: dict[str, str]) -> None:
        origin = headers.get("origin")
        if origin is not None and not self._is_own(origin, headers.get("host", "")):
            raise Trouble("forbidden", "Other sites may not use this server.")
        # Browsers say so of pictures and plain requests too, which have no Origin. Following a link is allowed.
        site, mode = headers.get("sec-fetch-site"), headers.get("sec-fetch-mode")
        if site in ("cross-site", "same-site") and (mode != "navigate" or scope.get("method", "GET") != "GET"):
            raise Trouble("forbidden", "Other sites may not use this server.")

    def _is_own(self, origin: str, host: str) -> bool:
        try:
            there, here = urlsplit(origin), urlsplit(f"//{host}")
            usual = {"http": 80, "https": 443}[there.scheme]
            if there.hostname in [name.lower() for name in self._settings.allow_hosts]:
                return True
            # A Host without a port is the usual one of the scheme that the browser sees, which behind a proxy with TLS
            # is not ours.
            return there.hostname == here.hostname and (there.port or usual) == (here.port or usual)
        except (ValueError, KeyError):  # no address, or of another scheme
            return False

    def _check_rate(self, scope: Scope, order: bool) -> None:
        address = (scope.get("client") or ("", 0))[0]
        limits = self._settings.limits
        for key, rate in (((address, False), limits.requests), ((address, True), limits.orders)):
            if key[1] and not order:
                continue
            bucket = self._buckets.get(key)
            if bucket is None:
                bucket = self._buckets[key] = Bucket(rate)
            self._buckets.move_to_end(key)
            while len(self._buckets) > _CLIENTS:
                self._buckets.popitem(last=False)
            if not bucket.take():
                raise Trouble("too_many", f"No more than {rate:g} such requests per second: slow down.")

    def _check_token(self, headers: dict[str, str]) -> None:
        token = self._settings.token
        if token is None:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _same(given.strip(), token):
            return
        cookies: SimpleCookie = SimpleCookie()
        with contextlib.suppress(CookieError):
            cookies.load(headers.get("cookie", ""))
        if COOKIE in cookies and _same(cookies[COOKIE].value, token):
            return
        raise Trouble(
            "unauthorized", "This server needs its token: open the address that it printed, or send it as a bearer."
        )

    def _limited(self, receive: Receive) -> Receive:
        """The body as it comes, up to the limit; a body in pieces does not say how long it is."""
        left = self._settings.limits.body_bytes

        async def limited() -> MutableMapping[str, Any]:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise Trouble("too_large", f"A request may have {self._settings.limits.body_bytes} bytes at most.")
            return message

        return limited


def host_name(host: str) -> str | None:
    """The name in a Host header, lower case and without port; None if it is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _same(given: str, wanted: str) -> bool:
    return secrets.compare_digest(given.encode(), wanted.encode())


def _with_headers(send: Send) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            there = {name.lower() for name, _ in message.get("headers", ())}
            message["headers"] = [*message.get("headers", ()), *((k, v) for k, v in HEADERS if k not in there)]
            if b"cache-control" not in there:
                message["headers"].append((b"cache-control", b"no-store"))
        await send(message)

    return sending


async def refuse(scope: Scope, send: Send, trouble: Trouble) -> None:
    """Answers a request, or the handshake of a WebSocket, with an error."""
    kind = "http"
    if scope["type"] == "websocket":
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008, "reason": trouble.message})
            return
        kind = "websocket.http"
    body = json.dumps(trouble.to_dict()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *HEADERS]
    headers += [(name.lower().encode(), value.encode()) for name, value in trouble.headers.items()]
    await send({"type": f"{kind}.response.start", "status": trouble.status, "headers": headers})
    await send({"type": f"{kind}.response.body", "body": body})

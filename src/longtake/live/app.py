"""The server: the API, the WebSocket and the page, behind the guard."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from longtake import __version__
from longtake.live import api
from longtake.live.audience import Hall
from longtake.live.guard import Guard
from longtake.live.studio import Studio
from longtake.live.trouble import STATUSES, Trouble
from longtake.live.watch import watch

PAGE = Path(__file__).with_name("page")
_DESCRIPTION = """Endless videos, made on this server while they are watched, and steered by prompts.

Watching is a WebSocket, `/api/takes/{id}/watch`, which OpenAPI cannot describe: see docs/live-protocol.md."""
_TAGS = [
    {"name": "takes", "description": "Takes: one running generation each."},
    {"name": "files", "description": "Pictures, recordings and snapshots."},
    {"name": "server", "description": "The server itself."},
]
_CODES = {status: code for code, status in STATUSES.items()}


def make_app(studio: Studio) -> Any:
    """The ASGI application of a studio; starting and stopping it starts and stops the studio."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        hall = app.state.hall = Hall(studio)
        running = asyncio.create_task(hall.run())
        await asyncio.sleep(0)  # from now on it listens
        studio.start()
        try:
            yield
        finally:
            await asyncio.to_thread(studio.close)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    app = FastAPI(
        title="Longtake live",
        version=__version__,
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        openapi_url="/api/openapi.json",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.studio = studio
    app.include_router(api.router)
    app.include_router(api.health)
    app.add_api_websocket_route("/api/takes/{id}/watch", watch)

    @app.get("/", include_in_schema=False)
    def index() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=PAGE))
    app.add_exception_handler(Trouble, _trouble)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)
    return Guard(app, studio.settings, lambda code: studio.metrics.refused.labels(code).inc())


def make_server(studio: Studio) -> uvicorn.Server:
    """A server for a studio; ``run()`` it."""
    settings, limits = studio.settings, studio.settings.limits
    config = uvicorn.Config(
        make_app(studio),
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,  # it would have a line per picture
        ws_max_size=limits.message_bytes,
        ws_max_queue=16,
        ws_per_message_deflate=False,  # pictures are small already, and every connection would keep a dictionary
        proxy_headers=settings.behind_proxy,
        limit_concurrency=limits.connections,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=limits.body_bytes,
        server_header=False,
    )
    return uvicorn.Server(config)


def _trouble(request: Request, error: Exception) -> Response:
    assert isinstance(error, Trouble)
    request.app.state.studio.metrics.refused.labels(error.code).inc()
    return JSONResponse(error.to_dict(), error.status, headers=error.headers)


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _trouble(request, Trouble("bad_request", "The body is no JSON."))
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return _trouble(request, Trouble("invalid", f"{where or 'The body'}: {first['msg']}."))


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, Trouble):  # raised while FastAPI read the body
        return _trouble(request, error.__cause__)
    trouble = Trouble(_CODES.get(error.status_code, "bad_request"), f"{error.detail}.")
    answer = _trouble(request, trouble)
    answer.status_code = error.status_code
    answer.headers.update(error.headers or {})
    return answer


def _unexpected(request: Request, error: Exception) -> Response:
    return JSONResponse(Trouble("failed", "Something went wrong; the server's log says more.").to_dict(), 500)

"""From the options of ``longtake serve`` to a running server."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.cli_generate import load_for, settled
from longtake.cli_prepare import Job, Request, asked_for, prepare
from longtake.cli_progress import say, settle_streams, tell, warn
from longtake.facts import ModelFacts
from longtake.live.settings import Settings
from longtake.prompts import parse_duration

if TYPE_CHECKING:
    from longtake.pipeline import LongTakePipeline

NEVER = "never"
_ANY_PROMPT = "a red ball rolls over a meadow"
_MISSING = (
    "The live server needs more than is installed ({}): install it with  pip install 'longtake[live]'  and try again."
)


@dataclass(frozen=True)
class ServeRequest:
    """What was typed; ``model`` has the options that ``longtake generate`` has too."""

    model: Request
    settings: Settings


def duration(option: str, text: str) -> float:
    """Seconds of an option that may be "never".

    Raises:
        ValueError: in one sentence that names the option.
    """
    if text.strip().lower() == NEVER:
        return math.inf
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


def space(option: str, gigabytes: float) -> int:
    """Bytes of an option in GB.

    Raises:
        ValueError: in one sentence that names the option.
    """
    if not (math.isfinite(gigabytes) and gigabytes >= 0):
        raise ValueError(f"{option} must be 0 GB or more, not {gigabytes:g}.")
    return round(gigabytes * 1e9)


def serve(request: Callable[[], ServeRequest]) -> int:
    """Runs a server until it is stopped; returns the exit code: 0 stopped, 1 failed, 2 refused.

    Args:
        request: what was typed, checked as far as it can be by itself.
    """
    with contextlib.suppress(ValueError):  # not in the main thread
        # As Ctrl-C, and from the beginning: loading takes long, and the first process of a container would not hear it.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        wanted = request()
        devices = [name.strip() for name in (wanted.model.device or "auto").split(",")]
        if len(set(devices)) < len(devices):
            raise ValueError(f"--device names a device twice: {wanted.model.device}.")
        jobs = [_prepared(wanted, device) for device in devices]
    except (ValueError, MemoryError) as error:
        return say(str(error), 2)
    except OSError as error:
        return say(f"{error.strerror or error} ({error.filename}).", 2)
    try:
        from longtake.live.app import make_server
    except ImportError as error:
        return say(_MISSING.format(error.name), 2)
    try:
        jobs = [settled(job) for job in jobs]
        studio = _studio(wanted.settings, jobs)
    except KeyboardInterrupt:  # downloads may be large
        return say("Stopped.", 0) or 130
    except ValueError as error:
        return say(str(error), 2)
    except OSError as error:
        return say(f"{error.strerror or error} ({error.filename}).", 2)
    return _run(make_server, studio, wanted.settings)


def _prepared(wanted: ServeRequest, device: str) -> Job:
    """What ``longtake generate`` would do on a device: all its checks, without a video."""
    request = replace(wanted.model, device=device)
    facts = ModelFacts.read(asked_for(request, {}))
    examples = () if facts.pocket_words is None else facts.pocket_words.examples()
    prompt = examples[0] if examples else _ANY_PROMPT
    with tempfile.TemporaryDirectory() as folder:
        return prepare(replace(request, prompt=prompt, out=Path(folder, "none.mp4"), seconds="1", quiet=True))


def _studio(settings: Settings, jobs: list[Job]) -> Any:
    from longtake.live.served import Served
    from longtake.live.studio import Studio

    first = jobs[0]
    if len({job.dtype for job in jobs}) > 1:
        raise ValueError("The devices would compute in different dtypes: choose one with --dtype.")
    options: list[str] = []
    request, choice = first.request, first.plan.model.choice.to_dict()  # with absolute paths
    for name, value in (
        ("--components", choice.get("components")),
        ("--memory-weights", choice.get("memory")),
        ("--quantize", request.quantize),
        ("--attention", request.attention),
        ("--decoding", request.decoding),
        ("--threads", request.threads),
    ):
        options += [] if value is None else [name, str(value)]
    for path, scale, _ in choice.get("loras", ()):
        options += ["--lora", f"{path}:{scale:g}"]
    served = Served(first.plan.model, first.dtype, tuple(options))
    loads: dict[str, Callable[[], LongTakePipeline]] = {job.devices[0]: partial(load_for, job) for job in jobs}
    return Studio(settings, served, loads)


def _run(make_server: Any, studio: Any, settings: Settings) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    server = make_server(studio)
    failed: list[str] = []

    def broken(error: str) -> None:
        failed.append(error)
        server.should_exit = True

    studio.on_broken = broken
    deaf = _Deaf()
    logging.getLogger("uvicorn.error").addFilter(deaf)
    threading.Thread(target=_announce, args=(server, studio, settings), daemon=True).start()
    try:
        server.run()
    except KeyboardInterrupt:  # raised again by the server when everything has ended
        pass
    except SystemExit:
        failed.insert(0, f"{settings.host} port {settings.port} cannot be listened to: {deaf.why}.")
    code = say(failed[0], 1) if failed else say("Stopped; all takes can be continued.", 0)
    if any(engine.is_alive() for engine in studio.engines):
        # A model that is still being loaded cannot be interrupted, and the interpreter would end under its feet.
        settle_streams()
        os._exit(code)
    return code


class _Deaf(logging.Filter):
    """Takes note of why the server cannot listen, which uvicorn logs and does not raise: it is said in one sentence."""

    why = "the server could not begin"

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is another one."""
        error = record.msg
        if not isinstance(error, OSError):
            return True
        # asyncio's own text has the address again; unknown names have numbers that are no errno
        number = error.errno or 0
        self.why = os.strerror(number) if number > 0 else error.strerror or str(error)
        return False


def _announce(server: Any, studio: Any, settings: Settings) -> None:
    """Says where the page is when it can be opened."""
    while not server.started:
        if server.should_exit:
            return
        threading.Event().wait(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    host = {"0.0.0.0": "localhost", "::": "localhost"}.get(settings.host, settings.host)
    name = f"[{host}]" if ":" in host else host
    found = len(studio.takes())
    if found:
        say(f"{found} take{'s' * (found != 1)} from before can be continued.")
    if settings.behind_proxy and not settings.allow_hosts:
        warn("Behind a proxy, say with --allow-host by which name people reach it.")
    if settings.behind_proxy and settings.token is None:
        warn("Without a token, everybody whom the proxy lets in may do everything here, deleting included.")
    address = f"http://{name}:{port}/"
    if settings.token is not None:
        if sys.stdout.isatty():
            address += f"?token={settings.token}"
        else:  # a log, where others may read it
            say("The page wants the token, once: the address with  ?token=...  behind it.")
    tell(address)


def token_from(option: str | None) -> str | None:
    """The token that was typed, or that of the environment, which other users of the computer cannot see. An empty one
    is a variable that was misspelt, and no wish for a server without a token."""
    return os.environ.get("LONGTAKE_TOKEN") if option is None else option

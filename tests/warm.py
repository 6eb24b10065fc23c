"""Processes that begin with everything heavy loaded, so that a test of a command costs what the command does.

Loading torch, diffusers and transformers takes five seconds of a processor, and there are hundreds of commands. A
server, one per test process, loads them once and forks for every command: each still is a process of its own, with its
own arguments, environment, folder and streams, and ends as Python ends. What a command loads, and that it loads nothing
heavy for nothing, is tested with fresh processes (``tests.test_cli.light`` and others).
"""

from __future__ import annotations

import array
import atexit
import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parent.parent


class Warm:
    """The server; started when it is first needed, gone with this process."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self._server: subprocess.Popen[bytes] | None = None
        self._path = ""

    def _start(self) -> None:
        folder = tempfile.mkdtemp()
        self._path = os.path.join(folder, "s")
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.warm", self._path],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.PIPE,  # its end is the server's
            stdout=subprocess.PIPE,
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == b"ready\n"
        atexit.register(self.stop)

    def stop(self) -> None:
        """Ends the server."""
        if self._server is not None and self._server.stdin is not None:
            self._server.stdin.close()
            self._server.wait()

    def start(self, module: str, *arguments: str | Path, cwd: Path, more: Mapping[str, str] | None = None) -> Started:
        """``python -m module arguments`` in ``cwd``, with ``more`` in its environment."""
        if self._server is None or self._server.poll() is not None:
            self._start()
        return Started(self._path, [module, *map(str, arguments)], cwd, {**self.environment, **(more or {})})

    def run(
        self, module: str, *arguments: str | Path, cwd: Path, timeout: float = 600
    ) -> subprocess.CompletedProcess[str]:
        """The same to its end; what it wrote is text."""
        return self.start(module, *arguments, cwd=cwd).wait(timeout)


class Started:
    """A command that runs."""

    def __init__(self, path: str, command: list[str], cwd: Path, environment: Mapping[str, str]) -> None:
        self.command = command
        self._files: list[IO[bytes]] = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115  # closed in `wait`
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._line.connect(path)
        request = {"command": command, "cwd": str(cwd), "environment": dict(environment)}
        with open(os.devnull, "rb") as nothing:
            fds = array.array("i", [nothing.fileno(), *(f.fileno() for f in self._files)])
            data = json.dumps(request).encode()
            self._line.sendmsg([len(data).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds.tobytes())])
            self._line.sendall(data)
        self.pid = int.from_bytes(self._read(8), "big")

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._line.recv(size - len(data))
            assert part, "the server of warm processes is gone"
            data += part
        return data

    def wait(self, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Waits for the end."""
        self._line.settimeout(timeout)
        try:
            code = int.from_bytes(self._read(8), "big", signed=True)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            raise
        finally:
            self._line.close()
        texts = []
        for file in self._files:
            file.seek(0)
            texts.append(file.read().decode())
            file.close()
        return subprocess.CompletedProcess(self.command, code, *texts)


def _receive(line: socket.socket) -> tuple[dict[str, Any], list[int]]:
    size, found, _, _ = line.recvmsg(8, socket.CMSG_SPACE(3 * array.array("i").itemsize))
    fds = array.array("i")
    for _, _, data in found:
        fds.frombytes(data)
    missing, data = int.from_bytes(size, "big"), b""
    while len(data) < missing:
        data += line.recv(missing - len(data))
    return json.loads(data), list(fds)


def _load() -> None:
    import diffusers.loaders.peft  # noqa: F401
    import torch.distributed.fsdp  # noqa: F401
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel  # noqa: F401
    from transformers import AutoTokenizer, PreTrainedTokenizerFast, UMT5EncoderModel  # noqa: F401


def _watch(line: socket.socket, pid: int) -> None:
    """In a process between the server and the command: tells how it ended."""
    line.sendall(pid.to_bytes(8, "big"))
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    with contextlib.suppress(OSError):  # nobody waits any more
        line.sendall(code.to_bytes(8, "big", signed=True))


def serve(path: str) -> dict[str, Any]:
    """Serves until stdin ends; in the process of a command returns with what was asked for."""
    import selectors

    _load()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who watch
    waiting = selectors.DefaultSelector()
    waiting.register(listener, selectors.EVENT_READ)
    waiting.register(sys.stdin.buffer, selectors.EVENT_READ)
    os.write(1, b"ready\n")
    while True:
        if any(key.fileobj is not listener for key, _ in waiting.select()):
            os._exit(0)
        line, _ = listener.accept()
        request, fds = _receive(line)
        if os.fork():
            line.close()
            for fd in fds:
                os.close(fd)
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        listener.close()
        pid = os.fork()
        if pid:
            _watch(line, pid)
            os._exit(0)
        line.close()
        waiting.close()
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
            os.close(fd)
        return request


def main() -> None:
    """The server, or a command in one of its processes."""
    request = serve(sys.argv[1])
    module, *arguments = request["command"]
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

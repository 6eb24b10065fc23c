"""Commands that are run side by side: as processes of this computer, or on the nodes of a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Command:
    """A Python module to run, and where what it says goes."""

    module: str
    arguments: tuple[str, ...]
    log: Path


Done = Callable[[Command, int], None]
"""Called with a command that has ended, and its exit code: below 0 if a signal ended it."""


class Dispatcher(ABC):
    """Runs commands. A ``KeyboardInterrupt`` in :meth:`run` interrupts what is running, gently the first time, and is
    raised again when all have ended."""

    @abstractmethod
    def run(self, commands: Sequence[Command], done: Done, stopping: Callable[[], None] = lambda: None) -> None:
        """Runs all of them in their order, some at a time, and returns when the last has ended.

        Args:
            done: called as they end.
            stopping: called when it is interrupted, before it waits for what is running.
        """


def run_command(module: str, arguments: Sequence[str], log: str, started: Callable[[Any], None] | None = None) -> int:
    """Runs one command in a process of its own, here.

    It is no child of the terminal: Ctrl-C there is for whoever waits, and comes here from there.

    Args:
        started: called with the process.

    Returns:
        The exit code.
    """
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")},
        )
        if started is not None:
            started(process)
        try:
            while True:
                # Ray cancels a task with an interrupt that wakes nothing: one has to look up now and then.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(timeout=1)
        except BaseException:  # a Ray task that is cancelled
            process.terminate()
            process.wait()
            raise


class Local(Dispatcher):
    """Processes of this computer, ``at_once`` of them side by side."""

    def __init__(self, at_once: int = 1) -> None:
        self._at_once = at_once
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, commands: Sequence[Command], done: Done, stopping: Callable[[], None] = lambda: None) -> None:
        interrupted = False
        with ThreadPoolExecutor(self._at_once) as pool:
            waiting: dict[Future[int | None], Command] = {pool.submit(self._one, c): c for c in commands}
            while waiting:
                try:
                    ended, _ = wait(waiting, return_when=FIRST_COMPLETED)
                except KeyboardInterrupt:
                    if not interrupted:
                        stopping()
                    self._interrupt(at_once=interrupted)
                    interrupted = True
                    continue
                for future in ended:
                    command, code = waiting.pop(future), future.result()
                    if code is not None:
                        done(command, code)
        if interrupted:
            raise KeyboardInterrupt

    def _one(self, command: Command) -> int | None:
        process: list[subprocess.Popen[bytes]] = []

        def started(found: subprocess.Popen[bytes]) -> None:
            with self._lock:
                process.append(found)
                self._running.add(found)
                if self._stopped:
                    found.terminate()

        if self._stopped:
            return None
        try:
            return run_command(command.module, command.arguments, str(command.log), started)
        finally:
            with self._lock:
                self._running.difference_update(process)

    def _interrupt(self, at_once: bool) -> None:
        with self._lock:
            self._stopped = True
            for process in self._running:
                with contextlib.suppress(OSError):
                    if at_once:
                        process.kill()
                    else:
                        process.terminate()


class Ray(Dispatcher):
    """Tasks of a Ray cluster, as many at once as it has room for. Every node needs Longtake, the model, and the same
    folders under the same names, as on a shared file system; a node that is lost costs what came after its last
    snapshots.

    Args:
        address: of the cluster, ``auto`` for the one that this computer belongs to, ``local`` for a new one here.
        cpus, gpus: that one command needs.

    Raises:
        ValueError: in one sentence, if Ray is not installed or there is no such cluster.
    """

    def __init__(self, address: str, cpus: int = 1, gpus: float = 0) -> None:
        try:
            import ray
        except ImportError:
            raise ValueError("--ray needs Ray, which is not installed: pip install 'longtake[ray]'.") from None
        try:
            ray.init(None if address == "local" else address, log_to_driver=False, logging_level="error")
        except Exception as error:  # of many kinds, none of them Ray's own
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"There is no Ray cluster at {address!r} ({reason}).") from None
        room = ray.cluster_resources()
        for kind, needed in (("CPU", cpus), ("GPU", gpus)):
            if needed > room.get(kind, 0):
                raise ValueError(
                    f"A job needs {needed:g} {kind} and the Ray cluster at {address!r} has {room.get(kind, 0):g}: ask "
                    "for fewer --threads, or another --device."
                )
        self._ray = ray
        self._task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=3)(run_command)

    def run(self, commands: Sequence[Command], done: Done, stopping: Callable[[], None] = lambda: None) -> None:
        waiting = {self._task.remote(c.module, c.arguments, str(c.log)): c for c in commands}
        interrupted = False
        while waiting:
            try:
                (ended, *_), _ = self._ray.wait(list(waiting), num_returns=1)
            except KeyboardInterrupt:
                if not interrupted:
                    stopping()
                for task in waiting:
                    self._ray.cancel(task, force=interrupted)
                interrupted = True
                continue
            command = waiting.pop(ended)
            try:
                done(command, self._ray.get(ended))
            except self._ray.exceptions.RayError as error:
                if not interrupted:
                    command.log.parent.mkdir(parents=True, exist_ok=True)
                    with command.log.open("a", encoding="utf-8") as log:
                        log.write(f"Error: Ray could not run this job ({' '.join(str(error).split())[:200]}).\n")
                    done(command, 1)
        if interrupted:
            raise KeyboardInterrupt

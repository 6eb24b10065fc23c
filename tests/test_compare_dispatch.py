"""Commands side by side: as processes here, and as a Ray cluster would be asked to run them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from longtake.comparison.dispatch import Command, Dispatcher, Local, Ray

SLEEPER = """
import pathlib, signal, sys, time
folder, name, seconds = pathlib.Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
def stop(number, frame):
    (folder / f"{name}.stopped").touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
(folder / f"{name}.{time.monotonic_ns()}.begin").touch()
print("hello from", name, flush=True)
time.sleep(seconds)
(folder / f"{name}.{time.monotonic_ns()}.end").touch()
sys.exit(int(sys.argv[4]))
"""


@pytest.fixture
def sleeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Command]:
    """Commands that take a while, say something and end with a code."""
    (tmp_path / "sleeper_of_a_test.py").write_text(SLEEPER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))

    def command(name: str, seconds: float = 0, code: int = 0) -> Command:
        words = (str(tmp_path), name, str(seconds), str(code))
        return Command("sleeper_of_a_test", words, tmp_path / "logs" / f"{name}.log")

    return command


def ran(folder: Path) -> dict[str, tuple[int, int]]:
    """When each command began and ended."""
    marks: dict[str, dict[str, int]] = {}
    for path in folder.glob("*.*.*"):
        name, when, what = path.name.split(".")
        marks.setdefault(name, {})[what] = int(when)
    return {name: (found["begin"], found["end"]) for name, found in marks.items() if len(found) == 2}


def most_at_once(times: dict[str, tuple[int, int]]) -> int:
    return max(sum(a <= begin < b for a, b in times.values()) for begin, _ in times.values())


@pytest.mark.parametrize("at_once", [1, 3])
def test_side_by_side(at_once: int, sleeper: Callable[..., Command], tmp_path: Path) -> None:
    commands = [sleeper(f"c{i}", 0.2, code=i) for i in range(5)]
    ended: dict[str, int] = {}
    Local(at_once).run(commands, lambda command, code: ended.update({command.arguments[1]: code}))
    assert ended == {f"c{i}": i for i in range(5)}
    times = ran(tmp_path)
    assert len(times) == 5 and most_at_once(times) <= at_once
    assert [c.log.read_text() for c in commands] == [f"hello from c{i}\n" for i in range(5)]
    if at_once == 1:
        assert sorted(times, key=lambda name: times[name]) == [f"c{i}" for i in range(5)]


def interrupt(folder: Path, times: int) -> None:
    """Ctrl-C for this process, once a command has begun."""

    def send() -> None:
        until = time.monotonic() + 60
        while not list(folder.glob("*.begin")) and time.monotonic() < until:
            time.sleep(0.01)
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    threading.Thread(target=send, daemon=True).start()


def test_interrupted(sleeper: Callable[..., Command], tmp_path: Path) -> None:
    """What runs is asked to stop and waited for; what has not begun does not begin."""
    ended: dict[str, int] = {}
    interrupt(tmp_path, 1)
    with pytest.raises(KeyboardInterrupt):
        Local(1).run(
            [sleeper("a", 600), sleeper("b", 600)], lambda command, code: ended.update({command.arguments[1]: code})
        )
    assert ended == {"a": 130} and (tmp_path / "a.stopped").exists() and not list(tmp_path.glob("b.*"))


def test_interrupted_twice(tmp_path: Path) -> None:
    """The second time at once."""
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    (tmp_path / "deaf.py").write_text(code)
    ended: list[int] = []
    process: list[subprocess.Popen[bytes]] = []
    local = Local(1)

    def send() -> None:
        until = time.monotonic() + 60
        while not (tmp_path / "log").exists() or not (tmp_path / "log").read_text():
            assert time.monotonic() < until
            time.sleep(0.01)
        process.extend(local._running)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(tmp_path), before])
    try:
        threading.Thread(target=send, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            local.run([Command("deaf", (), tmp_path / "log")], lambda command, code: ended.append(code))
    finally:
        os.environ["PYTHONPATH"] = before
    assert ended == [-signal.SIGKILL] and process[0].poll() is not None


# --- Ray -----------------------------------------------------------------------------------------------------------


class StandIn(types.ModuleType):
    """What is used of Ray, with threads in place of a cluster. The real one is asked below, where it is installed."""

    class exceptions:
        class RayError(Exception):
            pass

    def __init__(self, room: dict[str, float]) -> None:
        super().__init__("ray")
        self.room, self.options, self.lost = room, {}, set[str]()

    def init(self, address: str | None, **_: Any) -> None:
        if address == "nowhere:1":
            raise ConnectionError("nobody answers\nthere")

    def cluster_resources(self) -> dict[str, float]:
        return self.room

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        self.options = options
        return lambda function: types.SimpleNamespace(remote=lambda *words: self._start(function, *words))

    def _start(self, function: Any, *words: Any) -> Any:
        task = types.SimpleNamespace(code=None, error=None)
        if words[1][1] in self.lost:
            task.error, task.thread = self.exceptions.RayError("the node is gone"), None
            return Handle(task)
        task.thread = threading.Thread(target=lambda: setattr(task, "code", function(*words)))
        task.thread.start()
        return Handle(task)

    def wait(self, tasks: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        while True:
            done = [t for t in tasks if t.task.thread is None or not t.task.thread.is_alive()][:num_returns]
            if done:
                return done, [t for t in tasks if t not in done]
            time.sleep(0.01)

    def get(self, handle: Any) -> int:
        if handle.task.error is not None:
            raise handle.task.error
        code: int = handle.task.code
        return code


class Handle:
    """Of a task; can be a key."""

    def __init__(self, task: Any) -> None:
        self.task = task


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    ray = StandIn({"CPU": 4.0})
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray


def test_what_ray_is_asked_for(stand_in: StandIn, sleeper: Callable[..., Command], tmp_path: Path) -> None:
    stand_in.lost.add("b")
    ended: dict[str, int] = {}
    commands = [sleeper("a"), sleeper("b"), sleeper("c", code=2)]
    Ray("auto", cpus=2).run(commands, lambda command, code: ended.update({command.arguments[1]: code}))
    assert ended == {"a": 0, "b": 1, "c": 2}
    assert stand_in.options["num_cpus"] == 2 and stand_in.options["num_gpus"] == 0
    assert "Error: Ray could not run this job (the node is gone)." in commands[1].log.read_text()


def test_no_cluster(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"There is no Ray cluster at 'nowhere:1' \(nobody answers there\)\."):
        Ray("nowhere:1")
    with pytest.raises(ValueError, match=r"needs 1 GPU and the Ray cluster at 'auto' has 0"):
        Ray("auto", gpus=1)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'longtake\[ray\]'"):
        Ray("auto")


@pytest.fixture
def real_ray(sleeper: Callable[..., Command]) -> Iterator[Dispatcher]:
    """Its workers have the environment of now, in which commands are found."""
    ray = pytest.importorskip("ray")
    yield Ray("local")
    ray.shutdown()


def test_a_real_cluster(real_ray: Dispatcher, sleeper: Callable[..., Command], tmp_path: Path) -> None:
    commands = [sleeper(f"c{i}", 0.2, code=i) for i in range(3)]
    ended: dict[str, int] = {}
    real_ray.run(commands, lambda command, code: ended.update({command.arguments[1]: code}))
    assert ended == {f"c{i}": i for i in range(3)} and len(ran(tmp_path)) == 3
    assert commands[1].log.read_text() == "hello from c1\n"
    for path in tmp_path.glob("*.begin"):
        path.unlink()
    interrupt(tmp_path, 1)
    with pytest.raises(KeyboardInterrupt):
        real_ray.run([sleeper("long", 600)], lambda command, code: None)
    assert (tmp_path / "long.stopped").exists()

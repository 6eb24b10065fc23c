"""One process per video: a lock that the system gives back when its holder is gone, however it went."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing is locked
    fcntl = None  # type: ignore[assignment]


def lock_path(video: str | os.PathLike[str]) -> Path:
    """Where the lock of a video lies: ``take.mp4.lock`` beside ``take.mp4``. The file alone locks nothing."""
    video = Path(video)
    return video.with_name(video.name + ".lock")


def is_locked(video: str | os.PathLike[str]) -> bool:
    """Whether a process is writing this video. Writes nothing."""
    if fcntl is None:
        return False
    try:
        file = os.open(lock_path(video), os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(file)  # and with it the lock
    return False


def locked_by_another(video: str | os.PathLike[str]) -> ValueError:
    """What to say of a video that is locked."""
    return ValueError(f"Another process is writing {video}: wait until it is done, or choose another file.")


class Lock:
    """Held from now on until :meth:`release`, or until this object or process is gone.

    Raises:
        ValueError: if another process, or another recording of this one, holds it.
        OSError: if the file cannot be made.
    """

    def __init__(self, video: str | os.PathLike[str]) -> None:
        self._path = lock_path(video)
        self._file: int | None = None
        while fcntl is not None and self._file is None:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Between the two calls, whoever held it may have removed this very file: then it locks nothing.
                there = os.stat(self._path)
                if os.path.samestat(there, os.fstat(file)):
                    self._file = file
            except BlockingIOError:
                raise locked_by_another(video) from None
            except FileNotFoundError:
                pass
            except OSError:  # a file system without locks
                return
            finally:
                if self._file is None:
                    os.close(file)

    def release(self) -> None:
        """Lets others in. Does nothing the second time."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()  # before the lock is given back, so that it is nobody else's
            os.close(self._file)
            self._file = None

    def __del__(self) -> None:
        self.release()

"""How this process treats the computer: what its threads do while they wait, and what becomes of freed memory.

Loading this module does not load torch. Both are for programs, such as the command line, and not for a library to do.
"""

from __future__ import annotations

import ctypes
import os
import platform

# Of glibc's `mallopt`, from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 1 << 28  # bytes; what is larger still comes from the system and goes back to it
_KEPT = 1 << 30


def wait_passively() -> None:
    """OpenMP threads sleep while they wait, unless the environment says otherwise. Before torch is loaded.

    Threads that spin make small machines, and machines with other work, several times slower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_freed_memory() -> bool:
    """Tells the C library to keep up to a gigabyte of freed memory for the next tensors; for work on a CPU.

    Otherwise glibc gives the larger tensors of every chunk back to the system and asks for them again, page by page: in
    float32 at 128x128, half of the time of the pocket model's decoder went into that.

    Returns:
        Whether it did: on Linux with glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT))

"""The C library's heap, told to keep what it has."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of glibc's mallopt(3)


def keep_heap() -> bool:
    """Lets the process keep freed memory for its next tensors; returns whether that could be asked for.

    By default glibc maps large tensors one by one and gives each back when it is freed, so that every operation on a
    CPU has its result faulted in page by page, and cleared: in training about a tenth of the time. Resident memory then
    stays at its peak. Only glibc knows these settings (mallopt, M_MMAP_MAX and M_TRIM_THRESHOLD).
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    wanted = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 1 << 28}
    return all(mallopt(name, value) == 1 for name, value in wanted.items())

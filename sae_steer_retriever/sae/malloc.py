"""One process-wide memory policy, for jobs that allocate large buffers in a loop."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_NEVER = 2**31 - 1


@cache
def keep_large_buffers() -> bool:
    """Returns whether glibc could be told to keep freed memory instead of giving it back to the kernel.

    Fitting and encoding allocate buffers of tens of megabytes at every step. glibc maps and unmaps each, and the
    kernel zeroes its pages again: that took two thirds of the CPU time in a measured fit. Only the first call of a
    process has an effect, and only with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_MMAP_THRESHOLD, _NEVER), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, 64 * 2**20))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)

"""Memory of the C library on Linux, for training on a CPU."""

from __future__ import annotations

import ctypes
import platform

# From malloc.h of glibc; the values are bytes, but for the number of maps.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_large_blocks() -> None:
    """Let freed tensors be used again instead of being returned to the system, which hands out zeroed pages anew.

    Does nothing where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 2**20)):
        mallopt(option, value)

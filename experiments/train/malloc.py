"""How the C library of Linux keeps freed memory, for training on a CPU."""

from __future__ import annotations

import ctypes
import platform

# Options of mallopt, from malloc.h of glibc. The value of M_MMAP_MAX is a number of maps, the others' are bytes.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_large_blocks() -> None:
    """Keep the memory of freed tensors in the process. Does nothing where the C library is not glibc."""
    # By default glibc maps each large block from the system, and returns the block when it is freed. A training step
    # frees and allocates the same large activations over and over. Each time the system hands out new pages, one page
    # fault each, and fills them with zeros first. `scripts/bench_training.py --malloc default` shows what that costs.
    # So:
    # - no maps (M_MMAP_MAX = 0): large blocks come from the heap, as small ones do;
    # - the heap is not trimmed (M_TRIM_THRESHOLD) and grows by 64 MiB at once (M_TOP_PAD).
    # The process keeps its largest size until it ends, which is what a training needs anyway.
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 2**20)):
        mallopt(option, value)

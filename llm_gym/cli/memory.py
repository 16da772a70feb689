"""How the process handles memory that tensors have freed."""

from __future__ import annotations

import ctypes
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MOST = 2**31 - 1


def keep_freed_memory() -> None:
    """Let glibc keep what tensors have freed, instead of handing it back to the system.

    An update frees and allocates the same large tensors over and over; handed back, each page is zeroed again when it
    is next touched, by one thread at a time. On two cores an update took 15 % longer, and its peak was the same. The
    environment variables MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ do the same for a script. Other allocators
    are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter in (TRIM_THRESHOLD, MMAP_THRESHOLD):
            libc.mallopt(parameter, MOST)

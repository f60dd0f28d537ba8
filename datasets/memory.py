"""Memory settings for a process that reads block after block."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed() -> None:
    """Let glibc reuse the memory of one block for the next instead of returning it to the system: blocks are
    larger than its largest threshold, and faulting in fresh pages took half of a reader's time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # another C library has no such setting
        for threshold in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            mallopt(threshold, 1 << 30)


def give_back() -> None:
    """Return to the system what `keep_freed` kept, for a process that may become idle."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

"""How a process that reads block after block treats its memory."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed() -> None:
    """Let glibc reuse the memory of the last block for the next one instead of returning it to the system:
    blocks are larger than its largest threshold, and faulting fresh pages in took half of a reader's time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # another C library decides for itself
        for threshold in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            mallopt(threshold, 1 << 30)


def give_back() -> None:
    """Return to the system what `keep_freed` kept, for a process that may have nothing more to do."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

"""Memory that was freed is kept for the next step, instead of being given back and asked for anew.

A training step frees all that its backward pass read. glibc gives large pieces back to the system,
which hands out zeroed pages one by one when the next step asks for them: a fault every 4 KiB.
"""

import ctypes
import sys

# Of <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER = -1
LARGEST = 2**30  # bytes; tensors beyond it are mapped one by one, as they would be anyway


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed; return whether it can (glibc alone)."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, NEVER) and mallopt(M_MMAP_THRESHOLD, LARGEST))

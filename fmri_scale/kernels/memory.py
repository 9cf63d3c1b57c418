"""Memory of a process that trains on a CPU: keep what tensors freed, instead of giving it back to the system.

glibc maps every large block anew and unmaps it when it is freed, so each big activation costs a page fault per 4 KB
and the kernel zeroes it: half of a small model's training step, a tenth of the base model's. Kept in the heap,
freed blocks are used again. The peak of resident memory stays the same within a few per cent.
"""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # <malloc.h>


def reuse_freed_memory() -> bool:
    """Set it for this process, for ever; call before the first tensors are made.

    Returns
    -------
    Whether the C library knows these settings (glibc does; musl and macOS do not, and stay as they are).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))

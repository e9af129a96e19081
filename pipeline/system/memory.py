"""What becomes of the memory that this process frees, as glibc's malloc has it.

By default malloc gives freed memory back to the kernel where much of it lies at the end of the
heap, and takes and returns large pieces one by one. A training on CPUs frees a step's activations
and asks for as many again in the next: it then pays for each page at each step, as the kernel
clears it. How much depends on which sizes happened to be freed before, as the limits move with
them, so that the same step takes longer in one process than in another.
"""

from __future__ import annotations

import ctypes
import os

# malloc.h; the values are those of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_NEVER = -1
_DEFAULT_MMAP_MAX = 65536
_HIGHEST_MMAP_THRESHOLD = 32 << 20  # to which malloc itself raises it on 64-bit systems

_is_kept = False


def keep_freed_memory() -> bool:
    """From now on what this process frees stays its own, for its next use of it. Returns whether it
    is so.

    Does nothing with settings of malloc in the environment, which are the user's, nor with another
    C library than glibc. What it costs is that memory between two large uses is not free for
    other processes. In other threads than the main one it does not hold for pieces of 64 MiB and
    more, the size of their heaps.
    """
    global _is_kept
    if not _has_settings():
        none_apart = _set(_M_MMAP_MAX, 0)  # the largest limit that malloc takes is below one tensor
        _is_kept = _set(_M_TRIM_THRESHOLD, _NEVER) and none_apart
    return _is_kept


def give_back_freed_memory() -> None:
    """Undoes `keep_freed_memory`: gives the kernel what is free now, and in future what is freed
    beyond malloc's highest limits (they no longer move once they have been set)."""
    global _is_kept
    if not _is_kept:
        return
    _is_kept = False
    _set(_M_MMAP_MAX, _DEFAULT_MMAP_MAX)
    _set(_M_MMAP_THRESHOLD, _HIGHEST_MMAP_THRESHOLD)
    _set(_M_TRIM_THRESHOLD, 2 * _HIGHEST_MMAP_THRESHOLD)
    ctypes.CDLL(None).malloc_trim(0)


def _has_settings() -> bool:
    """Whether the environment says how malloc is to work."""
    return "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(
        name.startswith("MALLOC_") for name in os.environ
    )


def _set(parameter: int, value: int) -> bool:
    """Sets a parameter of malloc; returns whether that worked."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(parameter, value) == 1

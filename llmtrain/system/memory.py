"""glibc's allocator and torch's huge pages on CPUs: set by the command line, never by an import.

A tuning run on a CPU frees and asks for the same large blocks in every step. glibc hands them back to the system and
fetches them again page by page, which costs a fifth of the time of a full update (PPO, SmolLM2-135M with a separate
critic, 2 cores). `tune_for_training` keeps them; steps peak as before.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # the numbers that malloc.h gives these options
SEPARATE_BYTES = 2**18
MAX_SEPARATE = 2**16  # glibc's own limit
OUT_OF_MEMORY = ("DefaultCPUAllocator: ", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Texts of torch's errors for a lack of memory on a CPU, an accelerator, and in its libraries."""
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"

_is_tuned = False  # glibc has no query for its options


def tune_for_training() -> None:
    """Keep freed memory in this process, and put large tensors on huge pages; for processes that train on a CPU.

    Huge pages save a tenth of the memory of a tuning run, if Linux leaves that choice to programs. torch reads the
    variable once, when it first makes a tensor, and importing peft makes one: call this before.
    """
    global _is_tuned
    os.environ.setdefault(HUGE_PAGES, "1")
    set_allocator(M_TRIM_THRESHOLD, -1)
    set_allocator(M_MMAP_MAX, 0)
    _is_tuned = True


def set_allocator(option: int, value: int) -> None:
    """Set an option of glibc's allocator; nothing under another allocator."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(option, value)


@contextmanager
def separate_allocations() -> Iterator[None]:
    """Keep large allocations separate from the heap in a tuned process, so that freeing them leaves no holes.

    For what lives from one phase to the next; what comes and goes is faster on the heap. An untuned allocator
    separates them anyway.
    """
    if not _is_tuned:
        yield
        return
    set_allocator(M_MMAP_THRESHOLD, SEPARATE_BYTES)
    set_allocator(M_MMAP_MAX, MAX_SEPARATE)
    try:
        yield
    finally:
        set_allocator(M_MMAP_MAX, 0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a lack of memory, Python's own or torch's, which has several classes and texts for it."""
    if isinstance(error, MemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError" or any(text in said for text in OUT_OF_MEMORY)
    )

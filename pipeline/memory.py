"""What memory a process has used, and what the machine has left."""

from __future__ import annotations

import resource
import sys

import psutil

__all__ = ["available_memory", "peak_memory"]


def peak_memory() -> int:
    """Return this process' peak resident memory in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def available_memory() -> int:
    """Return the bytes of memory that new processes could use on this machine."""
    return int(psutil.virtual_memory().available)

"""What memory a process has used, and what memory and cores it may use."""

from __future__ import annotations

import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil

__all__ = ["available_cores", "available_memory", "peak_memory"]


def peak_memory() -> int:
    """Return this process' peak resident memory in bytes."""
    with suppress(OSError):
        # Linux' own count; that of getrusage starts with what the parent process had when it started this one.
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def available_memory() -> int:
    """Return the bytes of memory that new processes could use on this machine."""
    return int(psutil.virtual_memory().available)


def available_cores() -> int:
    """Return the cores this process may run on, which a batch system can make fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)

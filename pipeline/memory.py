"""What memory a process has used, and what the machine has left."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil

__all__ = ["available_memory", "peak_memory"]


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

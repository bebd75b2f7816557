"""What memory a process has used, and what memory and cores it may use."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

__all__ = ["available_cores", "available_memory", "peak_memory"]

_MOUNT: Final = Path("/sys/fs/cgroup")
_MEMBERSHIP: Final = Path("/proc/self/cgroup")


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
    """Return the bytes of memory that new processes could use: on this machine, or in this batch job or container."""
    return min([int(psutil.virtual_memory().available), *_control_groups()])


def _control_groups(mount: Path = _MOUNT, membership: Path = _MEMBERSHIP) -> Iterator[int]:
    """Yield the bytes left below the limit of every control group that this process is in, innermost first.

    A group's use counts the page cache, which is given up when memory is needed: what is inactive of it is not used.
    """
    with suppress(OSError, ValueError):
        for line in membership.read_text(encoding="utf-8").splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root = mount / "memory" if controllers else mount
            files = (
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                if controllers
                else ("memory.max", "memory.current", "inactive_file")
            )
            group = root / name.lstrip("/")
            # In a container the name is the host's, and the mount begins below it.
            for folder in [one for one in (group, *group.parents) if one.is_relative_to(root)]:
                with suppress(OSError, ValueError):
                    limit, used = (int((folder / file).read_text(encoding="ascii")) for file in files[:2])
                    stat = dict(one.split() for one in (folder / "memory.stat").read_text("ascii").splitlines())
                    yield max(0, limit - used + int(stat.get(files[2], 0)))


def available_cores() -> int:
    """Return the cores this process may run on, which a batch system can make fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)

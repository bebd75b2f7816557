"""The machine: memory and cores, work side by side, which software made a result, and memory that is used again."""

from __future__ import annotations

import importlib
import math
import os
import platform
import resource
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import psutil
from numpy.typing import DTypeLike, NDArray
from threadpoolctl import ThreadpoolController

from pipeline.base.direct_io import BLOCK, aligned_buffer
from pipeline.errors import ResourceError

__all__ = [
    "Workspace",
    "available_cores",
    "available_memory",
    "compute_ahead",
    "describe_environment",
    "format_bytes",
    "one_blas_thread",
    "peak_memory",
    "process_workspace",
    "release_workspace",
]

_MOUNT: Final = Path("/sys/fs/cgroup")
_MEMBERSHIP: Final = Path("/proc/self/cgroup")
#: Addresses that a run reserves and never touches: libraries, and for every core stacks and heaps of threads. A run of
#: 0.5 GiB on two cores was measured to reserve 3.0 GiB.
_RESERVED: Final = 2 * 2**30
_RESERVED_BY_CORE: Final = 2**28
_LEAST_MEMORY: Final = 2**28


def one_blas_thread() -> AbstractContextManager[Any]:
    """Let BLAS use one thread of its own for the block: then the bits of its products depend on no number of cores.

    What :func:`threadpoolctl.threadpool_limits` does, without looking through all libraries of the process every time.
    """
    limit: AbstractContextManager[Any] = _find_blas().limit(limits=1, user_api="blas")
    return limit


@cache
def _find_blas() -> ThreadpoolController:
    """Return the libraries that compute our products: NumPy's, and SciPy's own.

    They are looked for once. Before threadpoolctl 3.8 this could wait for ever for an import in another thread.
    """
    importlib.import_module("scipy.linalg.blas")
    return ThreadpoolController()


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
    return min([int(psutil.virtual_memory().available), *control_groups(), *_limit_on_addresses()])


def _limit_on_addresses() -> Iterator[int]:
    """Yield the memory that ``ulimit -v`` leaves, if it is set: a process reserves more addresses than it uses.

    Raises
    ------
    ResourceError
        If it leaves too little. Beyond it, C libraries end the process or wait for threads that never start.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return
    reserved = _RESERVED + available_cores() * _RESERVED_BY_CORE
    if limit - reserved < _LEAST_MEMORY:
        raise ResourceError(
            f"the limit on addresses (ulimit -v) is {format_bytes(limit)}, and libraries and threads reserve "
            f"{format_bytes(reserved)} beside what they use; raise it (ulimit -v unlimited) or work elsewhere"
        )
    yield limit - reserved


def control_groups(mount: Path = _MOUNT, membership: Path = _MEMBERSHIP) -> Iterator[int]:
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


# --- Which software made a result.

_PACKAGES = ("dask", "distributed", "h5py", "headroom", "numba", "numpy", "pandas", "scipy", "xarray", "zarr")


def describe_environment() -> dict[str, Any]:
    """Return versions, platform and, in a checkout, the git commit (None elsewhere)."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"versions": versions, "platform": platform.platform(), "git_commit": _git_commit()}


def _git_commit() -> str | None:
    """Return the commit of this package's checkout, ``+changes`` appended if it was edited since."""
    source = Path(__file__).resolve().parents[1]
    if not (source.parent / ".git").exists():
        return None
    commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
    try:
        commit, changes = (
            subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if changes else commit


# --- Large arrays that one piece of work leaves to the next: the first touch of fresh memory is slow.
#
# On a virtual machine, fresh pages may cost ten times what their use does, and a process that allocates and frees its
# accumulators for every partition pays that again and again. One block of memory for each process, handed out anew for
# each piece of work, pays once; pages that are never touched cost nothing.


ItemT = TypeVar("ItemT")
FoundT = TypeVar("FoundT")


def compute_ahead(
    work: Callable[[ItemT], FoundT], items: Iterable[ItemT], *, threads: int = 1, ahead: int = 1
) -> Generator[FoundT]:
    """Yield what a function makes of each item, in order. Threads make the next ones meanwhile, at most ``ahead``."""
    waiting: deque[Future[FoundT]] = deque()
    executor = ThreadPoolExecutor(threads, "ahead")
    try:
        for item in items:
            waiting.append(executor.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


class Workspace:
    """One block of memory that grows to the largest request; not for two pieces of work at once."""

    def __init__(self) -> None:
        self._block = np.empty(0, np.uint8)

    def lease(self, *requests: tuple[Sequence[int], DTypeLike]) -> list[NDArray[Any]]:
        """Return arrays of the given shapes and types, of any content; they are valid until the next call."""
        types = [np.dtype(dtype) for _, dtype in requests]
        sizes = [math.prod(shape) * dtype.itemsize for (shape, _), dtype in zip(requests, types, strict=True)]
        starts = np.cumsum([0, *(-(-size // BLOCK) * BLOCK for size in sizes)]).tolist()
        if self._block.size < starts[-1]:
            self.clear()
            self._block = aligned_buffer(starts[-1])
        return [
            self._block[start : start + size].view(dtype).reshape(shape)
            for start, size, dtype, (shape, _) in zip(starts, sizes, types, requests, strict=False)
        ]

    def clear(self) -> None:
        """Give the memory back."""
        self._block = np.empty(0, np.uint8)


_LOCK = threading.Lock()
_OF_THIS_PROCESS = Workspace()


@contextmanager
def process_workspace() -> Iterator[Workspace]:
    """Give the workspace of this process, to one thread at a time.

    A Dask worker may have many threads, but a plan's memory is that of one piece of work at a time; the others wait
    here.
    """
    with _LOCK:
        yield _OF_THIS_PROCESS


def release_workspace() -> None:
    """Give the memory of this process' workspace back, unless somebody uses it: nobody waits for a task given up."""
    if _LOCK.acquire(blocking=False):
        try:
            _OF_THIS_PROCESS.clear()
        finally:
            _LOCK.release()


def format_bytes(count: float) -> str:
    """Return a size for people, in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"

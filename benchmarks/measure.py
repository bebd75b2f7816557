"""Wall time and peak memory of a command and all its descendants; and what the machine is.

A measurement is a process of its own: its memory is fresh, its peak is its own, and nothing is left of it. What a
script knows best itself (seconds of one step, R²) it prints as one line of JSON, the last one.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from threadpoolctl import threadpool_info

from pipeline.base import MEMORY_VARIABLES

__all__ = [
    "HERE",
    "INTERVAL",
    "Measured",
    "MeasurementError",
    "count_bytes",
    "count_repeats",
    "describe_machine",
    "format_gib",
    "measure",
    "measure_peer",
    "measure_script",
    "median",
    "tree_memory",
    "warm_up",
]

HERE = Path(__file__).parent
INTERVAL = 0.1
#: One repetition of less than this is repeated five times.
SHORT_SECONDS = 15.0
#: No measurement takes longer, unless it hangs.
LIMIT_SECONDS = 900.0
_PACKAGES = ("numpy", "scipy", "numba", "dask", "distributed", "zarr", "h5py", "scikit-learn", "dask-ml")


class MeasurementError(RuntimeError):
    """A measured command failed."""


@dataclass(frozen=True)
class Measured:
    """One run of one command.

    Attributes
    ----------
    seconds
        Wall time, from its start to its end.
    peak
        Largest sum of memory over the process tree in bytes; 0 if it was not sampled.
    output
        Its standard output.
    """

    seconds: float
    peak: int
    output: str

    @property
    def facts(self) -> dict[str, Any]:
        """The JSON object that the command printed last."""
        return dict(json.loads(self.output.strip().splitlines()[-1]))


def measure(
    command: Sequence[str | Path], *, interval: float = INTERVAL, environment: Mapping[str, str] | None = None
) -> Measured:
    """Run a command, time it, and sample the memory of its process tree.

    Parameters
    ----------
    command
        Program and arguments.
    interval
        Seconds between samples; 0 for none, where a sample's few milliseconds of CPU would count.
    environment
        That of the command; None is this process' own.

    Raises
    ------
    MeasurementError
        If the command fails; the message ends with what it said last.
    """
    words = [str(word) for word in command]
    peak = 0
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(words, stdout=output, stderr=errors, text=True, env=environment)
        try:
            while interval and process.poll() is None and time.perf_counter() - started < LIMIT_SECONDS:
                peak = max(peak, tree_memory(process.pid))
                # Waiting, not sleeping, so that the end is seen when it comes.
                with suppress(subprocess.TimeoutExpired):
                    process.wait(interval)
            process.wait(max(0.0, LIMIT_SECONDS - (time.perf_counter() - started)))
        except subprocess.TimeoutExpired:
            raise MeasurementError(f"{_name(words)} has not ended within {LIMIT_SECONDS:.0f} s") from None
        finally:
            if process.poll() is None:
                _end_tree(process.pid)
                process.wait()
        seconds = time.perf_counter() - started
        output.seek(0)
        errors.seek(0)
        if process.returncode != 0:
            said = " | ".join(errors.read().strip().splitlines()[-5:])
            raise MeasurementError(f"{_name(words)} failed: {said}")
        return Measured(seconds, peak, output.read())


def _name(words: Sequence[str]) -> str:
    """Name a command in a message, without the folders it is in."""
    return " ".join(Path(word).name for word in words[:4])


def _end_tree(pid: int) -> None:
    """End a process and all its descendants, which an interrupted benchmark must not leave behind."""
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in [*root.children(recursive=True), root]:
            with suppress(psutil.Error):
                process.kill()


def measure_script(script: str, *arguments: object, interval: float = 0) -> Measured:
    """Run a script of this folder in a process of its own, with the variables that ``headroom`` sets for itself."""
    words = [sys.executable, HERE / script, *map(str, arguments)]
    return measure(words, interval=interval, environment=MEMORY_VARIABLES | os.environ)


def measure_peer(script: str, *arguments: object, interval: float = 0) -> Measured:
    """Run a script of this folder that uses another tool, as whoever uses that would run it."""
    return measure([sys.executable, HERE / script, *map(str, arguments)], interval=interval)


def tree_memory(pid: int) -> int:
    """Return the memory of a process and all its descendants in bytes.

    Proportional set sizes, so that pages which processes share count once; resident sizes where the system has none.
    """
    total = 0
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.Error):
                memory = process.memory_full_info()
                total += getattr(memory, "pss", memory.rss)
    return total


def count_repeats(wanted: int | None, seconds: float) -> int:
    """Return how often to measure what took ``seconds`` once: what the user wants, else 5 times if short, 3 if long."""
    if wanted is not None:
        return wanted
    return 5 if seconds < SHORT_SECONDS else 3


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def format_gib(count: float) -> str:
    """Return bytes in GiB."""
    return f"{count / 2**30:.2f} GiB"


def warm_up(folder: Path) -> None:
    """Read all files of a folder once, so that every repetition finds them in the page cache."""
    buffer = memoryview(bytearray(2**24))
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with open(path, "rb", buffering=0) as stream:
                while stream.readinto(buffer):
                    pass


def count_bytes(folder: Path) -> int:
    """Return the size of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def describe_machine() -> list[str]:
    """Return what decides the numbers, one fact a line; nothing that tells whose machine it is."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    libraries = sorted({_describe_blas(entry) for entry in threadpool_info() if entry["user_api"] == "blas"})
    packages = ", ".join(f"{name} {version(name)}" for name in ("headroom", *_PACKAGES))
    return [
        f"CPU: {_cpu_model()}, {cores} cores for this process",
        f"memory: {format_gib(psutil.virtual_memory().total)}",
        f"BLAS: {'; '.join(libraries)}",
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, {packages}",
    ]


def _describe_blas(entry: dict[str, Any]) -> str:
    kernel = f", {entry['architecture']} kernels" if entry.get("architecture") else ""
    return f"{entry['internal_api']} {entry.get('version')}{kernel}, {entry['num_threads']} threads"


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

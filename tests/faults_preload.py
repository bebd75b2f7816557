"""Loaded by every Dask worker of a test through Dask's own setting ``distributed.worker.preload``.

What it does to the worker stands in ``HEADROOM_FAULTS``, as JSON: nothing of this is known to the code under test.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary


def dask_setup(worker: Any) -> None:
    """Slow this worker down, and let it tell what it writes."""
    faults = json.loads(os.environ["HEADROOM_FAULTS"])
    from pipeline.moments import Moments, MomentsWriter

    begin, write = MomentsWriter.__init__, MomentsWriter.write
    to_begin: WeakKeyDictionary[MomentsWriter, int] = WeakKeyDictionary()
    to_end: WeakKeyDictionary[MomentsWriter, int] = WeakKeyDictionary()
    lock = threading.Lock()
    ballast: list[bytes] = []

    def begun(writer: MomentsWriter, folder: Path, n_cells: int, header: dict[str, Any]) -> None:
        begin(writer, folder, n_cells, header)
        to_begin[writer] = to_end[writer] = n_cells

    def is_last(cells: WeakKeyDictionary[MomentsWriter, int], writer: MomentsWriter) -> bool:
        with lock:
            cells[writer] -= 1
            return cells[writer] == 0

    def disturbed(writer: MomentsWriter, cell: int, moments: Moments) -> None:
        # The piece of work is whole when its last cell is written; several threads may be at it.
        if is_last(to_begin, writer):
            pause(Path(faults["hold"]) if "hold" in faults else None)
        write(writer, cell, moments)
        if not is_last(to_end, writer):
            return
        with open(faults["marks"], "a") as marks:
            marks.write(f"{os.getpid()}\n")
        while resident_mib() < faults.get("fill_mib", 0):
            ballast.append(os.urandom(2**20))  # random: pages of zeros cost no memory
        time.sleep(faults.get("seconds", 0))
        if "gate" in faults:
            wait_at(Path(faults["gate"]), Path(faults["marks"]), faults["pieces"])

    MomentsWriter.__init__, MomentsWriter.write = begun, disturbed  # type: ignore[method-assign]


def wait_at(gate: Path, marks: Path, pieces: int) -> None:
    """Once so many pieces are written in all, wait for the gate to open: what is disturbed is surely in the middle."""
    deadline = time.monotonic() + 120
    while marks.read_text().count("\n") >= pieces and not gate.exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def resident_mib() -> float:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def pause(hold: Path | None) -> None:
    """Keep the first worker that comes here until the file is there: its piece is computed, and not yet written."""
    if hold is None:
        return
    try:
        with open(hold.with_suffix(".taken"), "x") as taken:
            taken.write(f"{os.getpid()}\n")
    except FileExistsError:
        return
    while not hold.exists():
        time.sleep(0.05)

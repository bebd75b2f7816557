"""``headroom`` in a process that may not listen and draws no figures; told to, it dies after so many written pieces.

Usage: ``python tests/part_process.py PIECES ARGUMENT...``; with 0 pieces it lives.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import Any

from without_figures import draw_nothing

from pipeline.cli import main
from pipeline.moments import MomentsWriter


def refuse(*_: Any) -> None:
    raise PermissionError("this site allows no process to listen")


def die_after(pieces: int) -> None:
    finish, written = MomentsWriter.finish, 0

    def finish_or_die(writer: MomentsWriter, cells: Any) -> None:
        nonlocal written
        if written == pieces:  # in the middle of the next one
            os.kill(os.getpid(), signal.SIGKILL)
        written += 1
        finish(writer, cells)

    MomentsWriter.finish = finish_or_die  # type: ignore[method-assign]


if __name__ == "__main__":
    socket.socket.bind = socket.socket.listen = refuse  # type: ignore[assignment,method-assign]
    draw_nothing()
    if int(sys.argv[1]):
        die_after(int(sys.argv[1]))
    main(sys.argv[2:])

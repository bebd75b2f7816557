"""The command as tests start it: within this process, or as a process of its own that hears the terminal's signals."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main

#: The program as a user starts it, for the tests that need a process of its own.
HEADROOM = str(Path(sys.executable).with_name("headroom"))


#: The same in a process that draws no figures.
WITHOUT_FIGURES = Path(__file__).with_name("without_figures.py")


def put_on_path(folder: Path) -> str:
    """Make a command ``headroom`` that draws no figures, and return a PATH where it comes first, then this Python."""
    folder.mkdir()
    command = folder / "headroom"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(WITHOUT_FIGURES))} "$@"\n')
    command.chmod(0o755)
    return os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])


def invoke(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run the command here; return its exit code and what it wrote, which is never a traceback."""
    try:
        main([str(argument) for argument in arguments])
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return code, captured.out, captured.err


def require_one_line(err: str) -> None:
    """A user's mistake is told in one line, without a traceback."""
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("headroom: ")]) == 1


def hear_interrupts() -> None:
    """Undo what a shell does to background jobs, which ignore Ctrl-C, and ``nohup``: children inherit it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def wait_until(is_so: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    """Return the first true answer; fail with ``what`` when none comes in time."""
    deadline = time.monotonic() + seconds
    while not (answer := is_so()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.02)
    return answer

"""Ctrl-C and termination while the command starts: they end it at any import, with their exit code and no traceback."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import hear_interrupts

import pipeline

pytestmark = pytest.mark.faults  # each starts the real command

ROOT = Path(pipeline.__file__).parents[1]
PRELOAD = Path(__file__).with_name("preload")
#: Imports of a run, after the first of headroom's own, are about 2,800; the last hundreds of them draw figures.
IMPORTS = 2600
_GENERATOR = random.Random(19)
MOMENTS = [(signal.SIGINT if k % 5 else signal.SIGTERM, _GENERATOR.randrange(IMPORTS)) for k in range(12)]


@pytest.mark.parametrize(("number", "at"), MOMENTS)
def test_a_signal_ends_the_command(
    number: signal.Signals, at: int, hostile_config: Path, finished: Path, tmp_path: Path
) -> None:
    (finished / "finished.json").unlink(missing_ok=True)  # or it would see that it has nothing to do
    ended = subprocess.run(
        [sys.executable, "-m", "pipeline", "run", hostile_config, "--out", finished, "--quiet"],
        env=os.environ | {"PYTHONPATH": f"{PRELOAD}:{ROOT}", "HEADROOM_SIGNAL": f"{int(number)} {at}"},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        preexec_fn=hear_interrupts,
    )
    assert b"Traceback" not in ended.stdout + ended.stderr
    # Before the command begins SIGTERM ends the process by itself, which shells call 143, too.
    assert ended.returncode in (128 + number, -signal.SIGTERM), ended.stderr

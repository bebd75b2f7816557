"""Other people's machines: the real command, in a process of its own, under everything that disturbs its start.

Shared here: one small finished run, and one way to start the command.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import HEADROOM, hear_interrupts

import pipeline
from pipeline.config import ExperimentConfig
from pipeline.run import render_run
from pipeline.scoring import RunResults

#: Settings of the machine that runs the tests, which must not decide about the command.
_OWN = ("PYTHONWARNINGS", "PYTHONUTF8", "OMP_NUM_THREADS", "MPLBACKEND", "DASK_CONFIG")


@dataclass(frozen=True)
class Ended:
    """How a command ended; it never shows a traceback, and says at most one message."""

    code: int
    out: str
    err: str

    def require(self, code: int, word: str = "") -> None:
        """Require an exit code and, where it is no success, one message with a word in it."""
        assert self.code == code, self
        assert "Traceback" not in self.out + self.err, self
        messages = [line for line in self.err.splitlines() if line.startswith("headroom: ")]
        assert len(messages) <= 1, self
        assert word in "".join(messages), self


Command = Callable[..., Ended]


@pytest.fixture
def headroom(tmp_path: Path) -> Command:
    """The command, started in an empty folder: ``headroom("report", run, MPLBACKEND="no-such")``."""

    def start(
        *arguments: object, shell: str = "", before: Callable[[], None] = lambda: None, **environment: str
    ) -> Ended:
        variables: Mapping[str, str] = {name: value for name, value in os.environ.items() if name not in _OWN}
        words: list[str] = [HEADROOM, *map(str, arguments)]
        if shell:  # such as ">&-", which closes standard output
            words = ["sh", "-c", f'"$@" {shell}', "sh", *words]

        def prepare() -> None:
            hear_interrupts()
            before()

        ended = subprocess.run(
            words,
            env={"PYTHONPATH": str(Path(pipeline.__file__).parents[1]), **variables, **environment},
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            preexec_fn=prepare,
        )
        return Ended(ended.returncode, *(text.decode(errors="replace") for text in (ended.stdout, ended.stderr)))

    return start


@pytest.fixture(scope="session")
def hostile_config(small_config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of the finished run, as a file."""
    path = tmp_path_factory.mktemp("hostile") / "small.yaml"
    path.write_text(yaml.safe_dump(small_config.to_dict(), sort_keys=False))
    return path


@pytest.fixture(scope="session")
def finished(small_run: RunResults, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its page, where ``headroom run`` finds nothing to do but to say the results."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(small_run.folder, folder)
    render_run(folder)
    return folder


@pytest.fixture
def rerun(headroom: Command, hostile_config: Path, finished: Path) -> Callable[..., Ended]:
    """``headroom run`` on the finished run, which imports every library and computes next to nothing."""

    def start(*options: object, **disturbance: Any) -> Ended:
        (finished / "finished.json").unlink(missing_ok=True)  # or it would see that it has nothing to do
        return headroom("run", hostile_config, "--out", finished, "--quiet", *options, **disturbance)

    return start

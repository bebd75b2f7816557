"""What tests of faults share: runs in processes of their own, a Dask cluster whose parts can be killed one by one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import pytest
import yaml
from commands import WITHOUT_FIGURES, wait_until
from distributed import Client
from distributed.security import Security

from pipeline.scoring import RunResults

PRELOAD = Path(__file__).with_name("faults_preload.py")
#: Partitions times draws of the small experiment.
ALL_PIECES = 14
#: What a run must never leave where it did not come to its end.
FINAL = ("results.csv", "per_bin_results.csv", "summary.json", "metadata.json", "report.html", "report.md")
#: Deadlines of the code under test, shortened: Dask's own settings, see pipeline/tasks_watch.py.
SHORT_DEADLINES = {
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "5s",
    "DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT": "5s",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "4s",
}


@pytest.fixture(scope="session")
def undisturbed(small_run: RunResults) -> Path:
    """The run folder of the small experiment when nothing disturbs it."""
    return small_run.folder


def products(folder: Path) -> dict[str, bytes]:
    """Return all that a run computed, byte for byte: tables, summary, predictions, models, moments."""
    patterns = ("*.csv", "summary.json", "predictions.parquet", "models/*", "moments/*/fold-*/*")
    files = [file for pattern in patterns for file in folder.glob(pattern)]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def require_equal(folder: Path, undisturbed: Path) -> None:
    """A disturbed run's results are those of an undisturbed one, and nothing half-made is left."""
    found, expected = products(folder), products(undisturbed)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert not list(folder.rglob("*.tmp"))


def require_nothing_final(folder: Path) -> None:
    """A run that failed shows nothing that could be taken for its result."""
    assert [name for name in FINAL if (folder / name).exists()] == []


class Faults:
    """What happens to workers, as an environment for the processes that start them.

    Parameters
    ----------
    folder
        For the marks that workers leave.
    pieces
        After so many written pieces, in all, every worker waits after each further one until :meth:`go_on` is called.
    options
        See ``faults_preload.py``.
    """

    def __init__(self, folder: Path, pieces: int | None = None, **options: Any) -> None:
        self.marks, self._gate = folder / "marks", folder / "gate"
        settings = {"marks": str(self.marks), **options}
        if pieces is not None:
            settings |= {"gate": str(self._gate), "pieces": pieces}
        self.environment = {"DASK_DISTRIBUTED__WORKER__PRELOAD": str(PRELOAD), "HEADROOM_FAULTS": json.dumps(settings)}

    def go_on(self) -> None:
        """Let the workers do the rest without a pause."""
        self._gate.touch()

    def writers(self) -> list[int]:
        """Return the process that wrote each piece so far, in order."""
        return [int(line) for line in self.marks.read_text().split()] if self.marks.exists() else []

    def wait_for_pieces(self, count: int, seconds: float = 60.0) -> list[int]:
        """Wait until so many pieces are written, and return by whom."""
        return list(wait_until(lambda: (w := self.writers())[count - 1 :] and w, f"{count} pieces", seconds))


class Run:
    """``headroom run`` in a process of its own, without figures; a context manager that leaves none behind."""

    def __init__(self, config: Path, out: Path, *options: str, environment: Mapping[str, str] | None = None) -> None:
        self.out = out
        self._log = config.with_name(f"{out.name}.{time.monotonic_ns()}.log")
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(WITHOUT_FIGURES), "run", str(config), "--out", str(out), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | dict(environment or {}),
                cwd=config.parent,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(f"the run said:\n{self.said}")
        for child in self.children():
            child.kill()
        self.process.kill()
        self.process.wait(10)

    def children(self) -> list[psutil.Process]:
        """Return the processes that the run started."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    @property
    def said(self) -> str:
        """All that it printed so far."""
        return self._log.read_text()

    def finish(self, code: int, seconds: float = 60.0) -> str:
        """Wait for its end, which must come in time, with this exit code and no traceback; return what it printed."""
        try:
            found = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the run hangs; it said:\n{self.said}")
        assert found == code, self.said
        assert "Traceback" not in self.said, self.said
        if code:
            assert len([line for line in self.said.splitlines() if line.startswith("headroom: ")]) == 1, self.said
        return self.said


def is_gone(process: psutil.Process) -> bool:
    """Whether a process has ended; a zombie has."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class SeparateCluster:
    """A scheduler and workers in processes of their own, on loopback with TLS; a context manager.

    Workers have no nanny, as if each were a machine: a stopped process is a machine that no packet reaches.
    """

    def __init__(self, folder: Path, workers: int = 2, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.scheduler_file = folder / "scheduler.json"
        security = Security.temporary()
        self.certificates = folder / "certificates"
        self.certificates.mkdir(mode=0o700)
        self._tls: list[str] = []
        for option, name, content in (
            ("--tls-ca-file", "ca.pem", security.tls_ca_file),
            ("--tls-cert", "cert.pem", security.tls_scheduler_cert),
            ("--tls-key", "key.pem", security.tls_scheduler_key),
        ):
            (self.certificates / name).write_text(content)
            (self.certificates / name).chmod(0o600)
            self._tls += [option, str(self.certificates / name)]
        ca, cert, key = self._tls[1::2]
        self.security = Security(tls_ca_file=ca, tls_client_cert=cert, tls_client_key=key, require_encryption=True)
        self._environment = os.environ | SHORT_DEADLINES | dict(environment or {})
        self._n_workers = workers

    def __enter__(self) -> Self:
        self.scheduler = self._start(
            "scheduler", "--host=127.0.0.1", "--port=0", "--protocol=tls", f"--scheduler-file={self.scheduler_file}"
        )
        wait_until(self._address, "the scheduler writes its file")
        self.workers = [self.start_worker() for _ in range(self._n_workers)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait(10)

    def start_worker(self) -> subprocess.Popen[bytes]:
        """Start one more worker."""
        return self._start(
            "worker",
            "--no-nanny",
            "--host=127.0.0.1",
            "--nthreads=1",
            "--memory-limit=1GiB",
            f"--scheduler-file={self.scheduler_file}",
            f"--local-directory={self.folder}",
        )

    def client(self) -> Client:
        """Connect to the scheduler, and wait for the workers: deadlines are too short for their start."""
        client = Client(self._address(), security=self.security, set_as_default=False)
        client.wait_for_workers(self._n_workers, timeout=60)
        return client

    def _address(self) -> str | None:
        """Return the scheduler's address; None while its file is not there, or not whole."""
        try:
            return str(json.loads(self.scheduler_file.read_text())["address"])
        except (FileNotFoundError, ValueError):
            return None

    def profile(self, path: Path) -> Path:
        """Write the profile that lets ``headroom run --cluster`` use this cluster."""
        content = {
            "kind": "address",
            "scheduler_file": str(self.scheduler_file),
            "certificates": str(self.certificates),
        }
        path.write_text(yaml.safe_dump(content))
        return path

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        name, *options = arguments
        with open(self.folder / f"{name}.log", "ab") as log:
            return subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    f"distributed.cli.dask_{name}",
                    *options,
                    *self._tls,
                    "--dashboard-address=127.0.0.1:0",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                cwd=self.folder,
            )


def send(process: subprocess.Popen[bytes] | int, what: signal.Signals) -> None:
    """Send a signal to a process."""
    os.kill(process if isinstance(process, int) else process.pid, what)

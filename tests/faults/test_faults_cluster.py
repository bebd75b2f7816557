"""A scheduler and workers that are killed, silenced and left without a driver: the same bits, or an error that helps.

Every test has a deadline far above what it needs, and fails as a hang when that passes.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import wait_until
from disturbances import (
    ALL_PIECES,
    SHORT_DEADLINES,
    Faults,
    Run,
    SeparateCluster,
    require_equal,
    require_nothing_final,
    send,
)

from pipeline.config import ExperimentConfig
from pipeline.errors import ResourceError
from pipeline.run import run_experiment

pytestmark = [pytest.mark.timeout(90), pytest.mark.usefixtures("short_deadlines")]


@contextmanager
def meanwhile(disturb: Callable[[], None]) -> Iterator[None]:
    """Disturb what the block does, in another thread; fail if that failed."""
    failures: list[BaseException] = []

    def watched() -> None:
        try:
            disturb()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=watched, daemon=True)
    thread.start()
    yield
    thread.join(30)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


def test_a_silent_worker_is_replaced_and_what_it_writes_late_harms_nothing(
    small_config: ExperimentConfig, undisturbed: Path, tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    faults = Faults(tmp_path, hold=str(hold))
    out = tmp_path / "run"
    with SeparateCluster(tmp_path, environment=faults.environment) as cluster, cluster.client() as client:
        silent: list[subprocess.Popen[bytes]] = []

        def disturb() -> None:
            taken = hold.with_suffix(".taken")
            pid = int(wait_until(lambda: taken.exists() and taken.read_text(), "a worker has computed a piece"))
            send(pid, signal.SIGSTOP)
            silent.extend(worker for worker in cluster.workers if worker.pid == pid)
            hold.touch()
            # All pieces but the silent worker's are written, then that one too, by the other worker.
            faults.wait_for_pieces(ALL_PIECES - 1)
            send(pid, signal.SIGCONT)

        with meanwhile(disturb):
            run_experiment(small_config, out, client=client)
        [late] = silent
        wait_until(lambda: late.poll() is not None, "a worker that the scheduler gave up ends")
        assert late.pid in faults.writers(), "the late worker did write its piece"
        require_equal(out, undisturbed)
        run_experiment(small_config, out, client=client)
        require_equal(out, undisturbed)


def test_a_killed_scheduler_ends_the_run_and_it_is_resumed(
    small_config: ExperimentConfig, config_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """As users meet it: a profile of kind `address`, and an exit code."""
    out = tmp_path / "run"
    faults = Faults(tmp_path, pieces=3)
    with SeparateCluster(tmp_path / "cluster", environment=faults.environment) as cluster:
        profile = cluster.profile(tmp_path / "cluster.yaml")
        with Run(config_file, out, "--cluster", str(profile), environment=SHORT_DEADLINES) as run:
            faults.wait_for_pieces(3)
            cluster.scheduler.kill()
            said = run.finish(3)
        # The words in brackets are Dask's, and depend on who notices first: the client, or a request under way.
        last = said.splitlines()[-1]
        assert last.startswith("headroom: the cluster was lost while accumulating (")
        assert last.endswith("); run again: finished work is kept")
        require_nothing_final(out)
    run_experiment(small_config, out)
    require_equal(out, undisturbed)


def test_a_silent_scheduler_is_not_waited_for(
    small_config: ExperimentConfig, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    faults = Faults(tmp_path, pieces=3)
    with SeparateCluster(tmp_path, environment=faults.environment) as cluster, cluster.client() as client:
        with (
            meanwhile(lambda: (faults.wait_for_pieces(3), send(cluster.scheduler, signal.SIGSTOP))),
            pytest.raises(ResourceError, match=r"scheduler at tls://.* does not answer.*finished work is kept"),
        ):
            run_experiment(small_config, out, client=client)
        require_nothing_final(out)
    run_experiment(small_config, out)
    require_equal(out, undisturbed)


def test_a_cluster_without_workers_is_not_waited_for(
    small_config: ExperimentConfig, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    faults = Faults(tmp_path, pieces=3)
    with SeparateCluster(tmp_path, environment=faults.environment) as cluster, cluster.client() as client:

        def kill_all() -> None:
            faults.wait_for_pieces(3)
            for worker in cluster.workers:
                worker.kill()
                worker.wait()

        with meanwhile(kill_all), pytest.raises(ResourceError, match=r"no worker.*finished work is kept"):
            run_experiment(small_config, out, client=client)
        require_nothing_final(out)
        with pytest.raises(ResourceError, match="first worker"):
            run_experiment(small_config, out, client=client)
    run_experiment(small_config, out)
    require_equal(out, undisturbed)


DRIVER = """
import sys
from distributed import Client
from distributed.security import Security
from pipeline import load_config, run_experiment
config, out, address, ca, cert, key = sys.argv[1:]
security = Security(tls_ca_file=ca, tls_client_cert=cert, tls_client_key=key, require_encryption=True)
with Client(address, security=security) as client:
    run_experiment(load_config(config), out, client=client)
"""


def test_a_new_driver_takes_over_while_workers_of_a_killed_one_are_still_at_it(
    small_config: ExperimentConfig, undisturbed: Path, config_file: Path, tmp_path: Path
) -> None:
    out, hold = tmp_path / "run", tmp_path / "hold"
    faults = Faults(tmp_path, hold=str(hold))
    with SeparateCluster(tmp_path, 1, faults.environment) as cluster, cluster.client() as client:
        tls = [str(cluster.certificates / name) for name in ("ca.pem", "cert.pem", "key.pem")]
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(config_file), str(out), client.scheduler.address, *tls]
        )
        wait_until(hold.with_suffix(".taken").exists, "the worker has computed a piece")
        driver.kill()
        driver.wait(10)
        require_nothing_final(out)
        assert list(out.rglob("*.tmp")), "the piece is not whole yet"

        def let_go() -> None:
            # The worker goes on with what it did for the killed driver, in a folder that the new one has tidied up.
            wait_until(lambda: not list(out.rglob("*.tmp")), "the new driver tidies up")
            time.sleep(1.5)  # and submits its tasks
            hold.touch()

        with meanwhile(let_go):
            run_experiment(small_config, out, client=client)
    require_equal(out, undisturbed)

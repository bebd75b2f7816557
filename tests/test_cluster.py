from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dask.config
import psutil
import pytest
from distributed import Client

from cluster import LocalProfile, connect_local


def test_everything_listens_on_loopback_and_speaks_tls() -> None:
    with connect_local(LocalProfile(workers=1, memory_limit=2**30)) as client:
        assert client.scheduler.address.startswith("tls://127.0.0.1:")
        assert client.dashboard_link.startswith("http://127.0.0.1:")
        here = psutil.Process()
        listening = [
            connection
            for process in (here, *here.children(recursive=True))
            for connection in process.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert listening
        assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}
        with pytest.raises((OSError, TypeError, ValueError)):
            Client(client.scheduler.address.replace("tls://", "tcp://"), timeout=2, set_as_default=False)
        with pytest.raises((OSError, TypeError, ValueError)):
            Client(client.scheduler.address, timeout=2, set_as_default=False)  # TLS, but no certificate


def test_dask_is_left_as_it_was() -> None:
    before = dict(dask.config.config)
    with connect_local(LocalProfile(workers=1, memory_limit=2**30)):
        assert dask.config.get("scheduler") == "dask.distributed"
    assert dask.config.config == before


def test_threads_and_memory_are_shared_out() -> None:
    one, four = LocalProfile(workers=1), LocalProfile(workers=4)
    assert one.resolved_threads() >= four.resolved_threads() >= 1
    assert one.resolved_memory() > 3 * four.resolved_memory()
    assert LocalProfile(threads=3).resolved_threads() == 3
    with connect_local(LocalProfile(workers=1, threads=3, memory_limit=2**30)) as client:
        assert list(client.run(lambda: __import__("os").environ["HEADROOM_THREADS"]).values()) == ["3"]


def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text("from cluster import connect_local\nwith connect_local() as client:\n    print(client)\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert 'if __name__ == "__main__":' in done.stderr.splitlines()[-1]

"""The site itself: what the other tests build on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from commands import wait_until
from slurm_site import NODES, PROGRAMS, SiteError, SlurmSite, slurm_site


def listening(site: SlurmSite) -> set[str]:
    pids = {daemon.pid for _, daemon in site.daemons}
    return {
        connection.laddr.ip
        for connection in psutil.net_connections(kind="inet")
        if connection.pid in pids and connection.status == psutil.CONN_LISTEN
    }


def test_a_job_runs_on_a_node_and_nothing_listens_beyond_loopback(slurm: SlurmSite, tmp_path: Path) -> None:
    out = tmp_path / "out"
    slurm.run("sbatch", f"--output={out}", "--wrap", "echo on $SLURMD_NODENAME")
    wait_until(lambda: out.exists() and out.read_text(), "the job ran")
    assert out.read_text().split()[-1] in NODES
    assert listening(slurm) == {"127.0.0.1"}


def test_two_sites_run_side_by_side_and_leave_nothing(slurm: SlurmSite) -> None:
    with slurm_site() as other:
        slurm.run("sbatch", "--output=/dev/null", "--wrap", "sleep 60")
        wait_until(lambda: slurm.jobs("RUNNING"), "the job runs")
        assert other.jobs() == []
        daemons = [daemon for _, daemon in other.daemons]
    assert all(daemon.returncode is not None for daemon in daemons)
    assert not other.folder.exists()
    [job] = slurm.jobs("RUNNING")
    processes = slurm.processes_of(job)
    assert processes
    slurm.clear()
    wait_until(lambda: not any(map(psutil.pid_exists, processes)), "a cancelled job's processes end")


def test_where_slurm_cannot_start_tests_are_skipped_and_fail_where_it_was_promised(tmp_path: Path) -> None:
    """A path without SLURM's programs, as on most machines."""
    test = Path(__file__).with_name("test_slurm_site.py")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        f"{test}::{test_a_job_runs_on_a_node_and_nothing_listens_beyond_loopback.__name__}",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "HEADROOM_REQUIRE_SLURM"}
    environment["PATH"] = str(tmp_path)
    for promised, outcome in (({}, "1 skipped"), ({"HEADROOM_REQUIRE_SLURM": "1"}, "1 error")):
        done = subprocess.run(
            [*command, "-p", "no:cacheprovider"],
            env=environment | promised,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert outcome in done.stdout, done.stdout + done.stderr
        assert f"{PROGRAMS[0]}, " in done.stdout
        assert "apt-get install munge" in done.stdout


def test_a_site_that_cannot_come_up_says_why_and_leaves_nothing(
    slurm: SlurmSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name for path in slurm.folder.parent.glob("headroom-slurm-*")}
    monkeypatch.setattr("slurm_site._CONF", "ClusterName=broken\nSlurmUser=nobody_of_this_name\n")
    monkeypatch.setattr("slurm_site._STARTS", 1)
    with (
        pytest.raises(SiteError, match=r"(?s)slurmctld.* ended.*--- start-slurmctld.*No SlurmctldHost defined"),
        slurm_site(),
    ):
        pass
    assert {path.name for path in slurm.folder.parent.glob("headroom-slurm-*")} == before

"""``headroom submit`` on a real SLURM: the driver is a job that goes on in another one when its walltime ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from commands import HEADROOM, wait_until
from disturbances import Faults, require_equal, require_nothing_final
from slurm_site import SlurmSite
from test_slurm_runs import write_profile

pytestmark = pytest.mark.timeout(180)
DRIVER = {"cores": 1, "memory": "1500MiB", "walltime": "00:10:00", "resubmissions": 1}


@pytest.fixture(autouse=True)
def nothing_left(slurm: SlurmSite, tmp_path: Path) -> Iterator[None]:
    """Whatever a run came to, it leaves no job in the queue and no key on disk."""
    yield
    assert slurm.jobs() == []
    assert list(tmp_path.rglob("*.pem")) == []


def headroom(*arguments: Any, environment: Mapping[str, str] | None = None, code: int = 0) -> str:
    """Run a command and return what it printed, errors included."""
    done = subprocess.run(
        [HEADROOM, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        env=os.environ | dict(environment or {}),
    )
    assert done.returncode == code, done.stdout
    assert "Traceback" not in done.stdout
    return done.stdout


def shown(out: Path) -> dict[str, Any]:
    """What ``headroom status --json`` says, whatever its exit code."""
    done = subprocess.run([HEADROOM, "status", str(out), "--json"], capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_a_driver_that_meets_its_walltime_goes_on_in_another_job_to_the_bytes_of_a_local_run(
    slurm: SlurmSite, config_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / """it's 100% "my" run #1"""
    faults = Faults(tmp_path, seconds=0.7)
    profile = write_profile(tmp_path / "site.yaml", driver=DRIVER)
    command = ("submit", config_file, "--profile", profile, "--out", out)
    said = headroom(*command, environment=faults.environment)
    job = said.split()[1]
    assert f"scancel {job}" in said
    watching = subprocess.Popen(
        [HEADROOM, "status", str(out), "--watch", "--interval", "0.3"], stdout=subprocess.PIPE, text=True
    )
    faults.wait_for_pieces(3)
    assert "a run is under way" in headroom(*command, code=2)
    # What SLURM sends before the walltime, without the wait for it.
    slurm.run("scancel", "--signal=USR1", "--batch", job)
    wait_until(lambda: len((out / "driver_jobs.txt").read_text().split()) == 2, "a successor is queued")
    view = wait_until(lambda: (v := shown(out))["attempts"] and v, "the successor starts", 60)
    assert [one["state"] for one in view["attempts"]] == ["interrupted"]
    assert view["attempts"][0]["job"] == job
    printed, _ = watching.communicate(timeout=120)
    assert watching.returncode == 0, printed
    assert ": resubmitted" in printed
    assert re.search(r"accumulate: .* of \d+ partitions", printed)
    assert f"results    {out / 'report.html'}" in printed
    require_equal(out, undisturbed)
    log = (out / "driver.log").read_text()
    assert "goes on in job" in log
    assert "interrupted by SIGTERM" in log
    assert shown(out)["submission"]["jobs"][0] == job
    wait_until(lambda: not slurm.jobs(), "all jobs are gone")


def test_a_cancelled_driver_takes_its_workers_along_and_is_not_queued_again(
    slurm: SlurmSite, config_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    faults = Faults(tmp_path, seconds=1)
    profile = write_profile(tmp_path / "site.yaml", driver=DRIVER)
    job = headroom("submit", config_file, "--profile", profile, "--out", out, environment=faults.environment).split()[1]
    faults.wait_for_pieces(2)
    slurm.cancel(int(job))
    wait_until(lambda: not slurm.jobs(), "all jobs are gone", 40)
    require_nothing_final(out)
    assert shown(out)["state"] in ("interrupted", "died")
    assert (out / "driver_jobs.txt").read_text().split() == [job]
    assert "submit` again" in headroom("status", out, code=1)


def test_sbatch_refuses_a_driver_in_its_own_words_and_nothing_is_left(
    slurm: SlurmSite, config_file: Path, tmp_path: Path
) -> None:
    profile = write_profile(tmp_path / "site.yaml", driver=DRIVER | {"partition": "no_such"})
    said = headroom("submit", config_file, "--profile", profile, "--out", tmp_path / "run", code=3)
    assert "sbatch refused: sbatch: error: invalid partition specified: no_such" in said
    assert not (tmp_path / "run").exists()

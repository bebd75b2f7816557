"""A job array on a real SLURM, without Dask's scheduler and without a worker: the bytes of a local run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from commands import HEADROOM, wait_until
from disturbances import require_equal
from slurm_site import SlurmSite

pytestmark = pytest.mark.timeout(180)
#: As small as the nodes of the site.
SMALL = ("--cpus-per-task=1", "--mem=1200M")


def test_a_job_array_and_a_run_that_merges_give_the_bytes_of_one_machine(
    slurm: SlurmSite, config_file: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The array's script as the command prints it; one task is killed and repeated; then a job of its own merges."""
    monkeypatch.setenv("PATH", f"{Path(HEADROOM).parent}{os.pathsep}{os.environ['PATH']}")
    run, log = tmp_path / "run", f"--output={tmp_path}/%A_%a.log"
    script = tmp_path / "job_array.sh"
    script.write_text(subprocess.check_output([HEADROOM, "cluster", "array"], text=True))
    parts = (str(script), str(config_file), str(run), "3")
    array = slurm.run("sbatch", "--parsable", "--array=1-3", *SMALL, log, *parts).strip()
    wait_until(lambda: (run / "parts" / "part-2-of-3.log").exists(), "part 2 has begun", 60)
    slurm.run("scancel", f"{array}_2", check=False)  # wherever it is, also at its end
    wait_until(lambda: not slurm.jobs(), "the array ends", 90)
    repeated = slurm.run("sbatch", "--parsable", "--array=2", *SMALL, log, *parts).strip()
    merge = f"headroom run {config_file} --out {run} --no-dask"
    slurm.run("sbatch", f"--dependency=afterok:{repeated}", *SMALL, f"--output={tmp_path}/merge.log", "--wrap", merge)
    wait_until(lambda: not slurm.jobs(), "all jobs end", 120)
    said = (tmp_path / "merge.log").read_text()
    assert "report: " in said, said
    assert "accumulate: " not in said, "all pieces were there"
    assert "dashboard" not in said
    require_equal(run, undisturbed)
    for part in (1, 2, 3):
        assert (run / "parts" / f"part-{part}-of-3.log").read_text().rstrip().endswith("finished")

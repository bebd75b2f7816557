"""``headroom run --cluster`` on a real SLURM: the local run's bytes, whatever happens to jobs, or words that help."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import wait_until
from disturbances import Faults, Run, require_equal, require_nothing_final
from slurm_site import SlurmSite

from pipeline.config import ExperimentConfig
from pipeline.run import run_experiment

pytestmark = pytest.mark.timeout(180)


def write_profile(path: Path, **changes: Any) -> Path:
    """Two jobs of one core, as small as the plan of a small run allows."""
    profile = {
        "kind": "slurm",
        "jobs": 2,
        "cores": 1,
        "memory": "1200MiB",
        "walltime": "00:10:00",
        "interface": "lo",
        "startup_timeout": 60,
    }
    path.write_text(yaml.safe_dump(profile | changes))
    return path


@pytest.fixture(autouse=True)
def nothing_left(slurm: SlurmSite, tmp_path: Path) -> Iterator[None]:
    """Whatever a run came to, it leaves no job in the queue and no key on disk."""
    yield
    assert slurm.jobs() == []
    assert list(tmp_path.rglob("*.pem")) == []


def test_a_run_on_slurm_gives_the_bytes_of_a_local_one(
    slurm: SlurmSite, config_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    faults = Faults(tmp_path, seconds=0.2)  # or one would be done before the others have come
    profile = write_profile(tmp_path / "site.yaml", jobs=3)
    with Run(config_file, tmp_path / "run", "--cluster", str(profile), environment=faults.environment) as run:
        run.finish(0, 90)
    assert len(set(faults.writers())) >= 2, "several jobs computed"
    require_equal(tmp_path / "run", undisturbed)
    assert (tmp_path / "run" / "report.html").exists()


def test_cancelled_jobs_are_replaced(slurm: SlurmSite, config_file: Path, undisturbed: Path, tmp_path: Path) -> None:
    """One of two in the middle, and later all of them at once."""
    faults = Faults(tmp_path, pieces=2)
    profile = write_profile(tmp_path / "site.yaml")
    with Run(config_file, tmp_path / "run", "--cluster", str(profile), environment=faults.environment) as run:
        first = set(faults.wait_for_pieces(2))
        slurm.cancel(slurm.jobs("RUNNING")[0])
        wait_until(lambda: set(faults.writers()) - first, "the worker of another job computes")
        slurm.cancel(*slurm.jobs())
        faults.go_on()
        run.finish(0, 120)
    require_equal(tmp_path / "run", undisturbed)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"partition": "no_such"}, "sbatch refused: sbatch: error: invalid partition specified: no_such"),
        ({"partition": "closed", "startup_timeout": 4}, "PartitionDown"),
        ({"directives": ["--mem=8G"], "skip_directives": ["--mem"]}, "sbatch refused: "),
        ({"partition": "short", "startup_timeout": 4}, "PartitionTimeLimit"),
        ({"setup": ["exit 1"]}, "jobs ended before their worker joined"),
    ],
    ids=["unknown partition", "partition down", "larger than any node", "longer than allowed", "broken set-up"],
)
def test_jobs_that_cannot_start_are_told_in_the_words_of_slurm(
    slurm: SlurmSite, config_file: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    profile = write_profile(tmp_path / "site.yaml", **changes)
    with Run(config_file, tmp_path / "run", "--cluster", str(profile)) as run:
        said = run.finish(3, 60)
    assert words in said, said
    require_nothing_final(tmp_path / "run")


def test_a_partition_that_goes_down_in_the_middle_ends_the_run_in_time_and_it_is_resumed(
    slurm: SlurmSite, small_config: ExperimentConfig, config_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    faults = Faults(tmp_path, pieces=3)
    profile = write_profile(tmp_path / "site.yaml", startup_timeout=15)
    with Run(config_file, tmp_path / "run", "--cluster", str(profile), environment=faults.environment) as run:
        faults.wait_for_pieces(3)
        slurm.set_partition("main", "DOWN")
        slurm.cancel(*slurm.jobs())
        said = run.finish(3, 90)
        assert "no worker" in said
        assert "finished work is kept" in said
    require_nothing_final(tmp_path / "run")
    assert slurm.jobs() == []
    run_experiment(small_config, tmp_path / "run")
    require_equal(tmp_path / "run", undisturbed)


def test_a_killed_driver_takes_its_jobs_along_and_is_resumed(
    slurm: SlurmSite, config_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    faults = Faults(tmp_path, pieces=3)
    profile = write_profile(tmp_path / "site.yaml")
    options = ("--cluster", str(profile))
    with Run(config_file, tmp_path / "run", *options, environment=faults.environment) as run:
        faults.wait_for_pieces(3)
        orphans = {job.id for job in slurm.jobs()}
        run.process.kill()
        run.process.wait(10)
    faults.go_on()
    require_nothing_final(tmp_path / "run")
    with Run(config_file, tmp_path / "run", *options, environment=faults.environment) as run:
        wait_until(lambda: {job.id for job in slurm.jobs("RUNNING")} - orphans, "new jobs run", 60)
        wait_until(lambda: not orphans & {job.id for job in slurm.jobs()}, "jobs of the killed driver end", 60)
        run.finish(0, 90)
    require_equal(tmp_path / "run", undisturbed)


def test_a_silent_worker_is_replaced(slurm: SlurmSite, config_file: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Its job is suspended: alive for SLURM, lost for Dask."""
    faults = Faults(tmp_path, pieces=2)
    environment = faults.environment | {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "5s"}
    profile = write_profile(tmp_path / "site.yaml")
    with Run(config_file, tmp_path / "run", "--cluster", str(profile), environment=environment) as run:
        faults.wait_for_pieces(2)
        slurm.run("scontrol", "suspend", str(slurm.jobs("RUNNING")[0].id))
        faults.go_on()
        run.finish(0, 150)
    require_equal(tmp_path / "run", undisturbed)


def test_a_worker_that_meets_its_walltime_is_replaced(
    slurm: SlurmSite, config_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    faults = Faults(tmp_path, pieces=2)  # its task would last longer than the job
    profile = write_profile(tmp_path / "site.yaml", jobs=1, walltime="00:01:00")
    with Run(config_file, tmp_path / "run", "--cluster", str(profile), environment=faults.environment) as run:
        [first] = set(faults.wait_for_pieces(2))
        wait_until(lambda: set(faults.writers()) - {first}, "the worker of another job computes", 100)
        faults.go_on()
        run.finish(0, 60)
    require_equal(tmp_path / "run", undisturbed)

"""``cluster.connect`` on a real SLURM: who gets in, what the jobs are, and what is left when it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from commands import wait_until
from distributed.security import Security
from greeting import ask_for_identity
from slurm_site import SlurmSite

from cluster import SlurmProfile, connect
from cluster.certificates import make_certificates
from cluster.profiles import format_walltime
from pipeline.base import Task, count_workers, run_tasks
from pipeline.errors import ResourceError

pytestmark = pytest.mark.timeout(120)

PROFILE = SlurmProfile.model_validate(
    {"jobs": 2, "cores": 1, "memory": "400MiB", "walltime": "00:10:00", "interface": "lo", "startup_timeout": 60}
)


@pytest.mark.parametrize("name", ["run", 'it\'s 100% "my" $HOME run'])
def test_jobs_speak_tls_with_keys_of_their_owner_alone_and_leave_nothing(
    name: str, slurm: SlurmSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, scratch = tmp_path / name, tmp_path / "scratch of nodes"
    monkeypatch.setenv("HEADROOM_TEST_SCRATCH", str(scratch))
    monkeypatch.setenv("SBATCH_TIMELIMIT", "3")  # what the profile states counts
    profile = PROFILE.model_copy(update={"scratch": "$HEADROOM_TEST_SCRATCH/x"})
    with connect(profile, run_folder=folder) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"]
        assert len(workers) == 2
        assert {address.rpartition(":")[0] for address in workers} == {"tls://127.0.0.1"}
        assert {worker["nthreads"] for worker in workers.values()} == {1}
        assert {worker["memory_limit"] for worker in workers.values()} == {PROFILE.memory}
        assert set(client.run(lambda: os.environ["HEADROOM_THREADS"]).values()) == {"1"}

        [keys] = folder.glob(".tls-*")
        assert keys.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in keys.glob("*.pem")} == {0o600}
        secret = (keys / "key.pem").read_text().splitlines()[1]
        for job in slurm.jobs():
            shown = slurm.run("scontrol", "show", "job", str(job.id))
            assert f"TimeLimit={format_walltime(PROFILE.walltime)}" in shown
            assert "MinMemoryNode=400M" in shown
            assert secret not in slurm.run("scontrol", "write", "batch_script", str(job.id), "-")
            for pid in slurm.processes_of(job):
                assert secret not in " ".join(psutil.Process(pid).cmdline())
        folders = list((scratch / "x").iterdir())
        assert [path.stat().st_mode & 0o777 for path in folders] == [0o700] * 2

        for stranger in (None, Security.temporary(), make_certificates().security()):
            for protocol in ("tls://", "tcp://"):
                for address in (client.scheduler.address, next(iter(workers))):
                    with pytest.raises((OSError, TypeError, ValueError, RuntimeError)):
                        ask_for_identity(address.replace("tls://", protocol), stranger)
        assert ask_for_identity(next(iter(workers)), client.security)["type"] == "Worker"
        assert client.submit(sum, (1, 2)).result(30) == 3
    assert slurm.jobs() == [] or {job.state for job in slurm.jobs()} <= {"COMPLETING", "CANCELLED"}
    assert list(folder.glob(".*")) == []
    wait_until(lambda: not list((scratch / "x").iterdir()), "jobs remove their scratch folders")


def test_what_a_killed_run_left_is_removed_by_the_next_one(slurm: SlurmSite, tmp_path: Path) -> None:
    """Its keys, and its jobs that still wait in the queue."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom cluster import SlurmProfile, connect\n"
        "profile = SlurmProfile.model_validate_json(sys.argv[1])\n"
        "with connect(profile, run_folder=Path(sys.argv[2])):\n    pass\n"
    )
    pending = PROFILE.model_copy(update={"partition": "closed"})
    killed = subprocess.Popen([sys.executable, "-c", code, pending.model_dump_json(), str(tmp_path)])
    left = wait_until(lambda: len(slurm.jobs("PENDING")) == 2 and slurm.jobs(), "its jobs wait")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(list(tmp_path.glob(".tls-*/*.pem"))) == 3
    said: list[str] = []
    impatient = pending.model_copy(update={"startup_timeout": 4})
    with (
        pytest.raises(ResourceError, match=r"no worker came within 4 s.*PartitionDown.*cancelled"),
        connect(impatient, run_folder=tmp_path, say=said.append),
    ):
        pass
    assert said == ["waiting for SLURM: 2 jobs pending (PartitionDown)"]
    assert not {job.id for job in slurm.jobs()} & {job.id for job in left}
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]
    assert slurm.jobs() == []


def test_jobs_that_end_at_once_are_told_with_the_last_words_of_their_log(slurm: SlurmSite, tmp_path: Path) -> None:
    for change, words in (
        ({"python": "/no/such/python"}, "/no/such/python: No such file"),
        ({"setup": ("echo the module is not there", "exit 7")}, "saying: the module is not there"),
    ):
        with (
            pytest.raises(ResourceError, match=rf"ended before their worker joined \(.*{words}.*logs"),
            connect(PROFILE.model_copy(update=change), run_folder=tmp_path),
        ):
            pass
        assert slurm.jobs() == []


def test_an_adaptive_cluster_grows_with_the_work(slurm: SlurmSite, tmp_path: Path) -> None:
    def wait_as_job(seconds: int, _report: object) -> str:  # local, so that it goes to the workers as code
        time.sleep(seconds)
        return os.environ["SLURM_JOB_ID"]

    with connect(PROFILE.with_bounds(1, 3), run_folder=tmp_path) as client:
        assert len(client.scheduler_info(n_workers=-1)["workers"]) == 1
        assert count_workers(client) == 3, "the work is cut for as many as there may be"
        tasks = [Task(("wait", k), 4, 1) for k in range(6)]
        jobs = {result for _, result in run_tasks(client, wait_as_job, tasks, "waiting", lambda _: None)}
        assert len(jobs) >= 2

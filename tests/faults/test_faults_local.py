"""``headroom run`` on this machine while its processes are killed, its disks fill and its memory runs out."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import dask
import pytest
from commands import wait_until
from disturbances import Faults, Run, is_gone, require_equal, require_nothing_final

from cluster import LocalProfile, connect_local
from pipeline.base import Advance, SilentProgress
from pipeline.config import ExperimentConfig
from pipeline.errors import ResourceError
from pipeline.run import render_run, run_experiment
from pipeline.scoring import read_results

pytestmark = pytest.mark.timeout(120)


@contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[Path]:
    """A file system of so many MiB; the test is skipped where none can be mounted."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        reason = f"a small disk cannot be mounted: {mounted.stderr.strip()}"
        (pytest.fail if os.environ.get("HEADROOM_REQUIRE_SLURM") else pytest.skip)(reason)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all that is free on a disk, and return the file that did."""
    filler = folder / "filler"
    with open(filler, "ab", buffering=0) as file:

        def write(size: int) -> None:
            while True:
                file.write(b"x" * size)

        for size in (2**16, 2**12, 1):
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                write(size)
    return filler


def test_a_killed_driver_leaves_no_process_and_is_resumed(
    small_config: ExperimentConfig, config_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    faults = Faults(tmp_path, pieces=3)
    with Run(config_file, out, "--workers", "2", environment=faults.environment) as run:
        faults.wait_for_pieces(3)
        workers = run.children()
        assert set(faults.writers()) <= {worker.pid for worker in workers}
        run.process.kill()
        faults.go_on()
        wait_until(lambda: all(map(is_gone, workers)), "workers end with their driver")
    require_nothing_final(out)
    run_experiment(small_config, out)
    require_equal(out, undisturbed)


def test_a_disk_that_fills_up_in_the_middle_is_told_and_the_run_resumed(
    small_config: ExperimentConfig, config_file: Path, undisturbed: Path, tmp_path: Path
) -> None:
    faults = Faults(tmp_path, pieces=3)
    with small_disk(tmp_path / "disk", 16) as disk:
        out = disk / "run"
        with Run(config_file, out, environment=faults.environment) as run:
            faults.wait_for_pieces(3)
            filler = fill(disk)
            faults.go_on()
            said = run.finish(3)
            assert "the disk is full; free space, or write elsewhere" in said
            assert str(out) in said
        require_nothing_final(out)
        assert not list(out.rglob("*.tmp"))
        filler.unlink()
        run_experiment(small_config, out)
        require_equal(out, undisturbed)


def test_a_full_disk_leaves_an_old_result_alone(
    small_config: ExperimentConfig, undisturbed: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 16) as disk:
        out = disk / "run"
        run_experiment(small_config, out)
        _, page = render_run(out)
        before = page.read_bytes()
        # Other penalties need no new moments: what the disk has no room for is models and tables.
        other = ExperimentConfig.model_validate(small_config.to_dict() | {"ridge": {"alpha": {"per_spectrum": 0.2}}})

        class Filling(SilentProgress):
            """Fills the disk when the models are solved."""

            def step(self, title: str, total: int, unit: str = "spectra") -> AbstractContextManager[Advance]:
                if title.endswith("solve") and not (disk / "filler").exists():
                    fill(disk)
                return super().step(title, total, unit)

        with pytest.raises(ResourceError, match="the disk is full; free space"):
            run_experiment(other, out, progress=Filling())
        assert (out / "results.csv").read_bytes() == (undisturbed / "results.csv").read_bytes()
        assert page.read_bytes() == before
        (disk / "filler").unlink()
        assert not run_experiment(other, out).overall.equals(read_results(undisturbed).overall)


def test_a_full_scratch_disk_does_not_touch_the_results(config_file: Path, undisturbed: Path, tmp_path: Path) -> None:
    faults = Faults(tmp_path, pieces=2)
    with small_disk(tmp_path / "scratch", 1) as scratch:
        environment = faults.environment | {"DASK_TEMPORARY_DIRECTORY": str(scratch)}
        with Run(config_file, tmp_path / "run", environment=environment) as run:
            faults.wait_for_pieces(2)
            assert list(scratch.rglob("*")), "workers have their files here"
            fill(scratch)
            faults.go_on()
            run.finish(0)
    require_equal(tmp_path / "run", undisturbed)


@pytest.mark.parametrize(
    ("fill_mib", "words"),
    [
        (900, r"all workers \(1\) have been out of memory for 5 s while accumulating.*headroom plan"),
        (1100, r"workers died again and again while accumulating.*give them more memory"),
    ],
    ids=["paused", "killed"],
)
@pytest.mark.usefixtures("short_deadlines")
def test_exhausted_memory_is_told(
    small_config: ExperimentConfig,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fill_mib: int,
    words: str,
) -> None:
    faults, out = Faults(tmp_path, seconds=0.3, fill_mib=fill_mib), tmp_path / "run"
    profile = LocalProfile(workers=1, processes=True, memory_limit=2**30)
    monkeypatch.setenv("HEADROOM_FAULTS", faults.environment["HEADROOM_FAULTS"])
    settings = {
        "distributed.worker.preload": [faults.environment["DASK_DISTRIBUTED__WORKER__PRELOAD"]],
        "distributed.scheduler.allowed-failures": 1,
        # A worker that was killed may take a while to come back.
        "distributed.scheduler.no-workers-timeout": "5s" if fill_mib < 1000 else "20s",
    }
    started = time.monotonic()
    with (
        dask.config.set(settings),
        connect_local(profile) as client,
        pytest.raises(ResourceError, match=words),
    ):
        run_experiment(small_config, out, client=client)
    assert time.monotonic() - started < 60
    require_nothing_final(out)
    run_experiment(small_config, out)
    require_equal(out, undisturbed)

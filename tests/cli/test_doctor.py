"""The check of a machine: what it finds, what it calls broken, and exit codes."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from importlib import metadata
from pathlib import Path

import pytest

from pipeline.base import machine as memory
from pipeline.cli import doctor, main
from pipeline.plan import Rates


def run_doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = 0
    try:
        main(["doctor", *arguments])
    except SystemExit as error:
        code = int(error.code or 0)
    return code, capsys.readouterr().out


@pytest.fixture(autouse=True)
def quick(known_rates: Rates, monkeypatch: pytest.MonkeyPatch) -> None:
    """No measurements, which take seconds; ``tests/plan`` makes them, and other tests run the whole command."""
    monkeypatch.setattr("pipeline.plan.measure_flops", lambda *_args, **_options: 95e9)


def test_this_machine_is_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run_doctor(capsys, "--folder", str(tmp_path / "runs" / "new"))
    assert code == 0, out
    assert "fit for a run" in out
    assert "95 Gflop/s" in out
    assert list(tmp_path.iterdir()) == [], "the check leaves nothing behind"


def test_json_holds_every_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run_doctor(capsys, "--folder", str(tmp_path), "--json")
    found = json.loads(out)
    assert code == 0
    assert found["fit"] is True
    names = [one["name"] for one in found["checks"]]
    assert len(names) == len(set(names))
    assert {"Python", "libraries", "BLAS", "memory", "run folder", "temporary folder", "TLS", "SLURM"} <= set(names)
    assert all(one["remedy"] for one in found["checks"] if one["verdict"] != "ok")


def test_a_folder_that_cannot_be_written_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run_doctor(capsys, "--folder", "/dev/null/runs")
    assert code == 3
    assert "broken  run folder: /dev/null is a file" in out
    assert "not fit for a run: run folder" in out


def test_a_full_disk_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, _content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    check = doctor.check_folder("run folder", tmp_path, 0, "--folder")
    assert check.verdict == "broken"
    assert "the disk is full" in check.found
    assert list(tmp_path.iterdir()) == []


def test_little_space_and_little_memory_are_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_folder("run folder", tmp_path, 2**80, "--folder").verdict == "note"
    monkeypatch.setattr(doctor, "available_memory", lambda: 2**30)
    assert doctor.check_memory().verdict == "note"


@pytest.mark.parametrize(
    ("version", "wanted", "words"),
    [
        ("2.2", ">=2.2", []),
        ("2.10.1", ">=2.2", []),
        ("2026.8.0", ">=2025.1", []),
        ("3.1.0rc1", ">=3.0", []),
        ("3.0.0rc1", ">=3.0", ["lib 3.0.0rc1 found, >=3.0 required"]),
        ("1.99", ">=2.2", ["lib 1.99 found, >=2.2 required"]),
        ("3.0.7", ">=3.0.8", ["lib 3.0.7 found, >=3.0.8 required"]),
        (None, ">=1", ["lib is missing, >=1 required"]),
        ("0.1", "", []),
    ],
)
def test_ranges_of_versions(version: str | None, wanted: str, words: list[str]) -> None:
    assert doctor.check_requirements({"lib": wanted}, lambda _name: version) == words


def test_a_missing_library_is_broken_and_a_missing_extra_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    true_version = metadata.version

    def version(name: str) -> str:
        if name in ("zarr", "dask-jobqueue"):
            raise metadata.PackageNotFoundError(name)
        return true_version(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    libraries, extras = doctor.check_packages(), doctor.check_extras()
    assert (libraries.verdict, extras.verdict) == ("broken", "note")
    assert "zarr is missing" in libraries.found
    assert extras.remedy == "pip install 'headroom[cluster]'"


def test_a_check_that_fails_is_broken_and_the_others_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise OSError("no certificates today")

    monkeypatch.setattr("cluster.certificates.make_certificates", refuse)
    code, out = run_doctor(capsys, "--folder", str(tmp_path))
    assert code == 3
    assert "broken  TLS: OSError: no certificates today" in out
    assert "SLURM" in out


@pytest.mark.parametrize(
    ("script", "verdict", "words"),
    [("echo up", "ok", "1 of 1 partitions up"), ("echo controller is down >&2; exit 1", "note", "controller is down")],
)
def test_slurm_is_asked(script: str, verdict: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.cli.doctor import check_slurm

    for name in ("sbatch", "squeue", "scancel", "sinfo"):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin:/bin")
    check = check_slurm()
    assert check.verdict == verdict
    assert words in check.found
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert check_slurm().verdict == "note"


def test_a_terminal_that_cannot_print_the_symbols_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ascii:
        encoding = "ascii"

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr(sys, "stdout", Ascii())
    check = doctor.check_terminal()
    assert check.verdict == "note"
    assert "PYTHONUTF8" in check.remedy


def write_group(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content)


def test_memory_is_that_of_the_control_group(tmp_path: Path) -> None:
    # Version 2: the job's own group has no limit, its parent 10,000 bytes, of which 2,500 are an inactive page cache.
    job = {"memory.max": "max\n", "memory.current": "4000\n", "memory.stat": "anon 1\ninactive_file 2500\n"}
    write_group(tmp_path / "slurm" / "job", job)
    write_group(tmp_path / "slurm", job | {"memory.max": "10000\n"})
    membership = tmp_path / "cgroup"
    membership.write_text("0::/slurm/job\n")
    assert list(memory.control_groups(tmp_path, membership)) == [10_000 - 4_000 + 2_500]
    # Version 1, in a container: the group's name is the host's, the limit lies at the mount.
    old = {"memory.limit_in_bytes": "800", "memory.usage_in_bytes": "900", "memory.stat": "total_inactive_file 50"}
    write_group(tmp_path / "memory", old)
    membership.write_text("9:cpu:/x\n4:memory:/docker/abc\nnonsense\n")
    assert list(memory.control_groups(tmp_path, membership)) == [0]
    assert list(memory.control_groups(tmp_path, tmp_path / "none")) == []

"""Other people's start-up: variables, streams, limits and signals that the command meets before it can do anything."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipeline

pytestmark = pytest.mark.faults  # each starts the real command, some dozens in all

ROOT = Path(pipeline.__file__).parents[1]
#: Starts the command, see ``conftest.py``.
Command = Callable[..., Any]


@pytest.fixture(scope="session")
def read_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation where numba finds no folder beside the source that it could write, whoever runs the tests."""
    root = tmp_path_factory.mktemp("installation")
    for package in ("pipeline", "cluster"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "pipeline" / "noise" / "__pycache__").touch()
    return root


def test_numba_finds_a_folder(headroom: Command, read_only: Path, tmp_path: Path) -> None:
    ended = headroom("doctor", "--json", PYTHONPATH=str(read_only), HOME="/dev/null/home", TMPDIR=str(tmp_path))
    ended.require(0)
    assert str(tmp_path / "headroom-numba-") in ended.out


def test_a_run_needs_no_folder_of_numbas_and_no_utf_8(rerun: Command, read_only: Path) -> None:
    ended = rerun(PYTHONPATH=str(read_only), HOME="/dev/null/home", TMPDIR="/dev/null", PYTHONIOENCODING="ascii")
    ended.require(0)
    assert "dR2" in ended.out


@pytest.mark.parametrize(
    "counts", [{"OMP_NUM_THREADS": "4,2"}, {"OMP_NUM_THREADS": "many", "NUMBA_NUM_THREADS": "0"}], ids=["list", "none"]
)
def test_thread_counts_that_are_none(headroom: Command, finished: Path, counts: dict[str, str]) -> None:
    headroom("compare", finished, finished, **counts).require(0)


def test_figures_need_no_backend_and_no_settings_of_matplotlib(
    headroom: Command, finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    headroom("report", finished, MPLBACKEND="no-such-backend").require(0)


@pytest.mark.parametrize(
    ("content", "code", "word"),
    [
        ("distributed: [1,\n b: {", 3, "settings.yaml"),
        ("distributed: {comm: {timeouts: {connect: soon}}}", 3, "Dask did not start"),
        ("headroom: {no-progress-timeout: never}", 2, "no-progress-timeout"),
    ],
    ids=["no YAML", "no time", "no time of ours"],
)
def test_settings_of_dask_that_cannot_be(rerun: Command, tmp_path: Path, content: str, code: int, word: str) -> None:
    folder = tmp_path / "dask"
    folder.mkdir()
    (folder / "settings.yaml").write_text(content)
    rerun(DASK_CONFIG=str(folder), TMPDIR=str(tmp_path)).require(code, word)


@pytest.mark.parametrize("name", ["ZARR_ARRAY__ORDER", "ZARR_CODEC_PIPELINE__PATH", "ZARR_THREADING__MAX_WORKERS"])
def test_settings_of_zarr_change_no_store_and_make_none_unreadable(
    headroom: Command, sample: Path, tmp_path: Path, name: str
) -> None:
    shards = sample / "test" / "dataset.h5"
    for variables, store in (({}, "plain.zarr"), ({name: "no.such"}, "set.zarr")):
        headroom("convert", shards, store, "--quiet", **variables).require(0)
    plain, other = (
        {file.relative_to(root): file.read_bytes() for file in root.rglob("*") if file.is_file()}
        for root in (tmp_path / "plain.zarr", tmp_path / "set.zarr")
    )
    assert plain == other
    headroom("inspect", "plain.zarr", "--quiet", **{name: "no.such"}).require(0)


def test_doctor_finds_settings_of_dask_that_cannot_be(headroom: Command, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("a: [")
    ended = headroom("doctor", DASK_CONFIG=str(tmp_path))
    ended.require(3)
    assert "settings.yaml" in ended.out


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["latin-1", "C"],
)
def test_results_are_spelled_where_the_encoding_lacks_letters(
    headroom: Command, finished: Path, environment: dict[str, str]
) -> None:
    ended = headroom("compare", finished, finished, **environment)
    ended.require(0)
    assert "dR2" in ended.out or "dR\ufffd" in ended.out  # latin-1 has the ² itself


@pytest.mark.parametrize("shell", [">&-", "2>&-"])
def test_closed_streams_take_nothing(headroom: Command, finished: Path, shell: str) -> None:
    ended = headroom("compare", finished, finished, shell=shell)
    ended.require(0)
    assert not ended.out or shell == "2>&-"


def test_a_run_needs_no_streams_at_all(rerun: Command) -> None:
    rerun(shell=">&- 2>&- <&-").require(0)


def test_a_full_disk_behind_standard_output_is_told(headroom: Command, finished: Path) -> None:
    for arguments in (("--help",), ("compare", finished, finished)):
        headroom(*arguments, shell=">/dev/full").require(3, "standard output")
    headroom("compare", finished, finished, shell=">/dev/full 2>&1").require(3)


def test_a_reader_that_leaves_is_no_error_to_speak_of(headroom: Command) -> None:
    ended = headroom("cluster", "show", "slurm", shell="| true")
    ended.require(0)
    assert not ended.err


def test_blas_never_ends_the_process_by_itself(headroom: Command, finished: Path, tmp_path: Path) -> None:
    for mib in (1100, 1200):  # enough for every import, and too little for drawing
        headroom(
            "report",
            finished,
            before=lambda mib=mib: resource.setrlimit(resource.RLIMIT_AS, (mib * 2**20,) * 2),
            TMPDIR=str(tmp_path),
        ).require(3, "ulimit -v")


@pytest.mark.parametrize("mib", [100, 600, 2000])
def test_a_limit_on_addresses_is_told_and_never_waited_for(rerun: Command, tmp_path: Path, mib: int) -> None:
    rerun(before=lambda: resource.setrlimit(resource.RLIMIT_AS, (mib * 2**20,) * 2), TMPDIR=str(tmp_path)).require(
        3, "ulimit -v"
    )

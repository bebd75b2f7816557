"""Conversion: the same store whatever the workers, chunks and interruptions; everything wrong refused."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from commands import hear_interrupts, wait_until
from shard_factory import make_frame, make_pixels, write_shard

import pipeline.convert
import pipeline.convert.convert
import pipeline.convert.ranges
from pipeline.convert import cast_rows, convert_shards, inspect_path, verify_store
from pipeline.convert.ranges import Bounds, RangeWriter, RowSource
from pipeline.convert.sources import lock_work, remove_work
from pipeline.errors import ConfigError, InputError, ResourceError
from pipeline.shards import ShardReader, read_shard_info
from pipeline.store import SpectraStore

P = 16
SMALL: dict[str, Any] = {"chunk_rows": 8, "shard_rows": 16}


class Notes:
    """A Progress that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: dict[str, list[int]] = {}

    def step(self, title: str, total: int, unit: str = "spectra") -> Any:
        from contextlib import nullcontext

        advanced = self.steps.setdefault(title, [])
        return nullcontext(advanced.append)

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return [write_shard(tmp_path / f"train_{k}" / "dataset.h5", n, P, seed=k) for k, n in enumerate((40, 21, 60))]


def tree(store: Path) -> dict[str, bytes]:
    return {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}


def rows_of(store: SpectraStore) -> np.ndarray:
    return np.stack([store.read_rows(name, 0, store.n_spectra) for name in ("flux", "error")])


def source_rows(seeds: dict[int, int]) -> np.ndarray:
    parts = [make_pixels(n, P, seed) for seed, n in seeds.items()]
    return np.stack([np.concatenate([part[k] for part in parts]) for k in (0, 1)]).astype(np.float32)


def test_convert__workers_give_the_same_bytes(shards: list[Path], tmp_path: Path) -> None:
    one = convert_shards(shards, tmp_path / "one", workers=1, **SMALL)
    two = convert_shards(shards, tmp_path / "two", workers=2, **SMALL)
    assert tree(one.path) == tree(two.path)
    np.testing.assert_array_equal(rows_of(one), source_rows({0: 40, 1: 21, 2: 60}))
    np.testing.assert_array_equal(one.columns["row"], np.r_[:40, :21, :60])
    assert one.shard_lengths == (40, 21, 60)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("sizes", [(8, 0), (1, 1), (64, 128), (None, None), (5, 35)])
def test_convert__chunks_change_no_row(
    shards: list[Path], tmp_path: Path, sizes: tuple[int | None, int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.convert.ranges, "BLOCK_BYTES", 8 * P * 3)  # blocks that divide nothing evenly
    store = convert_shards(shards, tmp_path / "store", workers=1, chunk_rows=sizes[0], shard_rows=sizes[1])
    rows = source_rows({0: 40, 1: 21, 2: 60})
    np.testing.assert_array_equal(rows_of(store), rows)
    np.testing.assert_array_equal(
        store.mean_flux, np.maximum(rows[0], 0).mean(axis=0, dtype=np.float64).astype(np.float32)
    )


def test_convert__order_is_the_given_one(shards: list[Path], tmp_path: Path) -> None:
    store = convert_shards(shards[::-1], tmp_path / "store", workers=1)
    np.testing.assert_array_equal(rows_of(store), source_rows({2: 60, 1: 21, 0: 40}))
    assert store.shard_names[0] == "train_2/dataset.h5"
    other = convert_shards(shards, tmp_path / "other", workers=1)
    assert store.fingerprint != other.fingerprint


def test_convert__fingerprint_ignores_paths(shards: list[Path], tmp_path: Path) -> None:
    here = convert_shards(shards, tmp_path / "here", workers=1)
    moved = [tmp_path / "elsewhere" / path.parent.name / path.name for path in shards]
    for old, new in zip(shards, moved, strict=True):
        new.parent.mkdir(parents=True)
        shutil.copy2(old, new)
    assert tree(convert_shards(moved, tmp_path / "deep" / "there", workers=1).path) == tree(here.path)
    os.utime(moved[0])  # the time of a change is recorded, but is no content
    assert convert_shards(moved, tmp_path / "touched", workers=1).fingerprint == here.fingerprint


def test_convert__sources_stay_as_they_are(shards: list[Path], tmp_path: Path) -> None:
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in shards]
    for path in shards:
        path.chmod(0o444)
    convert_shards(shards, tmp_path / "store", workers=1)
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in shards] == before


def test_convert__mask_only_where_flagged(tmp_path: Path) -> None:
    flagged = np.zeros((40, P), np.int64)
    flagged[33, 2] = 1
    clean = write_shard(tmp_path / "a.h5", arrays={"mask": np.zeros((40, P), np.int64)})
    integers = write_shard(tmp_path / "b.h5", arrays={"mask": flagged})
    booleans = write_shard(tmp_path / "c.h5", arrays={"mask": flagged == 0})
    none = write_shard(tmp_path / "d.h5", arrays={"mask": None})
    assert convert_shards([clean], tmp_path / "clean", workers=1, **SMALL).variables == ("flux", "error")
    for name, mix in {"b": [none, integers], "c": [clean, booleans]}.items():
        store = convert_shards(mix, tmp_path / f"{name}.zarr", workers=1, **SMALL)
        assert store.variables == ("flux", "error", "mask")
        np.testing.assert_array_equal(np.argwhere(store.read_rows("mask", 0, 80)), [[73, 2]])


def test_convert__finished_store_is_returned_at_once(shards: list[Path], tmp_path: Path) -> None:
    first = convert_shards(shards, tmp_path / "store", workers=1, **SMALL)
    stamp = (first.path / "zarr.json").stat().st_mtime_ns
    notes = Notes()
    again = convert_shards(shards, tmp_path / "store", workers=1, progress=notes, **SMALL)
    assert (first.path / "zarr.json").stat().st_mtime_ns == stamp
    assert again.fingerprint == first.fingerprint
    assert "complete already" in notes.notes[0]
    for change in ({"shard_rows": 32}, {"nonfinite": "drop"}):
        with pytest.raises(InputError, match="--overwrite"):
            convert_shards(shards, tmp_path / "store", workers=1, **{**SMALL, **change})
    with pytest.raises(InputError, match="--overwrite"):
        convert_shards(shards[:2], tmp_path / "store", workers=1, **SMALL)
    assert SpectraStore.open(first.path).fingerprint == first.fingerprint


def test_convert__overwrite_replaces_only_when_complete(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = convert_shards(shards, tmp_path / "store", workers=1, **SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.convert.convert, "verify_sample", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert_shards(shards[:2], tmp_path / "store", workers=1, overwrite=True, **SMALL)
    assert SpectraStore.open(first.path).fingerprint == first.fingerprint
    second = convert_shards(shards[:2], tmp_path / "store", workers=1, overwrite=True, **SMALL)
    assert second.n_spectra == 61
    assert not (tmp_path / "store.partial").exists()


def test_convert__damaged_store_is_replaced_on_request_only(shards: list[Path], tmp_path: Path) -> None:
    store = convert_shards(shards, tmp_path / "store", workers=1, **SMALL)
    (store.path / "flux" / "c" / "0" / "0").unlink()
    with pytest.raises(InputError, match=r"is missing.*--overwrite"):
        convert_shards(shards, store.path, workers=1, **SMALL)
    assert convert_shards(shards, store.path, workers=1, overwrite=True, **SMALL).fingerprint == store.fingerprint


def test_convert__never_replaces_what_is_no_store(shards: list[Path], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    for target in ("folder", "file", "foreign"):
        for overwrite in (False, True):
            with pytest.raises(InputError, match="not a store"):
                convert_shards(shards, tmp_path / target, workers=1, overwrite=overwrite)
    (tmp_path / "x.partial").mkdir()
    (tmp_path / "x.partial" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="not the work folder"):
        convert_shards(shards, tmp_path / "x", workers=1, overwrite=True)
    assert (tmp_path / "x.partial" / "thesis.tex").exists()


def interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize("phase", ["create_store", "build_manifest", "verify_sample", "put_in_place"])
def test_convert__resumes_after_every_phase(
    shards: list[Path], tmp_path: Path, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = convert_shards(shards, tmp_path / "whole", workers=1, **SMALL)
    original = getattr(pipeline.convert.convert, phase)
    for after in (False, True):
        target = tmp_path / f"store_{after}"

        def stop(*given: Any, after: bool = after) -> None:
            if after:
                original(*given)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(pipeline.convert.convert, phase, stop)
            with pytest.raises(KeyboardInterrupt):
                convert_shards(shards, target, workers=1, **SMALL)
        if not (after and phase == "put_in_place"):
            with pytest.raises(InputError, match="unfinished"):
                SpectraStore.open(target)
        assert tree(convert_shards(shards, target, workers=1, **SMALL).path) == tree(whole.path)
        assert not (tmp_path / f"{target.name}.partial").exists()


def test_convert__resumes_between_the_two_renames(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "store"
    convert_shards(shards[:1], target, workers=1)
    rename, calls = os.rename, []

    def rename_once(old: Path, new: Path) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(rename(old, new))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename_once)
        with pytest.raises(KeyboardInterrupt):
            convert_shards(shards, target, workers=1, overwrite=True)
    assert not target.exists()
    assert convert_shards(shards, target, workers=1).n_spectra == 121


def test_convert__redoes_only_what_is_unfinished(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = convert_shards(shards, tmp_path / "whole", workers=1, **SMALL)
    done: list[int] = []
    original = RangeWriter.convert_range

    def convert_some(self: RangeWriter, start: int) -> dict[str, Any]:
        if len(done) == 4:
            # half a range: the file is there, its record is not
            (self.plan.store / "flux" / "c" / "4").mkdir(parents=True)
            (self.plan.store / "flux" / "c" / "4" / "0").write_bytes(b"half")
            raise KeyboardInterrupt
        done.append(start)
        return original(self, start)

    monkeypatch.setattr(RangeWriter, "convert_range", convert_some)
    with pytest.raises(KeyboardInterrupt):
        convert_shards(shards, tmp_path / "store", workers=1, **SMALL)
    assert done == [0, 16, 32, 48]
    (tmp_path / "store.partial" / "store" / "error" / "c" / "1" / "0").unlink()  # recorded, and lost since
    again: list[int] = []

    def convert_rest(self: RangeWriter, start: int) -> dict[str, Any]:
        again.append(start)
        return original(self, start)

    monkeypatch.setattr(RangeWriter, "convert_range", convert_rest)
    notes = Notes()
    store = convert_shards(shards, tmp_path / "store", workers=1, progress=notes, **SMALL)
    assert again == [16, 64, 80, 96, 112]
    assert notes.steps["convert"] == [48, 16, 16, 16, 16, 9]
    assert tree(store.path) == tree(whole.path)


def test_convert__a_range_twice_is_the_same_range(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = convert_shards(shards, tmp_path / "whole", workers=1, **SMALL)
    original = RangeWriter.convert_range
    monkeypatch.setattr(
        RangeWriter, "convert_range", lambda self, start: original(self, start) and original(self, start)
    )
    assert tree(convert_shards(shards, tmp_path / "store", workers=1, **SMALL).path) == tree(whole.path)


def test_convert__other_work_folder_is_refused(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.convert.convert, "build_manifest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert_shards(shards, tmp_path / "store", workers=1, **SMALL)
    for other in ({"shards": shards[:2], **SMALL}, {"shards": shards, "chunk_rows": 16}):
        with pytest.raises(InputError, match=r"unfinished.*--overwrite"):
            convert_shards(store=tmp_path / "store", workers=1, **other)
    store = convert_shards(shards[:2], tmp_path / "store", workers=1, overwrite=True)
    assert store.n_spectra == 61


SCRIPT = """
import sys
from pathlib import Path
from pipeline.convert import convert_shards
from pipeline.base import terminations_raised
if __name__ == "__main__":
    *shards, store = map(Path, sys.argv[1:])
    with terminations_raised():  # as every command runs
        convert_shards(shards, store, workers=2, chunk_rows=8, shard_rows=16)
"""


def children_of(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.faults
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=lambda value: value.name)
def test_convert__killed_in_the_middle_and_run_again(tmp_path: Path, how: signal.Signals) -> None:
    shard = write_shard(tmp_path / "train" / "dataset.h5", 5000, P)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    target = tmp_path / "store"
    command = [sys.executable, str(script), str(shard), str(target)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=hear_interrupts) as run:
        wait_until(lambda: len(list((tmp_path / "store.partial" / "ranges").glob("*.json"))) > 5, "six ranges")
        workers = children_of(run.pid)
        assert len(workers) >= 2
        run.send_signal(how)
        run.wait(10)
    wait_until(lambda: not any(alive(worker) for worker in workers), "workers end", 10)  # nobody writes behind our back
    assert run.returncode == -how
    assert not target.exists()
    left = len(list((tmp_path / "store.partial" / "ranges").glob("*.json")))
    assert 5 < left < 313
    store = convert_shards([shard], target, workers=2, **SMALL)
    whole = convert_shards([shard], tmp_path / "whole", workers=1, **SMALL)
    assert tree(store.path) == tree(whole.path)


# Python's own pool counts its processes in a thread while they are being removed (3.11: "dictionary changed size").
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_convert__killed_worker_is_a_resource_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write_shard(tmp_path / "train" / "dataset.h5", 3000, P)
    original, killed = RangeWriter.convert_range, threading.Event()
    others = set(children_of(os.getpid()))  # an earlier test's worker may still be on its way out

    def kill_one() -> None:
        def find() -> list[int]:
            return [pid for pid in children_of(os.getpid()) if pid not in others and b"spawn_main" in read_command(pid)]

        wait_until(find, "a worker")
        os.kill(find()[0], signal.SIGKILL)
        killed.set()

    def convert_then_wait(self: RangeWriter, start: int) -> dict[str, Any]:
        record = original(self, start)  # this process is a worker too, and would be done before the other one starts
        assert killed.wait(30)
        return record

    thread = threading.Thread(target=kill_one)
    thread.start()
    with monkeypatch.context() as patch:
        patch.setattr(RangeWriter, "convert_range", convert_then_wait)
        with pytest.raises(ResourceError, match=r"worker process .* was killed.*--workers 1"):
            convert_shards([shard], tmp_path / "store", workers=2, **SMALL)
    thread.join()
    assert convert_shards([shard], tmp_path / "store", workers=1, **SMALL).n_spectra == 3000


def read_command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_convert__one_conversion_at_a_time(shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert_again(*_: Any) -> None:
        with pytest.raises(InputError, match="another conversion is writing"):
            convert_shards(shards, tmp_path / "store", workers=1)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.convert.convert, "verify_sample", convert_again)
    with pytest.raises(KeyboardInterrupt):
        convert_shards(shards, tmp_path / "store", workers=1)


# --- faulty pixels ---------------------------------------------------------------------------------


@pytest.fixture
def faulty(tmp_path: Path) -> tuple[list[Path], list[int]]:
    """Two shards with one spectrum of every kind of fault, and the rows (of both together) that are good."""
    flux, error = make_pixels(40, P)
    flux[3, 5], flux[17, 0], flux[18] = np.nan, -np.inf, 0
    error[20, 7], error[21, 2] = np.nan, -1e-3
    error[:, 0] = np.nan
    error[5, -1] = np.nan
    error[22, :2] = np.nan  # the neighbour is no number either
    first = write_shard(tmp_path / "train_0" / "dataset.h5", arrays={"flux": flux, "error": error})
    second_flux = make_pixels(40, P, 1)[0]
    second_flux[39, 1] = np.inf
    second = write_shard(tmp_path / "train_1" / "dataset.h5", seed=1, arrays={"flux": second_flux})
    return [first, second], [row for row in range(79) if row not in (3, 17, 18, 20, 21, 22)]


def test_convert__drops_and_keeps_the_books(faulty: tuple[list[Path], list[int]], tmp_path: Path) -> None:
    shards, good = faulty
    notes = Notes()
    one = convert_shards(shards, tmp_path / "one", workers=1, nonfinite="drop", progress=notes, **SMALL)
    two = convert_shards(shards, tmp_path / "two", workers=2, nonfinite="drop", **SMALL)
    assert tree(one.path) == tree(two.path)
    assert one.n_spectra == len(good) == 73
    assert (one.shard_lengths, one.source_lengths) == ((34, 39), (40, 40))
    np.testing.assert_array_equal(40 * one.columns["shard"].astype(int) + one.columns["row"], good)
    ids = np.concatenate([make_frame(40)["id"], make_frame(40, 1)["id"]])
    np.testing.assert_array_equal(one.columns["id"], ids[good])
    expected = source_rows({0: 40, 1: 40})[:, good]
    expected[1, :34, 0] = expected[1, :34, 1]
    edge = good.index(5)
    expected[1, edge, -1] = expected[1, edge, -2]
    np.testing.assert_array_equal(rows_of(one), expected)
    dropped = [dict(source.dropped) for source in one.manifest.sources]
    assert dropped == [
        {"nonfinite": [3, 17, 20, 22], "negative error": [21], "all zero": [18]},
        {"nonfinite": [39]},
    ]
    assert one.manifest.counts["repaired_error_pixels"] == 35
    assert one.manifest.counts["dropped_nonfinite"] == 5
    assert "left out: 7;" in notes.notes[0]


def test_convert__scan_is_resumed(
    faulty: tuple[list[Path], list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, _ = faulty
    whole = convert_shards(shards, tmp_path / "whole", workers=1, nonfinite="drop", **SMALL)
    original, calls = RangeWriter.scan_rows, []

    def scan_some(self: RangeWriter, task: tuple[int, int, int]) -> dict[str, Any]:
        calls.append(task)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, task)

    monkeypatch.setattr(RangeWriter, "scan_rows", scan_some)
    with pytest.raises(KeyboardInterrupt):
        convert_shards(shards, tmp_path / "store", workers=1, nonfinite="drop", **SMALL)
    store = convert_shards(shards, tmp_path / "store", workers=1, nonfinite="drop", **SMALL)
    assert len(calls) == 3 + 4  # six pieces, two of them scanned before
    assert tree(store.path) == tree(whole.path)


@pytest.mark.parametrize(
    ("variable", "row", "pixel", "value", "message"),
    [
        ("flux", 33, 5, np.nan, "flux must be finite, found nan at row 33, pixel 5"),
        ("flux", 0, 15, -np.inf, "flux must be finite, found -inf at row 0, pixel 15"),
        ("error", 33, 5, np.nan, "error must be finite, found nan at row 33, pixel 5"),
        ("error", 33, 0, np.inf, "error must be finite, found inf at row 33, pixel 0"),
        ("error", 12, 3, -0.5, "error must be non-negative, found -0.5 at row 12, pixel 3"),
        ("noisy", 39, 3, np.nan, "noisy must be finite, found nan at row 39, pixel 3"),
        ("noisy", 39, slice(0, 2), np.nan, "noisy must be finite, found nan at row 39, pixel 0"),
        ("error", 7, slice(None), 0.0, "spectrum 7 must hold 1-sigma errors, but all its errors are zero"),
        ("flux", 7, slice(None), 0.0, "spectrum 7 must hold flux, but all its pixels are zero"),
        ("flux", 7, 2, 1e39, r"flux must be below .*, found 1e\+39 at row 7, pixel 2"),
        ("flux", 7, slice(2, 4), -9.97e36, r"flux must be below .*, found -9.97e\+36 at row 7, pixel 2"),
        ("error", 7, 2, 1e300, r"error must be below .*, found 1e\+300 at row 7, pixel 2"),
        ("error", 7, 2, 1e10, r"error must be below .*, found 1e\+10 at row 7, pixel 2"),
        ("noisy", 7, 2, 1e20, r"noisy must be below .*, found 1e\+20 at row 7, pixel 2"),
        ("flux", 7, slice(None), 3.5, "spectrum 7 must hold flux, but all its pixels are 3.5"),
        ("noisy", 7, slice(None), 0.0, "spectrum 7 must hold noisy, but all its pixels are zero"),
    ],
)
def test_convert__raise_on_faulty_pixel(
    tmp_path: Path, variable: str, row: int, pixel: Any, value: float, message: str
) -> None:
    flux, error = make_pixels(40, P)
    arrays = {"flux": flux, "error": error, "noisy": flux.copy()}
    arrays[variable][row, pixel] = value
    # A mask excuses nothing: the models use every pixel.
    mask = np.zeros((40, P), np.int64)
    mask[row, pixel] = 1
    shard = write_shard(tmp_path / "train_3" / "dataset.h5", arrays=arrays | {"mask": mask})
    with pytest.raises(InputError, match=f"train_3/dataset.h5: {message}") as caught:
        convert_shards([shard], tmp_path / "store", workers=1, **SMALL)
    assert "'data.nonfinite: drop'" in str(caught.value)
    assert "'--nonfinite drop'" in str(caught.value)
    assert not (tmp_path / "store").exists()
    (inspected,) = inspect_path(shard)
    assert re.search(f"1 spectrum, because {message}", inspected.refused or "")
    store = convert_shards([shard], tmp_path / "other", workers=1, nonfinite="drop", **SMALL)
    assert store.n_spectra == 39
    assert store.sources[0].dropped_rows == (row,)
    verify_store(store, [shard], workers=1)
    assert inspect_path(store.path)[0].refused is None


@pytest.mark.parametrize("variable", ["flux", "error"])
def test_convert__raise_on_contiguous_storage_that_is_half_written(tmp_path: Path, variable: str) -> None:
    shard = write_shard(tmp_path / "dataset.h5", chunks=None)
    with h5py.File(shard, "r+") as file:
        values = file[f"dataset/arrays/{variable}/value"][...]
        del file[f"dataset/arrays/{variable}/value"]
        half = file.create_dataset(f"dataset/arrays/{variable}/value", values.shape, values.dtype, fillvalue=2.5)
        half[:23] = values[:23]
    with pytest.raises(InputError, match=r"spectrum 23 must hold .* are 2.5, as if"):
        convert_shards([shard], tmp_path / "store", workers=1)
    assert "17 spectra" in (inspect_path(shard)[0].refused or "")


@pytest.mark.parametrize("power", [-100, 0, 100])
def test_cast_rows__what_is_absurd_does_not_depend_on_the_unit(power: int) -> None:
    flux = np.ldexp(1.0 + np.arange(8.0), power)[None]
    bounds = Bounds.of_flux(float(np.median(flux)))
    out = np.empty((1, 8), np.float32)
    assert cast_rows("flux", flux, out, bounds=bounds) == (0, [])
    flux[0, 3] = 1e6 * np.median(flux)
    [fault] = cast_rows("flux", flux, out, bounds=bounds)[1]
    assert (fault.kind, fault.pixel) == ("absurd", 3)


@pytest.mark.parametrize("factor", [1e-35, 1e35])
def test_convert__raise_on_a_unit_beyond_single_precision(tmp_path: Path, factor: float) -> None:
    flux, error = make_pixels(40, P)
    shard = write_shard(tmp_path / "dataset.h5", arrays={"flux": flux * factor, "error": error * factor})
    with pytest.raises(InputError, match=r"typical flux .* another unit"):
        convert_shards([shard], tmp_path / "store", workers=1)


def test_convert__raise_when_nothing_is_left(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "dataset.h5", arrays={"flux": np.zeros((40, P))})
    with pytest.raises(InputError, match="faulty"):
        convert_shards([shard], tmp_path / "store", workers=1, nonfinite="drop")


def test_cast_rows__accepts_what_is_odd_but_right() -> None:
    flux = np.array([[-1.0, 1.0, 0, 0], [3e38, 3e38, 3e38, 1e38], [1e-50, 1, 2, 3]])
    out, sums = np.empty((3, 4), np.float32), np.zeros(4)
    assert cast_rows("flux", flux, out, sums) == (0, [])
    np.testing.assert_array_equal(out, flux.astype(np.float32))
    np.testing.assert_array_equal(sums, out.astype(float).sum(axis=0))
    assert cast_rows("error", np.array([[0, 0, 0, 1e-9], [-0.0, 1, 1, 1]]), out[:2]) == (0, [])


def test_cast_rows__all_zero_errors_are_a_fault_of_their_own() -> None:
    error = np.ones((3, 4))
    error[1] = 0
    error[2] = [0, 0, 1, -1]  # adds up to zero, and is not
    out = np.empty((3, 4), np.float32)
    assert [(fault.row, fault.kind) for fault in cast_rows("error", error, out)[1]] == [
        (1, "zero error"),
        (2, "negative error"),
    ]


def test_convert__edges_of_noisy_are_repaired_like_errors(tmp_path: Path) -> None:
    flux, error = make_pixels(40, P)
    noisy = flux.copy()
    error[:, 0] = noisy[:, 0] = np.nan
    noisy[7, -1] = np.nan
    shard = write_shard(tmp_path / "dataset.h5", arrays={"flux": flux, "error": error, "noisy": noisy})
    store = convert_shards([shard], tmp_path / "store", workers=1, **SMALL)
    expected = noisy.astype(np.float32)
    expected[:, 0], expected[7, -1] = expected[:, 1], expected[7, -2]
    np.testing.assert_array_equal(store.read_rows("noisy", 0, 40), expected)
    assert store.manifest.counts["repaired_noisy_pixels"] == 41
    assert store.manifest.counts["repaired_error_pixels"] == 40


# --- rows read past HDF5 -----------------------------------------------------------------------------


LAYOUTS: dict[str, tuple[bool, dict[str, Any]]] = {
    "whole rows": (True, {"chunks": (8, P)}),
    "one chunk, padded": (True, {"chunks": (48, P)}),
    "contiguous": (True, {"chunks": None}),
    "narrow chunks": (False, {"chunks": (8, 4)}),
    "compressed": (False, {"storage": {"compression": "gzip"}}),
    "checksums": (False, {"storage": {"fletcher32": True}}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_row_source__reads_what_hdf5_reads(tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    is_plain, options = LAYOUTS[layout]
    mask = np.zeros((40, P), np.int64)
    mask[11, 3], mask[30, 0] = 1, -(2**40)
    arrays = {"mask": mask}
    if layout == "one chunk, padded":
        options = {"chunks": None, "arrays": arrays}
        shard = write_shard(tmp_path / "dataset.h5", **options)
        with h5py.File(shard, "a") as file:
            for name in ("flux", "error", "mask"):
                values = file[f"dataset/arrays/{name}/value"][:]
                del file[f"dataset/arrays/{name}/value"]
                kept = file.create_dataset(
                    f"dataset/arrays/{name}/value", data=values, chunks=(48, P), maxshape=(None, P)
                )
                assert kept.id.get_num_chunks() == 1
    else:
        shard = write_shard(tmp_path / "dataset.h5", arrays=arrays, **options)
    with ShardReader(shard) as reader:
        expected = {name: reader.read_rows(name, 0, 40).copy() for name in ("flux", "error", "mask")}
    through_hdf5: list[str] = []
    read_rows = ShardReader.read_rows
    monkeypatch.setattr(
        ShardReader, "read_rows", lambda self, name, *given: through_hdf5.append(name) or read_rows(self, name, *given)
    )
    monkeypatch.setattr(pipeline.convert.ranges, "TILE_BYTES", 3 * 8 * P)
    block = np.empty((40, P))
    with RowSource(ShardReader(shard)) as source:
        for name, rows in expected.items():
            assert source.tile_rows(name, 20) == (3 if is_plain else 20)
            for start, stop in ((0, 40), (3, 4), (5, 29), (39, 40), (7, 7)):
                np.testing.assert_array_equal(source.read_rows(name, start, stop, block), rows[start:stop])
    assert bool(through_hdf5) != is_plain


@pytest.mark.parametrize("dtype", [">f8", "<f4", "<f2"])
def test_row_source__leaves_other_numbers_to_hdf5(tmp_path: Path, dtype: str) -> None:
    flux = make_pixels(40, P)[0].astype(dtype)
    shard = write_shard(tmp_path / "dataset.h5", arrays={"flux": flux})
    with RowSource(ShardReader(shard)) as source:
        np.testing.assert_array_equal(source.read_rows("flux", 2, 9, np.empty((7, P))), flux[2:9].astype(float))


def test_row_source__leaves_a_user_block_and_other_files_to_hdf5(tmp_path: Path) -> None:
    with (
        h5py.File(tmp_path / "dataset.h5", "w", userblock_size=512) as file,
        h5py.File(tmp_path / "b.h5", "w") as other,
    ):
        file["dataset/arrays/flux/value"] = make_pixels(40, P)[0]
        other["error"] = make_pixels(40, P)[1]
        file["dataset/arrays/error/value"] = h5py.ExternalLink(str(tmp_path / "b.h5"), "error")
    with RowSource(ShardReader(tmp_path / "dataset.h5", allow_external=True)) as source:
        for name, expected in zip(("flux", "error"), make_pixels(40, P), strict=True):
            np.testing.assert_array_equal(source.read_rows(name, 2, 9, np.empty((7, P))), expected[2:9])


def test_row_source__a_short_read_is_left_to_hdf5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write_shard(tmp_path / "dataset.h5")
    monkeypatch.setattr(os, "preadv", lambda *_: 5)
    with RowSource(ShardReader(shard)) as source:
        np.testing.assert_array_equal(source.read_rows("flux", 0, 40, np.empty((40, P))), make_pixels(40, P)[0])
        assert not source.read_rows("mask", 0, 40, np.empty((40, P))).any()


# --- shards that disagree ----------------------------------------------------------------------------


def test_convert__raise_on_shards_that_disagree(shards: list[Path], tmp_path: Path) -> None:
    wave = np.linspace(7100, 8850, P)
    wave[6:] += 0.01
    extra = make_frame(40).assign(age=1.0)
    text = make_frame(40).assign(mag="bright")
    others = {
        "equal wavelengths, found 7800.000000 and 7800.010000 Å at pixel 6": {"wavelength": wave},
        "equal pixels, found 16 and 12": {"n_pixels": 12},
        "only odd/dataset.h5 has a 'noisy' array": {"arrays": {"noisy": np.ones((40, P))}},
        "only odd/dataset.h5 has 'age'": {"frame": extra},
        "only train_0/dataset.h5 has 'mag'": {"frame": make_frame(40).drop(columns="mag")},
        "agree on column 'mag'": {"frame": text},
    }
    for message, options in others.items():
        odd = write_shard(tmp_path / "odd" / "dataset.h5", 40, **{"n_pixels": P, **options})
        with pytest.raises(InputError, match=f"train_0/dataset.h5 and odd/dataset.h5.*{message}"):
            convert_shards([shards[0], odd], tmp_path / "store", workers=1)
    with pytest.raises(InputError, match="at least one shard"):
        convert_shards([], tmp_path / "store")
    assert not list(tmp_path.glob("store*"))


def test_convert__column_names_of_the_store_are_taken(tmp_path: Path) -> None:
    frame = make_frame(40).assign(row=np.arange(40)[::-1], **{"a b/c": 2.0}, über=3.0)
    store = convert_shards([write_shard(tmp_path / "d.h5", frame=frame)], tmp_path / "store", workers=1)
    np.testing.assert_array_equal(store.columns["row"], np.arange(40))
    np.testing.assert_array_equal(store.columns["params_row"], np.arange(40)[::-1])
    assert not {"a b/c", "a_b_c", "über"} & set(store.columns)
    assert ["left out" in remark for remark in store.manifest.sources[0].remarks] == [True, True]


@pytest.mark.parametrize(
    "wrong", [{"workers": 0}, {"chunk_rows": 0}, {"shard_rows": 3}, {"nonfinite": "zero"}], ids=str
)
def test_convert__raise_on_settings(shards: list[Path], tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        convert_shards(shards, tmp_path / "store", **{"chunk_rows": 8, **wrong})


# --- disks -------------------------------------------------------------------------------------------


def test_convert__raise_when_the_disk_is_too_small(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(10, 9, 1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(ResourceError, match=r"store\.partial"):
            convert_shards(shards, tmp_path / "store", workers=1)
    assert not (tmp_path / "store").exists()
    assert convert_shards(shards, tmp_path / "store", workers=1).n_spectra == 121


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO])
def test_convert__raise_when_writing_fails(
    shards: list[Path], tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, count = os.write, [0]

    def write_some(handle: int, content: Any) -> int:
        count[0] += 1
        if count[0] > 9:
            raise OSError(code, os.strerror(code))
        return write(handle, content)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_some)
        with pytest.raises(ResourceError, match=rf"cannot write .*store.partial: {os.strerror(code)}") as caught:
            convert_shards(shards, tmp_path / "store", workers=1, **SMALL)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "store").exists()
    assert list((tmp_path / "store.partial" / "ranges").glob("*.json"))
    assert convert_shards(shards, tmp_path / "store", workers=1, **SMALL).n_spectra == 121


def test_convert__raise_on_a_real_file_size_limit(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "dataset.h5", 400, P)
    code = (
        "import resource, sys; from pathlib import Path; from pipeline.convert.convert import convert_shards\n"
        "from pipeline.errors import ResourceError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))\n"
        "try: convert_shards([Path(sys.argv[1])], Path(sys.argv[2]), workers=1)\n"
        "except ResourceError as error: print(error); sys.exit(error.exit_code)\n"
    )
    command = [sys.executable, "-c", code, str(shard), str(tmp_path / "store")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 3, run.stderr
    assert "File too large" in run.stdout
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "store").exists()


def test_convert__raise_below_a_regular_file(shards: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceError, match=r"cannot write .*file.*Not a directory"):
        convert_shards(shards, tmp_path / "file" / "store", workers=1)


def test_convert__raise_within_another_store(shards: list[Path], tmp_path: Path) -> None:
    store = convert_shards(shards, tmp_path / "store", workers=1)
    for place in ("inner", "flux/inner", "flux/c/0"):
        with pytest.raises(ConfigError, match="none may lie within"):
            convert_shards(shards, store.path / place, workers=1)
    assert not list(store.path.rglob("inner*"))


def test_convert__raise_when_a_shard_changes_meanwhile(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = pipeline.convert.convert.build_manifest

    def change_shard(*given: Any) -> None:
        original(*given)
        with h5py.File(shards[0], "a") as file:
            file["dataset/arrays/flux/value"][0, 3] += 1

    monkeypatch.setattr(pipeline.convert.convert, "build_manifest", change_shard)
    with pytest.raises(InputError, match="flux of row 0"):
        convert_shards(shards, tmp_path / "store", workers=1)
    assert not (tmp_path / "store").exists()


def test_manifest__is_plain_and_without_places(shards: list[Path], tmp_path: Path) -> None:
    store = convert_shards(shards, tmp_path / "store", workers=1, **SMALL)
    text = (store.path / "manifest" / "zarr.json").read_text()
    assert str(tmp_path) not in text
    attributes = json.loads(text)["attributes"]
    assert [source["name"] for source in attributes["sources"]] == [f"train_{k}/dataset.h5" for k in range(3)]
    assert [(part["start"], part["stop"]) for part in attributes["ranges"]][-1] == (112, 121)


def test_convert__cleans_up_after_a_kill_that_followed_the_rename(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.convert.convert, "remove_work", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert_shards(shards, tmp_path / "store", workers=1, **SMALL)
    assert (tmp_path / "store.partial").exists()
    assert convert_shards(shards, tmp_path / "store", workers=1, **SMALL).n_spectra == 121
    assert not (tmp_path / "store.partial").exists()


# --- shards that change after they were read -----------------------------------------------------------


def change_in_place(path: Path, variable: str = "flux", row: int = 3, pixel: int = 5, by: float = 1e-3) -> None:
    """Change one pixel of a row that no fingerprint reads, as a repaired simulation would."""
    before = read_shard_info(path)
    with h5py.File(path, "a") as file:
        file[f"dataset/arrays/{variable}/value"][row, pixel] += by
    os.utime(path, ns=(before.mtime_ns + 10**9, before.mtime_ns + 10**9))
    after = read_shard_info(path)
    assert (after.fingerprint, after.size) == (before.fingerprint, before.size)


@pytest.mark.parametrize(("variable", "by"), [("flux", 1e-3), ("error", 1e-3), ("mask", 1)])
@pytest.mark.parametrize("sizes", [SMALL, {}], ids=["small", "one range"])
def test_convert__raise_on_a_shard_that_changed_since(
    shards: list[Path], tmp_path: Path, variable: str, by: float, sizes: dict[str, Any]
) -> None:
    store = convert_shards(shards, tmp_path / "store", workers=1, **sizes)
    change_in_place(shards[1], variable, by=by)
    with pytest.raises(
        InputError, match=r"train_1/dataset.h5 must be what store .*store was made of.*--overwrite"
    ) as got:
        convert_shards(shards, tmp_path / "store", workers=1, **sizes)
    assert got.value.exit_code == 2
    if variable != "mask":
        assert f"{variable} of row 3 differs" in str(got.value)
    assert not (tmp_path / "store.partial").exists()
    again = convert_shards(shards, tmp_path / "store", workers=1, overwrite=True, **sizes)
    assert again.fingerprint != store.fingerprint
    assert convert_shards(shards, tmp_path / "store", workers=1, **sizes).fingerprint == again.fingerprint


@pytest.mark.parametrize("sizes", [SMALL, {}], ids=["small", "one range"])
def test_convert__touched_shards_are_compared_once(
    shards: list[Path], tmp_path: Path, sizes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = convert_shards(shards, tmp_path / "store", workers=1, **sizes)
    os.utime(shards[1], ns=(1, 1))
    with monkeypatch.context() as patch:  # a store that may only be read is compared, and stays as it is
        patch.setattr(os, "access", lambda *_: False)
        before = tree(store.path)
        assert convert_shards(shards, store.path, workers=1, **sizes).fingerprint == store.fingerprint
        assert tree(store.path) == before
    notes = Notes()
    assert convert_shards(shards, store.path, workers=1, progress=notes, **sizes).fingerprint == store.fingerprint
    assert sum(notes.steps["compare changed shards"]) == 21
    assert "train_1/dataset.h5: written anew" in notes.notes[0]
    notes = Notes()
    convert_shards(shards, store.path, workers=1, progress=notes, **sizes)
    assert not notes.steps
    assert not (tmp_path / "store.partial").exists()
    SpectraStore.open(store.path)


def test_convert__raise_on_a_dropped_spectrum_that_is_right_now(
    faulty: tuple[list[Path], list[int]], tmp_path: Path
) -> None:
    shards, _ = faulty
    options: dict[str, Any] = {"workers": 1, "nonfinite": "drop", **SMALL}
    store = convert_shards(shards, tmp_path / "store", **options)
    os.utime(shards[0], ns=(1, 1))
    assert convert_shards(shards, store.path, **options).fingerprint == store.fingerprint
    change_in_place(shards[0], "error", 21, 2, by=1.0)
    with pytest.raises(InputError, match="row 21"):
        convert_shards(shards, store.path, **options)


@pytest.mark.parametrize("nonfinite", ["refuse", "drop"])
def test_convert__resume_redoes_ranges_of_changed_shards(
    request: pytest.FixtureRequest, tmp_path: Path, nonfinite: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = request.getfixturevalue("faulty")[0] if nonfinite == "drop" else request.getfixturevalue("shards")
    options: dict[str, Any] = {"workers": 1, "nonfinite": nonfinite, **SMALL}
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.convert.convert, "verify_sample", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert_shards(sources, tmp_path / "store", **options)
    if nonfinite == "drop":
        change_in_place(sources[0], "error", 21, 2, by=1.0)  # one spectrum fewer is faulty: all later rows move
    else:
        change_in_place(sources[1])
    notes = Notes()
    store = convert_shards(sources, tmp_path / "store", progress=notes, **options)
    if nonfinite == "drop":
        assert store.n_spectra == 74
        assert notes.steps["scan"][0] == 40  # the second shard, which is as it was
    else:
        assert notes.steps["convert"] == [121 - 32, 16, 16]  # rows 32 to 64 hold the 21 of the second shard
    assert tree(store.path) == tree(convert_shards(sources, tmp_path / "whole", **options).path)


def test_convert__raise_on_a_shard_written_to_meanwhile(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = RangeWriter.convert_range

    def write_then_convert(self: RangeWriter, start: int) -> dict[str, Any]:
        if start == 48:
            change_in_place(shards[1])
        return original(self, start)

    with monkeypatch.context() as patch:
        patch.setattr(RangeWriter, "convert_range", write_then_convert)
        with pytest.raises(InputError, match=r"train_1/dataset\.h5"):
            convert_shards(shards, tmp_path / "store", workers=1, **SMALL)
    recorded = sorted(int(path.stem) for path in (tmp_path / "store.partial" / "ranges").glob("*.json"))
    assert recorded == [0, 16, 32]  # refused at once, not at the end
    store = convert_shards(shards, tmp_path / "store", workers=1, **SMALL)
    assert tree(store.path) == tree(convert_shards(shards, tmp_path / "whole", workers=1, **SMALL).path)


@pytest.mark.parametrize("remedy", ["mend", "drop"])
def test_convert__what_is_kept_of_a_refused_conversion(shards: list[Path], tmp_path: Path, remedy: str) -> None:
    with h5py.File(shards[1], "a") as file:
        good = file["dataset/arrays/flux/value"][3, 5]
        file["dataset/arrays/flux/value"][3, 5] = np.nan
    work = tmp_path / "store.partial"
    for first in (1, 0):  # with the bad shard first, nothing was converted before it, so nothing is kept
        with pytest.raises(InputError, match="found nan at row 3") as caught:
            convert_shards(shards[first:], tmp_path / "store", workers=1, **SMALL)
        assert work.exists() == (f"is kept in {work}: when the shard is mended" in str(caught.value)) == (first == 0)
    if remedy == "mend":
        with h5py.File(shards[1], "a") as file:
            file["dataset/arrays/flux/value"][3, 5] = good
        settings, again = SMALL, [32, *[16] * 5, 9]
    else:  # what the message advises is no conversion that anything has to be discarded for by hand
        settings, again = {**SMALL, "nonfinite": "drop"}, [*[16] * 7, 8]
    notes = Notes()
    store = convert_shards(shards, tmp_path / "store", workers=1, progress=notes, **settings)
    assert (store.n_spectra, notes.steps["convert"]) == (sum(again), again)
    assert not work.exists()


def test_convert__raise_on_a_copy_of_a_shard(shards: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "again" / "dataset.h5"
    copy.parent.mkdir()
    shutil.copy(shards[1], copy)
    with pytest.raises(InputError, match="copies") as caught:
        convert_shards([*shards, copy], tmp_path / "store", workers=1)
    assert str(shards[1]) in str(caught.value)
    assert str(copy) in str(caught.value)


# --- the work folder -----------------------------------------------------------------------------------


def test_convert__never_touches_a_work_folder_in_use(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = convert_shards(shards, tmp_path / "store", workers=1, **SMALL)
    seen: list[int] = []

    def convert_again(*_: Any) -> None:
        work = tmp_path / "store.partial"
        before = tree(work)
        # the same conversion while this one replaces the store: the finished one is good
        seen.append(convert_shards(shards, tmp_path / "store", workers=1, **SMALL).n_spectra)
        assert tree(work) == before
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.convert.convert, "verify_sample", convert_again)
        with pytest.raises(KeyboardInterrupt):
            convert_shards(shards, tmp_path / "store", workers=1, overwrite=True, **SMALL)
    assert seen == [121]
    assert SpectraStore.open(store.path).fingerprint == store.fingerprint


def test_convert__looks_again_under_the_lock(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = pipeline.convert.convert.lock_work

    def finish_first(work: Path) -> Any:
        monkeypatch.setattr(pipeline.convert.convert, "lock_work", original)
        convert_shards(shards, tmp_path / "store", workers=1, **SMALL)
        return original(work)

    monkeypatch.setattr(pipeline.convert.convert, "lock_work", finish_first)
    monkeypatch.setattr(pipeline.convert.convert, "claim_work", _claim_once(pipeline.convert.convert.claim_work))
    assert convert_shards(shards, tmp_path / "store", workers=1, **SMALL).n_spectra == 121
    assert not (tmp_path / "store.partial").exists()


def _claim_once(original: Any) -> Any:
    claims: list[Path] = []

    def claim(work: Path, *given: Any) -> None:
        claims.append(work)
        assert len(claims) == 1, "converted twice"
        original(work, *given)

    return claim


def test_lock_work__of_a_folder_that_its_owner_removes(tmp_path: Path) -> None:
    work = tmp_path / "x.partial"
    with lock_work(work):
        remove_work(work)
        with lock_work(work):  # another's, by now
            (work / "plan.json").write_text("{}")
        assert (work / "plan.json").exists()
    assert (work / "lock").exists()


def test_lock_work__of_a_folder_that_was_just_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    work, flock, removed = tmp_path / "x.partial", fcntl.flock, []

    def remove_then_lock(*given: Any) -> None:
        if not removed:
            removed.append(shutil.rmtree(work))
        flock(*given)

    monkeypatch.setattr(fcntl, "flock", remove_then_lock)
    with lock_work(work):
        assert (work / "lock").exists()
        with pytest.raises(InputError, match="another conversion"), lock_work(work):
            pass


def test_convert__leftovers_of_a_kill_are_removed(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_file = os.replace

    def stop(old: Any, new: Any) -> None:
        if "ranges" in str(new) and "0016" in str(new):
            raise KeyboardInterrupt
        replace_file(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            convert_shards(shards, tmp_path / "store", workers=1, **SMALL)
    work = tmp_path / "store.partial"
    (work / "store" / "flux" / "c" / "0" / ".0123.part").write_text("x")
    (work / "store" / "flux" / "zarr.0123.partial").write_text("x")
    (work / "ranges" / ".000000000016.json.0123.tmp").write_text("{")

    def look(*_: Any) -> None:
        left = [path for path in work.rglob("*") if path.suffix in (".tmp", ".part", ".partial")]
        assert left == []

    monkeypatch.setattr(pipeline.convert.convert, "verify_sample", look)
    store = convert_shards(shards, tmp_path / "store", workers=1, **SMALL)
    assert tree(store.path) == tree(convert_shards(shards, tmp_path / "whole", workers=1, **SMALL).path)


def test_convert__origin_is_the_mean_of_the_clipped_flux(tmp_path: Path) -> None:
    # Pixels that are never positive are constant after clipping, and must sit at the origin exactly.
    flux = np.ones((40, 12))
    flux[:, 3] = -np.linspace(0.1, 0.5, 40)
    flux[:20, 5] = -1.0
    shard = write_shard(tmp_path / "s" / "dataset.h5", n_pixels=12, arrays={"flux": flux})
    store = convert_shards([shard], tmp_path / "s.zarr", workers=1)
    assert store.mean_flux[3] == 0
    assert store.mean_flux[5] == 0.5

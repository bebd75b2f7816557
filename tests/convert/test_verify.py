"""Comparing a finished store with its shards: every pixel and column, a message that names the difference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from shard_factory import make_pixels, write_shard

from pipeline.base import seal
from pipeline.cli import main
from pipeline.convert import convert_shards, verify_store
from pipeline.errors import ConfigError, InputError
from pipeline.store import SpectraStore, write_chunks

P = 16
LENGTHS = (40, 21, 60)
SMALL: dict[str, Any] = {"workers": 1, "chunk_rows": 8, "shard_rows": 16}


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Three shards with noisy pixels; the second one flags a pixel."""
    made = []
    for k, n in enumerate(LENGTHS):
        flux, error = make_pixels(n, P, k)
        error[:, 0] = np.nan
        mask = np.zeros((n, P), np.int64)
        mask[2, 3] = k == 1
        arrays = {"error": error, "noisy": flux + 0.5 * error[:, ::-1], "mask": mask}
        made.append(write_shard(tmp_path / "train" / f"shard_{k}" / "dataset.h5", n, P, seed=k, arrays=arrays))
    return made


def rewrite_row(store: SpectraStore, variable: str, row: int, pixel: int) -> None:
    """Change one pixel of a store behind its back, checksums included."""
    start = row - row % store.layout.range_rows
    chunks = np.zeros((store.layout.range_rows, P), np.uint8 if variable == "mask" else np.float32)
    stop = min(start + store.layout.range_rows, store.n_spectra)
    store.read_rows(variable, start, stop, chunks)
    bits = chunks.view(np.uint8 if variable == "mask" else np.uint32)
    bits[row - start, pixel] ^= 1
    n = -(-(stop - start) // store.chunk_rows)
    rows = iter(chunks.reshape(-1, store.chunk_rows, P)[:n])
    sizes, checksums = write_chunks(store.path / variable, store.layout, start, rows)
    path = store.path / "manifest" / "zarr.json"
    manifest = json.loads(path.read_text())
    part = manifest["attributes"]["ranges"][start // store.layout.range_rows]
    part["file_bytes"][variable], part["checksums"][variable] = sizes, checksums
    manifest["attributes"] = seal(manifest["attributes"])
    path.write_text(json.dumps(manifest))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("workers", [1, 2])
def test_verify_store__changes_nothing(shards: list[Path], tmp_path: Path, workers: int) -> None:
    store = convert_shards(shards, tmp_path / "store", **SMALL)
    before = tree(tmp_path)
    verify_store(store, shards, workers=workers)
    assert tree(tmp_path) == before


def test_verify_store__counts_dropped_rows(tmp_path: Path) -> None:
    flux, error = make_pixels(40, P)
    flux[3, 5], flux[18], error[20, 7] = np.nan, 0, -1
    first = write_shard(tmp_path / "a" / "dataset.h5", arrays={"flux": flux, "error": error})
    second = write_shard(tmp_path / "b" / "dataset.h5", seed=1)
    store = convert_shards([first, second], tmp_path / "store", nonfinite="drop", **SMALL)
    verify_store(store, [first, second], workers=1)
    with h5py.File(first, "a") as file:
        file["dataset/arrays/flux/value"][3, 5] = 1.0
    with pytest.raises(InputError, match="row 3 was faulty"):
        verify_store(store, [first, second], workers=1)


@pytest.mark.parametrize(
    ("variable", "pixel", "workers"),
    [("flux", 5, 1), ("error", 0, 1), ("noisy", 15, 1), ("mask", 2, 1), ("flux", 5, 2)],
)
def test_verify_store__raise_on_another_pixel_in_the_store(
    shards: list[Path], tmp_path: Path, variable: str, pixel: int, workers: int
) -> None:
    store = convert_shards(shards, tmp_path / "store", **SMALL)
    rewrite_row(store, variable, 40 + 20, pixel)  # the last spectrum of the second shard
    with pytest.raises(
        InputError, match=rf"shard_1/dataset.h5 .*{variable} of row 20, pixel {pixel} is .* row 60"
    ) as got:
        verify_store(SpectraStore.open(store.path), shards, workers=workers)
    assert got.value.exit_code == 2


def test_verify_store__raise_on_a_damaged_chunk(shards: list[Path], tmp_path: Path) -> None:
    store = convert_shards(shards, tmp_path / "store", **SMALL)
    file = store.path / "error" / "c" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[40] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"rows 0 to 7 of 'error'"):
        verify_store(store, shards, workers=1)


@pytest.mark.parametrize("variable", ["flux", "error", "noisy", "mask"])
def test_verify_store__raise_on_a_changed_source(shards: list[Path], tmp_path: Path, variable: str) -> None:
    store = convert_shards(shards, tmp_path / "store", **SMALL)
    stamp = shards[0].stat().st_mtime_ns
    with h5py.File(shards[0], "a") as file:
        file[f"dataset/arrays/{variable}/value"][7, 5] += 1  # a row that no fingerprint reads
    os.utime(shards[0], ns=(stamp, stamp))  # size and time of change tell nothing
    with pytest.raises(InputError, match=rf"shard_0/dataset.h5 must be what store .*{variable} of row 7"):
        verify_store(store, shards, workers=1)


def test_verify_store__raise_on_other_labels_in_the_store(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = convert_shards(shards, tmp_path / "store", **SMALL)
    read = SpectraStore.read_columns

    def read_wrongly(self: SpectraStore, names: Any, start: int, stop: int) -> dict[str, np.ndarray]:
        columns = {name: values.copy() for name, values in read(self, names, start, stop).items()}
        if "log_g" in columns and start == 40:
            columns["log_g"][4] = np.nextafter(columns["log_g"][4], 9)
        return columns

    monkeypatch.setattr(SpectraStore, "read_columns", read_wrongly)
    with pytest.raises(InputError, match=r"log_g of row 4 .*row 44"):
        verify_store(store, shards, workers=1)


def test_verify_store__raise_on_a_shard_written_to_meanwhile(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = convert_shards(shards, tmp_path / "store", **SMALL)
    read = SpectraStore.read_rows

    def write_first(self: SpectraStore, *given: Any) -> np.ndarray:
        os.utime(shards[1], ns=(1, 1))
        return read(self, *given)

    monkeypatch.setattr(SpectraStore, "read_rows", write_first)
    with pytest.raises(InputError, match="written to"):
        verify_store(store, shards, workers=1)


def test_verify_store__raise_on_an_array_that_the_store_lacks(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a" / "dataset.h5", 40, P)
    store = convert_shards([shard], tmp_path / "store", **SMALL)
    with h5py.File(shard, "a") as file:
        file["dataset/arrays/noisy/value"] = make_pixels(40, P)[0]
    with pytest.raises(InputError, match="'noisy'"):
        verify_store(store, [shard], workers=1)


def test_verify_store__raise_on_some_of_the_shards(shards: list[Path], tmp_path: Path) -> None:
    store = convert_shards(shards, tmp_path / "store", **SMALL)
    with pytest.raises(InputError, match="3 shards, found 2"):
        verify_store(store, shards[:2], workers=1)
    with pytest.raises(InputError, match=r"shard_1/dataset.h5 must be what store"):
        verify_store(store, [shards[1], shards[0], shards[2]], workers=1)


@pytest.mark.parametrize("kind", ["external link", "external storage"])
def test_verify_store__reads_arrays_in_other_files(tmp_path: Path, kind: str) -> None:
    flux = make_pixels(40, P)[0]
    shard = write_shard(tmp_path / "train" / "dataset.h5")
    name = "dataset/arrays/flux/value"
    with h5py.File(shard, "a") as file:
        del file[name]
        if kind == "external link":
            with h5py.File(tmp_path / "other.h5", "w") as other:
                other["flux"] = flux
            file[name] = h5py.ExternalLink(str(tmp_path / "other.h5"), "flux")
        else:
            external = [(str(tmp_path / "flux.raw"), 0, flux.nbytes)]
            file.create_dataset(name, data=flux, external=external)
    store = convert_shards([shard], tmp_path / "store", allow_external=True, **SMALL)
    verify_store(store, [shard], workers=1, allow_external=True)


def test_convert_shards__delete_sources_names_its_successor(shards: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="verify_store"):
        convert_shards(shards, tmp_path / "store", delete_sources=True)  # type: ignore[call-arg]
    assert all(shard.exists() for shard in shards)


# --- The command.


def run_command(*arguments: str | Path) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def test_command__verifies_after_the_conversion_and_later(
    shards: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["convert", *shards, tmp_path / "store", "--verify", "--workers", "1"]
    for _ in range(2):
        assert run_command(*command) == 0
        text = capsys.readouterr()
        assert "verify: 121 spectra" in text.err
        assert "3 shards are the same, bit for bit; you may now delete" in text.out
    assert run_command(*command, "--quiet", "--json") == 0
    assert json.loads(capsys.readouterr().out)["verified"] is True
    assert all(shard.exists() for shard in shards)


def test_command__a_difference_has_exit_code_2(
    shards: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = convert_shards(shards, tmp_path / "store", workers=1)
    rewrite_row(store, "flux", 3, 0)
    command = ["convert", *map(str, shards), str(store.path), "--verify", "--quiet", "--workers", "1"]
    assert run_command(*command) == 2
    captured = capsys.readouterr()
    assert "shard_0/dataset.h5" in captured.err
    assert "flux of row 3, pixel 0" in captured.err
    assert "delete" not in captured.out
    # In a shell, what follows && does not happen.
    shell = f"{sys.executable} -m pipeline {' '.join(command)} && rm {shards[0]}"
    assert subprocess.run(["bash", "-c", shell], capture_output=True, check=False, timeout=120).returncode == 2
    assert shards[0].exists()


def test_command__delete_source_names_its_successor(
    shards: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("convert", *shards, tmp_path / "store", "--delete-source") == 2
    assert "--verify" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
    assert all(shard.exists() for shard in shards)
    assert run_command("convert", "--help") == 0
    assert "delete-source" not in capsys.readouterr().out

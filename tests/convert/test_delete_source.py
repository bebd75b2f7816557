"""Deleting shards after their conversion: only what was verified, one at a time, and resumable."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from shard_factory import make_pixels, write_shard

import pipeline.convert.delete
from pipeline.cli import main
from pipeline.convert import convert_shards
from pipeline.errors import InputError, ResourceError
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


def present(shards: list[Path]) -> list[bool]:
    return [shard.exists() for shard in shards]


def stop_before(patch: pytest.MonkeyPatch, shard: int) -> None:
    """Interrupt the program when this shard is verified and not yet in the journal."""
    delete = pipeline.convert.delete._delete

    def delete_or_stop(store: Any, plan: Any, k: int) -> int:
        if k == shard:
            raise KeyboardInterrupt
        return delete(store, plan, k)

    patch.setattr(pipeline.convert.delete, "_delete", delete_or_stop)


def rewrite_row(store: SpectraStore, variable: str, row: int, pixel: int) -> None:
    """Change one pixel of a store behind its back, checksums included."""
    start = row - row % store.layout.range_rows
    chunks = np.zeros((store.layout.range_rows, P), np.uint8 if variable == "mask" else np.float32)
    stop = min(start + store.layout.range_rows, store.n_spectra)
    store.read_rows(variable, start, stop, chunks)
    bits = chunks.view(np.uint8 if variable == "mask" else np.uint32)
    bits[row - start, pixel] ^= 1
    n = -(-(stop - start) // store.chunk_rows)
    sizes = write_chunks(store.path / variable, store.layout, start, iter(chunks.reshape(-1, store.chunk_rows, P)[:n]))
    path = store.path / "manifest" / "zarr.json"
    manifest = json.loads(path.read_text())
    manifest["attributes"]["ranges"][start // store.layout.range_rows]["file_bytes"][variable] = sizes
    path.write_text(json.dumps(manifest))


def test_delete__nothing_without_the_flag(shards: list[Path], tmp_path: Path) -> None:
    convert_shards(shards, tmp_path / "store", **SMALL)
    convert_shards(shards, tmp_path / "store", **SMALL)
    assert all(present(shards))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("complete", [False, True], ids=["with the conversion", "of a complete store"])
def test_delete__after_verification(shards: list[Path], tmp_path: Path, workers: int, complete: bool) -> None:
    options = {**SMALL, "workers": workers}
    kept = convert_shards(shards, tmp_path / "kept", **SMALL)
    if complete:
        convert_shards(shards, tmp_path / "store", **options)
    store = convert_shards(shards, tmp_path / "store", delete_sources=True, **options)
    assert not any(present(shards))
    assert not (tmp_path / "store.partial").exists()
    again = SpectraStore.open(store.path)
    assert again.fingerprint == kept.fingerprint
    for variable in ("flux", "error", "noisy", "mask"):
        np.testing.assert_array_equal(again.read_rows(variable, 0, 121), kept.read_rows(variable, 0, 121))
    # once more: everything is done already, with the flag and without
    for delete in (True, False):
        same = convert_shards(shards, store.path, delete_sources=delete, **options)
        assert same.fingerprint == kept.fingerprint


def test_delete__counts_dropped_rows(tmp_path: Path) -> None:
    flux, error = make_pixels(40, P)
    flux[3, 5], flux[18], error[20, 7] = np.nan, 0, -1
    first = write_shard(tmp_path / "a" / "dataset.h5", arrays={"flux": flux, "error": error})
    second = write_shard(tmp_path / "b" / "dataset.h5", seed=1)
    options: dict[str, Any] = {"nonfinite": "drop", **SMALL}
    store = convert_shards([first, second], tmp_path / "store", delete_sources=True, **options)
    assert not first.exists()
    assert not second.exists()
    assert store.shard_lengths == (37, 40)
    assert convert_shards([first, second], tmp_path / "store", delete_sources=True, **options).n_spectra == 77


@pytest.mark.parametrize(("variable", "pixel"), [("flux", 5), ("error", 0), ("noisy", 15), ("mask", 2)])
@pytest.mark.parametrize("workers", [1, 2])
def test_delete__raise_on_another_pixel_in_the_store(
    shards: list[Path], tmp_path: Path, variable: str, pixel: int, workers: int
) -> None:
    store = convert_shards(shards, tmp_path / "store", **SMALL)
    rewrite_row(store, variable, 40 + 20, pixel)  # the last spectrum of the second shard
    with pytest.raises(
        InputError, match=rf"shard_1/dataset.h5 .*{variable} of row 20, pixel {pixel} is .* row 60"
    ) as got:
        convert_shards(shards, store.path, delete_sources=True, **{**SMALL, "workers": workers})
    assert got.value.exit_code == 2
    assert present(shards)[1:] == [True, True]
    if workers == 1:
        assert not shards[0].exists()  # verified before


def test_delete__raise_on_a_damaged_chunk(shards: list[Path], tmp_path: Path) -> None:
    store = convert_shards(shards, tmp_path / "store", **SMALL)
    file = store.path / "error" / "c" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[40] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        InputError, match=r"shard_0/dataset.h5 cannot be compared .* is damaged: rows 0 to 7 of 'error'"
    ):
        convert_shards(shards, store.path, delete_sources=True, **SMALL)
    assert all(present(shards))


@pytest.mark.parametrize("variable", ["flux", "error", "noisy", "mask"])
@pytest.mark.parametrize("hidden", [False, True], ids=["seen", "same time of change"])
def test_delete__raise_on_a_changed_source(shards: list[Path], tmp_path: Path, variable: str, hidden: bool) -> None:
    store = convert_shards(shards, tmp_path / "store", **SMALL)
    stamp = shards[0].stat().st_mtime_ns
    with h5py.File(shards[0], "a") as file:
        file[f"dataset/arrays/{variable}/value"][7, 5] += 1  # a row that no fingerprint reads
    if hidden:
        os.utime(shards[0], ns=(stamp, stamp))
    with pytest.raises(InputError, match=rf"shard_0/dataset.h5 must be what store .*{variable} of row 7"):
        convert_shards(shards, store.path, delete_sources=True, **SMALL)
    assert all(present(shards))


def test_delete__raise_on_other_labels_in_the_store(
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
    with pytest.raises(InputError, match=r"shard_1/dataset.h5 .*log_g of row 4 is .* in row 44 of the store"):
        convert_shards(shards, store.path, delete_sources=True, **SMALL)
    assert all(present(shards))


def test_delete__raise_on_a_shard_written_to_after_its_verification(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete = pipeline.convert.delete._delete

    def write_first(store: Any, plan: Any, k: int) -> int:
        if k == 1:
            os.utime(shards[k], ns=(1, 1))
        return delete(store, plan, k)

    monkeypatch.setattr(pipeline.convert.delete, "_delete", write_first)
    with pytest.raises(InputError, match="written to"):
        convert_shards(shards, tmp_path / "store", delete_sources=True, **SMALL)
    assert present(shards) == [False, True, True]


@pytest.mark.parametrize("when", ["before the entry", "before the deletion"])
def test_delete__resumes_after_a_kill_between_deletions(
    shards: list[Path], tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = convert_shards(shards, tmp_path / "whole", **SMALL)
    with monkeypatch.context() as patch:
        if when == "before the entry":
            stop_before(patch, 1)
        else:
            unlink = Path.unlink

            def unlink_or_stop(self: Path, **given: Any) -> None:
                if self == shards[1]:
                    raise KeyboardInterrupt
                unlink(self, **given)

            patch.setattr(Path, "unlink", unlink_or_stop)
        with pytest.raises(KeyboardInterrupt):
            convert_shards(shards, tmp_path / "store", delete_sources=True, **SMALL)
    assert present(shards) == [False, True, True]
    with pytest.raises(InputError, match="cannot be rebuilt; give the settings"):
        convert_shards(shards, tmp_path / "store", delete_sources=True, **{**SMALL, "shard_rows": 32})
    with pytest.raises(InputError, match="name them as before"):
        convert_shards(shards[:2], tmp_path / "store", delete_sources=True, **SMALL)
    with pytest.raises(InputError, match=r"shard_0/dataset.h5 does not exist"):
        convert_shards(shards, tmp_path / "store", overwrite=True, delete_sources=True, **SMALL)
    assert present(shards) == [False, True, True]
    store = convert_shards(shards, tmp_path / "store", delete_sources=True, **SMALL)
    assert not any(present(shards))
    assert store.fingerprint == whole.fingerprint


def test_delete__raise_on_a_shard_that_is_missing_without_a_journal(shards: list[Path], tmp_path: Path) -> None:
    convert_shards(shards, tmp_path / "store", **SMALL)
    shards[0].rename(tmp_path / "aside.h5")
    with pytest.raises(InputError, match=r"shard_0/dataset.h5 does not exist"):
        convert_shards(shards, tmp_path / "store", delete_sources=True, **SMALL)
    (tmp_path / "aside.h5").rename(shards[0])
    with pytest.MonkeyPatch.context() as patch:
        stop_before(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            convert_shards(shards, tmp_path / "store", delete_sources=True, **SMALL)
    shards[2].rename(tmp_path / "aside.h5")
    with pytest.raises(InputError, match=r"shard_2/dataset.h5 is missing, and no --delete-source run deleted it"):
        convert_shards(shards, tmp_path / "store", delete_sources=True, **SMALL)
    assert present(shards) == [False, True, False]


@pytest.mark.parametrize("what", ["file", "folder"])
def test_delete__raise_on_a_symbolic_link(shards: list[Path], tmp_path: Path, what: str) -> None:
    link = tmp_path / "links" / "shard_0" / "dataset.h5"
    if what == "file":
        link.parent.mkdir(parents=True)
        link.symlink_to(shards[0])
    else:
        link.parent.parent.mkdir()
        link.parent.symlink_to(shards[0].parent)
    with pytest.raises(InputError, match="is a symbolic link to"):
        convert_shards([link], tmp_path / "store", delete_sources=True, **SMALL)
    assert not (tmp_path / "store").exists()
    assert convert_shards([link], tmp_path / "store", **SMALL).n_spectra == 40
    assert shards[0].exists()


@pytest.mark.parametrize("kind", ["external link", "external storage"])
def test_delete__raise_on_arrays_in_other_files(tmp_path: Path, kind: str) -> None:
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
    with pytest.raises(InputError, match=r"'dataset/arrays/flux/value' must be stored in the file itself"):
        convert_shards([shard], tmp_path / "store", delete_sources=True, **SMALL)
    assert shard.exists()


def test_delete__raise_when_the_folder_refuses(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def refuse(self: Path, **given: Any) -> None:
        if self in shards:
            raise PermissionError(13, "Permission denied")
        unlink(self, **given)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(ResourceError, match=r"verified but cannot be deleted \(Permission denied\)"):
            convert_shards(shards, tmp_path / "store", delete_sources=True, **SMALL)
    assert all(present(shards))
    convert_shards(shards, tmp_path / "store", delete_sources=True, **SMALL)
    assert not any(present(shards))


# --- the command -----------------------------------------------------------------------------------------


def run_command(*arguments: str | Path) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as error:
        return int(error.code or 0)
    return 0


@pytest.mark.parametrize("named", ["index", "folder", "glob", "folders", "files"])
def test_command__continues_whatever_names_the_shards(
    shards: list[Path], tmp_path: Path, named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "train"
    patterns: list[str | Path] = {
        "index": [folder / "shard_index.txt"],
        "folder": [folder],
        "glob": [folder / "shard_*"],
        "folders": [shard.parent for shard in shards],
        "files": list(shards),
    }[named]
    if named == "index":
        (folder / "shard_index.txt").write_text("# simulated\nshard_0\n\nshard_1\nshard_2\n")
    command = ["convert", *patterns, tmp_path / "store", "--delete-source", "--workers", "1"]
    with monkeypatch.context() as patch:
        stop_before(patch, 1)
        assert run_command(*command) == 130
    assert present(shards) == [False, True, True]
    assert run_command(*command) == 0
    assert not any(present(shards))
    assert run_command(*command) == 0
    text = capsys.readouterr()
    assert "verify: 81 spectra" in text.err
    assert "deleted 2 shard(s)" in text.err
    assert "121 spectra" in text.out


def test_command__deletes_nothing_that_is_not_named(
    shards: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    command = ["convert", shards[0], shards[1], store, "--delete-source", "--workers", "1", "--quiet"]
    assert run_command(*command) == 0
    assert run_command("convert", shards[2], *command[1:]) == 2
    assert "is none of them" in capsys.readouterr().err
    assert run_command("convert", tmp_path / "trian", *command[3:]) == 2
    assert "no shard matches" in capsys.readouterr().err
    assert shards[2].exists()


def test_command__a_difference_has_exit_code_2(
    shards: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = convert_shards(shards, tmp_path / "store", workers=1)
    moved = tmp_path / "moved"
    shutil.copytree(store.path, moved)
    store = SpectraStore.open(moved)
    rewrite_row(store, "flux", 3, 0)
    assert run_command("convert", *shards, moved, "--delete-source", "--quiet", "--workers", "1") == 2
    assert "flux of row 3, pixel 0" in capsys.readouterr().err
    assert all(present(shards))

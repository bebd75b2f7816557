from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest

from pipeline import moments_file
from pipeline.errors import InputError, ResourceError
from pipeline.moments import Moments
from pipeline.moments_file import merge_moments_files, read_cell, read_moments_header, write_moments


def cells(seed: int = 0) -> list[Moments]:
    generator = np.random.default_rng(seed)
    return [
        Moments.from_samples(generator.integers(0, 9, (n, 20)), generator.integers(0, 9, (n, 2)), ["a", "b"])
        for n in (5, 0, 7)
    ]


def test_round_trip_is_exact(tmp_path: Path) -> None:
    written = cells()
    write_moments(tmp_path / "m.npz", written, {"key": "k"})
    assert [read_cell(tmp_path / "m.npz", k).identical(cell) for k, cell in enumerate(written)] == [True] * 3
    header = read_moments_header(tmp_path / "m.npz")
    assert (header["key"], header["counts"], header["labels"]) == ("k", [5, 0, 7], ["a", "b"])


def test_files_merge_in_order(tmp_path: Path) -> None:
    first, second = cells(0), cells(1)
    write_moments(tmp_path / "0.npz", first, {})
    write_moments(tmp_path / "1.npz", second, {})
    merged = merge_moments_files([tmp_path / "0.npz", tmp_path / "1.npz"], 3)
    assert all(m.identical(a + b) for m, a, b in zip(merged, first, second, strict=True))


def test_read__raise_on_flipped_byte(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    write_moments(path, cells(), {})
    content = bytearray(path.read_bytes())
    content[content.find(b"cell_2_gram") + 400] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"m\.npz: damaged"):
        read_cell(path, 2)


def test_read__raise_on_truncated_missing_or_other_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.npz"
    with pytest.raises(InputError, match="no such file"):
        read_cell(path, 0)
    write_moments(path, cells(), {})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged"):
        read_moments_header(path)
    monkeypatch.setattr(moments_file, "FORMAT_VERSION", 99)
    write_moments(path, cells(), {})
    monkeypatch.undo()
    with pytest.raises(InputError, match="found headroom-moments version 99"):
        read_cell(path, 0)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    header = np.frombuffer(json.dumps({"format": "headroom-moments", "version": 1, "counts": [1]}).encode(), np.uint8)
    np.savez(path, header=header, cell_0_x_sum=np.array([{"an": "object"}], dtype=object))
    with pytest.raises(InputError, match="damaged"):
        read_cell(path, 0)


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "Read-only")])
def test_write__raise_on_a_disk_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def fail(stream: object, **_: object) -> None:
        stream.write(b"half of it")  # type: ignore[attr-defined]
        raise OSError(number, "Read-only file system" if number == errno.EROFS else "No space left on device")

    monkeypatch.setattr(moments_file.np, "savez", fail)
    with pytest.raises(ResourceError, match=words):
        write_moments(tmp_path / "m.npz", cells(), {})
    assert list(tmp_path.iterdir()) == []

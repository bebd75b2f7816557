from __future__ import annotations

import errno
import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError, ResourceError
from pipeline.moments import Moments, MomentsWriter, PixelSums, SavedMoments, write_moments
from pipeline.moments import files as moments_files


def cells(seed: int = 0) -> list[Moments]:
    generator = np.random.default_rng(seed)
    return [
        Moments.from_samples(generator.integers(0, 9, (n, 20)), generator.integers(0, 9, (n, 2)), ["a", "b"])
        for n in (5, 0, 7)
    ]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_round_trip_is_exact(tmp_path: Path, order: list[int]) -> None:
    written = cells()
    writer = MomentsWriter(tmp_path / "m", 3, {"key": "k"})
    for cell in order:
        assert not (tmp_path / "m").exists(), "the folder appears when it is whole"
        writer.write(cell, written[cell])
    writer.discard()  # too late: it is whole
    saved = SavedMoments.open(tmp_path / "m")
    memory = np.full(written[0].gram.nbytes + 8, 255, np.uint8)
    for k, cell in enumerate(written):
        assert saved.read(k).identical(cell)
        assert saved.read(k, memory).identical(cell)
        found, expected = saved.pixel_sums()[k], cell.pixel_sums
        assert (found.count, found.epsilon) == (expected.count, expected.epsilon)
        np.testing.assert_array_equal(found.x_sum, expected.x_sum)
        np.testing.assert_array_equal(found.x_squares, expected.x_squares)
    together, apart = saved.sum_pixels([2, 0]), PixelSums.merge([written[k].pixel_sums for k in (2, 0)])
    np.testing.assert_array_equal(together.x_squares, apart.x_squares)
    assert (saved.header["key"], saved.counts, saved.n_cells) == ("k", [5, 0, 7], 3)
    assert np.load(tmp_path / "m" / "gram-000.npy").shape == written[0].gram.shape  # anyone's NumPy can read it


def test_moments_of_another_key_are_replaced_and_those_of_the_same_stay(tmp_path: Path) -> None:
    write_moments(tmp_path / "m", cells(0), 3, {"key": "old"})
    write_moments(tmp_path / "m", cells(1), 3, {"key": "new"})
    assert SavedMoments.open(tmp_path / "m").read(0).identical(cells(1)[0])
    # Another process made the same moments first: either will do.
    write_moments(tmp_path / "m", cells(1), 3, {"key": "new"})
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("name", ["gram-002.npy", "sums.npz"])
def test_read__raise_on_flipped_byte(tmp_path: Path, name: str) -> None:
    write_moments(tmp_path / "m", cells(), 3, {})
    file = tmp_path / "m" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"m: damaged \({name}: .*; delete that folder and run again"):
        SavedMoments.open(tmp_path / "m").read(2)


@pytest.mark.parametrize("keep", [40, 1000])
def test_read__raise_on_truncated(tmp_path: Path, keep: int) -> None:
    write_moments(tmp_path / "m", cells(), 3, {})
    file = tmp_path / "m" / "gram-000.npy"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"damaged \(gram-000\.npy"):
        SavedMoments.open(tmp_path / "m").read(0)


def test_open__raise_on_missing_or_other_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no such folder"):
        SavedMoments.open(tmp_path / "m")
    write_moments(tmp_path / "m", cells(), 3, {})
    (tmp_path / "m" / "gram-002.npy").unlink()
    with pytest.raises(InputError, match=r"damaged \(gram-002\.npy is missing"):
        SavedMoments.open(tmp_path / "m")
    (tmp_path / "m" / "moments.json").write_text("[]")
    with pytest.raises(InputError, match="JSON object is required"):
        SavedMoments.open(tmp_path / "m")
    monkeypatch.setattr(moments_files, "MOMENTS_VERSION", 99)
    write_moments(tmp_path / "other", cells(), 3, {})
    monkeypatch.undo()
    with pytest.raises(InputError, match="found headroom-moments version 99"):
        SavedMoments.open(tmp_path / "other")


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    write_moments(tmp_path / "m", cells(), 3, {})
    np.save(tmp_path / "m" / "gram-000.npy", np.array([{"an": "object"}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="damaged"):
        SavedMoments.open(tmp_path / "m").read(0)


def test_read__raise_on_any_damage_to_a_header(tmp_path: Path) -> None:
    write_moments(tmp_path / "m", cells(), 3, {})
    path = tmp_path / "m" / "gram-000.npy"
    content = path.read_bytes()
    ending = content.index(b"}") + 1
    for place in [*range(ending), 3773]:
        bit = (0, 3, 5)[place % 3]
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        with suppress(InputError):  # a blank more or less changes nothing
            assert SavedMoments.open(tmp_path / "m").read(0).identical(cells()[0])


@pytest.mark.parametrize("place", ["_write_gram", "json"])
@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "Read-only")])
def test_write__raise_on_a_disk_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str, place: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, "Read-only file system" if number == errno.EROFS else "No space left on device")

    if place == "json":
        monkeypatch.setattr(json, "dumps", fail)
    else:
        monkeypatch.setattr(moments_files, place, fail)
    with pytest.raises(ResourceError, match=words):
        write_moments(tmp_path / "m", cells(), 3, {})
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    writer = MomentsWriter(tmp_path / "m", 3, {})
    writer.write(0, cells()[0])
    assert list(tmp_path.iterdir())
    writer.discard()
    assert list(tmp_path.iterdir()) == []
    writer.discard()

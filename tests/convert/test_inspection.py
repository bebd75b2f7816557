"""What `headroom inspect` says, counted independently."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
from shard_factory import make_frame, make_pixels, write_shard

from pipeline.config import REFERENCE_EDGES
from pipeline.convert import convert_shards, inspect_path, render_inspection


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    flux, error = make_pixels(300, 16)
    flux[3, 4:6] = np.nan
    flux[9] = 0
    error[:, 0] = np.nan
    error[5, 7] = np.nan
    error[6, 7] = -1
    valid = np.ones((300, 16), bool)
    valid[2, :3] = False
    frame = make_frame(300)
    frame.loc[0, ["T_eff", "M_H"]] = (3750.0, -2.0)
    frame.loc[1, ["T_eff", "M_H"]] = (6000.0, 0.5)
    arrays = {"flux": flux, "error": error, "mask": valid}
    return write_shard(tmp_path / "s" / "dataset.h5", 300, arrays=arrays, frame=frame)


def test_inspect_path__counts_what_is_odd(shard: Path) -> None:
    (found,) = inspect_path(shard)
    assert found.problem is None
    assert (found.n_spectra, found.n_pixels) == (300, 16)
    assert found.wavelength[:2] == (7100, 8850)
    assert {name: count for name, count in found.counts.items() if count} == {
        "non-finite flux pixels": 2,
        "error pixels that are NaN at an edge (repaired by conversion)": 300,
        "other non-finite error pixels": 1,
        "negative error pixels": 1,
        "all-zero spectra": 1,
        "masked pixels": 3,
    }
    frame = make_frame(300)
    np.testing.assert_allclose(found.snr[2], np.median(frame["snr"]))
    text = render_inspection(found)
    for part in (
        "300 spectra × 16 pixels",
        "7100.00 to 8850.00 Å",
        "chunks (8, 16), true = valid",
        "all-zero",
        "outside",
    ):
        assert part in text


def test_inspect_path__bins(shard: Path) -> None:
    (found,) = inspect_path(shard)
    frame = make_frame(300)
    t_eff, m_h = frame["T_eff"].to_numpy().copy(), frame["M_H"].to_numpy().copy()
    t_eff[:2], m_h[:2] = (3750, 6000), (-2, 0.5)
    counts, *_ = np.histogram2d(t_eff, m_h, ([3750, 4500, 5250, 6000], [-2, -1, 0, 0.5]))
    assert list(found.bin_counts.values()) == [*counts.ravel().astype(int), 300 - int(counts.sum())]
    (other,) = inspect_path(shard, bins={"log_g": [1, 3, 5]})
    assert list(other.bin_counts.values()) == [int((frame["log_g"] < 3).sum()), int((frame["log_g"] >= 3).sum()), 0]


def test_inspect_path__a_broken_file_among_good_ones(shard: Path, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "dataset.h5").write_bytes(shard.read_bytes()[:-100])
    good, broken = inspect_path(tmp_path)
    assert good.problem is None
    assert "truncated" in (broken.problem or "")
    assert "broken: shard" in render_inspection(broken)


def test_inspect_path__a_path_that_names_nothing_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "no*where", "empty"):
        (found,) = inspect_path(tmp_path / name)
        assert found.path == tmp_path / name
        assert name in (found.problem or "")
        assert "broken: " in render_inspection(found)


def test_inspect_path__counts_what_conversion_does(tmp_path: Path) -> None:
    flux, error = make_pixels(40, 16)
    noisy = flux.copy()
    error[3] = 0
    noisy[4, 0] = noisy[5, -1] = noisy[6, 7] = np.nan
    shard = write_shard(tmp_path / "dataset.h5", arrays={"flux": flux, "error": error, "noisy": noisy})
    (found,) = inspect_path(shard)
    assert {name: count for name, count in found.counts.items() if count} == {
        "all-zero error vectors": 1,
        "noisy pixels that are NaN at an edge (repaired by conversion)": 2,
        "other non-finite noisy pixels": 1,
    }
    store = convert_shards([shard], tmp_path / "store", workers=1, nonfinite="drop")
    assert store.manifest.counts["repaired_noisy_pixels"] == 2
    assert store.n_spectra == 38


def test_inspect_path__bins_default_to_the_reference() -> None:
    assert inspect.signature(inspect_path).parameters["bins"].default is REFERENCE_EDGES


def test_inspect_path__store_and_measured_snr(tmp_path: Path) -> None:
    frame = make_frame(50)
    frame["snr"] = np.nan
    shard = write_shard(tmp_path / "dataset.h5", 50, frame=frame)
    store = convert_shards([shard], tmp_path / "store.zarr", workers=1)
    (found,) = inspect_path(store.path)
    (source,) = inspect_path(shard)
    assert (found.kind, found.n_spectra, found.bin_counts) == ("store", 50, source.bin_counts)
    assert "median" in found.snr_source
    np.testing.assert_allclose(found.snr, source.snr, rtol=1e-5)
    assert 8 < found.snr[2] < 12
    assert store.fingerprint in render_inspection(found)
    (tmp_path / "store.zarr" / "flux" / "c" / "0" / "0").unlink()
    assert "is missing" in (inspect_path(store.path)[0].problem or "")

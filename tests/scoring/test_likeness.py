"""Test spectra held against training spectra: which kinds of difference are told, and which are not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.noise import MarginalNoise, Noise, NoiseDraw
from pipeline.schema import STREAM_TEST, STREAM_TRAIN
from pipeline.scoring import Comparison, Likeness, measure_training
from pipeline.store import SpectraStore, select_shards

FloatArray = NDArray[np.float64]


def compare(
    train: SpectraStore, test: SpectraStore, noises: tuple[Noise, Noise], spoil: Callable[[FloatArray], None]
) -> Likeness:
    comparison = Comparison(measure_training(train, noises[0], "float32"))
    rows, spread = noises[1].read(test, 0, test.n_spectra, "float32")
    rows = np.array(rows)
    spoil(rows)
    for start in range(0, len(rows), 128):
        comparison.add(rows[start : start + 128], None if spread is None else spread[start : start + 128])
    return comparison.finish()


DRAWN = NoiseDraw(1.0, 42, STREAM_TRAIN), NoiseDraw(1.0, 42, STREAM_TEST)
MARGINAL = MarginalNoise(1.0), MarginalNoise(1.0)
FAINT = NoiseDraw(0.2, 42, STREAM_TRAIN), NoiseDraw(0.2, 42, STREAM_TEST)


def nothing(rows: FloatArray) -> None:
    del rows


def brighter(rows: FloatArray) -> None:
    rows *= 3


def spike(rows: FloatArray) -> None:
    rows[3:400:40, 17] += 40


def odd_star(rows: FloatArray) -> None:
    rows[5] *= 30


def odd_stars(rows: FloatArray) -> None:
    rows[5:100:5] *= 8


@pytest.mark.parametrize("noises", [DRAWN, FAINT, MARGINAL], ids=["drawn", "faint", "marginal"])
@pytest.mark.parametrize(
    ("spoil", "rows", "pixels"),
    [
        (nothing, [], []),
        (brighter, None, list(range(48))),
        (spike, None, [17]),
        (odd_stars, list(range(5, 100, 5)), None),
    ],
)
def test_spectra_and_pixels_of_another_kind_are_found(
    train_store: SpectraStore,
    test_store: SpectraStore,
    noises: tuple[Noise, Noise],
    spoil: Callable[[FloatArray], None],
    rows: list[int] | None,
    pixels: list[int] | None,
) -> None:
    found = compare(train_store, test_store, noises, spoil)
    assert (found.n_test, found.n_pixels) == (400, 48)
    assert found.is_alike == (spoil is nothing)
    if rows is not None:
        assert list(found.rows) == rows
    if pixels is not None:
        assert list(found.pixels) == pixels


def test_one_odd_star_of_four_hundred_is_named_and_decides_nothing() -> None:
    assert Likeness(400, 48, (5,), ()).is_alike
    assert not Likeness(400, 48, tuple(range(5)), ()).is_alike
    assert not Likeness(400, 48, (), (17,)).is_alike


def test_numbers_that_are_none_are_unlike(train_store: SpectraStore, test_store: SpectraStore) -> None:
    def lose(rows: FloatArray) -> None:
        rows[9] = np.nan

    assert 9 in compare(train_store, test_store, DRAWN, lose).rows


def test_shards_that_are_left_out_are_not_looked_at(train_store: SpectraStore) -> None:
    first = select_shards(train_store, [train_store.shard_names[1]])
    rows = np.asarray(DRAWN[0].read(train_store, 0, 800, "float32")[0], np.float64)
    profile = measure_training(first, DRAWN[0], "float32")
    assert profile.size == 800
    np.testing.assert_allclose(profile.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(profile.variance, rows.var(axis=0), rtol=1e-9)
    # Against a plain decomposition of the same rows.
    _, values, vectors = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    scores = (rows - rows.mean(axis=0)) @ vectors[:10].T / (values[:10] / np.sqrt(len(rows)))
    np.testing.assert_allclose(profile.distances(rows), np.sqrt((scores**2).sum(axis=1)), rtol=1e-6)

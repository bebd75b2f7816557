"""Predictions in one read: what several ask together is what each is told alone, and what NumPy says of the rows."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.noise import MarginalNoise, Noise, NoiseDraw, StoredNoise
from pipeline.ridge import read_models
from pipeline.schema import STREAM_TEST
from pipeline.scoring import (
    Columns,
    RunResults,
    Stacked,
    predict_marginal,
    predict_stacked,
    predict_store,
    read_marginal_rows,
    read_noisy_rows,
)
from pipeline.store import SpectraStore

NOISES = [NoiseDraw(1.0, 7, STREAM_TEST), NoiseDraw(0.3, 7, STREAM_TEST), StoredNoise(), MarginalNoise(1.0)]


def columns_of(store: SpectraStore) -> list[Columns]:
    """Four parts of different sizes, one of them empty."""
    generator = np.random.default_rng(11)
    return [
        Columns(generator.normal(size=(store.n_pixels, size)), generator.normal(size=size)) for size in (1, 10, 0, 3)
    ]


@pytest.fixture(params=["one block", "several blocks"])
def store(request: pytest.FixtureRequest, train_store: SpectraStore, test_store: SpectraStore) -> SpectraStore:
    return test_store if request.param == "one block" else train_store


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise.name)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_all_together_are_each_alone_and_numpy(
    store: SpectraStore, test_store: SpectraStore, noise: Noise, precision: str
) -> None:
    if isinstance(noise, StoredNoise):
        store = test_store  # training shards have no noisy array
    asked = columns_of(store)
    together = predict_stacked(store, asked, noise, precision)
    assert [one.values.shape for one in together] == [(store.n_spectra, one.size) for one in asked]
    if isinstance(noise, MarginalNoise):
        rows, spread = read_marginal_rows(store, 0, store.n_spectra, noise)
    else:
        draw = None if isinstance(noise, StoredNoise) else noise
        rows, spread = read_noisy_rows(store, 0, store.n_spectra, draw, precision).astype(np.float64), None
    for columns, found in zip(asked, together, strict=True):
        [alone] = predict_stacked(store, [columns], noise, precision)
        np.testing.assert_allclose(found.values, alone.values, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found.values, rows @ columns.weights + columns.intercepts, rtol=1e-12, atol=1e-12)
        if spread is None:
            assert found.variances is None
        else:
            assert found.variances is not None
            assert alone.variances is not None
            np.testing.assert_allclose(found.variances, alone.variances, rtol=1e-12)
            np.testing.assert_allclose(found.variances, spread @ columns.weights**2, rtol=1e-12)


def test_models_of_a_run_say_the_same_whoever_asks(small_run: RunResults, test_store: SpectraStore) -> None:
    """The main binning's models and those of other binnings, for two labels, as the run asks them and one by one."""
    files = [small_run.folder / "models" / f"{NoiseDraw(1.0, 42, 0).name}{end}.npz" for end in ("", "_binnings")]
    sets = [models for path in files for models in read_models(path)]
    labels = ["log_g", "T_eff", *["log_g"] * (len(sets) - 2)]
    for noise in (NoiseDraw(1.0, 3, STREAM_TEST), None):
        found = predict_stacked(
            test_store,
            [Columns.of_models(one, label) for one, label in zip(sets, labels, strict=True)],
            noise or StoredNoise(),
        )
        rows = read_noisy_rows(test_store, 0, test_store.n_spectra, noise)
        for own, models, label in zip(found, sets, labels, strict=True):
            expected = models.predict(rows.astype(np.float64), label)
            np.testing.assert_allclose(own.values, expected, rtol=1e-12)
            np.testing.assert_allclose(predict_store(test_store, [models], label, noise)[0], expected, rtol=1e-12)
    noise = MarginalNoise(0.5)
    stacked = predict_stacked(test_store, [Columns.of_models(one, "log_g") for one in sets], noise, "float64")
    for own, models in zip(stacked, sets, strict=True):
        [mean], [variance] = predict_marginal(test_store, [models], "log_g", noise)
        np.testing.assert_allclose(own.values, mean, rtol=1e-12)
        assert own.variances is not None
        np.testing.assert_allclose(own.variances, variance, rtol=1e-12)


def test_the_saved_predictions_are_those_of_the_saved_models(small_run: RunResults, test_store: SpectraStore) -> None:
    for seed in (42, 123):
        models = read_models(small_run.folder / "models" / f"{NoiseDraw(1.0, seed, 0).name}.npz")[-1]
        saved = small_run.predictions.query(f"seed == {seed}")
        [[expected]] = [predict_store(test_store, [models], "log_g", None)]
        names = ["y_global", *(f"expert_{k}" for k in range(models.n_experts))]
        np.testing.assert_allclose(saved[names], expected, rtol=1e-12)


def test_columns_are_counted_joined_and_selected(test_store: SpectraStore) -> None:
    asked = columns_of(test_store)
    joined = Columns.join(asked)
    assert joined.size == sum(one.size for one in asked) == 14
    np.testing.assert_array_equal(joined.weights[:, 1:11], asked[1].weights)
    np.testing.assert_array_equal(joined.intercepts[-3:], asked[3].intercepts)
    values = np.arange(12.0).reshape(3, 4)
    some = Stacked(values, values + 0.5).select([3, 0])
    np.testing.assert_array_equal(some.values, values[:, [3, 0]])
    np.testing.assert_array_equal(some.variances, values[:, [3, 0]] + 0.5)
    assert Stacked(values, None).select([1]).variances is None


def test_progress_counts_every_spectrum_once(train_store: SpectraStore) -> None:
    counts: list[int] = []
    predict_stacked(train_store, columns_of(train_store), NOISES[0], advance=counts.append)
    assert sum(counts) == train_store.n_spectra
    assert len(counts) > 1

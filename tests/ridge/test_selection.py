"""Cross-validation from moments: against refits on the rows, and exact where sums do not round."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.config import AlphaSearch
from pipeline.errors import InputError
from pipeline.moments import Moments
from pipeline.ridge import (
    RidgePath,
    cross_validate,
    format_alpha,
    held_out_errors,
    pixel_scale,
    resolve_alpha,
    solve_ridge_path,
    total_squares,
)
from pipeline.ridge.penalties import CrossValidation

ALPHAS = [0.03, 1.0, 30.0, 1e3, 1e5]


def make_rows(sizes: tuple[int, ...] = (60, 45, 80), n_pixels: int = 30) -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(2)
    mixing = generator.normal(size=(3, n_pixels))
    rows = []
    for n in sizes:
        hidden = generator.normal(size=(n, 3))
        x = 1 + 0.1 * hidden @ mixing + 0.1 * generator.normal(size=(n, n_pixels))
        y = np.column_stack([3 + hidden[:, 0], 4800 + 600 * hidden[:, 1] + 300 * generator.normal(size=n)])
        rows.append((x, y))
    return rows


def moments_of(rows: list[tuple[np.ndarray, np.ndarray]]) -> list[Moments]:
    origins = {"x_origin": rows[0][0][:7].mean(axis=0), "y_origin": [2.5, 5000.0]}
    return [Moments.from_samples(x, y, **origins) for x, y in rows]


@pytest.mark.parametrize("standardize", [True, False])
def test_errors_equal_scikit_learn_refitted_fold_by_fold(standardize: bool) -> None:
    rows = make_rows()
    found = cross_validate(moments_of(rows), ALPHAS, standardize=standardize)
    expected = np.empty((len(rows), len(ALPHAS), 2))
    for k, (x, y) in enumerate(rows):
        others = [part for j, part in enumerate(rows) if j != k]
        x_train, y_train = (np.concatenate(parts) for parts in zip(*others, strict=True))
        for a, alpha in enumerate(ALPHAS):
            peer = make_pipeline(StandardScaler(with_std=standardize), Ridge(alpha=alpha)).fit(x_train, y_train)
            expected[k, a] = ((y - peer.predict(x)) ** 2).sum(axis=0)
    y = np.concatenate([y for _, y in rows])
    np.testing.assert_allclose(found.sse, expected, rtol=1e-9)
    np.testing.assert_allclose(found.tss, ((y - y.mean(axis=0)) ** 2).sum(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.r2, 1 - expected.sum(axis=0) / found.tss, rtol=1e-9)
    np.testing.assert_array_equal(found.alphas, ALPHAS)


@pytest.mark.parametrize("origin", [0.0, 0.9])
def test_held_out_errors_equal_those_of_predictions_wherever_the_origin_is(origin: float) -> None:
    x, y = make_rows()[0]
    fresh, truth = make_rows((25,))[0]
    path = solve_ridge_path(Moments.from_samples(x, y), ALPHAS)
    held_out = Moments.from_samples(fresh, truth, x_origin=np.full(30, origin), y_origin=[origin, 4000.0])
    expected = [((truth - path.predict(fresh, a)) ** 2).sum(axis=0) for a in range(len(ALPHAS))]
    np.testing.assert_allclose(held_out_errors(held_out, path), expected, rtol=1e-9)


integers = st.integers(-8, 8)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 40), st.integers(1, 3), integers, integers)
def test_held_out_errors_of_integers_are_exact_and_add_up(
    seed: int, n: int, n_pixels: int, n_alphas: int, x0: int, y0: int
) -> None:
    generator = np.random.default_rng(seed)
    x, y = generator.integers(-8, 9, (n, n_pixels)), generator.integers(-8, 9, (n, 2))
    weights, intercepts = generator.integers(-4, 5, (n_alphas, n_pixels, 2)), generator.integers(-4, 5, (n_alphas, 2))
    labels = ("label_0", "label_1")
    path = RidgePath(np.arange(1.0, n_alphas + 1), weights.astype(float), intercepts.astype(float), labels, n)
    expected = ((y - (x @ weights + intercepts[:, None])) ** 2).sum(axis=1)
    origins = {"x_origin": np.full(n_pixels, float(x0)), "y_origin": np.full(2, float(y0))}
    whole = Moments.from_samples(x, y, **origins)
    np.testing.assert_array_equal(held_out_errors(whole, path), expected)
    cut = n // 2
    parts = [Moments.from_samples(x[rows], y[rows], **origins) for rows in (slice(cut), slice(cut, n))]
    np.testing.assert_array_equal(sum(held_out_errors(part, path) for part in parts), expected)


def test_a_pixel_alive_in_one_fold_only_has_no_say_where_that_fold_is_held_out() -> None:
    # Total less fold would leave rounding errors of the fold's own numbers there, and divide by their root.
    rows = make_rows()
    plain = [(np.delete(x, 4, axis=1), y) for x, y in rows]
    expected = cross_validate(moments_of(plain), ALPHAS)
    for k, (x, _) in enumerate(rows):
        x[:, 4] = np.random.default_rng(0).normal(1, 1e5, len(x)) if k == 1 else 1.0
    origins = {"x_origin": np.where(np.arange(30) == 4, 0.7, rows[0][0].mean(axis=0)), "y_origin": [2.5, 5000.0]}
    found = cross_validate([Moments.from_samples(x, y, **origins) for x, y in rows], ALPHAS)
    np.testing.assert_allclose(found.sse[1], expected.sse[1], rtol=1e-6)
    assert np.abs(found.sse[0] - expected.sse[0]).max() > 1e-6 * expected.sse[0].max(), "elsewhere it counts"


def test_two_folds_are_each_others_training_set() -> None:
    first, second = moments_of(make_rows((60, 45)))
    found = cross_validate([first, second], ALPHAS)
    for held_out, training, sse in ((first, second, found.sse[0]), (second, first, found.sse[1])):
        path = solve_ridge_path(training, ALPHAS, pixel_scale(training))
        np.testing.assert_allclose(sse, held_out_errors(held_out, path), rtol=1e-9)


def test_an_empty_fold_adds_no_error_and_changes_no_choice() -> None:
    folds = moments_of(make_rows())
    empty = Moments.zeros(folds[0].x_origin, folds[0].y_origin, folds[0].labels)
    with_empty, without = cross_validate([*folds, empty], ALPHAS), cross_validate(folds, ALPHAS)
    np.testing.assert_array_equal(with_empty.sse[-1], 0)
    np.testing.assert_array_equal(with_empty.sse[:-1], without.sse)


def curve(errors: list[float], tss: float = 10.0) -> CrossValidation:
    return CrossValidation(np.arange(1.0, len(errors) + 1), np.array(errors)[None, :, None], np.array([tss]))


@pytest.mark.parametrize(
    ("errors", "best", "at_edge"),
    [
        ([4, 2, 3], 1, False),
        ([2, 3, 4], 0, True),
        ([4, 3, 2], 2, True),
        ([3, 2, 2, 5], 2, False),  # of equal ones the larger penalty
        ([2, 2], 1, True),
    ],
)
def test_best_is_the_smallest_error_and_the_largest_penalty_of_equals(
    errors: list[float], best: int, at_edge: bool
) -> None:
    found = curve(errors)
    assert found.best(0) == best
    assert found.at_edge(0) == at_edge
    assert found.r2[best, 0] == found.r2.max() == 1 - errors[best] / 10


def test_penalties_are_sorted_and_a_constant_label_has_no_r2_but_a_choice() -> None:
    rows = [(x, np.column_stack([y[:, 0], np.full(len(y), 0.1)])) for x, y in make_rows()]
    found = cross_validate(moments_of(rows), [30.0, 1.0])
    assert found.alphas.tolist() == [1.0, 30.0]
    assert found.tss[1] == 0
    assert np.isnan(found.r2[:, 1]).all()
    assert np.isfinite(found.r2[:, 0]).all()
    assert found.best(1) in (0, 1)


def test_total_squares_of_integers_are_exact() -> None:
    y = np.random.default_rng(0).integers(-9, 9, (64, 3)).astype(float)
    expected = ((y - y.mean(axis=0)) ** 2).sum(axis=0)
    np.testing.assert_array_equal(total_squares(64, y.sum(axis=0), (y**2).sum(axis=0)), expected)


@pytest.mark.parametrize("alphas", [[], [1.0, 1.0], [0.0, 1.0], [-1.0], [np.nan], [np.inf, 1.0], [[1.0, 2.0]]])
def test_cross_validate__raise_on_penalties(alphas: list[float]) -> None:
    with pytest.raises(InputError, match="positive, finite and distinct"):
        cross_validate(moments_of(make_rows()), alphas)


def test_cross_validate__raise_on_folds() -> None:
    folds = moments_of(make_rows())
    with pytest.raises(InputError, match="at least 2 folds, found 1"):
        cross_validate(folds[:1], ALPHAS)
    single = Moments.from_samples([[1.0] * 30], [[1.0, 2.0]], x_origin=folds[0].x_origin, y_origin=[2.5, 5000.0])
    with pytest.raises(InputError, match="fold 0"):
        cross_validate([folds[0], single], ALPHAS)


def test_held_out_errors__raise_on_other_pixels_or_labels() -> None:
    x, y = make_rows()[0]
    path = solve_ridge_path(Moments.from_samples(x, y), ALPHAS)
    for other in (Moments.from_samples(x[:, :5], y), replace(Moments.from_samples(x, y), labels=("a", "b"))):
        with pytest.raises(InputError, match="need moments of the same"):
            held_out_errors(other, path)


@pytest.mark.parametrize(
    ("alpha", "text"),
    [
        (0.1, "0.1"),
        (0.004, "0.004"),
        (1.0, "1"),
        (250.0, "250"),
        (1e5, "1e5"),
        (2.5e6, "2.5e6"),
        (3e-4, "3e-4"),
        (1e22, "1e22"),
        (123456.0, "123456"),
    ],
)
def test_format_alpha__is_short(alpha: float, text: str) -> None:
    assert format_alpha(alpha) == text
    assert float(text) == alpha


def test_resolve_alpha__raise_on_a_search() -> None:
    with pytest.raises(InputError, match=r"\[1\.0, 10\.0\]"):
        resolve_alpha(AlphaSearch(search=[10, 1]), 100)

"""Factored moments answer what dense moments of the same spectra answer, and bound what they lose."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from random_moments import take_sample
from sklearn.linear_model import Ridge

import pipeline.moments.basis
from pipeline.errors import InputError
from pipeline.moments import (
    CHECK_EVERY,
    WORST,
    Basis,
    FactoredMoments,
    Factors,
    Moments,
    PixelSums,
    Sample,
    SavedMoments,
    choose_basis,
    extend_basis,
    find_components,
    sum_predictions,
    write_basis,
    write_moments,
)
from pipeline.ridge import woodbury
from pipeline.ridge.ridge import SingularGramError, pixel_scale, solve_leading_directions, solve_ridge_path

FloatArray = NDArray[np.float64]
N, P, Q = 2000, 60, 2
NAMES = ("a", "b")


def make_spectra(seed: int = 0, roughness: float = 0.05) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return means, variances and labels of spectra that are smooth functions of four labels."""
    rng = np.random.default_rng(seed)
    hidden = rng.uniform(-1, 1, (N, 4))
    places = np.linspace(0, 1, P)
    means = np.ones((N, P))
    for k, (centre, width) in enumerate([(0.2, 0.03), (0.4, 0.1), (0.6, 0.05), (0.8, 0.2)]):
        depth = 0.3 * np.exp(hidden[:, k] + 0.5 * hidden[:, (k + 1) % 4] ** 2)
        means -= depth[:, None] * np.exp(-(((places - centre - roughness * hidden[:, [k]]) / width) ** 2))
    variances = (0.2 * rng.uniform(0.5, 2, (N, 1)) * np.sqrt(np.abs(means) + 0.1)) ** 2
    return means, variances, hidden[:, :Q] @ np.array([[1.0, 0.2], [0.3, 1.0]])


def factor(basis: Basis, x: FloatArray, v: FloatArray, y: FloatArray) -> FactoredMoments:
    z = (x - basis.x_origin) @ basis.projection
    left = x - basis.x_origin - z @ basis.vectors.T
    beside = np.column_stack([z, np.ones(len(x)), y])
    checked = np.arange(0, len(x), CHECK_EVERY)
    worst = np.tile([-1.0, 0.0], (WORST, 1))
    factors = Factors(
        (beside.T @ beside)[None], v.sum(axis=0)[None], (left[checked] ** 2).sum(axis=0), len(checked), worst
    )
    return FactoredMoments(basis, factors, np.zeros(y.shape[1]), NAMES, float(np.finfo(np.float64).eps))


def make_dense(basis: Basis, x: FloatArray, v: FloatArray, y: FloatArray) -> Moments:
    moments = Moments.from_samples(x, y, NAMES, x_origin=basis.x_origin)
    gram = moments.gram.copy()
    moments.layout.add_to_diagonal(gram, v.sum(axis=0))
    return replace(moments, gram=gram)


def whole_basis(x: FloatArray, v: FloatArray) -> Basis:
    return choose_basis(take_sample(x - x[0], v), x[0], 1e-4, P, rank=P)[0]


def test_at_full_rank_every_answer_is_the_dense_one() -> None:
    x, v, y = make_spectra()
    basis = whole_basis(x, v)
    assert basis.rank == P
    np.testing.assert_allclose(basis.directions.T @ basis.directions, np.eye(P), atol=1e-12)
    ours, dense = factor(basis, x, v, y), make_dense(basis, x, v, y)
    assert (ours.count, ours.n_pixels, ours.labels) == (dense.count, P, NAMES)
    for name in ("x_sum", "cross", "y_sum", "y_gram", "x_mean", "y_mean", "x_variance"):
        expected = getattr(dense, name)
        np.testing.assert_allclose(getattr(ours, name), expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())
    scale = pixel_scale(dense)
    np.testing.assert_allclose(pixel_scale(ours), scale, rtol=1e-12)
    for left, right in zip(ours.covariance_sums(scale), dense.covariance_sums(scale), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-9 * np.abs(right).max())
    alphas = [0.0, 1e-3, 1.0, 1e3]
    found, expected = solve_ridge_path(ours, alphas, scale), solve_ridge_path(dense, alphas, scale)
    np.testing.assert_allclose(found.weights, expected.weights, atol=1e-10 * np.abs(expected.weights).max())
    np.testing.assert_allclose(found.intercepts, expected.intercepts, rtol=1e-9)
    sums = [sum_predictions(one, expected.weights, expected.intercepts).squared_errors for one in (ours, dense)]
    np.testing.assert_allclose(*sums, rtol=1e-10)
    for n in (5, P - 1):
        mine, theirs = find_components(ours, n), find_components(dense, n)
        np.testing.assert_allclose(mine.variances, theirs.variances, rtol=1e-8)
        np.testing.assert_allclose(mine.scores(x[:9])[:, :5], theirs.scores(x[:9])[:, :5], atol=1e-6)


def test_leading_blocks_are_the_moments_of_a_smaller_basis() -> None:
    x, v, y = make_spectra()
    basis = whole_basis(x, v)
    for rank in (1, 7, P):
        smaller, expected = factor(basis, x, v, y).leading(rank), factor(basis.leading(rank), x, v, y)
        assert smaller.basis.digest == expected.basis.digest
        np.testing.assert_allclose(smaller.inner, expected.inner, rtol=1e-12, atol=1e-9)
        np.testing.assert_array_equal(smaller.noise, expected.noise)


def replace_factors(moments: FactoredMoments, **changes: Any) -> FactoredMoments:
    factors = replace(moments.factors, **changes)
    return FactoredMoments(moments.basis, factors, moments.y_origin, moments.labels, moments.epsilon)


def test_what_is_lost_stays_below_the_bound() -> None:
    """Against brute force: R² of training spectra, of the best model without a penalty, whatever the rank."""
    x, v, y = make_spectra(roughness=0.15)
    basis = whole_basis(x, v)
    dense = make_dense(basis, x, v, y)
    total = N * y.var(axis=0)

    def r2(weights: FloatArray, intercepts: FloatArray) -> FloatArray:
        return 1 - sum_predictions(dense, weights, intercepts).squared_errors[0] / total

    best = solve_ridge_path(dense, [0.0])
    bounds, losses = [], []
    for rank in (4, 8, 12, 16, 24):
        ours = factor(basis.leading(rank), x, v, y)
        # Every spectrum is a check row here, so the bound is no estimate.
        left = x - basis.x_origin - (x - basis.x_origin) @ ours.basis.projection @ ours.basis.vectors.T
        ours = replace_factors(ours, residual=(left**2).sum(axis=0), n_check=N)
        found = solve_ridge_path(ours, [0.0])
        losses.append((r2(best.weights, best.intercepts) - r2(found.weights, found.intercepts)).max())
        bounds.append(ours.lost)
    assert (np.diff(bounds) < 0).all()
    assert losses[0] > 1e-3, "something is lost"
    assert all(-1e-12 <= loss <= bound for loss, bound in zip(losses, bounds, strict=True)), (losses, bounds)


@pytest.mark.parametrize("is_alike", [True, False])
def test_with_a_penalty_r2_moves_by_no_more_than_the_bound(is_alike: bool) -> None:
    """Against brute force; where the penalty's weights differ from those of the noise, too."""
    x, v, y = make_spectra(roughness=0.15)
    if not is_alike:
        x, v = x * np.linspace(0.2, 5, P), v * np.linspace(3, 0.3, P)
    basis = whole_basis(x, v)
    dense = make_dense(basis, x, v, y)
    scale, total, changes = pixel_scale(dense), N * y.var(axis=0), []
    for rank in (4, 8, 12, 16, 24):
        own = basis.leading(rank)
        left = x - basis.x_origin - (x - basis.x_origin) @ own.projection @ own.vectors.T
        ours = factor(own, x, v, y)
        ours = replace_factors(ours, residual=(left**2).sum(axis=0), n_check=N)
        for alpha in (1e-4 * N, 1e-2 * N, N):
            r2, shares = [], []
            for moments in (dense, ours):
                found = solve_ridge_path(moments, [alpha], scale)
                sums = sum_predictions(dense, found.weights, found.intercepts)
                r2.append(1 - sums.squared_errors[0] / total)
                shares.append(alpha * ((found.weights[0] * scale[:, None]) ** 2).sum(axis=0) / total)
            for label, change in enumerate(np.abs(r2[1] - r2[0])):
                changes.append((change / ours.lost, change / ours.bound_change(shares[1][label])))
    assert max(bounded for _, bounded in changes) <= 1
    assert max(plain for plain, _ in changes) > 0.01, "something changes"


def test_a_label_that_hides_in_the_residual_moves_r2_by_more_than_is_lost_without_a_penalty() -> None:
    """Half of the label is told by a direction below the tolerance, in pixels of very unlike scales."""
    rng, n, half = np.random.default_rng(3), 3500, 50
    one, other = (column / np.linalg.norm(column) for column in rng.normal(size=(2, half)))
    told = np.concatenate([one * np.cos(0.3), other * np.sin(0.3)])
    hidden = np.concatenate([one * np.sin(0.3), -other * np.cos(0.3)])
    loud = rng.normal(size=(half, 15))
    loud = np.linalg.qr(np.vstack([loud - np.outer(one, one @ loud), np.zeros((half, 15))]))[0]
    t, u = rng.normal(size=(2, n))
    residual = np.outer(u, hidden) * np.sqrt(0.6e-4)
    x = 300 + 3 * np.outer(t, told) + 30 * rng.normal(size=(n, 15)) @ loud.T + residual
    v, y = np.ones(x.shape), np.column_stack([t + u, t - u])
    basis = choose_basis(take_sample(x - x[0], v), x[0], 1e-4, 2 * half)[0]
    assert basis.rank == 16
    dense, ours = make_dense(basis, x, v, y), factor(basis, x, v, y)
    scale, total = pixel_scale(dense), n * y.var(axis=0)
    r2, shares = [], np.empty(0)
    for moments in (dense, ours):
        found = solve_ridge_path(moments, [0.01 * n], scale)
        r2.append(1 - sum_predictions(dense, found.weights, found.intercepts).squared_errors[0] / total)
        shares = 0.01 * n * ((found.weights[0] * scale[:, None]) ** 2).sum(axis=0) / total
    changes = np.abs(r2[1] - r2[0])
    assert changes.min() > 5 * ours.lost
    assert all(change <= ours.bound_change(share) for change, share in zip(changes, shares, strict=True))


def test_check_rows_estimate_the_bound_of_all_rows() -> None:
    x, v, y = make_spectra(roughness=0.15)
    ours = factor(whole_basis(x, v).leading(12), x, v, y)
    left = x - ours.x_origin - (x - ours.x_origin) @ ours.basis.projection @ ours.basis.vectors.T
    exact = ((left**2).sum(axis=0) / v.sum(axis=0)).sum()
    assert 0.5 < ours.lost / exact < 2


def test_the_smallest_rank_that_keeps_the_tolerance_is_chosen() -> None:
    x, v, _ = make_spectra(roughness=0.15)
    sample = take_sample(x - x[0], v, np.arange(N) % 7)
    found = {tolerance: choose_basis(sample, x[0], tolerance, P) for tolerance in (1e-2, 1e-4, 1e-7)}
    ranks = [basis.rank for basis, _ in found.values()]
    assert ranks == sorted(ranks)
    assert ranks[0] < ranks[-1]
    n_choosing = -(-2 * N // 3)
    by_group = np.argsort(np.arange(N) % 7, kind="stable")
    judges = np.setdiff1d(np.arange(N), by_group[np.arange(n_choosing) * N // n_choosing])
    for tolerance, (basis, lost) in found.items():
        assert lost <= 0.7 * tolerance
        left = x - x[0] - (x - x[0]) @ basis.projection @ basis.vectors.T
        groups = [(np.arange(N) % 7 == k, judges[judges % 7 == k]) for k in range(7)]
        bounds = [
            all_.sum() / len(own) * ((left[own] ** 2).sum(axis=0) / v[all_].sum(axis=0)).sum() for all_, own in groups
        ]
        assert lost == pytest.approx(max(bounds), rel=1e-6)
        if basis.rank > 32:
            assert choose_basis(sample, x[0], tolerance, P, rank=basis.rank - 32)[1] > 0.7 * tolerance
    largest, lost = choose_basis(sample, x[0], 1e-12, 16)
    assert largest.rank == 16
    assert lost > 1e-12


def test_what_one_spectrum_alone_has_costs_one_direction_and_not_the_whole_basis() -> None:
    x, v, _ = make_spectra(roughness=0.15)
    expected = choose_basis(take_sample(x - x[0], v), x[0], 1e-4, P)[0].rank
    x = x.copy()
    x[[2, 500], 40] += 2.0  # of which every third spectrum judges
    basis, lost = choose_basis(take_sample(x - x[0], v), x[0], 1e-4, P)
    left = x - x[0] - (x - x[0]) @ basis.projection @ basis.vectors.T
    assert basis.rank <= expected + 16
    assert (left[[2, 500]] ** 2 / v[[2, 500]]).sum() < 1e-2
    assert lost <= 1e-4


def test_directions_by_iteration_are_those_of_the_eigenvectors(monkeypatch: pytest.MonkeyPatch) -> None:
    x, v, _ = make_spectra()
    sample = take_sample(x - x[0], v)
    found = choose_basis(sample, x[0], 1e-4, 16, rank=16)[0]
    monkeypatch.setattr(pipeline.moments.basis, "_MOST_CHOOSING", 40)  # so few that all eigenvectors are computed
    few = choose_basis(take_sample(x[:40] - x[0], v[:40]), x[0], 1e-4, 16, rank=16)[0]
    assert few.rank == found.rank == 16
    white = (x - x[0])[np.arange(1334) * N // 1334] / np.sqrt(v.mean(axis=0))
    expected = np.linalg.svd(white, full_matrices=False)[2][:12]
    kept = np.linalg.norm(expected @ found.directions, axis=1)
    np.testing.assert_allclose(kept, 1, atol=1e-9)


@pytest.mark.parametrize("noise", ["its own", "over many decades", "without in one pixel"])
def test_a_long_path_is_that_of_single_penalties(noise: str) -> None:
    x, v, y = make_spectra()
    if noise == "over many decades":
        v *= np.geomspace(1e-6, 1e6, P)
    elif noise == "without in one pixel":
        v[:, 3] = 0
    ours = factor(whole_basis(x, v).leading(20), x, v, y)
    alphas = np.geomspace(1e-3, 1e6, 40)
    for scale in (pixel_scale(ours), np.linspace(0.5, 2, P)):
        path = woodbury.solve_shifted(ours, scale, alphas.tolist())
        for alpha, of_path in zip(alphas, path, strict=True):
            [alone] = woodbury.solve_shifted(ours, scale, [float(alpha)])
            assert alone is not None
            np.testing.assert_allclose(of_path, alone, rtol=0, atol=1e-11 * np.abs(alone).max())


def test_leading_directions_are_solved_as_if_there_were_no_others() -> None:
    x, v, y = make_spectra()
    ours = factor(whole_basis(x, v).leading(20), x, v, y)
    scale = pixel_scale(ours)
    path = solve_leading_directions(ours, 3.0, [4, 11, 20], scale)
    for k, rank in enumerate((4, 11, 20)):
        expected = solve_ridge_path(ours.leading(rank), [3.0], scale)
        np.testing.assert_allclose(path.weights[k], expected.weights[0], rtol=1e-9, atol=1e-12)
        means = ours.x_mean  # of all directions
        np.testing.assert_allclose(path.intercepts[k], ours.y_mean - means @ path.weights[k], rtol=1e-12)
    with pytest.raises(SingularGramError, match="alpha = 0"):
        solve_leading_directions(factor(ours.basis, x, 0 * v, y), 0.0, [4], np.ones(P))


@pytest.mark.parametrize("period", [2, 3, 4])
def test_every_group_chooses_directions_however_its_rows_are_spread(period: int) -> None:
    """One group of spectra has thirty directions to itself."""
    x, v, _ = make_spectra()
    x = x[:1992] - x[:1992].mean(axis=0)
    groups = np.arange(len(x)) % period
    rng = np.random.default_rng(2)
    own = groups == period - 1
    x[own] += rng.standard_normal((np.count_nonzero(own), 30)) @ rng.standard_normal((30, P)) * 0.1
    noise = np.array([v[: len(x)][groups == group].sum(axis=0) for group in range(period)])
    basis, lost = choose_basis(Sample(x, groups, noise), np.zeros(P), 1e-3, P)
    assert lost <= 1e-3
    assert basis.rank < P


def test_addition_is_exact_on_whole_numbers() -> None:
    rng = np.random.default_rng(1)
    basis = Basis(np.zeros(P), np.ones(P), np.eye(P)[:, :5])
    x, v, y = rng.integers(-5, 6, (90, P)) * 1.0, rng.integers(0, 9, (90, P)) * 1.0, rng.integers(-5, 6, (90, Q)) * 1.0
    parts = [factor(basis, x[a:b], v[a:b], y[a:b]) for a, b in ((0, 32), (32, 32), (32, 64), (64, 90))]
    whole = Moments.merge(parts)
    assert isinstance(whole, FactoredMoments)
    expected = factor(basis, x, v, y)
    np.testing.assert_array_equal(whole.inner, expected.inner)
    np.testing.assert_array_equal(whole.noise, expected.noise)
    assert whole.remove(parts[0]).remove(parts[3]).identical(parts[2] + parts[1])
    assert Moments.merge(parts[::-1]).identical(whole)
    assert whole.count == 90
    with pytest.raises(InputError, match="90"):
        parts[0].remove(whole)


def test_rows_that_say_something_new_extend_a_basis() -> None:
    x, v, _ = make_spectra()
    basis = whole_basis(x, v).leading(10)
    spike = np.zeros(P)
    spike[17] = 50.0
    larger = extend_basis(basis, np.stack([spike, basis.vectors[:, 3], 2 * spike]))
    assert larger.rank == 11
    np.testing.assert_array_equal(larger.directions[:, :10], basis.directions)
    np.testing.assert_allclose(larger.directions.T @ larger.directions, np.eye(11), atol=1e-12)
    np.testing.assert_allclose(spike @ larger.projection @ larger.vectors.T, spike, atol=1e-9)


def test_solve__raise_without_noise_and_without_penalty() -> None:
    x, v, y = make_spectra()
    ours = factor(whole_basis(x, v).leading(10), x, 0 * v, y)
    assert ours.lost == np.inf
    with pytest.raises(SingularGramError, match="alpha = 0"):
        solve_ridge_path(ours, [0.0])
    assert np.isfinite(solve_ridge_path(ours, [1.0]).weights).all()


def test_choose__raise_on_spectra_that_no_basis_fits() -> None:
    x, v, _ = make_spectra()
    with pytest.raises(InputError, match="dense"):
        choose_basis(take_sample(0 * x, v), x[0], 1e-4, P)
    with pytest.raises(InputError, match="dense"):
        choose_basis(take_sample(x - x[0], 0 * v), x[0], 1e-4, P)
    one, _ = choose_basis(take_sample(x[1:2] - x[0], v[1:2]), x[0], 1e-4, P)
    assert one.rank == 1


def test_merge__raise_on_another_basis_or_dense_moments() -> None:
    x, v, y = make_spectra()
    basis = whole_basis(x, v)
    ours = factor(basis.leading(10), x, v, y)
    with pytest.raises(InputError, match="two bases"):
        _ = ours + factor(basis.leading(11), x, v, y)
    with pytest.raises(InputError, match="dense"):
        _ = ours + make_dense(basis, x, v, y)


def test_files_hold_them_exactly_and_say_what_is_wrong(tmp_path: Path) -> None:
    x, v, y = make_spectra()
    basis = whole_basis(x, v).leading(12)
    cells = [factor(basis, x[:900], v[:900], y[:900]), factor(basis, x[:0], v[:0], y[:0]), factor(basis, x, v, y)]
    write_basis(tmp_path, basis, {})
    write_moments(tmp_path / "fold-000", cells, 3, {"key": "k"})
    saved = SavedMoments.open(tmp_path / "fold-000")
    assert (saved.counts, saved.is_tiled, saved.n_pixels, saved.tiled_pixels) == ([900, 0, N], False, P, 0)
    for k, cell in enumerate(cells):
        assert saved.read(k).identical(cell)
        np.testing.assert_array_equal(saved.pixel_sums()[k].x_squares, cell.pixel_sums.x_squares)
    together, apart = saved.sum_pixels([2, 0, 1]), PixelSums.merge([cells[k].pixel_sums for k in (2, 0, 1)])
    assert together.count == apart.count == N + 900
    np.testing.assert_array_equal(together.x_sum, apart.x_sum)
    np.testing.assert_array_equal(together.x_squares, apart.x_squares)
    _, y_sums, y_squares = saved.label_sums()
    np.testing.assert_array_equal(y_sums[0], cells[0].y_sum)
    np.testing.assert_array_equal(y_squares[2], np.diag(cells[2].y_gram))
    assert sorted(path.name for path in (tmp_path / "fold-000").iterdir()) == ["moments.json", "sums.npz"]

    write_basis(tmp_path, basis.leading(11), {})
    with pytest.raises(InputError, match=r"another basis.*basis\.npz"):
        SavedMoments.open(tmp_path / "fold-000").read(0)
    content = bytearray((tmp_path / "basis.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "basis.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"basis\.npz: cannot be read"):
        SavedMoments.open(tmp_path / "fold-000").read(0)
    (tmp_path / "basis.npz").unlink()
    with pytest.raises(InputError, match=r"basis\.npz: cannot be read"):
        SavedMoments.open(tmp_path / "fold-000").read(0)


def test_models_are_the_limit_of_training_on_many_noisy_copies() -> None:
    x, v, y = (array[:400] for array in make_spectra(roughness=0.01))
    ours = factor(whole_basis(x, v), x, v, y)
    alpha, rng, distances = 40.0, np.random.default_rng(5), []
    path = solve_ridge_path(ours, [alpha])
    for copies in (4, 64, 1024):
        # Sums over copies, drawn anew for each; their mean is what a spectrum contributes.
        total = None
        for _ in range(copies):
            drawn = Moments.from_samples(x + np.sqrt(v) * rng.standard_normal(x.shape), y, NAMES)
            total = drawn if total is None else total + drawn
        assert total is not None
        found = Ridge(alpha=alpha * copies, solver="cholesky")
        found_path = solve_ridge_path(total, [alpha * copies])
        if copies == 4:  # the sums are those that scikit-learn would have been given
            rng_again = np.random.default_rng(5)
            rows = np.concatenate([x + np.sqrt(v) * rng_again.standard_normal(x.shape) for _ in range(copies)])
            found.fit(rows, np.tile(y, (copies, 1)))
            np.testing.assert_allclose(found.coef_.T, found_path.weights[0], rtol=1e-6, atol=1e-9)
        distances.append(float(np.linalg.norm(found_path.weights[0] - path.weights[0])))
    # Sixteen times the copies, a quarter of the distance.
    ratios = [a / b for a, b in pairwise(distances)]
    assert all(2.8 < ratio < 5.7 for ratio in ratios), ratios


def test_fewer_spectra_than_directions_are_solved_as_dense_ones_are() -> None:
    x, v, y = make_spectra()
    basis = whole_basis(x, v)
    few = (x[:9], v[:9], y[:9])
    ours, dense = factor(basis, *few), make_dense(basis, *few)
    for alpha in (0.0, 0.3):
        found, expected = (solve_ridge_path(one, [alpha]).weights for one in (ours, dense))
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10 * np.abs(expected).max())


def test_solve__raise_on_a_single_spectrum() -> None:
    x, v, y = make_spectra()
    with pytest.raises(InputError, match="at least 2"):
        solve_ridge_path(factor(whole_basis(x, v), x[:1], v[:1], y[:1]), [1.0])

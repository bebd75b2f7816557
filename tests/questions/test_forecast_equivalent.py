"""The deterministic equivalent of drawn ridge regression: against explicit matrices, drawn rows, and known formulas."""

import numpy as np
import pytest

from pipeline.questions.forecast import Population, solve_drawn_ridge

J, P, R = 3, 24, 4


def make_population(n_pixels=P, rank=R, classes=J, *, noise=1.0, seed=3):
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(classes, rank)) * 0.5
    roots = rng.normal(size=(classes, rank, rank))
    covariances = roots @ roots.transpose(0, 2, 1) / rank + 0.2 * np.eye(rank)
    slope, offset = rng.normal(size=rank), 0.7
    labels = means @ slope + offset
    grams = covariances + means[:, :, None] * means[:, None, :]
    cross = grams @ slope + means * offset
    squares = np.einsum("r,jrs,s->j", slope, grams, slope) + 2 * offset * means @ slope + offset**2 + 0.3
    own = noise * (0.3 + rng.random((classes, n_pixels))) * np.linspace(0.3, 3, classes)[:, None]
    return Population(
        vectors=rng.normal(size=(n_pixels, rank)) / 2,
        scale=1 + rng.random(n_pixels),
        y_origin=0.0,
        counts=np.array([200.0, 300.0, 500.0])[:classes],
        means=means,
        grams=grams,
        labels=labels,
        label_squares=squares,
        cross=cross,
        noise=own,
    ), slope


def solve_dense(population, n, alpha):
    """Iterate the fixed point on explicit matrices of the pixels and one constant feature without a penalty."""
    b, rows = population.vectors, n * population.shares
    n_pixels = len(b)
    sigma, cross = [], []
    for k in range(len(rows)):
        mean = b @ population.means[k]
        whole = np.zeros((n_pixels + 1, n_pixels + 1))
        whole[:-1, :-1] = b @ population.grams[k] @ b.T + np.diag(population.noise[k])
        whole[:-1, -1] = whole[-1, :-1] = mean
        whole[-1, -1] = 1
        sigma.append(whole)
        cross.append(np.append(b @ population.cross[k], population.labels[k]))
    penalty = alpha * np.eye(n_pixels + 1)
    penalty[-1, -1] = 0
    delta = np.zeros(len(rows))
    for _ in range(5000):
        q = np.linalg.inv(sum(w * one for w, one in zip(rows / (1 + delta), sigma, strict=True)) + penalty)
        delta = np.array([np.trace(one @ q) for one in sigma])
    w = q @ sum(weight * one for weight, one in zip(rows / (1 + delta), cross, strict=True))
    squared = rows / (1 + delta) ** 2
    psi = np.array(
        [[squared[k] * np.trace(sigma[j] @ q @ sigma[k] @ q) for k in range(len(rows))] for j in range(len(rows))]
    )
    bias = [population.label_squares[k] - 2 * w @ cross[k] + w @ sigma[k] @ w for k in range(len(rows))]
    errors = np.linalg.solve(np.eye(len(rows)) - psi, bias)
    m = sum(squared[k] * errors[k] * q @ sigma[k] @ q for k in range(len(rows)))
    return delta, w, errors, m


@pytest.mark.parametrize(("n", "alpha"), [(200.0, 3.0), (18.0, 1.0), (5000.0, 0.1), (40.0, 500.0)])
def test_equivalent_of_a_low_rank_equals_explicit_matrices(n, alpha):
    population, _ = make_population()
    delta, w, errors, m = solve_dense(population, n, alpha)
    found = solve_drawn_ridge(population, n, alpha)
    np.testing.assert_allclose(found.delta, delta, rtol=1e-6)
    np.testing.assert_allclose(found.errors, errors, rtol=1e-6)
    z = np.random.default_rng(0).normal(size=(5, R))
    x = np.column_stack([z @ population.vectors.T, np.ones(5)])
    np.testing.assert_allclose(found.predict(z), x @ w, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.spread(z), np.einsum("np,pq,nq->n", x, m, x), rtol=1e-6)
    np.testing.assert_allclose(found.pixel_noise, (w[:-1] ** 2 + np.diag(m)[:-1]) / population.scale**2, rtol=1e-6)


def test_errors_are_those_of_the_population_itself():
    """Two ways to the same number: L_j, and the expected square summed over the class."""
    population, _ = make_population()
    found = solve_drawn_ridge(population, 100.0, 2.0)
    grams, cross, squares = population.about(found.mean, found.intercept)
    for k in range(J):
        whole = squares[k] - 2 * cross[k] @ found.slope + found.slope @ grams[k] @ found.slope
        off = population.means[k] - found.mean
        whole += np.einsum("rs,rs->", found.quadratic, grams[k]) + found.linear @ off + found.constant
        whole += found.pixel_noise @ (population.noise[k] * population.scale**2)
        assert found.errors[k] == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize(("rows", "alpha"), [(300, 8.0), (600, 2.0)])
def test_equivalent_agrees_with_drawn_rows(rows, alpha):
    """Ridge regressions on rows that are drawn; their errors on the population are known without test rows."""
    n_pixels = 200
    population, slope = make_population(n_pixels)
    expected = solve_drawn_ridge(population, rows, alpha).errors
    b, rng = population.vectors, np.random.default_rng(1)
    roots = np.linalg.cholesky(population.grams - population.means[:, :, None] * population.means[:, None, :])
    errors = []
    for _ in range(40):
        which = rng.choice(J, size=rows, p=population.shares)
        z = population.means[which] + np.einsum("nrs,ns->nr", roots[which], rng.normal(size=(rows, R)))
        y = z @ slope + 0.7 + np.sqrt(0.3) * rng.normal(size=rows)
        x = z @ b.T + np.sqrt(population.noise[which]) * rng.normal(size=(rows, n_pixels))
        x_mean, y_mean = x.mean(axis=0), y.mean()
        w = np.linalg.solve((x - x_mean).T @ (x - x_mean) + alpha * np.eye(n_pixels), (x - x_mean).T @ (y - y_mean))
        # Of y − ŷ = own·z + constant, plus the noise of the label, plus that of the pixels.
        own, constant = slope - b.T @ w, 0.7 - y_mean + x_mean @ w
        of_mean = np.einsum("r,jrs,s->j", own, population.grams, own) + 2 * constant * population.means @ own
        errors.append(of_mean + constant**2 + 0.3 + population.noise @ w**2)
    ratio = expected / np.mean(errors, axis=0)
    np.testing.assert_allclose(ratio, 1, atol=0.02)


def test_one_class_obeys_the_known_formula():
    """``n = Σ λ/(λ+κ) + α/κ`` with the constant feature taken out (it has no penalty and one degree of freedom)."""
    population, _ = make_population(classes=1)
    n, alpha = 60.0, 2.0
    delta = float(solve_drawn_ridge(population, n, alpha).delta[0])
    kappa = alpha * (1 + delta) / n
    spread = population.grams[0] - np.outer(population.means[0], population.means[0])
    values = np.linalg.eigvalsh(population.vectors @ spread @ population.vectors.T + np.diag(population.noise[0]))
    assert np.sum(values / (values + kappa)) + alpha / kappa + 1 == pytest.approx(n, rel=1e-6)


def test_many_rows_give_the_answer_of_the_expectation():
    """With ever more rows a drawn model becomes ridge regression on the moments themselves."""
    population, _ = make_population(classes=1)
    n, per_row = 1e9, 0.1
    found = solve_drawn_ridge(population, n, per_row * n)
    b, spread = population.vectors, population.grams[0] - np.outer(population.means[0], population.means[0])
    cross = population.cross[0] - population.means[0] * population.labels[0]
    sigma = b @ spread @ b.T + np.diag(population.noise[0])
    w = np.linalg.solve(sigma + per_row * np.eye(P), b @ cross)
    np.testing.assert_allclose(found.slope, b.T @ w, rtol=1e-6)
    assert found.share < 1e-6


def test_a_start_changes_the_way_and_not_the_answer():
    population, _ = make_population()
    cold = solve_drawn_ridge(population, 100.0, 2.0)
    warm = solve_drawn_ridge(population, 100.0, 2.0, start=10 * cold.delta)
    np.testing.assert_allclose(warm.errors, cold.errors, rtol=1e-6)

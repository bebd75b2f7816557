"""One Krylov space for many penalties, against dense solutions of each."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

import pipeline.ridge
from pipeline.moments import Moments
from pipeline.ridge import solve_ridge_path
from pipeline.ridge.krylov import krylov_memory, solve_shifted

SHIFTS = [0.5, 3.0, 40.0, 700.0]


def flat(n_pixels: int, n_large: int = 4, seed: int = 0) -> NDArray[np.float64]:
    """A matrix as noise makes it: a nearly flat spectrum and a few large eigenvalues."""
    generator = np.random.default_rng(seed)
    directions = np.linalg.qr(generator.standard_normal((n_pixels, n_large)))[0]
    spread = np.diag(generator.uniform(90, 110, n_pixels))
    return spread + directions @ np.diag(np.geomspace(1e3, 1e5, n_large)) @ directions.T


def lower_only(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lower triangle, and above it what must not be read."""
    return np.where(np.tri(len(matrix), dtype=bool), matrix, np.nan)


@pytest.mark.parametrize("width", [1, 3])
def test_every_solution_is_that_of_its_own_system(width: int) -> None:
    system, target = flat(1024), np.random.default_rng(1).standard_normal((1024, width))
    found = solve_shifted(lower_only(system), target, SHIFTS)
    for shift, solution in zip(SHIFTS, found, strict=True):
        assert solution is not None
        expected = np.linalg.solve(system + shift * np.eye(1024), target)
        np.testing.assert_allclose(solution, expected, atol=1e-9 * np.abs(expected).max())
        residual = target - (system @ solution + shift * solution)
        assert (np.linalg.norm(residual, axis=0) <= 2e-12 * np.linalg.norm(target, axis=0)).all()


def test_nothing_is_said_where_a_factorisation_is_shorter() -> None:
    """A spectrum over many decades: small penalties need as many steps as there are pixels, large ones few."""
    generator = np.random.default_rng(2)
    basis = np.linalg.qr(generator.standard_normal((768, 768)))[0]
    system = basis * np.geomspace(1e-4, 1e6, 768) @ basis.T
    target = generator.standard_normal((768, 2))
    found = solve_shifted(system, target, [1e-3, 1e9])
    assert found[0] is None
    assert found[1] is not None
    np.testing.assert_allclose((system + 1e9 * np.eye(768)) @ found[1], target, atol=1e-10)


def test_a_space_that_ends_gives_all_solutions() -> None:
    """Few spectra: the matrix has a low rank, and its space is exhausted after a few steps."""
    generator = np.random.default_rng(3)
    factor = generator.standard_normal((1024, 5))
    system, target = factor @ factor.T, factor @ generator.standard_normal((5, 3))
    for shift, solution in zip(SHIFTS, solve_shifted(system, target, SHIFTS), strict=True):
        assert solution is not None
        np.testing.assert_allclose(system @ solution + shift * solution, target, atol=1e-9 * np.abs(target).max())


@pytest.mark.parametrize("share", [1.0, 0.0], ids=["equal labels", "a label that does not vary"])
def test_dependent_targets(share: float) -> None:
    system, target = flat(1024), np.random.default_rng(4).standard_normal((1024, 3))
    target[:, 1] = share * target[:, 0]
    for shift, solution in zip(SHIFTS, solve_shifted(system, target, SHIFTS), strict=True):
        assert solution is not None
        np.testing.assert_allclose(system @ solution + shift * solution, target, atol=1e-9)
        np.testing.assert_allclose(solution[:, 1], share * solution[:, 0], atol=1e-12)


def test_a_path_equals_single_penalties(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(5)
    y = generator.standard_normal((1000, 3))
    white = np.linalg.qr(generator.standard_normal((1000, 512)))[0] * 40
    x = white + y @ generator.standard_normal((3, 512))
    moments = Moments.from_samples(x, y)
    alphas, scale = np.geomspace(1, 1e5, 6), None  # scaled, the spectrum would be less flat
    asked: list[int] = []

    def solve(*arguments: object) -> list[NDArray[np.float64] | None]:
        found = solve_shifted(*arguments)  # type: ignore[arg-type]
        asked.append(sum(one is not None for one in found))
        return found

    monkeypatch.setattr(pipeline.ridge.krylov, "solve_shifted", solve)
    path = solve_ridge_path(moments, alphas, scale)
    assert asked == [6], "all of the path came from one space"
    for k, alpha in enumerate(alphas):
        single = solve_ridge_path(moments, alpha, scale)
        size = np.abs(single.weights[0]).max()
        np.testing.assert_allclose(path.weights[k], single.weights[0], atol=1e-10 * size)
        np.testing.assert_allclose(path.intercepts[k], single.intercepts[0], atol=1e-10 * size)
    assert asked == [6], "a single penalty is factorised"


def test_memory_is_a_small_part_of_the_system() -> None:
    assert krylov_memory(4096, 3) < 0.4 * 4096 * 4096 * 8

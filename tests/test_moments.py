from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.errors import InputError
from pipeline.moments import Moments

# Integer-valued floats: sums and products do not round, so the laws hold bit for bit.
WHOLE = st.integers(-50, 50).map(float)


@st.composite
def samples(draw: st.DrawFn, n_pixels: int, n_labels: int) -> tuple[np.ndarray, np.ndarray]:
    n = draw(st.integers(0, 12))
    x = draw(hnp.arrays(np.float64, (n, n_pixels), elements=WHOLE))
    y = draw(hnp.arrays(np.float64, (n, n_labels), elements=WHOLE))
    return x, y


@st.composite
def three_sets(draw: st.DrawFn) -> list[tuple[np.ndarray, np.ndarray]]:
    n_pixels, n_labels = draw(st.integers(1, 20)), draw(st.integers(1, 3))
    return [draw(samples(n_pixels, n_labels)) for _ in range(3)]


def moments_of(sets: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Moments]:
    n_pixels, n_labels = sets[0][0].shape[1], sets[0][1].shape[1]
    origins = {"x_origin": np.arange(n_pixels), "y_origin": np.arange(n_labels) - 1}
    return [Moments.from_samples(x, y, **origins) for x, y in sets]


@given(three_sets())
@settings(max_examples=60, deadline=None)
def test_moments_form_a_commutative_monoid_with_removal(sets: list[tuple[np.ndarray, np.ndarray]]) -> None:
    a, b, c = moments_of(sets)
    zero = Moments.zeros(a.x_origin, a.y_origin, a.labels)
    assert (a + zero).identical(a)
    assert (a + b).identical(b + a)
    assert ((a + b) + c).identical(a + (b + c))
    assert (a + b).remove(b).identical(a)
    together = [np.concatenate(parts) for parts in zip(*sets, strict=True)]
    assert moments_of([tuple(together)])[0].identical(Moments.merge([a, b, c]))


@given(three_sets())
@settings(max_examples=30, deadline=None)
def test_merge_changes_none_of_its_parts(sets: list[tuple[np.ndarray, np.ndarray]]) -> None:
    a, b, _ = moments_of(sets)
    before = Moments.merge([a])
    _ = a + b
    _ = (a + b).remove(a)
    assert a.identical(before)


def test_statistics_equal_numpy() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(1.0, 0.1, (300, 70))
    y = np.column_stack([generator.normal(3, 1, 300), generator.normal(4800, 600, 300)])
    m = Moments.from_samples(x, y, ["log_g", "T_eff"], x_origin=x[0], y_origin=[3.3, 5000])
    np.testing.assert_allclose(m.x_mean, x.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(m.y_mean, y.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(m.x_variance, x.var(axis=0), rtol=1e-11)
    lower, cross = m.covariance_sums()
    dx, dy = x - x.mean(axis=0), y - y.mean(axis=0)
    np.testing.assert_allclose(lower, np.tril(dx.T @ dx), atol=1e-12)
    np.testing.assert_allclose(cross, dx.T @ dy, atol=1e-9)


def test_squared_error_equals_that_of_the_samples() -> None:
    generator = np.random.default_rng(1)
    x, y = generator.normal(1, 0.2, (200, 50)), generator.normal(3, 1, (200, 2))
    weights, intercepts = generator.normal(0, 1, (50, 2)), np.array([0.3, -2.0])
    m = Moments.from_samples(x, y, x_origin=np.full(50, 0.9), y_origin=[2.5, 3.5])
    expected = ((y - x @ weights - intercepts) ** 2).sum(axis=0)
    np.testing.assert_allclose(m.squared_error(weights, intercepts), expected, rtol=1e-10)


def test_centring_first_saves_float32_sums() -> None:
    # Nearly constant flux, σ/mean = 1e-3: the reason for the origin.
    x = np.random.default_rng(2).normal(1.0, 1e-3, (4000, 20))
    exact = np.cov(x.T, bias=True)
    single = x.astype(np.float32)
    uncentred = single.T @ single / 4000 - np.outer(single.mean(axis=0), single.mean(axis=0))
    m = Moments.from_samples(x, x[:, :1], x_origin=x.mean(axis=0).astype(np.float32))
    centred = m.covariance_sums()[0] / m.count

    def error(covariance: np.ndarray) -> float:
        return float(np.linalg.norm(np.tril(covariance - exact)) / np.linalg.norm(np.tril(exact)))

    assert error(uncentred) > 1e-2
    assert error(centred) < 1e-6


def test_merge__raise_on_nothing() -> None:
    with pytest.raises(InputError, match="no moments"):
        Moments.merge([])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Moments.zeros(np.zeros(4), [0.0], ["log_g"]), "3 and 4 pixels"),
        (Moments.zeros(np.zeros(3), [0.0], ["T_eff"]), "labels"),
        (Moments.zeros([0, 0.03, 0], [0.0], ["log_g"]), r"different origins \(max \|Δ\| = 0.03 at pixel 1\)"),
        (Moments.zeros(np.zeros(3), [2.0], ["log_g"]), "different label origins"),
    ],
)
def test_merge__raise_on_another_frame(other: Moments, message: str) -> None:
    mine = Moments.zeros(np.zeros(3), [0.0], ["log_g"])
    with pytest.raises(InputError, match=message):
        _ = mine + other
    with pytest.raises(InputError, match=message):
        mine.remove(other)


def test_remove__raise_on_more_than_there_is() -> None:
    one, two = Moments.from_samples([[1.0]], [1.0]), Moments.from_samples([[1.0], [2.0]], [1.0, 2.0])
    with pytest.raises(InputError, match="cannot remove 2 spectra from moments of 1"):
        one.remove(two)


def test_from_samples__raise_on_bad_samples() -> None:
    with pytest.raises(InputError, match="shape"):
        Moments.from_samples(np.zeros((3, 2)), np.zeros(4))
    with pytest.raises(InputError, match="finite"):
        Moments.from_samples([[np.nan]], [1.0])


def test_mean__raise_on_no_spectra() -> None:
    with pytest.raises(InputError, match="no spectra"):
        _ = Moments.zeros([0.0], [0.0], ["log_g"]).x_mean

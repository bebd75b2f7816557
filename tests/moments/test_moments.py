from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.errors import InputError
from pipeline.moments import Moments, move_origins, round_origin, scale_moments

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


@given(three_sets(), st.data())
@settings(max_examples=40, deadline=None)
def test_whole_weights_are_copies(sets: list[tuple[np.ndarray, np.ndarray]], data: st.DataObject) -> None:
    x, y = sets[0]
    weights = np.array(data.draw(st.lists(st.integers(0, 5), min_size=len(x), max_size=len(x))), dtype=int)
    origins = {"x_origin": np.arange(x.shape[1]), "y_origin": np.arange(y.shape[1])}
    copies = Moments.from_samples(np.repeat(x, weights, axis=0), np.repeat(y, weights, axis=0), **origins)
    assert Moments.from_samples(x, y, weights=weights, **origins).identical(copies)


def test_fractional_weights_equal_numpy() -> None:
    generator = np.random.default_rng(4)
    x, y, weights = generator.normal(1, 0.1, (300, 40)), generator.normal(3, 1, (300, 1)), generator.uniform(0, 2, 300)
    m = Moments.from_samples(x, y, x_origin=x[0], y_origin=[3.3], weights=weights)
    assert m.count == pytest.approx(weights.sum())
    np.testing.assert_allclose(m.x_mean, np.average(x, axis=0, weights=weights), rtol=1e-13)
    covariance = np.cov(x.T, aweights=weights, ddof=0) * weights.sum()
    np.testing.assert_allclose(m.covariance_sums()[0], np.tril(covariance), atol=1e-12)


@given(three_sets(), st.integers(-9, 9), st.sampled_from([0.25, 1.0, 8.0]))
@settings(max_examples=40, deadline=None)
def test_another_frame_changes_numbers_not_their_meaning(
    sets: list[tuple[np.ndarray, np.ndarray]], move: int, factor: float
) -> None:
    (x, y), m = sets[0], moments_of(sets)[0]
    x_origin, y_origin = m.x_origin[::-1] + move, m.y_origin - 2 * move
    expected = Moments.from_samples(x, y, x_origin=x_origin, y_origin=y_origin)
    assert move_origins(m, x_origin, y_origin).identical(expected)
    divisor = 2.0 ** (np.arange(x.shape[1]) % 5 - 2)
    weights = np.full(len(x), factor)
    expected = Moments.from_samples(x / divisor, y, x_origin=m.x_origin / divisor, y_origin=m.y_origin, weights=weights)
    before = Moments.merge([m])
    assert scale_moments(m, divisor, factor).identical(expected)
    assert m.identical(before)


def test_rounded_origins_are_near_and_leave_whole_numbers_whole() -> None:
    values = np.array([0.0, -0.7, 1e-30, 3.3, 4801.7, -1e6 - 0.4, 1e12])
    origin = round_origin(values)
    bound = np.array([0, 0.002, 1e-32, 0.01, 0.5, 0.5, 2e5])
    assert (np.abs(origin - values) <= bound).all()
    assert (np.round(origin[4:]) == origin[4:]).all()
    np.testing.assert_array_equal(round_origin(origin), origin)


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
    with pytest.raises(InputError, match="2 spectra"):
        one.remove(two)


def test_from_samples__raise_on_bad_samples() -> None:
    with pytest.raises(InputError, match="shape"):
        Moments.from_samples(np.zeros((3, 2)), np.zeros(4))
    with pytest.raises(InputError, match="finite"):
        Moments.from_samples([[np.nan]], [1.0])
    for weights in ([-1.0], [np.inf], [1.0, 1.0]):
        with pytest.raises(InputError, match="weights must be 1 finite"):
            Moments.from_samples([[1.0]], [1.0], weights=weights)


def test_mean__raise_on_no_spectra() -> None:
    with pytest.raises(InputError, match="no spectra"):
        _ = Moments.zeros([0.0], [0.0], ["log_g"]).x_mean

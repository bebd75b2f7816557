from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.noise import NoiseDraw, add_noise, draw_noise

DRAW = NoiseDraw(level=1.0, seed=42, stream=0)
WHOLE = draw_noise(DRAW, 0, 327, 9)


@given(st.integers(0, len(WHOLE)), st.integers(0, len(WHOLE)))
@settings(max_examples=60)
def test_any_row_range_draws_the_same_bits(a: int, b: int) -> None:
    start, stop = min(a, b), max(a, b)
    np.testing.assert_array_equal(draw_noise(DRAW, start, stop, 9), WHOLE[start:stop])


def test_draws_are_standard_normal() -> None:
    drawn = draw_noise(DRAW, 0, 2000, 100).ravel().astype(float)
    assert abs(drawn.mean()) < 4 / np.sqrt(drawn.size)
    assert abs(drawn.var() - 1) < 4 * np.sqrt(2 / drawn.size)
    assert stats.kstest(drawn, "norm").pvalue > 1e-4


def test_rows_pixels_seeds_and_streams_are_independent() -> None:
    def correlation(a: np.ndarray, b: np.ndarray) -> float:
        return abs(float(np.corrcoef(a.ravel(), b.ravel())[0, 1])) * np.sqrt(a.size)

    drawn = draw_noise(DRAW, 0, 1000, 100)
    assert correlation(drawn[:-1], drawn[1:]) < 5
    assert correlation(drawn[:, :-1], drawn[:, 1:]) < 5
    assert correlation(drawn[:, :75], drawn[:, 25:]) < 5  # words of one counter lie a quarter apart
    assert correlation(np.abs(drawn[:, :75]), np.abs(drawn[:, 25:])) < 5
    assert correlation(drawn, draw_noise(NoiseDraw(1.0, 123, 0), 0, 1000, 100)) < 5
    assert correlation(drawn, draw_noise(NoiseDraw(1.0, 42, 1), 0, 1000, 100)) < 5


def test_levels_share_their_draws() -> None:
    np.testing.assert_array_equal(draw_noise(NoiseDraw(0.2, 42, 0), 0, 70, 9), WHOLE[:70])


def test_noise_is_added_in_units_of_the_error_and_clipped() -> None:
    flux = np.array([[1.0, -0.5, 0.1, 2.0]])
    error = np.array([[0.1, 0.1, 1.0, 0.0]])
    normals = np.array([[2.0, 1.0, -3.0, 5.0]])
    # A negative flux counts as zero before the noise; the sum is clipped again.
    np.testing.assert_allclose(add_noise(flux, error, normals, 0.5), [[1.1, 0.05, 0.0, 2.0]])
    assert flux[0, 1] == -0.5

from __future__ import annotations

import numba
import numpy as np
import pytest
from scipy import stats

from pipeline.noise import fill_normals
from pipeline.noise.draws import direction, philox, radius

KEY = np.array([0xA4093822, 0x299F31D0], np.uint32)


@numba.njit
def philox_words(counter: np.ndarray, key: np.ndarray) -> tuple[int, int, int, int]:
    return philox(counter[0], counter[1], counter[2], counter[3], key[0], key[1])


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers that the generator's authors publish
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_its_known_answers(counter: str, key: str, expected: str) -> None:
    words = [np.array([int(word, 16) for word in text.split()], np.uint32) for text in (counter, key)]
    assert [f"{int(word):08x}" for word in philox_words(*words)] == expected.split()


def test_normals_equal_box_muller_in_double_precision() -> None:
    drawn = np.empty((20, 400), np.float32)
    fill_normals(5, KEY, drawn)
    q = 100
    for r in (0, 7, 19):
        words = np.array(
            [philox_words(np.array([j, 5 + r, 0, 0], np.uint32), KEY) for j in range(q)], dtype=np.uint64
        ).T
        expected = []
        for half in range(2):
            u = (np.floor(words[2 * half] / 2) + 0.5) / 2.0**31
            angle = 2 * np.pi * words[2 * half + 1] / 2.0**32
            length = np.sqrt(-2 * np.log(u))
            expected += [length * np.cos(angle), length * np.sin(angle)]
        np.testing.assert_allclose(drawn[r], np.concatenate(expected), rtol=2e-5, atol=2e-6)


def test_extreme_words_stay_finite() -> None:
    @numba.njit
    def of(word: np.uint32) -> tuple[float, float, float]:
        c, s = direction(word)
        return radius(word), c, s

    for word in (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 0x20000000, 0x1FFFFFFF, 0x60000000, 0xA0000000, 0xE0000000):
        length, c, s = of(np.uint32(word))
        assert 0 <= length < 6.7
        assert c * c + s * s == pytest.approx(1, abs=1e-6)
        assert c == pytest.approx(np.cos(2 * np.pi * word / 2**32), abs=2e-7)
        assert s == pytest.approx(np.sin(2 * np.pi * word / 2**32), abs=2e-7)


def test_moments_tails_and_shape_are_normal() -> None:
    drawn = np.empty((4000, 1000), np.float32)
    fill_normals(123, KEY, drawn)
    x = drawn.ravel().astype(np.float64)
    n = x.size
    assert abs(x.mean()) * np.sqrt(n) < 4.5
    assert abs(x.var() - 1) * np.sqrt(n / 2) < 4.5
    assert abs(stats.skew(x)) * np.sqrt(n / 6) < 4.5
    assert abs(stats.kurtosis(x)) * np.sqrt(n / 24) < 4.5
    counts = np.histogram(x, bins=stats.norm.ppf(np.linspace(0, 1, 501)))[0]
    assert stats.chisquare(counts).pvalue > 1e-4
    for threshold in (3.0, 4.0, 4.5):
        expected = 2 * stats.norm.sf(threshold) * n
        assert abs((np.abs(x) > threshold).sum() - expected) < 5 * np.sqrt(expected)


def test_rows_beyond_32_bits_have_their_own_noise() -> None:
    near, far = np.empty((1, 64), np.float32), np.empty((1, 64), np.float32)
    fill_normals(3, KEY, near)
    fill_normals(3 + 2**32, KEY, far)
    assert not np.array_equal(near, far)


def test_numbers_do_not_change_between_versions() -> None:
    # Published results name their seeds: these bits are a promise. Computed in double precision from the definition.
    drawn = np.empty((1, 4), np.float32)
    fill_normals(0, np.zeros(2, np.uint32), drawn)
    words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    radii = [np.sqrt(-2 * np.log((words[k] // 2 + 0.5) / 2**31)) for k in (0, 2)]
    angles = [2 * np.pi * words[k] / 2**32 for k in (1, 3)]
    expected = [f(a) * r for r, a in zip(radii, angles, strict=True) for f in (np.cos, np.sin)]
    np.testing.assert_allclose(drawn[0], expected, rtol=2e-6)

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from pipeline.moments import TileLayout, add_gram, padded_stride

# One block, one-and-a-bit, exact multiples, a block of padding only, and above the largest tile.
SIZES = [1, 5, 16, 17, 33, 100, 257, 1030, 4099]


def gram_of(x: np.ndarray, threads: int | None = None) -> np.ndarray:
    layout = TileLayout(x.shape[1])
    tiles = layout.zeros(x.dtype)
    with threadpool_limits(1):
        if threads is None:
            add_gram(x, tiles, layout)
        else:
            with ThreadPoolExecutor(threads) as executor:
                add_gram(x, tiles, layout, executor)
    return tiles


@pytest.mark.parametrize("n_pixels", SIZES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_add_gram_equals_the_integer_product(n_pixels: int, dtype: type) -> None:
    x = np.random.default_rng(n_pixels).integers(-9, 10, (37, n_pixels))
    wide = x.astype(np.float64)
    expected = (wide.T @ wide).astype(np.int64)  # integers that are small enough to be exact, in float32, too
    layout = TileLayout(n_pixels)
    tiles = gram_of(x.astype(dtype))
    np.testing.assert_array_equal(layout.unpack(tiles), expected)
    np.testing.assert_array_equal(layout.diagonal(tiles), np.diagonal(expected))
    np.testing.assert_array_equal(layout.pack(expected.astype(dtype)), tiles)


@pytest.mark.parametrize("n_pixels", SIZES)
def test_multiply_equals_the_dense_product(n_pixels: int) -> None:
    generator = np.random.default_rng(n_pixels)
    x = generator.integers(-9, 10, (11, n_pixels)).astype(np.float64)
    columns = generator.integers(-5, 6, (n_pixels, 2)).astype(np.float64)
    layout = TileLayout(n_pixels)
    np.testing.assert_array_equal(layout.multiply(gram_of(x), columns), x.T @ (x @ columns))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_pixels", [100, 257, 1500])
def test_bits_do_not_depend_on_threads(n_pixels: int, dtype: type) -> None:
    # OpenBLAS' own threaded dsyrk fails this at 100, 257 and 1500 pixels.
    x = np.random.default_rng(0).standard_normal((385, n_pixels)).astype(dtype)
    one, two, three = gram_of(x), gram_of(x, 2), gram_of(x, 3)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, three)


def test_add_gram_adds_to_what_is_there() -> None:
    x = np.random.default_rng(0).integers(-9, 10, (20, 40)).astype(np.float64)
    layout = TileLayout(40)
    tiles = gram_of(x[:7])
    add_gram(x[7:], tiles, layout)
    np.testing.assert_array_equal(tiles, gram_of(x))
    add_gram(x[:0], tiles, layout)
    np.testing.assert_array_equal(tiles, gram_of(x))


def test_add_gram__raise_on_mismatch() -> None:
    layout = TileLayout(40)
    with pytest.raises(ValueError, match="does not fit"):
        add_gram(np.zeros((3, 41)), layout.zeros(np.float64), layout)
    with pytest.raises(ValueError, match="does not fit"):
        add_gram(np.zeros((3, 40), np.float32), layout.zeros(np.float64), layout)
    with pytest.raises(ValueError, match="contiguous along pixels"):
        add_gram(np.zeros((40, 3)).T, layout.zeros(np.float64), layout)


def test_tiles_are_smaller_than_a_dense_matrix() -> None:
    assert TileLayout(4096).nbytes(np.float32) <= 0.76 * 4096**2 * 4
    assert TileLayout(7200).nbytes(np.float64) <= 0.64 * 7200**2 * 8


@pytest.mark.parametrize("n_pixels", [16, 100, 512, 4096])
def test_padded_rows_give_the_same_sums(n_pixels: int) -> None:
    x = np.random.default_rng(0).standard_normal((50, n_pixels)).astype(np.float32)
    padded = np.full((50, padded_stride(n_pixels)), np.nan, np.float32)
    padded[:, :n_pixels] = x
    assert padded.strides[0] % 2048
    np.testing.assert_array_equal(gram_of(padded[:, :n_pixels]), gram_of(x))

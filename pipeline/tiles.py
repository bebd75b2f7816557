"""Symmetric matrices stored once, as square tiles of their lower triangle, and the product that fills them.

Tile ``t`` holds block ``(i, j)`` with ``i >= j``, row by row: (0,0), (1,0), (1,1), (2,0), … In a diagonal tile
only the lower triangle counts, entries above it are zero; tiles at the right and lower border are padded with
zeros. Against a dense matrix this halves memory, disk and merge traffic, and merging stays ``+=`` on one array.

:func:`add_gram` gives every tile to one thread and one single-threaded BLAS call, so its bits do not depend on the
number of threads; a multi-threaded ``syrk`` does not promise that (OpenBLAS ``dsyrk`` breaks it at some sizes).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pipeline.blas import add_product, add_symmetric_product

__all__ = ["TileLayout", "add_gram", "padded_stride"]

#: Larger tiles are closer to BLAS' peak, smaller ones store less above the diagonal and balance better.
_LARGEST_TILE = 2048
_TILE_MULTIPLE = 16
_STRIP_ROWS = 64


@dataclass(frozen=True)
class TileLayout:
    """How an (P, P) symmetric matrix is cut into tiles; a function of P alone."""

    n_pixels: int

    @cached_property
    def n_blocks(self) -> int:
        """Blocks along one side: at least two, so that two cores share even a small matrix."""
        if self.n_pixels <= _TILE_MULTIPLE:
            return 1
        return max(2, -(-self.n_pixels // _LARGEST_TILE))

    @cached_property
    def tile(self) -> int:
        """Rows and columns of a tile."""
        side = -(-self.n_pixels // self.n_blocks)
        return -(-side // _TILE_MULTIPLE) * _TILE_MULTIPLE

    @cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Block row and block column of every tile, in storage order."""
        return tuple((i, j) for i in range(self.n_blocks) for j in range(i + 1))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the tile array: (tiles, tile, tile)."""
        return (len(self.pairs), self.tile, self.tile)

    def nbytes(self, dtype: DTypeLike) -> int:
        """Bytes of the tile array."""
        return int(np.prod(self.shape)) * np.dtype(dtype).itemsize

    def zeros(self, dtype: DTypeLike) -> NDArray[Any]:
        """Return an empty sum."""
        return np.zeros(self.shape, dtype=dtype)

    def span(self, block: int) -> slice:
        """Return the pixels of a block; empty for a block that is all padding."""
        start = min(block * self.tile, self.n_pixels)
        return slice(start, min(start + self.tile, self.n_pixels))

    def pack(self, matrix: NDArray[Any]) -> NDArray[Any]:
        """Return the tiles of a symmetric matrix (P, P), of which only the lower triangle is read."""
        tiles = self.zeros(matrix.dtype)
        for tile, (i, j) in zip(tiles, self.pairs, strict=True):
            rows, columns = self.span(i), self.span(j)
            block = matrix[rows, columns]
            tile[: block.shape[0], : block.shape[1]] = np.tril(block) if i == j else block
        return tiles

    def lower_strips(self, tiles: NDArray[Any]) -> Iterator[tuple[slice, slice, NDArray[Any]]]:
        """Yield (rows, columns, numbers) that cover the lower triangle once, in pieces that fit the processor's cache.

        On the diagonal a strip's columns end where its rows do; what is above the diagonal there is zero.
        """
        for tile, (i, j) in zip(tiles, self.pairs, strict=True):
            rows, columns = self.span(i), self.span(j)
            for first in range(rows.start, rows.stop, _STRIP_ROWS):
                last = min(first + _STRIP_ROWS, rows.stop)
                end = last if i == j else columns.stop
                block = tile[first - rows.start : last - rows.start, : end - columns.start]
                yield slice(first, last), slice(columns.start, end), block

    def unpack(self, tiles: NDArray[Any]) -> NDArray[np.float64]:
        """Return the whole symmetric matrix, dense float64 (P, P)."""
        lower = np.zeros((self.n_pixels, self.n_pixels))
        for rows, columns, block in self.lower_strips(tiles):
            lower[rows, columns] = block
        return np.asarray(lower + np.tril(lower, -1).T)

    def diagonal(self, tiles: NDArray[Any]) -> NDArray[np.float64]:
        """Return the matrix' diagonal, float64 (P,)."""
        parts = [tile.diagonal() for tile, (i, j) in zip(tiles, self.pairs, strict=True) if i == j]
        return np.concatenate(parts)[: self.n_pixels].astype(np.float64)

    def add_to_diagonal(self, tiles: NDArray[Any], values: NDArray[np.float64]) -> None:
        """Add ``values`` (P,) to the matrix' diagonal, in place: one float64 sum, rounded once to the tiles' type."""
        for tile, (i, j) in zip(tiles, self.pairs, strict=True):
            if i == j:
                own = values[self.span(i)]
                diagonal = np.arange(len(own))
                tile[diagonal, diagonal] = tile[diagonal, diagonal] + own

    def multiply(self, tiles: NDArray[Any], columns: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the symmetric matrix times ``columns`` (P, M), without unpacking it; float64 (P, M)."""
        product = np.zeros(columns.shape, dtype=np.float64)
        for rows, others, block in self.lower_strips(tiles):
            part = block.astype(np.float64, copy=False)
            product[rows] += part @ columns[others]
            product[others] += part.T @ columns[rows]
            if rows.stop == others.stop:  # the diagonal is its own mirror image
                product[rows] -= part[:, rows.start - others.start :].diagonal()[:, None] * columns[rows]
        return product


def padded_stride(n_pixels: int) -> int:
    """Return how many numbers apart rows of P pixels should lie in a buffer for :func:`add_gram`.

    Rows a multiple of 2 KiB apart fall on the same lines of the processor's cache: at 4096 pixels that costs a
    third of the speed.
    """
    stride = -(-n_pixels // _TILE_MULTIPLE) * _TILE_MULTIPLE
    return stride + _TILE_MULTIPLE if stride % 512 == 0 else stride


def add_gram(x: NDArray[Any], tiles: NDArray[Any], layout: TileLayout, executor: Executor | None = None) -> None:
    """Add ``xᵀx`` to the tiles, in place.

    Call it with BLAS limited to one thread (``threadpoolctl.threadpool_limits(1)``); the parallelism is the
    executor's.

    Parameters
    ----------
    x
        Rows of pixels (N, P), float32 or float64, contiguous along pixels; rows may be padded
        (:func:`padded_stride`).
    tiles
        The sum, of ``layout.shape`` and the dtype of ``x``; owned by the caller.
    layout
        Layout for P pixels.
    executor
        Threads to spread the tiles over; None runs them here.
    """
    if x.dtype != tiles.dtype or x.shape[1] != layout.n_pixels or tiles.shape != layout.shape:
        raise ValueError(f"x {x.dtype}{x.shape} does not fit tiles {tiles.dtype}{tiles.shape}")
    padded = x.strides[1] == x.itemsize and x.strides[0] >= x.shape[1] * x.itemsize
    # NumPy may give any strides to arrays of one row or column, so that is asked first.
    if not (x.flags.c_contiguous or padded) or not tiles.flags.c_contiguous:
        raise ValueError("x must be contiguous along pixels, and tiles C-ordered")
    if x.shape[0] == 0:
        return
    # Off-diagonal tiles first: they are twice the work, and the short ones fill the gaps at the end.
    order = sorted(range(len(layout.pairs)), key=lambda t: layout.pairs[t][0] == layout.pairs[t][1])
    if executor is None:
        for tile in order:
            _add_tile(x, tiles, layout, tile)
    else:
        for future in [executor.submit(_add_tile, x, tiles, layout, tile) for tile in order]:
            future.result()


def _add_tile(x: NDArray[Any], tiles: NDArray[Any], layout: TileLayout, tile: int) -> None:
    i, j = layout.pairs[tile]
    rows, columns = layout.span(i), layout.span(j)
    if rows.stop == rows.start:
        return  # a block of padding only
    if i == j:
        add_symmetric_product(x, columns, tiles[tile])
    else:
        add_product(x, rows, columns, tiles[tile])

"""Symmetric matrices stored once, as square tiles of their lower triangle, and the product that fills them.

Tile ``t`` holds block ``(i, j)`` with ``i >= j``, row by row: (0,0), (1,0), (1,1), (2,0), … In a diagonal tile only the
lower triangle counts; the entries above it are zero. Tiles at the right and lower border are padded with zeros.
Compared with a dense matrix this halves memory, disk and merge traffic. Merging is still ``+=`` on one array.

:func:`add_gram` gives every tile to one thread and one single-threaded BLAS call, so its bits do not depend on the
number of threads; a multi-threaded ``syrk`` does not promise that (OpenBLAS ``dsyrk`` breaks it at some sizes).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy.linalg import cython_blas, cython_lapack

__all__ = [
    "TileLayout",
    "add_gram",
    "add_product",
    "add_symmetric_product",
    "factorise_and_solve",
    "multiply_symmetric",
    "padded_stride",
]

# --- The BLAS and LAPACK that come with SciPy, called without holding the interpreter's lock.
#
# SciPy's Python wrappers keep the lock, so two threads never compute at the same time. Here each call is one routine on
# one thread; the caller must set ``threadpoolctl.threadpool_limits(1)``. Several threads then take different tiles or
# models. So the bits do not depend on the number of threads, which multi-threaded BLAS does not promise.

_CAPSULES = {
    name: module.__pyx_capi__[name]
    for module, names in (
        (cython_blas, ("ssyrk", "dsyrk", "sgemm", "dgemm", "dsymv")),
        (cython_lapack, ("dpotrf", "dpotrs")),
    )
    for name in names
}


@cache
def _routine(name: str, n_arguments: int) -> Callable[..., None]:
    """Return a routine of SciPy's own library as a C function."""
    capsule = _CAPSULES[name]
    get_name = ctypes.pythonapi.PyCapsule_GetName
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    prototype = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * n_arguments)
    return prototype(get_pointer(capsule, get_name(capsule)))


def _real(array: NDArray[Any]) -> tuple[str, Any]:
    """Return the routine's letter and the number one in the array's precision."""
    return ("s", ctypes.c_float(1.0)) if array.dtype == np.float32 else ("d", ctypes.c_double(1.0))


def _integers(*values: int) -> list[Any]:
    return [ctypes.byref(ctypes.c_int(value)) for value in values]


def _row_stride(x: NDArray[Any]) -> int:
    """Return how many numbers apart rows lie. NumPy may give any stride to an axis of length one."""
    return x.shape[1] if x.flags.c_contiguous else x.strides[0] // x.itemsize


def add_symmetric_product(x: NDArray[Any], columns: slice, total: NDArray[Any]) -> None:
    """Add ``x[:, columns]ᵀ x[:, columns]`` to the lower triangle of ``total``.

    ``x`` holds rows of pixels (N, P), contiguous along pixels; its rows may be padded. ``total`` is a C-ordered square
    of at least as many rows as there are columns.
    """
    letter, one = _real(x)
    # BLAS is column-major: "upper" there is "lower" here.
    n, k, ldx, ldc = _integers(columns.stop - columns.start, x.shape[0], _row_stride(x), total.shape[1])
    start = x.ctypes.data + columns.start * x.itemsize
    _routine(f"{letter}syrk", 10)(
        b"U", b"N", n, k, ctypes.byref(one), start, ldx, ctypes.byref(one), total.ctypes.data, ldc
    )  # fmt: skip


def add_product(x: NDArray[Any], rows: slice, columns: slice, total: NDArray[Any]) -> None:
    """Add ``x[:, rows]ᵀ x[:, columns]`` to ``total``; layouts as in :func:`add_symmetric_product`."""
    letter, one = _real(x)
    m, n, k, ldx, ldc = _integers(
        columns.stop - columns.start, rows.stop - rows.start, x.shape[0], _row_stride(x), total.shape[1]
    )
    left, right = (x.ctypes.data + part.start * x.itemsize for part in (columns, rows))
    _routine(f"{letter}gemm", 13)(
        b"N", b"T", m, n, k, ctypes.byref(one), left, ldx, right, ldx, ctypes.byref(one), total.ctypes.data, ldc
    )  # fmt: skip


def factorise_and_solve(system: NDArray[np.float64], target: NDArray[np.float64]) -> int:
    """Factorise a symmetric positive definite system by Cholesky and solve it, both in place.

    Parameters
    ----------
    system
        C-ordered (P, P); only the lower triangle is read, and it becomes the factor.
    target
        Fortran-ordered (P, Q); becomes the solution.

    Returns
    -------
    int
        0, or the order of the first minor that is not positive definite. In this case ``target`` is unchanged.
    """
    # LAPACK is column-major: "upper" there is "lower" here.
    info = ctypes.c_int(0)
    n, q = _integers(*target.shape)
    _routine("dpotrf", 5)(b"U", n, system.ctypes.data, n, ctypes.byref(info))
    if info.value == 0:
        _routine("dpotrs", 8)(b"U", n, q, system.ctypes.data, n, target.ctypes.data, n, ctypes.byref(info))
    return info.value


def multiply_symmetric(matrix: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a symmetric matrix times a few columns. Each column reads half of the matrix once.

    ``matrix`` is C-ordered (P, P), and only its lower triangle is read; ``columns`` is Fortran-ordered (P, M), and so
    is the product.
    """
    product = np.empty(columns.shape, order="F")
    n, step = _integers(len(matrix), 1)
    one, zero = ctypes.byref(ctypes.c_double(1.0)), ctypes.byref(ctypes.c_double(0.0))
    for k in range(columns.shape[1]):
        x, y = columns[:, k].ctypes.data, product[:, k].ctypes.data
        # BLAS is column-major: "upper" there is "lower" here.
        _routine("dsymv", 10)(b"U", n, one, matrix.ctypes.data, n, x, step, zero, y, step)
    return product


#: Larger tiles come closer to BLAS's peak. Smaller tiles store less above the diagonal and balance better.
_LARGEST_TILE = 2048
_TILE_MULTIPLE = 16
_STRIP_ROWS = 64


@dataclass(frozen=True)
class TileLayout:
    """How a symmetric (P, P) matrix is cut into tiles. This depends on P alone."""

    n_pixels: int

    @cached_property
    def n_blocks(self) -> int:
        """Number of blocks along one side: at least two, so that two cores can share even a small matrix."""
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
        """Return a sum of zero."""
        return np.zeros(self.shape, dtype=dtype)

    def span(self, block: int) -> slice:
        """Return the pixels of a block; the range is empty if the block is only padding."""
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

        On the diagonal a strip's columns end where its rows end. Its entries above the diagonal are zero.
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
        """Add ``values`` (P,) to the diagonal, in place. The sum is float64 and is rounded once to the tiles' type."""
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

    Rows that lie a multiple of 2 KiB apart share the same lines of the processor's cache. At 4096 pixels that costs a
    third of the speed.
    """
    stride = -(-n_pixels // _TILE_MULTIPLE) * _TILE_MULTIPLE
    return stride + _TILE_MULTIPLE if stride % 512 == 0 else stride


def add_gram(x: NDArray[Any], tiles: NDArray[Any], layout: TileLayout, executor: Executor | None = None) -> None:
    """Add ``xᵀx`` to the tiles, in place.

    Limit BLAS to one thread before the call (``threadpoolctl.threadpool_limits(1)``). The executor's threads share the
    tiles.

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
    # NumPy may give any strides to arrays of one row or column, so this case comes first.
    if not (x.flags.c_contiguous or padded) or not tiles.flags.c_contiguous:
        raise ValueError("x must be contiguous along pixels, and tiles C-ordered")
    if x.shape[0] == 0:
        return
    # Off-diagonal tiles come first, because they are twice the work. The short ones fill the gaps at the end.
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

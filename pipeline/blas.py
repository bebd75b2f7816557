"""The BLAS and LAPACK that come with SciPy, called without holding the interpreter's lock.

SciPy's Python wrappers keep the lock, so two threads never compute side by side. Here each call is one routine on
one thread (``threadpoolctl.threadpool_limits(1)`` is the caller's duty) and the parallelism lies outside, over tiles
or over models: that way the bits do not depend on the number of threads, which multi-threaded BLAS does not promise.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cython_blas, cython_lapack

__all__ = ["add_product", "add_symmetric_product", "factorise_and_solve", "multiply_symmetric"]

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
    """Return how many numbers apart rows lie; strides of contiguous arrays may be anything where they do not count."""
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
        0, or the order of the first minor that is not positive definite; then ``target`` is untouched.
    """
    # LAPACK is column-major: "upper" there is "lower" here.
    info = ctypes.c_int(0)
    n, q = _integers(*target.shape)
    _routine("dpotrf", 5)(b"U", n, system.ctypes.data, n, ctypes.byref(info))
    if info.value == 0:
        _routine("dpotrs", 8)(b"U", n, q, system.ctypes.data, n, target.ctypes.data, n, ctypes.byref(info))
    return info.value


def multiply_symmetric(matrix: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a symmetric matrix times a few columns, each of which reads half of it once.

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

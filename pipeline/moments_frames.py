"""Moments in another frame: about other origins, in other units of pixels and weights.

Origins may be chosen from the first samples that arrive. Moved to origins that depend on all samples alone, moments
of samples that came in another order are the same again, bit for bit where sums do not round.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pipeline.moments import Moments

__all__ = ["move_origins", "round_origin", "scale_moments"]

FloatArray = NDArray[np.float64]
_FEWEST_BITS, _MOST_BITS = 8, 24


def round_origin(values: FloatArray) -> FloatArray:
    """Round to 8 significant bits, or to whole numbers where that is finer, but to no more than 24 bits.

    Near enough to the values for an origin; and whole numbers less such an origin have few bits, so that sums of
    their products still do not round.
    """
    exponent = np.frexp(values)[1]
    quantum = np.ldexp(1.0, np.clip(0, exponent - _MOST_BITS, exponent - _FEWEST_BITS))
    return np.asarray(np.round(values / quantum) * quantum)


def move_origins(moments: Moments, x_origin: FloatArray, y_origin: FloatArray) -> Moments:
    """Return the same moments about other origins o' = o − a and c' = c − b, in float64.

    ``s' = s + na,  S' = S + saᵀ + asᵀ + naaᵀ,  t' = t + nb,  U' = U + sbᵀ + atᵀ + nabᵀ`` and V' like S'. What a far
    origin lost in rounding stays lost.

    Parameters
    ----------
    moments
        Of P pixels and Q labels.
    x_origin, y_origin
        o', shape (P,) and c', shape (Q,).
    """
    n, s, t = moments.count, moments.x_sum, moments.y_sum
    a, b = moments.x_origin - x_origin, moments.y_origin - y_origin
    gram = moments.gram.astype(np.float64)
    # The strips of a copy are views of it.
    for rows, columns, block in moments.layout.lower_strips(gram):
        block += np.outer(s[rows], a[columns]) + np.outer(a[rows], s[columns] + n * a[columns])
        if columns.stop == rows.stop:
            corner = block[:, rows.start - columns.start :]
            corner[:] = np.tril(corner)
    return replace(
        moments,
        x_sum=s + n * a,
        gram=gram,
        y_sum=t + n * b,
        cross=moments.cross + np.outer(s, b) + np.outer(a, t + n * b),
        y_gram=moments.y_gram + np.outer(t, b) + np.outer(b, t + n * b),
        x_origin=np.asarray(x_origin, dtype=np.float64),
        y_origin=np.asarray(y_origin, dtype=np.float64),
    )


def scale_moments(moments: Moments, divisor: FloatArray | None = None, weight: float = 1.0) -> Moments:
    """Return the moments of pixels divided by ``divisor`` (P,), of samples that weigh ``weight`` times as much.

    A penalty weighs against a sum over samples: with all weights twice as large, twice the penalty gives the same
    model.
    """
    d = np.ones(moments.n_pixels) if divisor is None else divisor
    gram = moments.gram * np.float64(weight)
    for rows, columns, block in moments.layout.lower_strips(gram):
        block /= d[columns]
        block /= d[rows, None]
    return replace(
        moments,
        count=cast(int, moments.count * weight),
        x_sum=moments.x_sum * weight / d,
        gram=gram,
        y_sum=moments.y_sum * weight,
        cross=moments.cross * weight / d[:, None],
        y_gram=moments.y_gram * weight,
        x_origin=moments.x_origin / d,
    )

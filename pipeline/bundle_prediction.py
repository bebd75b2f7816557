"""What a model says of spectra, and beyond what it should not be believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["DomainLimits", "Prediction", "join_predictions"]

FloatArray = NDArray[np.float64]
#: Why a spectrum is out of domain, one bit each.
_REASONS = ("outside the bins", "far from the training spectra", "bad pixels")


@dataclass(frozen=True)
class DomainLimits:
    """Beyond what a spectrum is out of the domain of a model; any one suffices.

    Attributes
    ----------
    distance
        Largest distance from the mean training spectrum in the space of the principal components, in standard
        deviations (Mahalanobis).
    quantile
        The share of the training spectra that lie within it.
    outside
        Largest probability of lying in no bin, of models with a gate.
    bad_share
        Largest share of bad pixels: not finite, flagged, not covered, or exactly zero.
    """

    distance: float
    quantile: float
    outside: float = 0.5
    bad_share: float = 0.05


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of N spectra; for K experts and Q labels.

    Attributes
    ----------
    labels
        Names of the labels.
    values
        Predictions under the chosen route, shape (N, Q), label units.
    of_models
        Of the global model and every expert, shape (N, 1 + K, Q).
    probabilities
        Of every bin and, last, of the outside, shape (N, K + 1); None without a gate.
    bins
        The most probable bin, shape (N,), −1 where that is the outside, or without a gate.
    routes
        How each prediction was made, shape (N,): the chosen route, or ``global`` where that falls back wholly.
    distances
        From the mean training spectrum, in standard deviations, shape (N,); see :class:`DomainLimits`.
    bad_shares
        Share of bad pixels, shape (N,).
    reasons
        Why a spectrum is out of domain, shape (N,): one bit for each of :meth:`reason_texts`' parts; 0 if it is not.
    """

    labels: tuple[str, ...]
    values: FloatArray
    of_models: FloatArray
    probabilities: FloatArray | None
    bins: NDArray[np.int64]
    routes: NDArray[np.str_]
    distances: FloatArray
    bad_shares: FloatArray
    reasons: NDArray[np.uint8]

    @property
    def of_global(self) -> FloatArray:
        """What the global model says, shape (N, Q)."""
        return self.of_models[:, 0]

    @property
    def out_of_domain(self) -> NDArray[np.bool_]:
        """Spectra that the model should not be believed about, shape (N,)."""
        return self.reasons > 0

    @property
    def reason_texts(self) -> list[str]:
        """The reasons in words, joined by semicolons; empty where there is none."""
        texts = [
            "; ".join(word for bit, word in enumerate(_REASONS) if code >> bit & 1)
            for code in range(2 ** len(_REASONS))
        ]
        return [texts[code] for code in self.reasons]

    def columns(self, *, experts: str | None = None) -> dict[str, Any]:
        """Return the columns of a table, as :meth:`to_frame` does; ``experts`` names a label whose experts join."""
        table: dict[str, Any] = {label: self.values[:, q] for q, label in enumerate(self.labels)}
        table |= {f"{label}_global": self.of_global[:, q] for q, label in enumerate(self.labels)}
        if experts is not None:
            q = self.labels.index(experts)
            table |= {f"{experts}_expert_{k}": self.of_models[:, 1 + k, q] for k in range(self.of_models.shape[1] - 1)}
        if self.probabilities is not None:
            names = [*(f"p_{k}" for k in range(self.probabilities.shape[1] - 1)), "p_outside"]
            table |= {name: self.probabilities[:, k].astype(np.float32) for k, name in enumerate(names)}
        return table | {
            "bin": self.bins.astype(np.int16),
            "route": self.routes,
            "out_of_domain": self.out_of_domain,
            "reason": self.reason_texts,
            "distance": self.distances.astype(np.float32),
            "bad_pixels": self.bad_shares.astype(np.float32),
        }

    def to_frame(self, *, experts: str | None = None) -> pd.DataFrame:
        """Return a row for each spectrum.

        Columns: every label under the chosen route, ``<label>_global``, with ``experts`` that label's
        ``<label>_expert_<bin>``, ``p_<bin>`` and ``p_outside``, ``bin``, ``route``, ``out_of_domain``, ``reason``,
        ``distance``, ``bad_pixels``.
        """
        return pd.DataFrame(self.columns(experts=experts))


def join_predictions(parts: Sequence[Prediction]) -> Prediction:
    """Return what is said of several sets of spectra, at least one, as of one set; all by the same model."""
    if len(parts) == 1:
        return parts[0]
    names = [one.name for one in fields(Prediction) if one.name != "labels"]
    return Prediction(parts[0].labels, **{name: _join([getattr(part, name) for part in parts]) for name in names})


def _join(parts: Sequence[NDArray[Any] | None]) -> Any:
    """Return the arrays of all tiles as one; None where there are none."""
    there = [part for part in parts if part is not None]
    return np.concatenate(there) if there else None

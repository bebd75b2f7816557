"""A model that labels spectra nobody has labelled: ridge experts, the gate that routes to them, and their limits.

One product of a block of spectra with all columns at once gives what every model says of every label, and the scores on
the principal components of the training set. The rest is arithmetic on a few numbers for each spectrum.

:class:`MixtureModel` is the model, :class:`Prediction` what it says of spectra, and :class:`DomainLimits` tells which
spectra it should not be believed about.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from pipeline.base import one_blas_thread
from pipeline.bins import OUTSIDE, BinGrid
from pipeline.errors import InputError, did_you_mean
from pipeline.moments import PrincipalComponents
from pipeline.questions.gate import (
    GLOBAL,
    ROUTES,
    Blend,
    Evidence,
    FeatureRecipe,
    Gate,
    find_routes,
    mix_predictions,
)
from pipeline.schema import ABSURD

__all__ = [
    "DomainLimits",
    "MixtureModel",
    "Prediction",
    "join_predictions",
]

FloatArray = NDArray[np.float64]
#: Why a spectrum is out of domain, one bit each.
_REASONS = ("outside the bins", "far from the training spectra", "bad pixels")
#: Rows of one product. A tile always has so many, with zeros below the last spectrum. So no bit of what is said of a
#: spectrum depends on which others are predicted with it.
_TILE_ROWS = 128


@dataclass(frozen=True)
class DomainLimits:
    """The limits of a model's domain. A spectrum beyond any one of them is out of domain.

    Attributes
    ----------
    distance
        Largest distance from the mean training spectrum in the space of the principal components, in standard
        deviations (Mahalanobis).
    quantile
        The share of the training spectra that lie within it.
    outside
        Largest probability of lying in no bin. Models without a gate do not ask.
    bad_share
        Largest share of bad pixels: not finite, absurd, flagged, not covered, or exactly zero.
    """

    distance: float
    quantile: float
    outside: float = 0.5
    bad_share: float = 0.05


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model of K experts and Q labels says of N spectra.

    Attributes
    ----------
    labels
        Names of the labels.
    values
        Predictions under the chosen route, shape (N, Q), label units.
    of_models
        Predictions of the global model and of every expert, shape (N, 1 + K, Q).
    probabilities
        Of every bin and, last, of the outside, shape (N, K + 1); None without a gate.
    bins
        The most probable bin, shape (N,). It is −1 where the outside is most probable, and without a gate.
    routes
        How each prediction was made, shape (N,): the chosen route, or ``global`` where ``fallback`` takes the global
        model alone.
    distances
        From the mean training spectrum, in standard deviations, shape (N,); see :class:`DomainLimits`.
    bad_shares
        Share of bad pixels, shape (N,).
    reasons
        Why a spectrum is out of domain, shape (N,): one bit for each part of :attr:`reason_texts`; 0 if it is not.
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
        """The reasons in words, joined by semicolons. A text is empty where there is no reason."""
        texts = [
            "; ".join(word for bit, word in enumerate(_REASONS) if code >> bit & 1)
            for code in range(2 ** len(_REASONS))
        ]
        return [texts[code] for code in self.reasons]

    def columns(self, *, experts: str | None = None) -> dict[str, Any]:
        """Return the columns of :meth:`to_frame`, by name."""
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
    """Join what one model says of several sets of spectra, at least one, into what it says of all of them."""
    if len(parts) == 1:
        return parts[0]
    names = [one.name for one in fields(Prediction) if one.name != "labels"]
    return Prediction(parts[0].labels, **{name: _join([getattr(part, name) for part in parts]) for name in names})


def _join(parts: Sequence[NDArray[Any] | None]) -> Any:
    """Join arrays into one; None where there are none."""
    there = [part for part in parts if part is not None]
    return np.concatenate(there) if there else None


@dataclass(frozen=True, eq=False)
class MixtureModel:
    """A global ridge model, K experts and a gate, for P pixels and Q labels; from :func:`pipeline.load_model`.

    Attributes
    ----------
    labels, target
        Names of the labels, and the one that the bins were made for.
    wavelength
        Of the pixels, shape (P,), Å.
    weights, intercepts
        Shapes (P, 1 + K, Q) and (1 + K, Q), the global model first; label units (per flux unit).
    grid
        The bins of the experts.
    components
        Principal components of the training spectra with their noise. Their mean stands in for pixels that are not to
        be used.
    limits
        Which spectra are out of domain.
    gate
        Tells how probable every bin is; None in a model of a run without a gate.
    recipe
        How the gate's features come from pixels; None if it needs none.
    blend
        Learned weights of the experts for the target; None if the run has learned none that are better than the gate's.
    route
        The routing rule that predicts labels unless another is asked for; see :attr:`routes`.
    unsure
        Where no bin is more probable than this, ``fallback`` takes the global model alone.
    exponent
        Weights and components are for flux times 2^exponent; see :func:`pipeline.store.joined.flux_exponent`. The flux
        that is given to this model is that of the training spectra's files.
    facts
        What ``model.json`` says besides: training, metrics, provenance.
    fingerprint
        Of all files, as a SHA-256; empty before they are written.
    """

    labels: tuple[str, ...]
    target: str
    wavelength: FloatArray
    weights: FloatArray
    intercepts: FloatArray
    grid: BinGrid
    components: PrincipalComponents
    limits: DomainLimits
    gate: Gate | None = None
    recipe: FeatureRecipe | None = None
    blend: Blend | None = None
    route: str = GLOBAL.name
    unsure: float = 0.0
    exponent: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""

    def __repr__(self) -> str:
        return (
            f"MixtureModel({', '.join(self.labels)}; {self.n_experts} experts, {len(self.wavelength)} pixels, "
            f"route {self.route!r}, {self.fingerprint[:12]})"
        )

    @property
    def n_experts(self) -> int:
        """K."""
        return int(self.weights.shape[1]) - 1

    @property
    def routes(self) -> tuple[str, ...]:
        """The routing rules that this model can follow, the global model's own last.

        None of them needs the true bin. Without a gate there is the global model alone.
        """
        found = find_routes(gate=self.gate is not None, learned=self.blend is not None)
        return tuple(route.name for route in reversed(found))

    def predict(
        self, flux: ArrayLike, *, bad: ArrayLike | None = None, route: str | None = None, zeros_are_bad: bool = True
    ) -> Prediction:
        """Predict the labels of spectra.

        Products are float32, about the mean training spectrum. They differ from float64 by some 1e-5 of the labels'
        scatter. What is said of a spectrum does not depend on the other spectra of the call. Its place among them may
        change the last digits of single precision, because some BLAS add up the rows of a tile in different orders.

        Parameters
        ----------
        flux
            Shape (N, P), or (P,) for one spectrum, normalised as the training spectra are. Negative flux is taken as
            zero, as in training. Pixels that are not finite take the mean training spectrum's value.
        bad
            Other pixels that are not to be used, same shape. They are treated like pixels that are not finite.
        route
            One of :attr:`routes`; the model's own by default.
        zeros_are_bad
            Whether pixels of exactly zero count as bad. They are used all the same. There are many of them where
            storage was never written or an arm is missing.

        Raises
        ------
        InputError
            If the number of pixels is not P, or there is no such route.
        """
        pixels = np.atleast_2d(np.asarray(flux))
        wrong = None if bad is None else np.atleast_2d(np.asarray(bad, dtype=bool))
        if pixels.ndim != 2 or pixels.shape[1] != len(self.wavelength) or pixels.dtype.kind not in "fiu":
            raise InputError(
                f"spectra of {len(self.wavelength)} pixels are required, shape (N, {len(self.wavelength)}); found "
                f"{pixels.dtype} {np.shape(flux)}; resample them onto the model's wavelengths"
            )
        if wrong is not None and wrong.shape != pixels.shape:
            raise InputError(f"bad pixels need the shape of the flux, {pixels.shape}, found {wrong.shape}")
        self.require_route(route)
        with one_blas_thread():
            return self.predict_block(pixels, wrong, route, zeros_are_bad=zeros_are_bad)

    def require_route(self, route: str | None) -> None:
        """Refuse a route that this model does not have.

        Raises
        ------
        InputError
            The message names those that it has.
        """
        if route is not None and route not in self.routes:
            why = "" if self.gate is not None else "; it has no gate, since its run had none (gate: {} in the run)"
            raise InputError(
                f"route must be one of {', '.join(self.routes)} for this model, found {route!r}"
                f"{did_you_mean(route, self.routes)}{why}"
            )

    def predict_block(
        self,
        flux: NDArray[Any],
        bad: NDArray[np.bool_] | None = None,
        route: str | None = None,
        *,
        zeros_are_bad: bool = True,
    ) -> Prediction:
        """Do what :meth:`predict` does, without its checks. The caller limits BLAS to one thread."""
        work = np.empty((_TILE_ROWS, len(self.wavelength)), dtype=np.float32)
        tiles = [
            self._predict_tile(flux[rows], None if bad is None else bad[rows], route or self.route, zeros_are_bad, work)
            for rows in (slice(start, start + _TILE_ROWS) for start in range(0, max(len(flux), 1), _TILE_ROWS))
        ]
        return join_predictions(tiles)

    def _predict_tile(
        self,
        flux: NDArray[Any],
        bad: NDArray[np.bool_] | None,
        route: str,
        zeros_are_bad: bool,
        work: NDArray[np.float32],
    ) -> Prediction:
        """Predict at most as many spectra as a tile has rows. All its rows are computed."""
        n = len(flux)
        products, shares = self._project(flux, bad, zeros_are_bad, work)
        of_models = products[:, : self.intercepts.size].reshape(-1, *self.intercepts.shape)
        first = self.intercepts.size + len(self.components.variances)
        distances = np.asarray(self.components.distances(products[:, self.intercepts.size : first]))
        features = None if self.recipe is None else self.recipe.from_products(products[:, first:])
        probabilities = None if self.gate is None else self.gate.probabilities(of_models[:, 0], features)
        reasons = (distances[:n] > self.limits.distance) * 2 + (shares > self.limits.bad_share) * 4
        bins = np.full(n, OUTSIDE, dtype=np.int64)
        values, routes = self._route(of_models, probabilities, route)
        if probabilities is not None:
            probabilities = probabilities[:n]
            likeliest = probabilities.argmax(axis=1)
            bins = np.where(likeliest == self.n_experts, OUTSIDE, likeliest)
            reasons = reasons + (probabilities[:, -1] > self.limits.outside)
        return Prediction(
            self.labels,
            values[:n],
            of_models[:n],
            probabilities,
            bins,
            routes[:n],
            distances[:n],
            shares,
            reasons.astype(np.uint8),
        )

    def _route(
        self, of_models: FloatArray, probabilities: FloatArray | None, name: str
    ) -> tuple[FloatArray, NDArray[np.str_]]:
        """Return what a routing rule predicts of all labels, shape (N, Q), and how each prediction was made, (N,)."""
        route, made = ROUTES[name], np.full(len(of_models), name)
        if probabilities is None:
            return of_models[:, 0].copy(), made
        known = Evidence(probabilities, of_labels=of_models[:, 0], unsure=self.unsure, learned=self.blend)
        weights = route.weights(known)
        values = mix_predictions(weights, of_models)
        if route.other_labels is not None:
            instead = mix_predictions(ROUTES[route.other_labels].weights(known), of_models)
            values = np.where(np.array(self.labels) == self.target, values, instead)
        if route.tells_global:
            made = np.where(weights[:, 1:].any(axis=1), name, GLOBAL.name)
        return values, made

    def _project(
        self, flux: NDArray[Any], bad: NDArray[np.bool_] | None, zeros_are_bad: bool, work: NDArray[np.float32]
    ) -> tuple[FloatArray, FloatArray]:
        """Return the products of a tile's rows with all columns, and the shares of bad pixels of its spectra (n,).

        ``work``, of shape (rows of a tile, P), is memory that all tiles share, because fresh memory is slow.
        """
        columns, offsets, mean = self._columns
        n = len(flux)
        with np.errstate(over="ignore", invalid="ignore"):
            # The flux itself is looked at: taking the larger of it and 0 replaces −∞.
            absurd = self.find_absurd(flux)
            if self.exponent:
                flux = np.ldexp(flux, self.exponent)
            np.maximum(flux, 0, out=work[:n], casting="same_kind")
        wrong = bad
        if absurd is not None:
            wrong = absurd if wrong is None else wrong | absurd
        counts = np.zeros(n, dtype=np.int64)
        if wrong is not None:
            np.copyto(work[:n], mean, where=wrong)
            counts += np.count_nonzero(wrong, axis=1)
        if zeros_are_bad:
            zero = flux == 0
            counts += np.count_nonzero(zero if wrong is None else zero & ~wrong, axis=1)
        work[:n] -= mean
        work[n:] = 0
        return np.asarray(work @ columns + offsets), counts / len(mean)

    def find_absurd(self, pixels: NDArray[Any]) -> NDArray[np.bool_] | None:
        """Return which fluxes or errors (N, P) are not finite, or as large as no spectrum has them; None if none are.

        The limit is :data:`pipeline.schema.ABSURD` times the typical flux of the training spectra.
        """
        limit = self._absurd_limit
        if not pixels.size or (pixels.max() < limit and pixels.min() > -limit):  # NaN is neither
            return None
        return np.asarray(~(np.abs(pixels) < limit))

    @cached_property
    def _absurd_limit(self) -> float:
        """In the flux unit of the files."""
        typical = float(np.median(self.components.mean))
        return math.ldexp(ABSURD * typical if typical > 0 else math.inf, -self.exponent)

    @cached_property
    def _columns(self) -> tuple[NDArray[np.float32], FloatArray, NDArray[np.float32]]:
        """All columns (P, M) in single precision, what is to be added to their products (M,), and the mean (P,).

        Products are about the mean in single precision. Products of the flux itself would lose three digits.
        """
        mean = self.components.mean.astype(np.float32)
        about = mean.astype(np.float64)
        flat = self.weights.reshape(len(mean), -1)
        columns = [flat, self.components.vectors]
        offsets = [
            self.intercepts.ravel() + about @ flat,
            (about - self.components.mean) @ self.components.vectors,
        ]
        if self.recipe is not None:
            columns.append(self.recipe.columns)
            offsets.append(about @ self.recipe.columns)
        joined = np.concatenate(columns, axis=1).astype(np.float32)
        return np.ascontiguousarray(joined), np.concatenate(offsets), mean

"""Routing rules: which models answer for a spectrum, and how much of the headroom a rule keeps.

A rule turns the probabilities that a gate gives into weights w of the global model (m = 0) and the K experts. The
routed prediction of a spectrum is the weighted sum of what all models predict for it::

    ŷ = Σ_m w_m ŷ_m

:data:`ROUTES` lists all rules. The routing tables, the columns ``y_<rule>`` of the test predictions, the model bundle
and its card, ``headroom predict --route`` and the figures all read that list, so a new rule is one more entry. The
share of the headroom that a rule keeps is, on the same spectra::

    ρ = (R²_routed − R²_global) / (R²_oracle − R²_global)

:class:`GateQuality` says how good the probabilities themselves are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.bins import OUTSIDE
from pipeline.scoring import Bootstrap, Estimate, HeadroomScore, Score, interval_of, score_routed

__all__ = [
    "BLEND",
    "FALLBACK",
    "GLOBAL",
    "HARD",
    "ORACLE",
    "ROUTES",
    "SOFT",
    "TRUTH_QUANTILES",
    "Evidence",
    "GateQuality",
    "LearnedWeights",
    "Route",
    "assess_gate",
    "cross_probabilities",
    "estimate_kept",
    "find_routes",
    "mix_predictions",
    "route_spectra",
    "score_routes",
]

FloatArray = NDArray[np.float64]
#: Intervals of the stated probability in which it is held against what came true.
_RELIABILITY_STEPS = 10
#: Of the probability that a spectrum's own cell was given.
TRUTH_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class LearnedWeights(Protocol):
    """Weights that were learned from training spectra, such as :class:`pipeline.questions.gate.blend.Blend`."""

    @property
    def is_kept(self) -> bool:
        """Whether they were better than soft routing on training spectra that they were not learned from."""

    def weights(self, probabilities: ArrayLike, of_labels: ArrayLike) -> FloatArray:
        """Return the weights, shape (N, 1 + K), from the attributes of :class:`Evidence` of the same names."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a routing rule may look at, for N spectra, K bins and Q labels.

    Attributes
    ----------
    probabilities
        Of every bin and, last, of the outside, shape (N, K + 1).
    bins
        The true bin of each spectrum, shape (N,), :data:`pipeline.bins.OUTSIDE` in none. None where nobody knows it.
    of_labels
        All labels as the global model predicts them, shape (N, Q), label units. Only learned weights need them.
    unsure
        Where no bin is more probable than this, ``fallback`` asks the global model alone.
    learned
        Learned weights; None where there are none.
    """

    probabilities: FloatArray
    bins: NDArray[np.int64] | None = None
    of_labels: FloatArray | None = None
    unsure: float = 0.0
    learned: LearnedWeights | None = None


@dataclass(frozen=True)
class Route:
    """A routing rule.

    Attributes
    ----------
    name
        What users call it: ``--route <name>``, the column ``y_<name>``, the column ``route`` of the tables.
    title
        What a panel of a figure calls it.
    caption
        One or two sentences that say which models answer, for the model card and for help.
    weights
        Weights of the global model and of every expert, shape (N, 1 + K), from what is known of N spectra.
    needs_truth
        Whether it looks at the true bins, which only labelled spectra have.
    needs_gate
        Whether it looks at the probabilities of a gate.
    needs_learned
        Whether it looks at learned weights.
    other_labels
        The rule for all labels but the target, where the weights are made for the target alone; None for itself.
    tells_global
        Whether spectra that get no weight on any expert are reported as predicted by the rule ``global``.
    """

    name: str
    title: str
    caption: str
    weights: Callable[[Evidence], FloatArray]
    needs_truth: bool = False
    needs_gate: bool = True
    needs_learned: bool = False
    other_labels: str | None = None
    tells_global: bool = False


def _choose_one(models: NDArray[np.int64], n_models: int) -> FloatArray:
    """Return weights that ask one model for each spectrum, shape (N, ``n_models``)."""
    weights = np.zeros((len(models), n_models))
    weights[np.arange(len(models)), models] = 1.0
    return weights


def _ask_global(known: Evidence) -> FloatArray:
    n, n_models = known.probabilities.shape
    return _choose_one(np.zeros(n, dtype=np.int64), n_models)


def _ask_true_expert(known: Evidence) -> FloatArray:
    assert known.bins is not None
    return _choose_one(np.where(known.bins == OUTSIDE, 0, 1 + known.bins), known.probabilities.shape[1])


def _ask_likeliest_expert(known: Evidence) -> FloatArray:
    return _choose_one(1 + known.probabilities[:, :-1].argmax(axis=1), known.probabilities.shape[1])


def _weigh_experts(known: Evidence) -> FloatArray:
    """Weigh the experts by their bins' probabilities; the global model answers where all probability lies outside."""
    of_bins = known.probabilities[:, :-1]
    inside = of_bins.sum(axis=1, keepdims=True)
    empty = inside == 0
    return np.concatenate([empty, of_bins / np.where(empty, 1.0, inside)], axis=1)


def _weigh_all(known: Evidence) -> FloatArray:
    """Weigh all models; the global model stands for the outside, and for all where no bin is probable enough."""
    is_sure = known.probabilities[:, :-1].max(axis=1, keepdims=True) > known.unsure
    # The outside comes last in probabilities, the global model first in weights.
    return np.where(is_sure, np.roll(known.probabilities, 1, axis=1), _ask_global(known))


def _weigh_as_learned(known: Evidence) -> FloatArray:
    """Return the learned weights, or those of soft routing where that was as good on the training spectra."""
    assert known.learned is not None
    assert known.of_labels is not None
    if not known.learned.is_kept:
        return _weigh_experts(known)
    return known.learned.weights(known.probabilities, known.of_labels)


GLOBAL = Route(
    name="global",
    title="Global ridge",
    caption="The global model alone answers.",
    weights=_ask_global,
    needs_gate=False,
)
ORACLE = Route(
    name="oracle",
    title="Oracle experts",
    caption="The expert of the true bin answers. Only labelled spectra have a true bin, so this is an upper bound.",
    weights=_ask_true_expert,
    needs_truth=True,
    needs_gate=False,
)
HARD = Route(
    name="hard",
    title="Hard routing",
    caption="The expert of the most probable bin answers.",
    weights=_ask_likeliest_expert,
)
SOFT = Route(
    name="soft",
    title="Soft routing",
    caption="All experts answer. Each is weighted by the probability of its bin.",
    weights=_weigh_experts,
)
FALLBACK = Route(
    name="fallback",
    title="Fall-back",
    caption="All experts answer, each weighted by the probability of its bin, and the global model answers with the "
    "probability that the spectrum lies outside the bins. Where no bin is probable enough, the global model "
    "alone answers.",
    weights=_weigh_all,
    tells_global=True,
)
BLEND = Route(
    name="blend",
    title="Blend",
    caption="All models answer for the target, with weights that were learned from training spectra. Other labels "
    "take the route `fallback`.",
    weights=_weigh_as_learned,
    needs_learned=True,
    other_labels="fallback",
)

#: Every rule by its name: the global model, which the others are held against, then the upper bound, then the rest.
ROUTES: dict[str, Route] = {route.name: route for route in (GLOBAL, ORACLE, HARD, SOFT, FALLBACK, BLEND)}


def find_routes(*, truth: bool = False, gate: bool = True, learned: bool = False) -> tuple[Route, ...]:
    """Return the rules that can be followed with what is there, in the order of :data:`ROUTES`.

    Parameters
    ----------
    truth
        Whether the true bins are known.
    gate
        Whether a gate says how probable every bin is.
    learned
        Whether there are learned weights.
    """
    return tuple(
        route
        for route in ROUTES.values()
        if (truth or not route.needs_truth) and (gate or not route.needs_gate) and (learned or not route.needs_learned)
    )


def mix_predictions(weights: FloatArray, predicted: FloatArray) -> FloatArray:
    """Return the weighted sums over models, shape (N,) or (N, Q).

    Parameters
    ----------
    weights
        Of the global model and every expert, shape (N, 1 + K).
    predicted
        What they predict, shape (N, 1 + K), or (N, 1 + K, Q) for Q labels.
    """
    of_experts = np.einsum("nk,nk...->n...", weights[:, 1:], predicted[:, 1:])
    share = weights[:, 0].reshape(-1, *[1] * (predicted.ndim - 2))
    return np.asarray(of_experts + share * predicted[:, 0])


def route_spectra(predicted: FloatArray, known: Evidence) -> dict[str, FloatArray]:
    """Return the predictions of every rule that can be followed, but for the global model's own.

    Parameters
    ----------
    predicted
        Of the global model and every expert, shape (N, 1 + K), label units.
    known
        What is known of the same spectra.

    Returns
    -------
    dict
        Shape (N,) by the name of the rule, in the order of :data:`ROUTES`.
    """
    found = find_routes(truth=known.bins is not None, learned=known.learned is not None)
    return {route.name: mix_predictions(route.weights(known), predicted) for route in found if route is not GLOBAL}


def score_routes(
    y_true: FloatArray,
    routed: Mapping[str, FloatArray],
    of_global: FloatArray,
    bins: NDArray[np.int64],
    n_bins: int,
    bootstrap: Bootstrap,
) -> dict[str, HeadroomScore]:
    """Score every way of routing on the same spectra and resamples; each stands where the oracle stands otherwise."""
    whole = np.broadcast_to(of_global, (len(routed), len(of_global)))
    return dict(
        zip(
            routed,
            score_routed(y_true, whole, np.stack([*routed.values()]), bins, n_bins, bootstrap),
            strict=True,
        )
    )


def estimate_kept(routed: Sequence[Score], oracle: Sequence[Score], confidence: float) -> Estimate:
    """Return ρ over seeds: the ratio of mean gains, with the interval of the same ratio over paired resamples.

    NaN where the oracle gains nothing, so that there is no headroom to keep.
    """
    gain, headroom = (float(np.mean([one.delta_r2 for one in scores])) for scores in (routed, oracle))
    if not headroom > 0:
        return Estimate.unknown()
    of_seeds = [a.delta_r2 / b.delta_r2 if b.delta_r2 > 0 else np.nan for a, b in zip(routed, oracle, strict=True)]
    gains, headrooms = (np.mean([one.resampled[:, 2] for one in scores], axis=0) for scores in (routed, oracle))
    ratios = gains[headrooms > 0] / headrooms[headrooms > 0]
    low, high = interval_of(ratios, confidence)
    spread = float(np.nanstd(of_seeds, ddof=1)) if len(of_seeds) > 1 and not np.isnan(of_seeds).any() else 0.0
    return Estimate.of(gain / headroom, spread, low, high)


def cross_probabilities(first: FloatArray, second: FloatArray) -> FloatArray:
    """Return the probabilities of pairs of bins of two independent gates, (N, K₁ + 1) and (N, K₂ + 1).

    Shape (N, K₁K₂ + 1): the pair (i, j) has the number i · K₂ + j; last comes what lies outside either grid.
    """
    pairs = (first[:, :-1, None] * second[:, None, :-1]).reshape(len(first), -1)
    outside = np.clip(1 - pairs.sum(axis=1, keepdims=True), 0.0, 1.0)
    return np.concatenate([pairs, outside], axis=1)


@dataclass(frozen=True, eq=False)
class GateQuality:
    """How good a gate's probabilities are, for K bins and the outside.

    Attributes
    ----------
    confusion
        Spectra by true cell (rows) and most probable one (columns), the outside last, shape (K + 1, K + 1).
    told, found, counts
        Reliability of the probability of the most probable cell: its mean, the share that lay there, and the spectra,
        in tenths of it, shapes (10,); NaN where a tenth is empty.
    spread
        Mean probability of every cell (columns) for spectra of a true one (rows), shape (K + 1, K + 1); NaN where there
        are no such spectra.
    truth_quantiles
        Quantiles :data:`TRUTH_QUANTILES` of the probability that spectra's own cell was given, by true cell, shape
        (K + 1, 5); NaN likewise.
    """

    confusion: NDArray[np.int64]
    told: FloatArray
    found: FloatArray
    counts: NDArray[np.int64]
    spread: FloatArray
    truth_quantiles: FloatArray

    @property
    def accuracy(self) -> float:
        """Share of the spectra whose most probable cell is theirs."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: |told − found| on average over spectra (Naeini et al. 2015)."""
        filled = self.counts > 0
        gaps = np.abs(self.told[filled] - self.found[filled])
        return float((self.counts[filled] * gaps).sum() / self.counts.sum())


def assess_gate(probabilities: FloatArray, bins: NDArray[np.int64]) -> GateQuality:
    """Hold probabilities (N, K + 1) against true bins (N,)."""
    n_cells = probabilities.shape[1]
    truth = np.where(bins == OUTSIDE, n_cells - 1, bins)
    likeliest, largest = probabilities.argmax(axis=1), probabilities.max(axis=1)
    confusion = np.bincount(truth * n_cells + likeliest, minlength=n_cells**2).reshape(n_cells, n_cells)
    step = np.minimum((largest * _RELIABILITY_STEPS).astype(np.int64), _RELIABILITY_STEPS - 1)
    counts = np.bincount(step, minlength=_RELIABILITY_STEPS)
    total = np.where(counts > 0, counts, np.nan)
    told = np.bincount(step, largest, _RELIABILITY_STEPS) / total
    found = np.bincount(step, likeliest == truth, _RELIABILITY_STEPS) / total
    spread = np.full((n_cells, n_cells), np.nan)
    quantiles = np.full((n_cells, len(TRUTH_QUANTILES)), np.nan)
    for cell in np.unique(truth):
        own = probabilities[truth == cell]
        spread[cell] = own.mean(axis=0)
        quantiles[cell] = np.quantile(own[:, cell], TRUTH_QUANTILES)
    return GateQuality(confusion, told, found, counts, spread, quantiles)

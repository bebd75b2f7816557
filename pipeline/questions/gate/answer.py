"""What gates say in the summary of a run: the share of the headroom that every routing rule keeps, and how far the
probabilities can be trusted.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.scoring import Estimate, Number, Plain, flatten

__all__ = [
    "BlendErrors",
    "BlendSummary",
    "GateAnswer",
    "GateLevel",
    "GatedBinning",
    "Reliability",
    "RouteDraw",
    "RouteScore",
    "Routing",
]


class RouteScore(Plain):
    """One routing rule on one set of test spectra.

    ``gain`` is R² over that of the global model, ``kept`` the share ρ of the headroom, and ``verdict`` says PASS, FAIL
    or UNDECIDED of it. The oracle has no verdict, since it keeps all by definition.
    """

    n_test: int
    r2: Estimate
    r2_global: Number
    gain: Estimate
    kept: Estimate
    verdict: str | None = None

    def columns(self) -> dict[str, float]:
        """Return the columns of a table."""
        return flatten(self, without=("verdict",))


class RouteDraw(Plain):
    """All rules under one noise draw, by scope (``covered``, ``all`` or the number of a bin) and by rule."""

    seed: int
    scopes: dict[str, dict[str, RouteScore]]


class Reliability(Plain):
    """Probability of the most probable cell, in tenths: what was told on average, what came true, and of how many."""

    told: tuple[Number, ...]
    found: tuple[Number, ...]
    counts: tuple[int, ...]


class BlendErrors(Plain):
    """Mean squared errors on held-out folds of the training spectra, in squared units of the target."""

    blend: Number
    soft: Number
    fallback: Number
    of_global: Number
    margin: Number
    count: int


class BlendSummary(Plain):
    """How many of ``n`` blends are kept, and their errors by scope."""

    n: int
    kept: int
    held_out: dict[str, BlendErrors]
    sentence: str


class Routing(Plain):
    """What a gate keeps at one noise level, over seeds, by scope and by rule; and every noise draw by itself."""

    keep: float
    scopes: dict[str, dict[str, RouteScore]]
    accuracy: Number
    calibration_error: Number
    draws: tuple[RouteDraw, ...]

    @property
    def covered(self) -> Mapping[str, RouteScore]:
        """Every rule on covered spectra."""
        return self.scopes["covered"]


class GatedBinning(Routing):
    """The same for the experts of another binning, whose bins have names of their own."""

    name: str
    bin_names: tuple[str, ...]
    n_test: int


class GateLevel(Routing):
    """The main gate at one noise level.

    Matrices have a row for every true cell and a column for every told one, the outside last; ``truth_quantiles`` are
    those of the probability that the own cell was given, and ``importance`` is what a feature is worth to the gate.
    ``posterior`` is soft routing by the exact probabilities, for the first seed and by scope or bin, in runs that
    measure their ceiling.
    """

    noise_level: float
    kind: str
    unsure: float
    sentence: str
    blend: BlendSummary | None
    confusion: tuple[tuple[int, ...], ...]
    spread: tuple[tuple[Number, ...], ...]
    truth_quantiles: tuple[tuple[Number, ...], ...]
    importance: dict[str, float]
    reliability: Reliability
    binnings: tuple[GatedBinning, ...]
    posterior: dict[str, RouteScore] | None = None


class GateAnswer(Plain):
    """The gates at every noise level that single spectra were routed at."""

    levels: tuple[GateLevel, ...]

    def at(self, noise_level: float) -> GateLevel | None:
        """Return the gate at one noise level."""
        return next((level for level in self.levels if level.noise_level == noise_level), None)

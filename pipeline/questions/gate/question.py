"""Routing without knowing the truth: how much of the headroom gates keep that guess the bin from the spectrum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.base import join_tables, tabulate
from pipeline.bins import Binning
from pipeline.config import ExperimentConfig, GateConfig
from pipeline.noise import Noise
from pipeline.questions.gate.answer import (
    GateAnswer,
    GatedBinning,
    GateLevel,
    Reliability,
    RouteDraw,
    RouteScore,
    Routing,
)
from pipeline.questions.gate.blend import Blend, summarise_blends
from pipeline.questions.gate.fit import QualityRouting, RunGate, fit_gates
from pipeline.questions.gate.logistic import require_scikit_learn
from pipeline.questions.gate.routing import (
    ORACLE,
    Evidence,
    GateQuality,
    assess_gate,
    estimate_kept,
    route_spectra,
    score_routes,
)
from pipeline.questions.question import Facts, Needs, Question, Reading, Trained
from pipeline.report import Picture, Section, Show, Table
from pipeline.scoring import (
    DELTA_R2,
    MISSING,
    R2_ORACLE,
    SCOPES,
    Columns,
    Estimate,
    HeadroomScore,
    RunResults,
    Score,
    Stacked,
    doubt_few_tests,
    estimate_merits,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Gates"]

FloatArray = NDArray[np.float64]
_FILE, _BINNINGS_FILE = "routing.csv", "routing_binnings.csv"


@dataclass(frozen=True, eq=False)
class _Routed:
    """Every rule under one training and one test noise; in a score, the rule stands for the oracle."""

    seed: int
    noise_level: float
    scores: Mapping[str, HeadroomScore]
    quality: GateQuality

    @property
    def routes(self) -> tuple[str, ...]:
        """The rules, the upper bound first."""
        return tuple(self.scores)

    def scope(self, route: str, scope: str) -> Score:
        """Return the score of a rule on ``covered``, ``all`` or the bin of this number."""
        score = self.scores[route]
        return score.bins[int(scope)] if scope.isdigit() else score.scope(scope)


@dataclass(frozen=True, eq=False)
class _RoutedMain(_Routed):
    """The same by the main gate, with what the fit says of features and blend."""

    importance: Mapping[str, float]
    blend: Blend | None
    exact: Mapping[str, RouteScore]


@dataclass(frozen=True, eq=False)
class _RoutedBinning(_Routed):
    """The same among the experts of another binning."""

    binning: Binning


def _has_gate(results: RunResults) -> bool:
    return Gates.at_headline(results) is not None


def _draw_gate(results: RunResults) -> Figure:
    from pipeline.questions.gate.figure import draw_gate  # matplotlib, which only pictures need

    return draw_gate(results, Gates.at_headline(results))


def _draw_probabilities(results: RunResults) -> Figure:
    from pipeline.questions.gate.figure import draw_gate_probabilities  # matplotlib, which only pictures need

    return draw_gate_probabilities(results, Gates.at_headline(results))


def _draw_routes(results: RunResults) -> Figure:
    from pipeline.questions.gate.figure import draw_routes  # matplotlib, which only pictures need

    return draw_routes(results)


class Gates(Question[GateAnswer]):
    """Fit gates to the training folds, and route the test spectra by them; asked by ``gate``."""

    name = "gate"
    Answer = GateAnswer
    step = "gate"
    files = (_FILE, _BINNINGS_FILE)
    asked_by = "`gate: {}`"
    pictures = (
        Picture(
            "moe_gate.png",
            "Routing without labels",
            "R² of every way to route, with the global model as a line; which bin the gate finds most probable, by "
            "true bin; ρ, the share of the headroom that each route keeps; and how often the gate is right, against "
            "the probability that it states. Soft routing near the oracle says that the headroom can be had in "
            "production. Points below the diagonal say that the gate is surer than it is right.",
            _draw_gate,
            _has_gate,
        ),
        Picture(
            "moe_gate_probabilities.png",
            "What the gate says of each bin",
            lambda results: _caption_probabilities(Gates.at_headline(results)),
            _draw_probabilities,
            _has_gate,
        ),
        Picture(
            "moe_routes.png",
            "Predicted against true, by route",
            "Covered test spectra, by their true and their predicted label, for every way to route. Predictions on the "
            "dashed line are right. A point that is far from the line, but not in the oracle's panel, was sent to a "
            "wrong expert.",
            _draw_routes,
            _has_gate,
        ),
    )

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self._fitted: RunGate | None = None
        self._quality: QualityRouting | None = None
        self._main: list[_RoutedMain] = []
        self._binnings: list[_RoutedBinning] = []

    @property
    def _settings(self) -> GateConfig | None:
        return self.facts.settings.gate

    @classmethod
    def needs(cls, settings: ExperimentConfig) -> Needs:
        """Ask for the gated binnings crossed with the main one."""
        return Needs(crossed=settings.gate.binnings if settings.gate else ())

    def check(self) -> None:
        """Refuse a gate that cannot be fitted here.

        Raises
        ------
        ConfigError
            If it needs a library that is not installed.
        """
        if self._settings is not None and (self._settings.kind == "logistic" or self._settings.binnings):
            require_scikit_learn()

    def prepare(self) -> Sequence[str] | None:
        """Fit the gates."""
        if self._settings is None:
            return None
        self._fitted = fit_gates(self.facts, self._settings)
        return self._fitted.files

    def columns(self, trained: Trained, test_noise: Noise) -> Sequence[Columns]:
        """Ask for what the gate looks at: all labels as the global model predicts them, and the gate's features.

        Test noise that is integrated out has no single spectra to route.
        """
        if self._fitted is None or trained.noise not in self._fitted.gates or not test_noise.is_single:
            return ()
        of_labels = Columns(trained.whole.global_weights, trained.whole.global_intercepts)
        recipe = self._fitted.recipes.get(trained.noise)
        if recipe is None:
            return (of_labels,)
        return of_labels, Columns(recipe.columns, np.zeros(recipe.columns.shape[1]))

    def hear(self, reading: Reading, found: Sequence[Stacked]) -> None:
        """Route the test spectra by every rule, among the main experts and among those of gated binnings."""
        if self._fitted is None or self._settings is None or not found:
            return
        noise, of_labels = reading.trained.noise, found[0].values
        recipe, blend = self._fitted.recipes.get(noise), self._fitted.blends.get(noise)
        features = None if recipe is None else recipe.from_products(found[1].values)
        probabilities = self._fitted.gates[noise].probabilities(of_labels, features)
        known = Evidence(probabilities, self.facts.truth.bins[0], of_labels, self._fitted.unsure, blend)
        routed = route_spectra(reading.predicted, known)
        reading.routed.update(routed)
        self._main.append(
            _RoutedMain(
                *self._score(reading, known, routed, reading.predicted),
                importance=self._fitted.fits[noise].get("importance", {}),
                blend=blend,
                exact={scope: one for scope, one in reading.exact.items() if isinstance(one, RouteScore)},
            )
        )
        self._route_binnings(reading, probabilities)

    def _score(
        self, reading: Reading, known: Evidence, routed: Mapping[str, FloatArray], predicted: FloatArray
    ) -> tuple[int, float, dict[str, HeadroomScore], GateQuality]:
        """Return seed, noise level, the score of every rule, and how good the probabilities are."""
        assert known.bins is not None
        y_true, n_bins = self.facts.truth.labels[self.facts.settings.target], predicted.shape[1] - 1
        scores = score_routes(y_true, routed, predicted[:, 0], known.bins, n_bins, self.facts.bootstrap)
        return reading.draw.seed, reading.draw.level, scores, assess_gate(known.probabilities, known.bins)

    def _route_binnings(self, reading: Reading, of_main: FloatArray) -> None:
        """Route among the experts of binnings whose bins gates tell from the errors of a spectrum."""
        if self._fitted is None or self._fitted.quality is None:
            return
        if self._quality is None:  # the errors are the same under every noise
            self._quality = self._fitted.quality.ask(self.facts.test)
        for scored, bins in zip(reading.binnings[1:], self.facts.truth.bins[1:], strict=True):
            probabilities = self._quality.tell(scored.binning.name, self.facts.binnings[0].name, of_main)
            if probabilities is None:
                continue
            known = Evidence(probabilities, bins, unsure=self._fitted.unsure)
            routed = route_spectra(scored.predicted, known)
            self._binnings.append(
                _RoutedBinning(*self._score(reading, known, routed, scored.predicted), binning=scored.binning)
            )

    def answer(self) -> GateAnswer | None:
        """Return what every rule keeps; None without a gate, or where no single spectra could be routed."""
        if self._settings is None:
            return None
        if not self._main:
            self.warnings.append(
                "marginal test noise has no single spectra to route, so the gate was not held against any; set "
                "noise.test to stored or drawn"
            )
            return None
        levels = dict.fromkeys(one.noise_level for one in self._main)
        return GateAnswer(levels=tuple(self._summarise_level(level, self._settings) for level in levels))

    def _summarise_level(self, level: float, gate: GateConfig) -> GateLevel:
        own = [one for one in self._main if one.noise_level == level]
        confidence = self.facts.bootstrap.confidence
        routing = _summarise(own, gate.keep, confidence)
        qualities = [one.quality for one in own]
        return GateLevel(
            **dict(routing),
            noise_level=level,
            kind=gate.kind,
            unsure=gate.unsure,
            sentence=_describe(routing, confidence),
            blend=summarise_blends([one.blend for one in own if one.blend is not None]),
            confusion=tuple(map(tuple, np.sum([one.confusion for one in qualities], axis=0).tolist())),
            spread=_rows(np.mean([one.spread for one in qualities], axis=0)),
            truth_quantiles=_rows(np.mean([one.truth_quantiles for one in qualities], axis=0)),
            importance={name: float(np.mean([one.importance[name] for one in own])) for name in own[0].importance},
            reliability=_pool_reliability(qualities),
            binnings=self._summarise_binnings(level, gate, confidence),
            posterior=next((dict(one.exact) for one in own if one.exact), None),
        )

    def _summarise_binnings(self, level: float, gate: GateConfig, confidence: float) -> tuple[GatedBinning, ...]:
        at_level = [one for one in self._binnings if one.noise_level == level]
        found = []
        for name in dict.fromkeys(one.binning.name for one in at_level):
            own = [one for one in at_level if one.binning.name == name]
            found.append(
                GatedBinning(
                    **dict(_summarise(own, gate.keep, confidence)),
                    name=name,
                    bin_names=tuple(", ".join(names) for names in own[0].binning.bin_names),
                    n_test=own[0].scope(ORACLE.name, "covered").n_test,
                )
            )
        return tuple(found)

    @classmethod
    def at_headline(cls, results: RunResults) -> GateLevel | None:
        """Return the gate at the level that the conclusion is about."""
        answer = cls.read(results)
        return answer.at(results.summary.headline.noise_level) if answer else None

    @classmethod
    def tables(cls, answer: GateAnswer, settings: ExperimentConfig) -> dict[str, pd.DataFrame]:
        """Return a row for each seed, noise level, scope (``covered``, ``all`` or a bin's number) and rule."""
        tables = {
            _FILE: _tabulate([(level.noise_level, _with_exact(level)) for level in answer.levels], settings.target)
        }
        binnings = [(level.noise_level, one) for level in answer.levels for one in level.binnings]
        if binnings:
            tables[_BINNINGS_FILE] = _tabulate_binnings(answer, settings.target)
        return tables

    @classmethod
    def remarks(cls, results: RunResults, noise_level: float) -> Sequence[str]:
        """Return what soft and hard routing keep."""
        answer = cls.read(results)
        level = answer.at(noise_level) if answer else None
        return () if level is None else (level.sentence,)

    @classmethod
    def section(cls, results: RunResults) -> Section | None:
        """Return what routing keeps at every noise level, in words, tables and figures."""
        answer = cls.read(results)
        if answer is None:
            return None
        several = len(answer.levels) > 1
        sentences = [sentence for level in answer.levels for sentence in _explain(level, several=several)]
        tables = [_list_routes(level) for level in answer.levels]
        tables += [_list_binnings(level) for level in answer.levels if level.binnings]
        pictures = [Show(picture.file) for picture in cls.pictures]
        return Section("gate", "Routing without labels", "Routing", (*sentences, *tables, *pictures))


# --- Scores of routing rules as entries of the summary.


def _summarise(scored: Sequence[_Routed], keep: float, confidence: float) -> Routing:
    """Return every rule on both scopes over seeds, and on every set of spectra for each noise draw by itself."""
    scopes = {
        scope: {route: _summarise_route(scored, route, scope, confidence, keep) for route in scored[0].routes}
        for scope in SCOPES
    }
    names = (*SCOPES, *map(str, range(len(scored[0].scores[ORACLE.name].bins))))
    draws = tuple(
        RouteDraw(
            seed=one.seed,
            scopes={
                scope: {route: _summarise_route([one], route, scope, confidence) for route in one.routes}
                for scope in names
            },
        )
        for one in scored
    )
    return Routing(
        keep=keep,
        scopes=scopes,
        accuracy=float(np.mean([one.quality.accuracy for one in scored])),
        calibration_error=float(np.mean([one.quality.calibration_error for one in scored])),
        draws=draws,
    )


def _summarise_route(
    scored: Sequence[_Routed], route: str, scope: str, confidence: float, keep: float | None = None
) -> RouteScore:
    own, oracle = ([one.scope(name, scope) for one in scored] for name in (route, ORACLE.name))
    merits, kept = estimate_merits(own, confidence), estimate_kept(own, oracle, confidence)
    return RouteScore(
        n_test=own[0].n_test,
        r2=merits["r2_oracle"],
        r2_global=merits["r2_global"].mean,
        gain=merits["delta_r2"],
        kept=kept,
        verdict=None if keep is None or route == ORACLE.name else _judge(kept, keep, own[0].n_test),
    )


def _judge(kept: Estimate, keep: float, n_test: int) -> str:
    """Say PASS or FAIL where the whole interval lies on one side.

    UNDECIDED elsewhere, with no headroom to keep, or where the interval of few test spectra would be too narrow.
    """
    if doubt_few_tests(n_test) or not np.isfinite([kept.mean, kept.low, kept.high]).all():
        return "UNDECIDED"
    return "PASS" if kept.low >= keep else "FAIL" if kept.high < keep else "UNDECIDED"


def _pool_reliability(qualities: Sequence[GateQuality]) -> Reliability:
    with np.errstate(invalid="ignore"):
        counts = np.sum([one.counts for one in qualities], axis=0)
        told, found = (
            np.sum([np.nan_to_num(getattr(one, name)) * one.counts for one in qualities], axis=0) / counts
            for name in ("told", "found")
        )
    return Reliability(told=tuple(told.tolist()), found=tuple(found.tolist()), counts=tuple(counts.tolist()))


def _rows(matrix: FloatArray) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, matrix.tolist()))


def _describe(routing: Routing, confidence: float) -> str:
    """Put the soft and the hard routing in words: both are stated beforehand, so neither is picked by its score."""
    soft, hard = routing.covered["soft"], routing.covered["hard"]
    if not np.isfinite(soft.kept.mean):
        return "The experts gain nothing over the global model even with the true bins, so there is nothing to keep."
    return (
        f"Without knowing any label, soft routing keeps {soft.kept.mean:.0%} of the headroom on covered spectra "
        f"({confidence:.0%} interval {soft.kept.low:.0%} to {soft.kept.high:.0%}): {soft.verdict} "
        f"against ρ ≥ {routing.keep:g}. Hard routing keeps {hard.kept.mean:.0%}."
    )


# --- Tables, and what the report says.


def _tabulate(routings: Sequence[tuple[float, Routing]], target: str) -> pd.DataFrame:
    return tabulate(
        [
            {
                "seed": draw.seed,
                "noise_level": noise_level,
                "target": target,
                "scope": scope,
                "route": route,
                **score.columns(),
            }
            for noise_level, routing in routings
            for draw in routing.draws
            for scope, routes in draw.scopes.items()
            for route, score in routes.items()
        ]
    )


def _with_exact(level: GateLevel) -> Routing:
    """Return the routing with the route ``posterior`` under the first noise draw, where it was found."""
    if level.posterior is None:
        return level
    first, *others = level.draws
    scopes = {
        scope: routes | ({"posterior": level.posterior[scope]} if scope in level.posterior else {})
        for scope, routes in first.scopes.items()
    }
    return level.model_copy(update={"draws": (first.model_copy(update={"scopes": scopes}), *others)})


def _tabulate_binnings(answer: GateAnswer, target: str) -> pd.DataFrame:
    """Return the same for gated binnings: under one noise draw one binning after the other, bins with their names."""
    tables = []
    for level in answer.levels:
        for place in range(len(level.draws)):
            for one in level.binnings:
                table = _tabulate([(level.noise_level, one.model_copy(update={"draws": (one.draws[place],)}))], target)
                words = {str(k): name for k, name in enumerate(one.bin_names)}
                table.insert(0, "binning", one.name)
                table.insert(list(table.columns).index("scope") + 1, "bin_name", table["scope"].map(words).fillna(""))
                tables.append(table)
    return join_tables(tables)


def _explain(level: GateLevel, *, several: bool) -> list[str]:
    where = f"Noise level {level.noise_level:g}: " if several else ""
    quality = (
        f"The most probable bin is the true one for {level.accuracy:.0%} of all test spectra; the outside counts as a "
        f"bin. The stated probabilities differ from the observed frequencies by {level.calibration_error:.3f} on "
        "average."
    )
    sentences = [f"{where}{level.sentence} {quality}"]
    if level.blend is not None:
        sentences.append(f"{where}{level.blend.sentence}{_explain_blend(level)}")
    if level.importance:
        sentences.append(f"{where}{_explain_importance(level.importance)}")
    return sentences


def _explain_blend(level: GateLevel) -> str:
    """Say what the blend keeps, and how that can be more than all."""
    kept = level.covered["blend"].kept
    if not math.isfinite(kept.mean):
        return ""
    more = (
        " That is more than all, because the oracle asks one expert for each spectrum and the blend averages several."
        if kept.mean > 1
        else ""
    )
    return f" On covered test spectra its route keeps {kept.mean:.0%} of the headroom.{more}"


def _caption_probabilities(gate: GateLevel | None) -> str:
    """Say what the figure of the probabilities shows; features have a panel if their importance was measured."""
    text = (
        "First panel: the mean probability that the gate gives to every bin (columns), for the test spectra of each "
        "true bin (rows). Second panel: the probability that the true bin was given; dots are medians, thick bars "
        "hold half of the spectra and thin ones 90 %. Probability beside the diagonal goes to neighbours, which "
        "costs little. Probability that goes to far bins, or outside, loses what the expert gains."
    )
    if gate is None or not gate.importance:
        return text
    return (
        f"{text} Last panel: by how much the gate gets worse when one feature is shuffled. A feature of no importance "
        "may be left out without harm, unless another feature holds the same information."
    )


def _explain_importance(importance: Mapping[str, float]) -> str:
    """Name the features that the gate would miss most."""
    most = sorted(importance, key=lambda name: -importance[name])[:3]
    words = ", ".join(f"{name} ({importance[name]:.3f})" for name in most)
    return (
        f"Of {len(importance)} features the gate would miss {words} most. The numbers say by how much its log loss on "
        "held-out folds of the training spectra grows if the values of the feature are shuffled."
    )


def _list_exact(level: GateLevel, scope: str) -> list[tuple[str, RouteScore]]:
    """Return soft routing by the exact probabilities, which gates are measured against; none where it is not known."""
    exact = (level.posterior or {}).get(scope)
    return [] if exact is None else [("exact gate, first seed", exact)]


def _list_routes(level: GateLevel) -> Table:
    rows = [
        (
            scope,
            route,
            _text(R2_ORACLE.format(score.r2.mean)),
            *(_text(DELTA_R2.format(value)) for value in (score.gain.mean, score.gain.low, score.gain.high)),
            *(_share(value) for value in (score.kept.mean, score.kept.low, score.kept.high)),
            score.verdict or MISSING,
        )
        for scope, routes in level.scopes.items()
        for route, score in (*routes.items(), *_list_exact(level, scope))
    ]
    asked = f"ρ ≥ {level.keep:g}"
    header = ("Spectra", "Routing", "R²", "gain over global", "low", "high", "ρ", "low", "high", asked)
    return Table(f"Routing at noise level {level.noise_level:g}", header, tuple(rows), 2)


def _list_binnings(level: GateLevel) -> Table:
    """Return a row for every gated binning at one noise level: what its experts gain, and what its gate keeps."""
    rows = []
    for one in level.binnings:
        oracle, soft, hard = (one.covered[route] for route in (ORACLE.name, "soft", "hard"))
        rows.append(
            (
                one.name,
                str(len(one.bin_names)),
                f"{one.n_test:,}",
                R2_ORACLE.format(oracle.r2.mean),
                *(_text(DELTA_R2.format(value)) for value in (oracle.gain.mean, oracle.gain.low, oracle.gain.high)),
                *(_share(value) for value in (soft.kept.mean, soft.kept.low, soft.kept.high, hard.kept.mean)),
                f"{one.accuracy:.0%}",
            )
        )
    header = (
        "Experts by", "experts", "test", "R² oracle", "ΔR²", "low", "high", "ρ soft", "low", "high", "ρ hard", "right",
    )  # fmt: skip
    return Table(f"Experts by signal-to-noise ratio at noise level {level.noise_level:g}", header, tuple(rows), 1)


def _text(number: str) -> str:
    return number.replace("-", "−")


def _share(value: float) -> str:
    return MISSING if math.isnan(value) else _text(f"{value:.3f}")

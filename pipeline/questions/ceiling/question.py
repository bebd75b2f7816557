"""The ceiling: how far the best possible model could go, what experts capture of it, and what is left for others.

With the noise model known and the training spectra as prior, no estimator beats the posterior mean. Its R² is bracketed
from both sides by posterior means under the library of training stars, without and with the star of the test spectrum
itself; ``docs/ceiling.md`` has the formulas and the proof.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.base import tabulate
from pipeline.bins import OUTSIDE as OUTSIDE_BIN
from pipeline.config import ExperimentConfig
from pipeline.noise import Noise
from pipeline.questions.ceiling.answer import (
    CeilingAnswer,
    CeilingLabel,
    CeilingLevel,
    CeilingPart,
    describe_experts,
    judge_nonlinear,
)
from pipeline.questions.ceiling.likelihood import TOLERANCE
from pipeline.questions.ceiling.measure import Measured, choose_test_noise, measure_levels
from pipeline.questions.ceiling.posterior import GROUPS, OTHER, OUTSIDE, OWN, TEMPERATURES, Posterior, infer
from pipeline.questions.gate import ORACLE, SOFT, Evidence, RouteScore, estimate_kept, mix_predictions, score_routes
from pipeline.questions.labels import without_oracle
from pipeline.questions.question import Facts, Question, Reading, Trained
from pipeline.report import Card, Picture, Section, Show, Table, number_cell, percent_cell, symbol
from pipeline.scoring import (
    SCOPES,
    WITHHELD,
    Columns,
    Estimate,
    HeadroomScore,
    RunResults,
    Score,
    Stacked,
    estimate_merits,
    interval_of,
    score_experts,
    score_routed,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Ceiling"]

FloatArray = NDArray[np.float64]
_FILE, _ROUTING_FILE, _PICTURE = "ceiling.csv", "ceiling_routing.csv", "moe_ceiling.png"
#: Which kinds of cells a library holds, by what it is for.
_LIBRARIES: Mapping[str, tuple[int, ...]] = {
    "covered": (OWN, OTHER),
    "all": (OWN, OTHER, OUTSIDE),
    "own_bin": (OWN,),
}


@dataclass(frozen=True, eq=False)
class _Bracket:
    """The scores of one library on the test spectra: in a score, the upper end stands for the oracle."""

    score: HeadroomScore
    posterior: Posterior
    temperature: float


def _draw(results: RunResults) -> Figure:
    from pipeline.questions.ceiling.figure import draw_ceiling  # matplotlib, which only pictures need

    return draw_ceiling(results, _require_headline(results))


class Ceiling(Question[CeilingAnswer]):
    """Bracket the R² of the best possible model; asked by ``ceiling``."""

    name = "ceiling"
    Answer = CeilingAnswer
    step = "ceiling"
    files = (_FILE, _ROUTING_FILE)
    asked_by = "`ceiling: {}`"
    pictures = (
        Picture(
            _PICTURE,
            "Global model, experts, and what any model could reach",
            "First panel: R² of the global model (square), of the oracle experts (dot), and both ends of the ceiling "
            "(green bar), for all covered spectra and in every bin. The ceiling lies somewhere within the bar; a "
            "hatched bar has not converged, and a larger library would narrow it. The distance from the dot to "
            "the bar is what a nonlinear model could still gain. Second panel: both ends against the number of stars "
            "in the library. The number at a point is the effective size: how many stars of the library share the "
            "weight of one spectrum.",
            _draw,
            lambda results: Ceiling.at_headline(results) is not None,
        ),
    )

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self._files: dict[float, str] = {}
        self._levels: dict[float, CeilingLevel] = {}

    def check(self) -> None:
        """Warn where there is no noise: the ceiling is 1, and no library can say so."""
        if self.facts.settings.ceiling is not None and 0 in self.facts.settings.noise.levels:
            self.facts.warnings.append(
                "at noise level 0 the ceiling is 1, because a spectrum without noise tells its star; it is not measured"
            )

    def prepare(self) -> Sequence[str] | None:
        """Hold test spectra, and training stars that are left out, against the library."""
        if self.facts.settings.ceiling is None:
            return None
        first = {one.noise.level: one.noise for one in reversed(self.facts.verdict_noises) if one.noise.level > 0}
        self._files = measure_levels(self.facts, first) if first else {}
        return list(self._files.values())

    def _is_asked(self, trained: Trained) -> bool:
        level = trained.noise.level
        return not trained.is_compared and level in self._files and level not in self._levels

    @property
    def _labels(self) -> list[str]:
        """The labels that every test spectrum has, the target first."""
        target = self.facts.settings.target
        return [target, *(label for label in self.facts.truth.labels if label != target)]

    def columns(self, trained: Trained, test_noise: Noise) -> Sequence[Columns]:
        """Ask the models of the first draw of every level for all labels."""
        del test_noise
        return [Columns.of_models(trained.whole, label) for label in self._labels] if self._is_asked(trained) else []

    def hear(self, reading: Reading, found: Sequence[Stacked]) -> None:
        """Score the ends of the bracket, and the run's models on the same spectra."""
        if not self._is_asked(reading.trained):
            return
        level = reading.draw.level
        measured = Measured.read(self.facts.folder / self._files[level])
        chosen = _Chosen(self.facts, measured)
        labels: dict[str, CeilingLabel] = {}
        for label, own in zip(self._labels, found, strict=True):
            labels[label], gains = chosen.score(label, own)
            if label == self.facts.settings.target:
                at_least, at_most = gains
        posterior = chosen.route(reading) if reading.test_noise.is_single else {}
        reading.exact = posterior
        target, confidence = labels[self.facts.settings.target], self.facts.bootstrap.confidence
        threshold = self.facts.settings.decision.nonlinear
        names = [self.facts.grid.describe(k) for k in range(self.facts.grid.n_bins)]
        self._levels[level] = CeilingLevel(
            noise_level=level,
            n_left_out=len(measured.own) - measured.n_test,
            rank=measured.rank,
            likelihood_error=measured.error,
            recomputed=int(measured.sums.recomputed.sum()),
            is_redrawn=choose_test_noise(self.facts, reading.trained.noise) != reading.test_noise,
            labels=labels,
            experts=describe_experts(target, posterior, threshold, names, self._count_draws(level)),
            nonlinear=judge_nonlinear(target.growth["covered"], at_least, at_most, threshold, confidence),
            posterior=posterior,
        )

    def _count_draws(self, level: float) -> int:
        """Return how many noise draws of a level the run's verdict is about."""
        return sum(one.noise.level == level for one in self.facts.verdict_noises)

    def answer(self) -> CeilingAnswer | None:
        """Return the ceiling of every level; None where it was not asked."""
        return CeilingAnswer(levels=tuple(self._levels.values())) if self._levels else None

    @classmethod
    def at_headline(cls, results: RunResults) -> CeilingLevel | None:
        """Return the ceiling at the level that the conclusion is about."""
        answer = cls.read(results)
        return answer.at(results.summary.headline.noise_level) if answer else None

    @classmethod
    def cards(cls, results: RunResults) -> list[Card]:
        """Return the bracket of the ceiling, for the first screen."""
        level = cls.at_headline(results)
        if level is None:
            return []
        part = level.labels[results.summary.target].scopes["covered"]
        remark = (
            "no model that must guess the bin can beat it; it lies in this range"
            if part.is_converged
            else "not converged: a larger library narrows it"
        )
        return [("Ceiling, R²", part.tell(), remark)]

    @classmethod
    def tables(cls, answer: CeilingAnswer, settings: ExperimentConfig) -> dict[str, pd.DataFrame]:
        """Return a row per noise level, label, scope, bin and library; and what the exact gate keeps."""
        tables = {_FILE: tabulate([row for level in answer.levels for row in _list_rows(level)])}
        if any(level.posterior for level in answer.levels):
            tables[_ROUTING_FILE] = tabulate(
                [
                    {"noise_level": level.noise_level, "target": settings.target, "scope": scope, **score.columns()}
                    for level in answer.levels
                    for scope, score in level.posterior.items()
                ]
            )
        return tables

    @classmethod
    def remarks(cls, results: RunResults, noise_level: float) -> Sequence[str]:
        """Return what experts capture, and what is left for a nonlinear model."""
        answer = cls.read(results)
        level = answer.at(noise_level) if answer else None
        return () if level is None else (*_caution(results, noise_level), level.experts, level.nonlinear.sentence)

    @classmethod
    def section(cls, results: RunResults) -> Section | None:
        """Return both sentences, the bracket of every label and bin, how it closes, and the figure."""
        answer = cls.read(results)
        if answer is None:
            return None
        several = len(answer.levels) > 1
        blocks: list[str | Table | Show] = []
        for level in answer.levels:
            where = f"Noise level {level.noise_level:g}: " if several else ""
            caution = "".join(f"{words} " for words in _caution(results, level.noise_level))
            blocks.append(f"{where}{caution}{level.experts} {level.nonlinear.sentence} {_explain(level)}")
        blocks += [_WHY, Show(_PICTURE)]
        for level in answer.levels:
            blocks += [_list_labels(level), _list_bins(results, level), _list_growth(results, level)]
        return Section("ceiling", "What no model can beat", "Ceiling", tuple(blocks))


def _caution(results: RunResults, noise_level: float) -> Iterator[str]:
    """Yield a sentence where the run's own verdict is withheld: the ceiling is held against the same models."""
    if any(one.noise_level == noise_level and one.decision.verdict == WITHHELD.words for one in results.summary.levels):
        yield "The verdict on experts is withheld, and the following rests on the same models and test spectra."


def _require_headline(results: RunResults) -> CeilingLevel:
    level = Ceiling.at_headline(results)
    assert level is not None
    return level


class _Chosen:
    """Scores what the library says of the test spectra that were chosen, beside what the run's models say of them."""

    def __init__(self, facts: Facts, measured: Measured) -> None:
        self._facts, self._measured, self._n = facts, measured, measured.n_test
        self._bins = facts.truth.bins[0][measured.rows]
        self._posteriors = {
            (name, groups): infer(measured.sums, groups, kinds, measured.own, measured.labels)
            for name, kinds in _LIBRARIES.items()
            for groups in range(1, GROUPS + 1)
        }

    def score(self, label: str, said: Stacked) -> tuple[CeilingLabel, tuple[Estimate, Estimate]]:
        """Return the ceiling of a label, and what its ends lie above the oracle on covered spectra."""
        models = self._score_models(label, said)
        brackets = {at: self._bracket(label, *at) for at in self._posteriors}
        confidence = self._facts.bootstrap.confidence

        def part(name: str, scope: str, groups: int = GROUPS) -> CeilingPart:
            return self._summarise(brackets[name, groups], models, scope)

        n_bins, whole = self._facts.grid.n_bins, brackets["covered", GROUPS]
        found = CeilingLabel(
            scopes={scope: part(scope, scope) for scope in SCOPES},
            bins=tuple(part("covered", str(k)) for k in range(n_bins)),
            own_bin=part("own_bin", "covered"),
            own_bins=tuple(part("own_bin", str(k)) for k in range(n_bins)),
            growth={scope: tuple(part(scope, scope, groups) for groups in range(1, GROUPS + 1)) for scope in SCOPES},
        )
        gains = [
            _estimate(
                whole.score.covered.merits[column] - models.covered.r2_oracle,
                whole.score.covered.resampled[:, column] - models.covered.resampled[:, 0],
                confidence,
            )
            for column in (1, 0)
        ]
        return found, (gains[0], gains[1])

    def _score_models(self, label: str, said: Stacked) -> HeadroomScore:
        rows = self._measured.rows
        spread = None if said.variances is None else said.variances[None, rows]
        truth = self._facts.truth.labels[label][rows]
        [score] = score_experts(truth, said.values[None, rows], self._bins, self._facts.bootstrap, spread)
        return without_oracle(score) if label in self._facts.settings.bins else score

    def _bracket(self, label: str, name: str, groups: int) -> _Bracket:
        """Score both ends; the temperature is that which errs least on the training stars that were left out."""
        place, n = self._facts.plan.labels.index(label), self._n
        posterior, truth = self._posteriors[name, groups], self._measured.labels[:, place]
        # Where the library has no star at all, it says what the mean of all stars is.
        means = np.nan_to_num(posterior.mean[:, :, place])
        judged = np.zeros(len(truth), bool)
        judged[n:] = name == "all" or (self._measured.cells[n:] < self._facts.grid.n_bins)
        errors = np.mean((means[:, judged] - truth[judged]) ** 2, axis=1) if judged.any() else np.zeros(1)
        chosen = int(np.argmin(errors))
        lower, upper = means[chosen, :n], posterior.with_own[:n, place]
        [score] = score_routed(
            truth[:n], lower[None], upper[None], self._bins, self._facts.grid.n_bins, self._facts.bootstrap
        )
        return _Bracket(score, posterior, TEMPERATURES[chosen])

    def _summarise(self, bracket: _Bracket, models: HeadroomScore, scope: str) -> CeilingPart:
        own, theirs, confidence = _pick(bracket.score, scope), _pick(models, scope), self._facts.bootstrap.confidence
        inside = {"covered": self._bins != OUTSIDE_BIN, "all": np.full(self._n, True)}
        members = inside.get(scope, self._bins == (int(scope) if scope.isdigit() else OUTSIDE_BIN))
        effective, count = bracket.posterior.effective[: self._n][members], bracket.posterior.count[: self._n][members]
        known = effective[np.isfinite(effective)]
        return CeilingPart(
            n_library=int(np.median(count)) if len(count) else 0,
            n_test=own.n_test,
            temperature=bracket.temperature,
            lower=_estimate(own.merits[1], own.resampled[:, 1], confidence),
            upper=_estimate(own.merits[0], own.resampled[:, 0], confidence),
            effective_size=float(np.median(known)) if len(known) else math.nan,
            r2_global=theirs.r2_global,
            r2_oracle=theirs.r2_oracle,
        )

    def route(self, reading: Reading) -> dict[str, RouteScore]:
        """Score soft routing by the exact probabilities of all cells, beside the oracle on the same spectra."""
        facts, rows = self._facts, self._measured.rows
        cells = self._measured.sums.cells[: self._n]
        known, predicted = Evidence(cells / cells.sum(axis=1, keepdims=True), self._bins), reading.predicted[rows]
        routed = {
            name: mix_predictions(route.weights(known), predicted)
            for name, route in (("oracle", ORACLE), ("posterior", SOFT))
        }
        truth = facts.truth.labels[facts.settings.target][rows]
        scores = score_routes(truth, routed, predicted[:, 0], self._bins, facts.grid.n_bins, facts.bootstrap)
        found = {}
        for scope in (*SCOPES, *map(str, range(facts.grid.n_bins))):
            own, oracle = ([_pick(scores[name], scope)] for name in ("posterior", "oracle"))
            merits = estimate_merits(own, facts.bootstrap.confidence)
            found[scope] = RouteScore(
                n_test=own[0].n_test,
                r2=merits["r2_oracle"],
                r2_global=merits["r2_global"].mean,
                gain=merits["delta_r2"],
                kept=estimate_kept(own, oracle, facts.bootstrap.confidence),
            )
        return found


def _pick(score: HeadroomScore, scope: str) -> Score:
    """Return the score of ``covered``, ``all`` or the bin of this number."""
    return score.bins[int(scope)] if scope.isdigit() else score.scope(scope)


def _estimate(value: float, resampled: FloatArray, confidence: float) -> Estimate:
    return Estimate.of(value, 0.0, *interval_of(resampled, confidence))


# --- Tables, and what the report says.


def _list_rows(level: CeilingLevel) -> Iterator[dict[str, object]]:
    for label, found in level.labels.items():
        parts = [(scope, "", part) for scope, own in found.growth.items() for part in own]
        parts += [("covered", str(k), part) for k, part in enumerate(found.bins)]
        parts += [("own_bin", "", found.own_bin)]
        parts += [("own_bin", str(k), part) for k, part in enumerate(found.own_bins)]
        for scope, number, part in parts:
            yield {
                "noise_level": level.noise_level,
                "target": label,
                "scope": scope,
                "bin": number,
                "n_library": part.n_library,
                "n_test": part.n_test,
                "r2_lower": part.lower.mean,
                "r2_upper": part.upper.mean,
                "r2_lower_low": part.lower.low,
                "r2_upper_high": part.upper.high,
                "effective_size": part.effective_size,
                "r2_global": part.r2_global,
                "r2_oracle": part.r2_oracle,
            }


_WHY = (
    "The noise is known, so no model can beat the mean of a label given the spectrum. The library of training stars "
    "shows which stars there are. The lower end is R² of the mean over the library, weighted by how well each star "
    "fits the spectrum. Anybody could use this model, so the ceiling lies above it. For the upper end the spectrum's "
    "own star is added to the library. This mean knows more than any model can, so the ceiling lies below it. Within a "
    "single bin the ends are no bounds, because a model may favour one bin over others."
)


def _explain(level: CeilingLevel) -> str:
    """Say how exactly the bracket was computed."""
    redrawn = (
        " The test noise of this run is integrated out; for the ceiling, one draw was made from the first seed."
        if level.is_redrawn
        else ""
    )
    where = f"in {level.rank} directions" if level.rank else "from all pixels"
    off = f"{level.likelihood_error:.1g}"
    return (
        f"Likelihoods were formed {where}. Where a star has weight, ln p is right to {TOLERANCE:g}: every pair of a "
        f"spectrum and a star has a bound of its own, and {level.recomputed:,} pairs in doubt were formed anew from "
        f"all pixels. For the spectra and their own stars the largest error was {off}.{redrawn}"
    )


_HEADER = (
    "R²_global",
    "R²_oracle",
    "ceiling from",
    "low",
    "to",
    "high",
    "captured",
    "effective size",
    "library",
    "test",
)


def _cells(part: CeilingPart) -> tuple[str, ...]:
    low, high = sorted(part.share())  # where experts lose, the ends change places
    captured = f"{percent_cell(low)} to {percent_cell(high)}" if math.isfinite(low + high) else percent_cell(math.nan)
    mark = "" if part.is_converged else " (not converged)"
    return (
        number_cell(part.r2_global),
        number_cell(part.r2_oracle),
        number_cell(part.lower.mean),
        number_cell(part.lower.low),
        number_cell(part.upper.mean),
        number_cell(part.upper.high),
        captured,
        f"{number_cell(part.effective_size, '.1f')}{mark}",
        f"{part.n_library:,}",
        f"{part.n_test:,}",
    )


def _list_labels(level: CeilingLevel) -> Table:
    rows = [
        (symbol(label), name, *_cells(part))
        for label, found in level.labels.items()
        for name, part in (*found.scopes.items(), ("covered, bin known", found.own_bin))
    ]
    return Table(f"The ceiling at noise level {level.noise_level:g}", ("Label", "Spectra", *_HEADER), tuple(rows), 2)


def _list_bins(results: RunResults, level: CeilingLevel) -> Table:
    label = level.labels[results.summary.target]
    rows = [
        (one.label.replace(r"\$", "$"), *_cells(part), own.tell())
        for one, part, own in zip(results.summary.headline.bins, label.bins, label.own_bins, strict=True)
    ]
    caption = f"The ceiling in every bin at noise level {level.noise_level:g}"
    return Table(caption, ("Bin", *_HEADER, "ceiling, bin known"), tuple(rows), 1)


def _list_growth(results: RunResults, level: CeilingLevel) -> Table:
    rows = [
        (scope, *_cells(part), f"{part.temperature:.3g}")
        for scope, parts in level.labels[results.summary.target].growth.items()
        for part in parts
    ]
    caption = f"How the bracket closes as the library grows, noise level {level.noise_level:g}"
    return Table(caption, ("Spectra", *_HEADER, "temperature"), tuple(rows), 1)

"""What a drawn run of any size would say: asked by the section ``forecast`` of the configuration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.base import tabulate
from pipeline.config import AlphaSearch, ExperimentConfig
from pipeline.noise import MarginalNoise, Noise
from pipeline.questions.forecast.answer import ForecastAnswer, ForecastLevel
from pipeline.questions.forecast.outlook import Asked, Forecaster, OutlookPoint, list_rows
from pipeline.questions.forecast.training import BEST, CONFIGURED, DRAWN, ENDLESS
from pipeline.questions.question import Facts, Needs, Question, Reading, Trained
from pipeline.report import Block, Picture, Section, Show, Table
from pipeline.ridge import format_alpha
from pipeline.scoring import (
    MISSING,
    SHOWN_MERITS,
    Columns,
    RunResults,
    Scope,
    Stacked,
    decide,
    doubt_few_tests,
    predict_stacked,
    summarise_curve,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = [
    "NOISE_CLASSES",
    "SIZES",
    "Forecast",
    "describe_disagreement",
    "find_needed",
]

FloatArray = NDArray[np.float64]
#: Classes of like noise that the moments of a cell are divided into.
NOISE_CLASSES = 6
#: Training spectra that every forecast is for.
SIZES = (5e3, 1e4, 3e4, 1e5, 3e5, 1e6, 3e6, 1e7)
_FILE = "forecast.csv"
_ABOUT_TEST_NOISE = (
    "The forecast has the noise of the test spectra integrated out. The drawn run is scored on the test noise of this "
    "run. If that is a single draw, this draw alone changes R² of the drawn run."
)
_PICTURE = "moe_forecast.png"
#: ΔR² of a forecast and of the drawn run of its size may differ by so much, or by so many standard errors of both.
_AGREES, _STANDARD_ERRORS = 0.01, 2.0


def _draw(results: RunResults) -> Figure:
    from pipeline.questions.forecast.figure import draw_forecast  # matplotlib, which only pictures need

    answer = Forecast.read(results)
    assert answer is not None
    return draw_forecast(results, _headline(results, answer))


class Forecast(Question[ForecastAnswer]):
    """Say what training on drawn noise would give with any number of spectra, from factored moments."""

    name = "forecast"
    Answer = ForecastAnswer
    files = (_FILE,)
    asked_by = "`forecast: {}`, with `noise: {mode: marginal}`"
    pictures = (
        Picture(
            _PICTURE,
            "What drawn runs of other sizes would say",
            "First panel: R² of both models after training on one noise draw for each spectrum, against the number of "
            "training spectra. Second panel: their difference ΔR². Full lines have the configured penalty, dashed "
            "lines the best one. Dotted lines are for infinitely many spectra. The lines are computed from the moments "
            "of marginal noise. Diamonds are results of drawn runs. Open points lie outside the range in which "
            "forecasts were checked.",
            _draw,
            lambda results: Forecast.read(results) is not None,
        ),
    )

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self._asked: dict[float, tuple[Forecaster, Asked]] = {}
        self._points: dict[float, list[OutlookPoint]] = {}
        self._drawn: dict[float, list[Reading]] = {}

    @classmethod
    def needs(cls, settings: ExperimentConfig) -> Needs:
        """Return the classes of like noise."""
        return Needs(noise_classes=NOISE_CLASSES) if settings.forecast is not None else Needs()

    def columns(self, trained: Trained, test_noise: Noise) -> Sequence[Columns]:
        """Ask for what forecasts need, where the test spectra's noise is integrated out, too."""
        if not self._is_asked(trained) or not _is_same(trained.noise, test_noise):
            return ()
        forecaster, asked = self._solve(trained)
        return forecaster.columns(asked)

    def hear(self, reading: Reading, found: Sequence[Stacked]) -> None:
        """Score forecasts once for each level; test spectra of single draws are read once more, without their draw."""
        trained = reading.trained
        if trained.noise.is_single:
            self._drawn.setdefault(trained.noise.level, []).append(reading)
        if not self._is_asked(trained) or trained.noise.level in self._points:
            return
        forecaster, asked = self._solve(trained)
        if not found:
            found = predict_stacked(
                self.facts.test, forecaster.columns(asked), MarginalNoise(trained.noise.level), "float64"
            )
        y, bins = self.facts.truth.labels[self.facts.settings.target], self.facts.truth.bins[0]
        self._points[trained.noise.level] = forecaster.judge(asked, y, bins, found, self.facts.bootstrap)

    def _is_asked(self, trained: Trained) -> bool:
        if self.facts.settings.forecast is None or trained.noise.is_single:
            return False
        return not trained.moments.open(0).is_tiled

    def _solve(self, trained: Trained) -> tuple[Forecaster, Asked]:
        """Solve the expected models of a level, once."""
        level, settings = trained.noise.level, self.facts.settings
        assert settings.forecast is not None
        if level not in self._asked:
            main = self.facts.binnings[0]
            threads = self.facts.threads["solve"]
            forecaster = Forecaster(trained.moments, main, main.covered, settings.ridge, settings.target, threads)
            own = [float(forecaster.count), *([settings.decision.at] if settings.decision.at else [])]
            sizes = sorted({*SIZES, *map(float, settings.forecast.sizes), *own, ENDLESS})
            self._asked[level] = forecaster, forecaster.ask(sizes, of_drawn=self._find_penalties(level))
        return self._asked[level]

    def _find_penalties(self, level: float) -> FloatArray | None:
        """Return the penalties that a search found with drawn noise, the median over seeds; None without a search."""
        drawn = [one.whole for one in self.facts.trained if one.noise.is_single and one.noise.level == level]
        if not drawn or not isinstance(self.facts.settings.ridge.alpha, AlphaSearch):
            return None
        found = [np.array([one.global_alpha, *one.expert_alphas]) for one in drawn]
        return np.asarray(np.quantile(found, 0.5, axis=0, method="lower"))

    def answer(self) -> ForecastAnswer | None:
        """Return the forecasts of all levels; None where there are no factored moments."""
        if self.facts.settings.forecast is None:
            return None
        if not self._points:
            self.warnings.append(
                "no forecast was made: it needs factored moments, and those of this run are dense (metadata.json says "
                "why, under factoring); with few pixels, set `compute: {moments: factored}`"
            )
            return None
        levels = tuple(self._summarise(level) for level in self._points)
        headline = next((one for one in levels if one.noise_level == self.facts.settings.headline_level), levels[0])
        return ForecastAnswer(sentence=self._say(headline), levels=levels)

    def _summarise(self, level: float) -> ForecastLevel:
        forecaster, points = self._asked[level][0], self._points[level]
        settings, confidence = self.facts.settings, self.facts.bootstrap.confidence
        finite = [point for point in points if math.isfinite(point.n)]
        found = ForecastLevel(
            noise_level=level,
            n_known=forecaster.count,
            points=tuple(finite),
            limits=tuple(point for point in points if not math.isfinite(point.n)),
            needed={
                kind: find_needed([one for one in finite if one.penalty == kind], settings.decision.continue_)
                for kind in (CONFIGURED, BEST)
            },
            drawn=self._summarise_drawn(level),
            decision=None,
        )
        if settings.decision.at is not None:
            planned = found.at(settings.decision.at).covered
            doubts = doubt_few_tests(planned.n_test)
            if not planned.trusted:
                doubts.append("this size lies outside the range in which forecasts are trusted.")
            decision = decide(planned.delta_r2, settings.decision, confidence, doubts)
            found = found.model_copy(update={"decision": decision})
        if (doubt := describe_disagreement(found)) is not None:
            self.warnings.append(doubt)
        return found

    def _summarise_drawn(self, level: float) -> tuple[Scope, ...]:
        """Return what drawn noise gave, over seeds."""
        own = self._drawn.get(level, [])
        if not own:
            return ()
        first = -1 if isinstance(self.facts.settings.ridge.alpha, AlphaSearch) else 0
        scores = [one.draw.scores[first:] for one in own]
        return summarise_curve(scores, own[0].draw.models[first:], self.facts.bootstrap.confidence)

    def _say(self, level: ForecastLevel) -> str:
        """Say in words what matters: the planned size, how many spectra are needed, where more bring nothing."""
        settings, sentences = self.facts.settings, []
        if level.decision is not None and settings.decision.at is not None:
            sentences.append(f"With {settings.decision.at:,.0f} training spectra: {level.decision.sentence}")
        limit = settings.decision.continue_
        needed = level.needed[CONFIGURED]
        sentences.append(
            f"With the configured penalty ΔR² clears {limit:g} from {_round(needed)} training spectra on."
            if math.isfinite(needed)
            else f"With the configured penalty no number of training spectra brings ΔR² above {limit:g}."
        )
        end, best = level.limit(BEST).covered, level.along(BEST)
        enough = next(
            (one.n for one in best if one.covered.delta_r2.mean >= 0.95 * end.delta_r2.mean and end.delta_r2.mean > 0),
            math.nan,
        )
        sentences.append(
            f"Infinitely many training spectra would give ΔR² {end.delta_r2.mean:+.4f} (R²_global "
            f"{end.r2_global.mean:.4f}, R²_oracle {end.r2_oracle.mean:.4f})"
            + (f"; {_round(enough)} spectra with the best penalty give 95% of that." if math.isfinite(enough) else ".")
        )
        return " ".join(sentences)

    # --- Views.

    @classmethod
    def tables(cls, answer: ForecastAnswer, settings: ExperimentConfig) -> dict[str, pd.DataFrame]:
        """Return a row for each level, size, choice of the penalty and scope."""
        del settings
        rows = [row for one in answer.levels for row in list_rows([*one.points, *one.limits], one.noise_level)]
        return {_FILE: tabulate(rows)}

    @classmethod
    def section(cls, results: RunResults) -> Section | None:
        """Return the sentence, a table of the headline level, forecast and drawn side by side, and the figure."""
        answer = cls.read(results)
        if answer is None:
            return None
        level = _headline(results, answer)
        about = (
            f"From the moments of {level.n_known:,} training spectra with noise integrated out, algebra says how "
            "well models would predict after training on any number of spectra, with one noise draw for each spectrum. "
        )
        blocks: list[Block] = [about + answer.sentence, _list_points(level), Show(_PICTURE)]
        if level.drawn:
            blocks[1:1] = [_list_side_by_side(level), _ABOUT_TEST_NOISE]
        return Section("forecast", "What more spectra would give", "Forecast", tuple(blocks))

    @classmethod
    def remarks(cls, results: RunResults, noise_level: float) -> Sequence[str]:
        """Return the sentence for the terminal."""
        answer = cls.read(results)
        if answer is None or noise_level != _headline(results, answer).noise_level:
            return ()
        return [f"Forecast: {answer.sentence}"]


def _is_same(trained: Noise, tested: Noise) -> bool:
    return not tested.is_single and tested.level == trained.level


def _headline(results: RunResults, answer: ForecastAnswer) -> ForecastLevel:
    wanted = results.summary.headline_level
    return next((one for one in answer.levels if one.noise_level == wanted), answer.levels[0])


def find_needed(points: Sequence[OutlookPoint], threshold: float) -> float:
    """Return from how many training spectra on the lower end of ΔR²'s interval stays at the threshold or above.

    Between two sizes it is interpolated in the logarithm of the size; NaN if it does not get there.
    """
    at = np.log([point.n for point in points])
    low = np.array([point.covered.delta_r2.low for point in points]) - threshold
    below = np.flatnonzero(~(low >= 0))
    if not below.size:
        return float(points[0].n)
    last = int(below[-1])
    if last == len(points) - 1:
        return math.nan
    return float(np.exp(np.interp(0.0, low[last : last + 2], at[last : last + 2])))


def describe_disagreement(level: ForecastLevel) -> str | None:
    """Return a warning where forecast and drawn run differ by more than both scatter; None where they agree.

    Both have the same penalties.
    """
    if not level.drawn:
        return None
    forecast, drawn = level.beside_drawn.covered, level.drawn[-1]
    off = forecast.delta_r2.mean - drawn.delta_r2.mean
    # One seed has no scatter of its own: the sampling of the test spectra is a bound of what one draw does.
    scatter = drawn.delta_r2.std or (drawn.delta_r2.high - drawn.delta_r2.low) / 4
    allowed = max(_AGREES, _STANDARD_ERRORS * math.hypot(forecast.delta_r2.std, scatter))
    if not forecast.trusted or abs(off) <= allowed:
        return None
    return (
        f"forecast: at noise level {level.noise_level:g} it says ΔR² {forecast.delta_r2.mean:+.4f} for "
        f"{level.n_known:,} training spectra, and the drawn run with the same penalties gives "
        f"{drawn.delta_r2.mean:+.4f}; they should differ by at most {allowed:.3f}, so do not trust the forecast of "
        "other sizes"
    )


def _round(n: float) -> str:
    """Return a number of spectra in two digits."""
    return f"{float(f'{n:.1e}'):,.0f}"


def _list_points(level: ForecastLevel) -> Table:
    rows = []
    for penalty in (CONFIGURED, BEST):
        for point in [*level.along(penalty), level.limit(penalty)]:
            one = point.covered
            n = f"{point.n:,.0f}" if math.isfinite(point.n) else "endless"
            alpha = format_alpha(float(f"{one.alpha:.3g}")) if math.isfinite(point.n) else "–"
            low, high = one.delta_r2.low, one.delta_r2.high
            merits = [merit.format(getattr(one, merit.name).mean) for merit in SHOWN_MERITS]
            rows.append((penalty, n, alpha, *merits, f"{low:+.4f} to {high:+.4f}", "yes" if one.trusted else "no"))
    header = (
        "Penalty",
        "training spectra",
        "α (global)",
        *(merit.symbol for merit in SHOWN_MERITS),
        "interval",
        "trusted",
    )
    return Table(
        f"Forecast of drawn runs, covered test spectra, noise level {level.noise_level:g}", header, tuple(rows), 1
    )


def _list_side_by_side(level: ForecastLevel) -> Table:
    drawn, forecast, beside = level.drawn[-1], level.at(level.n_known).covered, level.beside_drawn
    header, chosen = ["Figure of merit", "forecast"], [forecast]
    if beside.penalty == DRAWN:
        header = ["Figure of merit", "forecast, configured α", "forecast, α of the drawn run"]
        chosen = [forecast, beside.covered]
    rows = [
        (
            merit.symbol,
            *(merit.format(getattr(one, merit.name).mean) for one in chosen),
            merit.format(drawn.merit(merit).mean),
            f"{drawn.merit(merit).std:.4f}" if drawn.merit(merit).std > 0 else MISSING,
        )
        for merit in SHOWN_MERITS
    ]
    caption = f"Forecast and drawn run of {level.n_known:,} training spectra, covered test spectra"
    return Table(caption, (*header, "drawn run", "± seeds"), tuple(rows), 1)

"""From figures of merit to words: the decision by stated thresholds, and the hypotheses.

To build experts needs evidence, not a point estimate: the lower end of the interval must clear the threshold. And a
verdict needs ground to stand on: where the numbers cannot be what they seem, it is withheld.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.config import DecisionConfig, HypothesesConfig
from pipeline.noise import Noise
from pipeline.ridge import ExpertModels, format_alpha
from pipeline.scoring.likeness import Likeness
from pipeline.scoring.summary import R2_GLOBAL, R2_ORACLE, Decision, Estimate, Hypothesis, Part, Scope

__all__ = [
    "BUILD",
    "NOT_WORTH_IT",
    "UNDECIDED",
    "VERDICTS",
    "WITHHELD",
    "Verdict",
    "decide",
    "doubt_few_tests",
    "evaluate_hypotheses",
    "find_doubts",
    "find_open_edges",
    "find_verdict",
]


@dataclass(frozen=True)
class Verdict:
    """One outcome of the decision: its words, and the name that style sheets use for it."""

    words: str
    style: str


BUILD = Verdict("build experts", "build")
UNDECIDED = Verdict("undecided", "undecided")
NOT_WORTH_IT = Verdict("not worth it", "leave")
WITHHELD = Verdict("withheld", "withheld")
#: All outcomes: from the least gain to the largest, and none.
VERDICTS = (NOT_WORTH_IT, UNDECIDED, BUILD, WITHHELD)


def find_verdict(words: str) -> Verdict:
    """Return a verdict by its words."""
    return next(one for one in VERDICTS if one.words == words)


def decide(delta: Estimate, thresholds: DecisionConfig, confidence: float, doubts: Sequence[str] = ()) -> Decision:
    """Decide on a mixture of experts from ΔR² and its interval.

    The verdict is *build experts* where the lower end of the interval reaches ``decision.continue``, and *not worth it*
    where its upper end stays below ``decision.stop``. Anything else is *undecided*, and the sentence says where the
    point estimate lies and what the interval straddles. If there are ``doubts`` (:func:`find_doubts`), the verdict is
    *withheld*, and they are the sentence.
    """
    if doubts:
        return _decide(WITHHELD, "Withheld: " + " Also: ".join(doubts))
    if not (math.isfinite(delta.mean) and math.isfinite(delta.low) and math.isfinite(delta.high)):
        return _decide(UNDECIDED, "Undecided: ΔR² is undefined on these test spectra; more of them must lie in bins.")
    go, halt = thresholds.continue_, thresholds.stop
    figure = f"ΔR² = {delta.mean:+.4f} ({confidence:.0%} interval {delta.low:+.4f} to {delta.high:+.4f})"
    if delta.low >= go:
        return _decide(BUILD, f"{figure} clears the threshold of {go:g}: a mixture of experts is worth building.")
    if delta.high < halt:
        return _decide(
            NOT_WORTH_IT,
            f"{figure} stays below {halt:g}: experts by bin gain too little; "
            "invest in representation learning instead.",
        )
    if delta.mean >= go:
        place, straddled = f"above the threshold of {go:g}", go
    elif delta.mean < halt:
        place, straddled = f"below the threshold of {halt:g}", halt
    else:
        place, straddled = f"between {halt:g} and {go:g}", go if delta.high >= go else halt
    if delta.low < straddled <= delta.high:
        reason = f", but the interval straddles {straddled:g}, so more test spectra are needed"
    else:
        reason = " and so is the whole interval: a larger test set would not change this"
    return _decide(UNDECIDED, f"Undecided: {figure}; the point estimate is {place}{reason}.")


def _decide(verdict: Verdict, sentence: str) -> Decision:
    return Decision(verdict=verdict.words, sentence=sentence)


#: α per training spectrum, with standardised pixels: from less the penalty does nothing against drawn noise, to more it
#: shrinks everything. The reference run has 0.1. Marginal noise regularises by itself and needs far less.
_FIT_DRAWN, _FIT_MARGINAL = (0.01, 1.0), (1e-4, 0.1)
#: Noise levels below this one leave so little noise that a small penalty is right.
_NOISY_LEVEL = 0.5
#: An edge of the grid counts if the last step to it still gained so much R² on held-out folds.
_GAIN_AT_EDGE = 0.001
_SHOWN = 5
#: Covered test spectra that a verdict needs: the intervals of fewer hold the truth too rarely.
_FEWEST_TESTS = 30


def find_doubts(
    found: Part,
    noise: Noise,
    models: Sequence[ExpertModels],
    likeness: Likeness | None,
    *,
    is_standardized: bool,
) -> list[str]:
    """Return why no verdict may be given, one sentence for each reason; none if there is nothing to say.

    Parameters
    ----------
    found
        The scores that the verdict would be about.
    noise
        Of the training spectra.
    models
        The models of all training spectra, of every draw.
    likeness
        What the comparison of the test spectra with the training spectra found, if it was made.
    is_standardized
        Whether pixels were divided by their standard deviation, so that α per spectrum has a scale.
    """
    every = found.scopes["all"]
    doubts = [*_doubt_scores(found.covered), *_doubt_spectra(likeness)]
    doubts += doubt_few_tests(found.covered.n_test)
    if every.n_train < every.n_test:
        doubts.append(
            f"there are fewer training spectra ({every.n_train:,}) than test spectra ({every.n_test:,}); "
            "data.train and data.test may be exchanged."
        )
    return [*doubts, *_doubt_penalties(noise, models, is_standardized)]


def doubt_few_tests(n_covered: int) -> list[str]:
    """Return the doubt that so many covered test spectra raise, if they do: of few, an interval is too narrow."""
    if n_covered >= _FEWEST_TESTS:
        return []
    return [
        f"only {n_covered} test spectra lie in bins, and at least {_FEWEST_TESTS} are required: an interval from so "
        "few is too narrow."
    ]


def _doubt_scores(covered: Scope) -> Iterator[str]:
    below = [
        f"{merit.symbol} is {merit.format(covered.merit(merit).mean)}"
        for merit in (R2_GLOBAL, R2_ORACLE)
        if covered.merit(merit).mean < 0
    ]
    if below:
        yield (
            f"{' and '.join(below)}, so the mean label would be a better guess than the model and a difference of such "
            "numbers means nothing. Check that test and training spectra have one unit and one calibration, and that "
            "the penalty fits the number of spectra."
        )


def _doubt_spectra(likeness: Likeness | None) -> Iterator[str]:
    if likeness is None or likeness.is_alike:
        return
    unlike = []
    if likeness.rows:
        unlike.append(
            f"{len(likeness.rows):,} of {likeness.n_test:,} test spectra (rows {_list(likeness.rows)}) lie far "
            "outside the training spectra"
        )
    if likeness.pixels:
        unlike.append(
            f"in {len(likeness.pixels):,} of {likeness.n_pixels:,} pixels (pixels {_list(likeness.pixels)}) the "
            "test spectra have another mean or variance than the training spectra"
        )
    yield f"the test spectra are unlike the training spectra: {', and '.join(unlike)}. Look at these first."


def _doubt_penalties(noise: Noise, models: Sequence[ExpertModels], is_standardized: bool) -> Iterator[str]:
    low, high = _fitting(noise, is_standardized)
    per_spectrum = models[0].global_alpha / models[0].global_count
    if models[0].search is None and not low <= per_spectrum * (1 + 1e-9) <= high * (1 + 2e-9):
        yield (
            f"ridge.alpha is {format_alpha(models[0].global_alpha)}, which is {per_spectrum:.3g} for each of "
            f"{models[0].global_count:,} training spectra. Between {low:g} and {high:g} fits {noise.kind} noise: set "
            f"ridge.alpha to {{per_spectrum: {0.1 if noise.is_single else 0.01:g}}} or to a search."
        )
    edges: dict[int, float] = {}
    for one in models:
        edges |= find_open_edges(one, noise, is_standardized=is_standardized)
    if edges:
        chosen = ", ".join(
            f"{format_alpha(alpha)} for {f'the expert of bin {k - 1}' if k else 'the global model'}"
            for k, alpha in edges.items()
        )
        yield (
            f"the penalty search stopped at an edge of its grid, and a better penalty may lie beyond it: α = {chosen}. "
            "Widen the grid of ridge.alpha.search."
        )


def _fitting(noise: Noise, is_standardized: bool) -> tuple[float, float]:
    """Return the smallest and the largest α per spectrum that fit a noise; 0 and infinity where nothing is known."""
    if not is_standardized or (noise.is_single and noise.level < _NOISY_LEVEL):
        return 0.0, math.inf
    return _FIT_DRAWN if noise.is_single else _FIT_MARGINAL


def find_open_edges(models: ExpertModels, noise: Noise, *, is_standardized: bool) -> dict[int, float]:
    """Return the penalties chosen at an edge of their grid beyond which a better one may lie.

    Most choices at an edge do no harm, since the curve is flat there. One is open if R² still rose by the last step of
    the grid, or if the whole grid lies on one side of the penalties that fit the noise: there the curve is flat, too.

    Parameters
    ----------
    models
        Models whose penalties were searched for; without a search nothing is found.
    noise
        Of the training spectra.
    is_standardized
        Whether pixels were divided by their standard deviation, so that α per spectrum has a scale.

    Returns
    -------
    dict
        The penalty by model; the global model is 0, the expert of bin k is k + 1.
    """
    if models.search is None:
        return {}
    label = models.labels.index(models.search.target)
    low, high = _fitting(noise, is_standardized)
    counts = [models.global_count, *models.expert_counts]
    found = {}
    for k in range(1 if models.search.by == "global" else len(counts)):
        curve = models.search.curve(k)
        best = curve.best(label)
        per_spectrum = curve.alphas[best] / max(counts[k], 1)
        is_too_small = best == len(curve.alphas) - 1 and per_spectrum * (1 + 1e-9) < low
        is_too_large = best == 0 and per_spectrum > high * (1 + 1e-9)
        if is_too_small or is_too_large or curve.gain_at_edge(label) >= _GAIN_AT_EDGE:
            found[k] = float(curve.alphas[best])
    return found


def _list(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:_SHOWN]))
    return f"{shown}, …" if len(numbers) > _SHOWN else shown


def evaluate_hypotheses(
    r2_oracle: Estimate,
    delta: Estimate,
    r2_oracle_by_bin: Mapping[int, float],
    stated: HypothesesConfig,
    describe: Sequence[str],
    doubts: Sequence[str] = (),
) -> list[Hypothesis]:
    """Evaluate the stated hypotheses on covered spectra, by their point estimates; with ``doubts`` none is judged.

    Parameters
    ----------
    r2_oracle, delta
        Overall R²_oracle and ΔR².
    r2_oracle_by_bin
        Mean R²_oracle of each bin that has one.
    stated
        The thresholds, and the bins expected lowest (or None).
    describe
        A name for every bin.
    """
    found = [
        ("H1", f"R²_oracle > {stated.r2_oracle:g}", str(r2_oracle), r2_oracle.mean > stated.r2_oracle),
        ("H2", f"ΔR² ≥ {stated.delta_r2:g}", str(delta), delta.mean >= stated.delta_r2),
    ]
    if stated.lowest_r2_bins is not None:
        expected = sorted(stated.lowest_r2_bins)
        lowest = sorted(sorted(r2_oracle_by_bin, key=lambda number: r2_oracle_by_bin[number])[: len(expected)])
        found.append(
            (
                "H3",
                f"bins {', '.join(map(str, expected))} have the lowest R²_oracle",
                "lowest: " + ", ".join(describe[number] for number in lowest),
                lowest == expected,
            )
        )
    return [
        Hypothesis(name=name, statement=statement, found=words, passed=None if doubts else bool(passed))
        for name, statement, words, passed in found
    ]

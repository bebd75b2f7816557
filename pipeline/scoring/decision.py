"""From figures of merit to words: the decision by stated thresholds, and the hypotheses.

To build experts needs evidence, not a point estimate: the lower end of the interval must clear the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.config import DecisionConfig, HypothesesConfig
from pipeline.scoring.summary import Decision, Estimate, Hypothesis

__all__ = [
    "BUILD",
    "NOT_WORTH_IT",
    "UNDECIDED",
    "VERDICTS",
    "Verdict",
    "decide",
    "evaluate_hypotheses",
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
#: All outcomes, from the least gain to the largest.
VERDICTS = (NOT_WORTH_IT, UNDECIDED, BUILD)


def find_verdict(words: str) -> Verdict:
    """Return a verdict by its words."""
    return next(one for one in VERDICTS if one.words == words)


def decide(delta: Estimate, thresholds: DecisionConfig, confidence: float) -> Decision:
    """Decide on a mixture of experts from ΔR² and its interval.

    The verdict is *build experts* where the lower end of the interval reaches ``decision.continue``, and *not worth it*
    where its upper end stays below ``decision.stop``. Anything else is *undecided*, and the sentence says where the
    point estimate lies and what the interval straddles.
    """
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


def evaluate_hypotheses(
    r2_oracle: Estimate,
    delta: Estimate,
    r2_oracle_by_bin: Mapping[int, float],
    stated: HypothesesConfig,
    describe: Sequence[str],
) -> list[Hypothesis]:
    """Evaluate the stated hypotheses on covered spectra, by their point estimates.

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
        Hypothesis(name=name, statement=statement, found=words, passed=passed)
        for name, statement, words, passed in found
    ]

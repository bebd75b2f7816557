"""From figures of merit to words: the decision by stated thresholds, and the hypotheses.

"Continue" needs evidence, not a point estimate: the interval's lower end must clear the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.config import DecisionConfig, HypothesesConfig

__all__ = ["Decision", "Estimate", "Hypothesis", "decide", "evaluate_hypotheses"]


@dataclass(frozen=True)
class Estimate:
    """A figure of merit over seeds: mean, standard deviation (0 for one seed), confidence interval."""

    mean: float
    std: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True)
class Decision:
    """``verdict`` is continue, stop or undecided; ``sentence`` is what the report opens with."""

    verdict: str
    sentence: str


@dataclass(frozen=True)
class Hypothesis:
    """One line of the hypotheses table."""

    name: str
    statement: str
    found: str
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def decide(delta: Estimate, thresholds: DecisionConfig, confidence: float) -> Decision:
    """Decide on a mixture of experts from ΔR² and its interval.

    At least ``continue`` with the interval's lower end → continue; below ``stop`` with its upper end → stop;
    anything else is undecided, and the sentence says where the point estimate lies and what the interval
    straddles.
    """
    if not (math.isfinite(delta.mean) and math.isfinite(delta.low) and math.isfinite(delta.high)):
        return Decision(
            "undecided", "Undecided: ΔR² is undefined on these test spectra; more of them must lie in bins."
        )
    go, halt = thresholds.continue_, thresholds.stop
    figure = f"ΔR² = {delta.mean:+.4f} ({confidence:.0%} interval {delta.low:+.4f} to {delta.high:+.4f})"
    if delta.low >= go:
        return Decision("continue", f"{figure} clears the threshold of {go:g}: a mixture of experts is worth building.")
    if delta.high < halt:
        return Decision(
            "stop",
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
    return Decision("undecided", f"Undecided: {figure}; the point estimate is {place}{reason}.")


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
        Hypothesis(
            "H1",
            f"R²_oracle > {stated.r2_oracle:g}",
            str(r2_oracle),
            r2_oracle.mean > stated.r2_oracle,
        ),
        Hypothesis("H2", f"ΔR² ≥ {stated.delta_r2:g}", str(delta), delta.mean >= stated.delta_r2),
    ]
    if stated.lowest_r2_bins is not None:
        expected = sorted(stated.lowest_r2_bins)
        lowest = sorted(sorted(r2_oracle_by_bin, key=lambda number: r2_oracle_by_bin[number])[: len(expected)])
        found.append(
            Hypothesis(
                "H3",
                f"bins {', '.join(map(str, expected))} have the lowest R²_oracle",
                "lowest: " + ", ".join(describe[number] for number in lowest),
                lowest == expected,
            )
        )
    return found

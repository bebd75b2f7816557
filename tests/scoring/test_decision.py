from __future__ import annotations

import pytest

from pipeline.config import DecisionConfig, HypothesesConfig
from pipeline.scoring import (
    BUILD,
    NOT_WORTH_IT,
    UNDECIDED,
    VERDICTS,
    Estimate,
    Verdict,
    decide,
    evaluate_hypotheses,
    find_verdict,
)

THRESHOLDS = DecisionConfig.model_validate({"continue": 0.05, "stop": 0.02})


@pytest.mark.parametrize(
    ("mean", "low", "high", "verdict", "words"),
    [
        (0.10, 0.06, 0.14, BUILD, "clears the threshold of 0.05"),
        (0.10, 0.05, 0.14, BUILD, "clears"),
        (0.10, 0.04, 0.14, UNDECIDED, "above the threshold of 0.05, but the interval straddles 0.05"),
        (0.01, -0.01, 0.019, NOT_WORTH_IT, "stays below 0.02"),
        (0.01, -0.01, 0.02, UNDECIDED, "below the threshold of 0.02, but the interval straddles 0.02"),
        (0.03, 0.025, 0.04, UNDECIDED, "between 0.02 and 0.05 and so is the whole interval"),
        (0.03, 0.025, 0.06, UNDECIDED, "between 0.02 and 0.05, but the interval straddles 0.05"),
        (0.03, 0.01, 0.04, UNDECIDED, "between 0.02 and 0.05, but the interval straddles 0.02"),
        (-0.19, -0.25, -0.12, NOT_WORTH_IT, "stays below"),
    ],
)
def test_decide(mean: float, low: float, high: float, verdict: Verdict, words: str) -> None:
    decision = decide(Estimate.of(mean, 0.0, low, high), THRESHOLDS, 0.95)
    assert decision.verdict == verdict.words
    assert find_verdict(decision.verdict) is verdict
    assert words in decision.sentence
    assert f"{mean:+.4f}" in decision.sentence


def test_verdicts_are_told_apart_by_their_words_and_their_style() -> None:
    assert [one.words for one in VERDICTS] == ["not worth it", "undecided", "build experts"]
    assert len({one.style for one in VERDICTS}) == len(VERDICTS)


def test_hypotheses_pass_and_fail_on_point_estimates() -> None:
    by_bin = {0: 0.1, 1: 0.8, 2: 0.9, 3: 0.2, 4: 0.7, 5: 0.8, 6: 0.15, 7: 0.6, 8: 0.7}
    names = [f"bin {k}" for k in range(9)]
    found = evaluate_hypotheses(
        Estimate.of(0.62, 0, 0.5, 0.7), Estimate.of(0.04, 0, 0.03, 0.06), by_bin, HypothesesConfig(), names
    )
    assert [(h.name, h.passed) for h in found] == [("H1", True), ("H2", False), ("H3", True)]
    swapped = by_bin | {6: 0.75, 7: 0.1}
    third = evaluate_hypotheses(
        Estimate.of(0.5, 0, 0, 1), Estimate.of(0.1, 0, 0, 1), swapped, HypothesesConfig(), names
    )[2]
    assert not third.passed
    assert third.found == "lowest: bin 0, bin 3, bin 7"
    stated = HypothesesConfig(lowest_r2_bins=None)
    assert len(evaluate_hypotheses(Estimate.of(0.5, 0, 0, 1), Estimate.of(0.1, 0, 0, 1), by_bin, stated, names)) == 2


def test_an_undefined_headroom_is_undecided() -> None:
    decision = decide(Estimate.of(float("nan"), 0.0, float("nan"), float("nan")), THRESHOLDS, 0.95)
    assert decision.verdict == UNDECIDED.words
    assert "undefined" in decision.sentence
    assert "nan" not in decision.sentence

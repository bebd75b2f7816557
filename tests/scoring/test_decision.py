from __future__ import annotations

import numpy as np
import pytest

from pipeline.config import DecisionConfig, HypothesesConfig
from pipeline.noise import MarginalNoise, Noise, NoiseDraw
from pipeline.ridge import ExpertModels, SolvedSearch
from pipeline.schema import STREAM_TRAIN
from pipeline.scoring import (
    BUILD,
    NOT_WORTH_IT,
    UNDECIDED,
    VERDICTS,
    WITHHELD,
    Estimate,
    Likeness,
    Part,
    Scope,
    Verdict,
    decide,
    evaluate_hypotheses,
    find_doubts,
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
    assert [one.words for one in VERDICTS] == ["not worth it", "undecided", "build experts", "withheld"]
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


def test_no_hypothesis_is_judged_where_the_verdict_is_withheld() -> None:
    one = Estimate.of(0.7, 0, 0.6, 0.8)
    found = evaluate_hypotheses(one, one, {0: 0.7}, HypothesesConfig(lowest_r2_bins=None), ["bin 0"], ["no unit"])
    assert [one.passed for one in found] == [None, None]


def test_an_undefined_headroom_is_undecided() -> None:
    decision = decide(Estimate.of(float("nan"), 0.0, float("nan"), float("nan")), THRESHOLDS, 0.95)
    assert decision.verdict == UNDECIDED.words
    assert "undefined" in decision.sentence
    assert "nan" not in decision.sentence


# --- What withholds a verdict.


def make_models(*, alpha: float, n: int, search: SolvedSearch | None = None) -> ExpertModels:
    return ExpertModels(
        labels=("log_g",),
        global_weights=np.zeros((1, 1)),
        global_intercepts=np.zeros(1),
        expert_weights=np.zeros((1, 1, 1)),
        expert_intercepts=np.zeros((1, 1)),
        global_alpha=alpha,
        expert_alphas=np.array([alpha]),
        global_count=n,
        expert_counts=np.array([n]),
        search=search,
    )


def make_search(r2_of_global: list[float], r2_of_expert: list[float], by: str = "per_expert") -> SolvedSearch:
    sse = 1 - np.array([r2_of_global, r2_of_expert])
    n = len(r2_of_global)
    return SolvedSearch(
        by=by,
        target="log_g",
        alphas=10.0 ** np.arange(n),
        sse=sse[:, None, :, None],
        tss=np.ones((2, 1)),
        chosen=sse.argmin(axis=1),
        weights=np.zeros((n, 2, 1, 1)),
        intercepts=np.zeros((n, 2, 1)),
    )


def make_part(r2_global: float = 0.5, r2_oracle: float = 0.6, n_train: int = 1000, n_test: int = 100) -> Part:
    merits = {"r2_global": r2_global, "r2_oracle": r2_oracle, "delta_r2": r2_oracle - r2_global}
    estimates = {name: Estimate.of(value, 0, value, value) for name, value in merits.items()}
    every = Scope(n_train=n_train, n_test=n_test, mae_oracle=0.1, mae_global=0.1, **estimates)
    covered = Scope(**dict(every) | {"n_test": n_test // 2})
    return Part(scopes={"covered": covered, "all": every}, bins=())


DRAWN, MARGINAL = NoiseDraw(1.0, 42, STREAM_TRAIN), MarginalNoise(1.0)
FIT = make_models(alpha=100.0, n=1000)


def doubts(
    part: Part | None = None,
    noise: Noise = DRAWN,
    models: ExpertModels = FIT,
    likeness: Likeness | None = None,
    *,
    is_standardized: bool = True,
) -> list[str]:
    return find_doubts(part or make_part(), noise, [models], likeness, is_standardized=is_standardized)


def test_nothing_speaks_against_sound_numbers() -> None:
    assert doubts() == []
    assert doubts(likeness=Likeness(400, 50, (7, 9, 11, 13), ())) == [], "four odd stars of 400 are no other kind"


@pytest.mark.parametrize(
    ("part", "nouns"),
    [
        (make_part(r2_global=-4.39, r2_oracle=-2.85), ["R²_global is -4.3900", "R²_oracle is -2.8500"]),
        (make_part(r2_global=-0.01), ["R²_global is -0.0100"]),
        (make_part(n_train=99), ["99", "100", "exchanged"]),
    ],
)
def test_impossible_numbers_withhold_the_verdict(part: Part, nouns: list[str]) -> None:
    [doubt] = doubts(part)
    assert all(noun in doubt for noun in nouns)
    decision = decide(part.covered.delta_r2, THRESHOLDS, 0.95, [doubt])
    assert decision.verdict == WITHHELD.words
    assert doubt in decision.sentence


@pytest.mark.parametrize(
    ("alpha", "noise", "is_fit"),
    [
        *((1e5, DRAWN, False), (1001.0, DRAWN, False), (1000.0, DRAWN, True), (10.0, DRAWN, True), (9.9, DRAWN, False)),
        *((0.1, MARGINAL, True), (0.09, MARGINAL, False), (100.0, MARGINAL, True), (101.0, MARGINAL, False)),
        (1e-3, NoiseDraw(0.2, 42, STREAM_TRAIN), True),
    ],
)
def test_a_penalty_that_does_not_fit_the_number_of_spectra_withholds_the_verdict(
    alpha: float, noise: Noise, is_fit: bool
) -> None:
    found = doubts(noise=noise, models=make_models(alpha=alpha, n=1000))
    assert (found == []) == is_fit
    assert all("per_spectrum" in doubt for doubt in found)
    assert doubts(noise=noise, models=make_models(alpha=alpha, n=1000), is_standardized=False) == []


@pytest.mark.parametrize(
    ("search", "named"),
    [
        (make_search([0.1, 0.3, 0.2], [0.1, 0.3, 0.2]), None),
        (make_search([0.1, 0.2, 0.3], [0.1, 0.3, 0.2]), "100 for the global model"),
        (make_search([0.1, 0.3, 0.2], [0.4, 0.3, 0.2]), "1 for the expert of bin 0"),
        (make_search([0.1, 0.3, 0.2], [0.4, 0.3, 0.2], by="global"), None),
        (make_search([0.2999, 0.3, 0.3001], [0.1, 0.3, 0.2]), None),  # flat: nothing is to be had beyond the edge
        (make_search([0.3], [0.3]), None),
    ],
)
def test_a_choice_at_an_edge_of_the_grid_withholds_the_verdict(search: SolvedSearch, named: str | None) -> None:
    found = doubts(models=make_models(alpha=1e9, n=10, search=search))
    assert (found == []) == (named is None)
    assert all(str(named) in doubt for doubt in found)


def test_a_grid_far_from_what_fits_withholds_the_verdict_though_its_curve_is_flat() -> None:
    flat = make_search([0.2999, 0.3, 0.3001], [0.1, 0.3, 0.2])  # the largest of 1, 10 and 100
    assert doubts(models=make_models(alpha=100.0, n=10_000, search=flat)) == []
    models = make_models(alpha=100.0, n=10_001, search=flat)
    [doubt] = doubts(models=models)
    assert "100 for the global model" in doubt
    assert doubts(models=models, noise=MARGINAL) == []
    assert doubts(models=models, is_standardized=False) == []


def test_few_test_spectra_in_bins_withhold_the_verdict() -> None:
    assert doubts(make_part(n_test=60)) == []  # half of them are covered
    [few] = doubts(make_part(n_test=58))
    assert few == (
        "only 29 test spectra lie in bins, and at least 30 are required: an interval from so few is too narrow."
    )


def test_test_spectra_of_another_kind_withhold_the_verdict() -> None:
    [doubt] = doubts(likeness=Likeness(400, 50, tuple(range(5, 17)), (7,)))
    assert "12 of 400 test spectra (rows 5, 6, 7, 8, 9, …)" in doubt
    assert "1 of 50 pixels (pixels 7)" in doubt

"""The test spectra, read once for each noise: predictions of every model that anybody asks, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.base import replacing
from pipeline.noise import Noise, test_noises
from pipeline.questions import Facts, Question, Reading, Trained, Truth
from pipeline.ridge import join_experts
from pipeline.schema import LABELS
from pipeline.scoring import (
    PREDICTIONS_FILE,
    Columns,
    ScoredBinning,
    ScoredDraw,
    Stacked,
    predict_stacked,
    score_binning,
    score_experts,
    tabulate_predictions,
)

__all__ = ["read_test_spectra", "read_truth"]

FloatArray = NDArray[np.float64]


def read_truth(facts: Facts) -> Truth:
    """Read the labels of the test spectra, and assign these to the bins of every binning.

    Test spectra need the target alone: a label that some of them do not have is left out.
    """
    columns = facts.test.columns
    known = {label: np.asarray(columns[label], dtype=np.float64) for label in (facts.settings.target, *LABELS)}
    labels = {
        label: values for label, values in known.items() if label == facts.settings.target or np.isfinite(values).all()
    }
    return Truth(labels, [binning.assign(columns) for binning in facts.binnings])


def read_test_spectra(facts: Facts, questions: Sequence[Question[Any]]) -> list[ScoredDraw]:
    """Read the test spectra once for each noise, score the models, and let every question have what it asked for.

    The predictions of the noises that the verdict is about are written to the run folder.

    Returns
    -------
    list of ScoredDraw
        The scores that the verdict is about, in the order of the training noises.
    """
    pairs = [(one, noise) for one in facts.trained for noise in _choose_test_noises(facts, one)]
    scored: list[ScoredDraw] = []
    frames: list[pd.DataFrame] = []
    with facts.progress.step("predict", len(pairs) * facts.test.n_spectra) as advance:
        for trained, test_noise in pairs:
            reading = _read(facts, questions, trained, test_noise, advance)
            if not trained.is_compared:
                scored.append(reading.draw)
                frames.append(_tabulate(facts, reading))
    with replacing(facts.folder / PREDICTIONS_FILE) as temporary:
        pd.concat(frames, ignore_index=True).to_parquet(temporary, index=False)
    return scored


def _choose_test_noises(facts: Facts, trained: Trained) -> Sequence[Noise]:
    return test_noises(facts.settings.noise.test, trained.noise, facts.settings.seeds, facts.test.has_noisy)


@dataclass(frozen=True)
class _Asked:
    """What is predicted in one read: the main binning's models, the other binnings' experts, and the questions'."""

    main: Sequence[Columns]
    others: Sequence[Columns]
    of_questions: Sequence[Sequence[Columns]]

    @property
    def columns(self) -> list[Columns]:
        """All of them, in this order."""
        return [*self.main, *self.others, *(one for asked in self.of_questions for one in asked)]


def _read(
    facts: Facts,
    questions: Sequence[Question[Any]],
    trained: Trained,
    test_noise: Noise,
    advance: Callable[[int], None],
) -> Reading:
    """Read the test spectra under one noise, and score them."""
    target = facts.settings.target
    asked = _Asked(
        main=[Columns.of_models(one, target) for one in trained.models],
        # All experts of all binnings as those of one model; their global model is the main binning's.
        others=[Columns.of_models(join_experts(trained.others), target)] if trained.others else [],
        of_questions=[question.columns(trained, test_noise) for question in questions],
    )
    stacked = predict_stacked(facts.test, asked.columns, test_noise, facts.settings.precision, advance)
    n = len(asked.main)
    reading = _score(facts, trained, test_noise, stacked[:n])
    if trained.others:
        reading.binnings = _score_binnings(facts, reading, stacked[n])
    begin = n + len(asked.others)
    for question, own in zip(questions, asked.of_questions, strict=True):
        question.hear(reading, stacked[begin : begin + len(own)])
        begin += len(own)
    return reading


def _score(facts: Facts, trained: Trained, test_noise: Noise, found: Sequence[Stacked]) -> Reading:
    """Score the main binning's models of every training set."""
    predicted = np.stack([one.values for one in found])
    variances = [one.variances for one in found if one.variances is not None]
    scores = score_experts(
        facts.truth.labels[facts.settings.target],
        predicted,
        facts.truth.bins[0],
        facts.bootstrap,
        np.stack(variances) if variances else None,
    )
    if trained.noise.is_single:  # what they warn of is what drawn noise does
        facts.warnings += [warning for warning in trained.whole.warnings if warning not in facts.warnings]
    draw = ScoredDraw(trained.noise, test_noise, trained.models, scores)
    return Reading(trained, test_noise, draw, found[-1].values, found[-1].variances)


def _score_binnings(facts: Facts, reading: Reading, found: Stacked) -> list[ScoredBinning]:
    """Score the experts of every binning, the main one first."""
    main, covered = facts.truth.bins[0], float(np.mean(facts.truth.bins[0] >= 0))
    whole = reading.draw.scores[-1]
    scored = [
        ScoredBinning(facts.binnings[0], reading.draw, reading.trained.whole, reading.predicted, whole, covered, True)
    ]
    first = 1
    for binning, models, bins in zip(facts.binnings[1:], reading.trained.others, facts.truth.bins[1:], strict=True):
        own = found.select([0, *range(first, first + models.n_experts)])
        first += models.n_experts
        scored.append(
            score_binning(
                binning,
                reading.draw,
                models,
                facts.truth.labels[facts.settings.target],
                (bins, main),
                own.values,
                facts.bootstrap,
                own.variances,
            )
        )
    return scored


def _tabulate(facts: Facts, reading: Reading) -> pd.DataFrame:
    known = (facts.truth.labels[facts.settings.target], facts.truth.bins[0])
    frame = tabulate_predictions((reading.draw.seed, reading.draw.level), *known, reading.predicted, reading.variance)
    return frame.assign(**{f"y_{name}": values for name, values in reading.routed.items()})

"""The test spectra under a run's models: predictions written, figures of merit of every noise and binning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.base import replacing
from pipeline.config import ExperimentConfig
from pipeline.noise import Noise, test_noises
from pipeline.questions.ablation import ScoredBinning
from pipeline.questions.gate import RunGate, ScoredBinningGate, ScoredGate, score_gate
from pipeline.questions.labels import other_labels, score_label
from pipeline.questions.penalty import tabulate_search
from pipeline.ridge import ExpertModels, join_experts, read_models
from pipeline.run.folder import Run
from pipeline.run.models import ModelFiles
from pipeline.run.spectra import SpectraSets
from pipeline.run.tables import ScoredRun
from pipeline.scoring import (
    PREDICTIONS_FILE,
    ScoredDraw,
    predict_noisy,
    resampling,
    score_experts,
    tabulate_predictions,
)

__all__ = ["score_models"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Truth:
    """What is known of the test spectra: the target, the bin in every binning, the main one first, and other labels.

    All of shape (N,).
    """

    labels: FloatArray
    bins: Sequence[NDArray[np.int64]]
    others: Mapping[str, FloatArray]


def _score_sets(
    draw: Noise,
    test_noise: Noise,
    models: Sequence[ExpertModels],
    truth: _Truth,
    predicted: FloatArray,
    config: ExperimentConfig,
    variance: FloatArray | None = None,
) -> ScoredDraw:
    """Score predictions of shape (models, N, 1 + K), global model first; means, if they have a variance.

    After those of the models may come those of their search (:meth:`pipeline.ridge.models.ExpertModels.along_search`).
    """
    n = len(models)
    predicted, tried = predicted[:n], predicted[n:]
    variance, tried_variance = (None, None) if variance is None else (variance[:n], variance[n:])
    scores = score_experts(truth.labels, predicted, truth.bins[0], resampling(config), variance)
    found = models[-1].search
    table = None
    if found is not None:
        label = models[-1].labels.index(found.target)
        table = tabulate_search(found, label, truth.labels, truth.bins[0], tried, tried_variance)
    return ScoredDraw(draw, test_noise, models, scores, table)


def score_models(run: Run, sets: SpectraSets, files: Sequence[ModelFiles], gate: RunGate | None = None) -> ScoredRun:
    """Predict and score the test spectra; write the predictions of the noise that the verdict is about."""
    columns = sets.test.columns
    labels = np.asarray(columns[run.config.target], dtype=np.float64)
    others_known = {label: np.asarray(columns[label], dtype=np.float64) for label in other_labels(run.config)}
    # Test spectra need the target alone.
    others_known = {label: values for label, values in others_known.items() if np.isfinite(values).all()}
    truth = _Truth(labels, [binning.assign(columns) for binning in run.binnings], others_known)
    draws: list[ScoredDraw] = []
    compared: list[ScoredDraw] = []
    others: list[ScoredBinning] = []
    frames: list[pd.DataFrame] = []
    gates: list[ScoredGate] = []
    of_binnings: list[ScoredBinningGate] = []
    quality = gate.quality.ask(sets.test) if gate is not None and gate.quality is not None else None
    noise, seeds, has_noisy = run.config.noise, run.config.seeds, sets.test.has_noisy
    pairs = [(file, one) for file in files for one in test_noises(noise.test, file.noise, seeds, has_noisy)]
    reads = sum(len(file.names) for file, _ in pairs)
    if gate is not None:
        reads += sum(one.is_single and not run.is_compared(file.noise) for file, one in pairs)
    with run.progress.step("predict", reads * sets.test.n_spectra) as advance:
        for file, test_noise in pairs:
            draw, predicted, variance = _score_draw(run, sets, truth, file, test_noise, advance)
            if run.is_compared(file.noise):
                compared.append(draw)
                continue
            draws.append(draw)
            known = (labels, truth.bins[0])
            frame = tabulate_predictions((draw.seed, draw.draw.level), *known, predicted, variance)
            if gate is not None and test_noise.is_single:
                gates.append(score_gate(run, sets, gate, file.main, draw, known, predicted, advance))
                frame = frame.assign(**{f"y_{route}": values for route, values in gates[-1].routed.items()})
            frames.append(frame)
            if file.others:
                others.append(ScoredBinning.main(run.binnings[0], draw, float(np.mean(truth.bins[0] >= 0))))
                for one, known, own in _score_binnings(run, sets, truth, file, draw, advance):
                    others.append(one)
                    if quality is not None and test_noise.is_single:
                        of_binnings += quality.route(run, one, known, own, gates[-1])
    with replacing(run.folder / PREDICTIONS_FILE) as temporary:
        pd.concat(frames, ignore_index=True).to_parquet(temporary, index=False)
    if gate is not None and not gates:
        run.warnings.append("marginal test noise has no single spectra to route, so the gate was not held against any")
    return ScoredRun(draws, compared, others, gates=gates, binning_gates=of_binnings)


def _score_draw(
    run: Run,
    sets: SpectraSets,
    truth: _Truth,
    file: ModelFiles,
    test_noise: Noise,
    advance: Callable[[int], None],
) -> tuple[ScoredDraw, FloatArray, FloatArray | None]:
    """Score the main binning's models; return also the predictions of the largest training set, and their variances."""
    models = read_models(run.folder / file.main)
    sets_of_models = [*models, *models[-1].along_search()]
    # What is only held against the verdict's noise is compared by the target.
    n_sets, others = len(sets_of_models), {} if run.is_compared(file.noise) else truth.others
    # The other labels come from the same read, by the models of all folds.
    predicted, variance = predict_noisy(
        sets.test,
        sets_of_models + [models[-1]] * len(others),
        [run.config.target] * n_sets + [*others],
        test_noise,
        run.config.precision,
        advance,
    )
    of_labels = {}
    for k, (label, known) in enumerate(others.items(), start=n_sets):
        spread = None if variance is None else variance[k]
        of_labels[label] = score_label(label, known, truth.bins[0], predicted[k], run.config, spread)
    predicted, variance = predicted[:n_sets], None if variance is None else variance[:n_sets]
    if file.noise.is_single:  # what they warn of is what drawn noise does
        run.warnings += [warning for warning in models[-1].warnings if warning not in run.warnings]
    scored = _score_sets(file.noise, test_noise, models, truth, predicted, run.config, variance)
    scored = replace(scored, labels=of_labels)
    whole = len(models) - 1
    return scored, predicted[whole], None if variance is None else variance[whole]


def _score_binnings(
    run: Run, sets: SpectraSets, truth: _Truth, file: ModelFiles, draw: ScoredDraw, advance: Callable[[int], None]
) -> Iterator[tuple[ScoredBinning, tuple[FloatArray, NDArray[np.int64]], FloatArray]]:
    """Score the models of all other binnings, in one read of the test spectra.

    Yield also labels and bins (N,), and the predictions of the global model and the experts, (N, 1 + K).
    """
    models = read_models(run.folder / str(file.others))
    # All experts as those of one model: one product for all of them.
    predicted, variance = predict_noisy(
        sets.test, [join_experts(models)], run.config.target, draw.test_noise, run.config.precision, advance
    )
    first = 1
    for binning, own, bins in zip(run.binnings[1:], models, truth.bins[1:], strict=True):
        columns = [0, *range(first, first + own.n_experts)]
        first += own.n_experts
        spread = None if variance is None else variance[0][:, columns]
        of_experts = predicted[0][:, columns]
        scored = ScoredBinning.score_predictions(
            binning, draw, own, truth.labels, (bins, truth.bins[0]), of_experts, run.config, spread
        )
        yield scored, (truth.labels, bins), of_experts

"""The models of a run, solved where their key has changed, and their scores.

Test spectra are read once for each noise, for all models of all questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.accumulate import MomentsFolder
from pipeline.base import join_tables, replacing
from pipeline.bins import Binning, choose_prefixes, count_in_folds
from pipeline.config import AlphaSearch, RidgeConfig, content_hash
from pipeline.noise import Noise, compares, test_noises
from pipeline.plan import ExperimentPlan
from pipeline.questions import Facts, Question, Reading, Trained, Truth
from pipeline.ridge import (
    ExpertModels,
    SolveJob,
    TooFewSpectraError,
    join_experts,
    read_models,
    require_searchable,
    solve_folders,
    write_models,
)
from pipeline.schema import LABELS, RIDGE_ALGORITHM
from pipeline.scoring import (
    PREDICTIONS_FILE,
    Columns,
    Comparison,
    ScoredBinning,
    ScoredDraw,
    Stacked,
    measure_training,
    predict_stacked,
    score_binning,
    score_experts,
    tabulate_predictions,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "drop_unsearchable",
    "models_file",
    "others_file",
    "read_test_spectra",
    "read_truth",
    "settle_global",
    "solve_models",
]


def models_file(noise: Noise) -> str:
    """Return the product that holds the main binning's models of a noise, for growing training sets."""
    return f"models/{noise.name}.npz"


def others_file(noise: Noise) -> str:
    """Return the product that holds the models of all other binnings."""
    return f"models/{noise.name}_binnings.npz"


def drop_unsearchable(facts: Facts) -> None:
    """Refuse folds that a search for the penalty cannot use, before the pass over the spectra.

    Other binnings than the main one whose experts would search on such folds are left out, with a warning.
    """
    alpha = facts.settings.ridge.alpha
    if not isinstance(alpha, AlphaSearch):
        return

    def require(binning: Binning) -> None:
        blocks = ((start, binning.assign(block)) for start, block in facts.train.iter_columns(binning.base.columns))
        counts = count_in_folds(facts.plan.folds, blocks, binning.n_bins)
        require_searchable(counts.tolist(), facts.settings.ridge, binning)

    main, *others = facts.binnings
    require(main)
    kept = [main]
    for binning in others:
        try:
            if alpha.by == "per_expert":
                require(binning)
        except TooFewSpectraError as error:
            facts.warnings.append(f"the binning {binning.name!r} is left out: {error}")
        else:
            kept.append(binning)
    facts.binnings = tuple(kept)


def solve_models(facts: Facts, moments: Sequence[MomentsFolder], cost: ExperimentPlan) -> list[Trained]:
    """Solve the models that are not there yet; return every noise's, each file read once.

    The main binning's models are solved for every training size of the learning curve, the others' for all folds
    together, and only for the noises that the verdict is about.
    """
    settings = facts.settings
    # What each noise's models are made of.
    chosen = {"chosen_for": settings.target} if isinstance(settings.ridge.alpha, AlphaSearch) else {}
    ridge = settings.ridge.model_dump(mode="json") | chosen
    prefixes = tuple(choose_prefixes(facts.plan.fold_lengths, settings.learning_curve))
    common: dict[str, Any] = {
        "covered": facts.binnings[0].covered,
        "target": settings.target,
        "threads": cost.solve_threads,
        "holds_folds": cost.solve_holds_folds,
    }
    keys = {one: content_hash([RIDGE_ALGORITHM, one.key, vars(one.draw), ridge, prefixes]) for one in moments}
    missing = [one for one in moments if not facts.products.is_made(models_file(one.draw), keys[one])]
    jobs = [SolveJob(one, facts.binnings[0], settings.ridge, **common, prefixes=prefixes) for one in missing]
    for place, solved in _solve(facts, jobs):
        _write(facts, models_file(missing[place].draw), keys[missing[place]], solved)
    models = {one: read_models(facts.folder / models_file(one.draw)) for one in moments}
    others = _solve_others(facts, {one: keys[one] for one in moments if not _is_compared(facts, one)}, models, common)
    return [
        Trained(
            one.draw, one, models_file(one.draw), models[one], others.get(one, ()), is_compared=_is_compared(facts, one)
        )
        for one in moments
    ]


def _is_compared(facts: Facts, moments: MomentsFolder) -> bool:
    return compares(facts.settings.noise.mode, moments.draw)


def _solve_others(
    facts: Facts,
    keys: dict[MomentsFolder, str],
    models: dict[MomentsFolder, list[ExpertModels]],
    common: dict[str, Any],
) -> dict[MomentsFolder, list[ExpertModels]]:
    """Solve the experts of all binnings but the main one, with the main one's global models."""
    binnings = facts.binnings[1:]
    if not binnings:
        return {}
    described = [[one.name, one.columns, one.groups, one.members] for one in binnings]
    keys = {one: content_hash([key, described]) for one, key in keys.items()}
    missing = [one for one, key in keys.items() if not facts.products.is_made(others_file(one.draw), key)]
    jobs = [
        SolveJob(
            one,
            binning,
            settle_global(facts.settings.ridge, models[one][-1]),
            known_global=facts.folder / models_file(one.draw),
            **common,
            prefixes=(one.n_folds,),
        )
        for one in missing
        for binning in binnings
    ]
    solved: dict[MomentsFolder, list[ExpertModels | None]] = {one: [None] * len(binnings) for one in missing}
    for place, found in _solve(facts, jobs, "other bins"):
        one = missing[place // len(binnings)]
        solved[one][place % len(binnings)] = replace(found[-1], search=None)
        if all(solved[one]):
            _write(facts, others_file(one.draw), keys[one], [own for own in solved[one] if own is not None])
    return {one: read_models(facts.folder / others_file(one.draw)) for one in keys}


def _solve(facts: Facts, jobs: Sequence[SolveJob], title: str = "solve") -> Iterable[tuple[int, list[ExpertModels]]]:
    return solve_folders(jobs, client=facts.client, progress=facts.progress, title=title) if jobs else ()


def settle_global(ridge: RidgeConfig, main: ExpertModels) -> RidgeConfig:
    """Return the settings of other binnings' models: the global model's penalty where it has chosen for all."""
    if isinstance(ridge.alpha, AlphaSearch) and ridge.alpha.by == "global":
        return ridge.model_copy(update={"alpha": main.global_alpha})
    return ridge


def _write(facts: Facts, name: str, key: str, models: Sequence[ExpertModels]) -> None:
    write_models(Path(facts.folder / name), models, {"key": key})
    facts.products.record(name, key)


def read_truth(facts: Facts) -> Truth:
    """Read the labels of the test spectra, and assign these to the bins of every binning.

    Test spectra need the target alone: a label that some of them do not have is left out.
    """
    columns = facts.test.columns
    target: str = facts.settings.target
    known = {label: np.asarray(columns[label], dtype=np.float64) for label in (target, *LABELS)}
    labels = {label: values for label, values in known.items() if label == target or np.isfinite(values).all()}
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
    asked: dict[Noise, list[_Asked]] = {}
    compared: set[float] = set()
    for number, (trained, test_noise) in enumerate(pairs):
        # One draw of every level tells whether the test spectra are like the training spectra.
        compare = not trained.is_compared and trained.noise.level not in compared
        compared |= {trained.noise.level} if compare else set()
        own = _ask(facts, questions, trained, test_noise, number, compare=compare)
        asked.setdefault(test_noise, []).append(own)
    found: dict[int, Reading] = {}
    with facts.progress.step("predict", len(asked) * facts.test.n_spectra) as advance:
        for test_noise, all_asked in asked.items():
            for own, reading in _read(facts, questions, test_noise, all_asked, advance):
                if not own.trained.is_compared:
                    found[own.number] = reading
    of_verdict = [found[number] for number in sorted(found)]
    with replacing(facts.folder / PREDICTIONS_FILE) as temporary:
        join_tables(_tabulate(facts, reading) for reading in of_verdict).to_parquet(temporary, index=False)
    return [reading.draw for reading in of_verdict]


def _choose_test_noises(facts: Facts, trained: Trained) -> Sequence[Noise]:
    return test_noises(facts.settings.noise.test, trained.noise, facts.settings.seeds, facts.test.has_noisy)


@dataclass(frozen=True)
class _Asked:
    """What is predicted for one training noise: the main binning's models, the others' experts, and the questions'.

    ``number`` is its place among all pairs of training and test noise. ``comparison`` holds the test spectra against
    the training spectra, where that is asked for.
    """

    number: int
    trained: Trained
    main: Sequence[Columns]
    others: Sequence[Columns]
    of_questions: Sequence[Sequence[Columns]]
    comparison: Comparison | None

    @property
    def columns(self) -> list[Columns]:
        """All of them, in this order."""
        return [*self.main, *self.others, *(one for asked in self.of_questions for one in asked)]


def _ask(
    facts: Facts, questions: Sequence[Question[Any]], trained: Trained, test_noise: Noise, number: int, *, compare: bool
) -> _Asked:
    target = facts.settings.target
    tested = _as_tested(facts, trained, test_noise)
    return _Asked(
        number,
        trained,
        main=[Columns.of_models(one, target) for one in trained.models],
        # All experts of all binnings as those of one model; their global model is the main binning's.
        others=[Columns.of_models(join_experts(trained.others), target)] if trained.others else [],
        of_questions=[question.columns(trained, test_noise) for question in questions],
        comparison=Comparison(measure_training(facts.train, tested, facts.settings.precision)) if compare else None,
    )


def _read(
    facts: Facts,
    questions: Sequence[Question[Any]],
    test_noise: Noise,
    asked: Sequence[_Asked],
    advance: Callable[[int], None],
) -> Iterator[tuple[_Asked, Reading]]:
    """Read the test spectra under one noise, for all training noises that are tested on it, and score them."""
    comparisons = [own.comparison for own in asked if own.comparison is not None]

    def watch(rows: NDArray[np.floating], spread: NDArray[np.float64] | None) -> None:
        for comparison in comparisons:
            comparison.add(rows, spread)

    columns = [one for own in asked for one in own.columns]
    stacked = iter(
        predict_stacked(
            facts.test, columns, test_noise, facts.settings.precision, advance, watch if comparisons else None
        )
    )
    for own in asked:
        reading = _score(facts, own.trained, test_noise, list(islice(stacked, len(own.main))))
        if own.comparison is not None:
            reading.draw = replace(reading.draw, likeness=own.comparison.finish())
        for of_others in islice(stacked, len(own.others)):
            reading.binnings = _score_binnings(facts, reading, of_others)
        for question, wanted in zip(questions, own.of_questions, strict=True):
            question.hear(reading, list(islice(stacked, len(wanted))))
        yield own, reading


def _as_tested(facts: Facts, trained: Trained, test_noise: Noise) -> Noise:
    """Return the noise that training spectra are compared under: means with means, single spectra with single ones."""
    if trained.noise.is_single == test_noise.is_single:
        return trained.noise
    return trained.noise.drawn(facts.settings.seeds[0]) if test_noise.is_single else test_noise


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

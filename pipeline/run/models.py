"""The models of a run, solved where their key has changed: for the main binning and for all others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.accumulate import MomentsFolder
from pipeline.bins import Binning, choose_prefixes, count_in_folds
from pipeline.config import AlphaSearch, RidgeConfig, content_hash
from pipeline.noise import Noise, compares
from pipeline.plan import ExperimentPlan
from pipeline.questions import Facts, Trained
from pipeline.ridge import (
    ExpertModels,
    SolveJob,
    TooFewSpectraError,
    read_models,
    require_searchable,
    solve_folders,
    write_models,
)
from pipeline.schema import RIDGE_ALGORITHM

__all__ = ["drop_unsearchable", "models_file", "others_file", "settle_global", "solve_models"]


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
    keys = {one: content_hash([RIDGE_ALGORITHM, facts.plan.key, vars(one.draw), ridge, prefixes]) for one in moments}
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
    for place, found in _solve(facts, jobs):
        one = missing[place // len(binnings)]
        solved[one][place % len(binnings)] = replace(found[-1], search=None)
        if all(solved[one]):
            _write(facts, others_file(one.draw), keys[one], [own for own in solved[one] if own is not None])
    return {one: read_models(facts.folder / others_file(one.draw)) for one in keys}


def _solve(facts: Facts, jobs: Sequence[SolveJob]) -> Iterable[tuple[int, list[ExpertModels]]]:
    return solve_folders(jobs, client=facts.client, progress=facts.progress) if jobs else ()


def settle_global(ridge: RidgeConfig, main: ExpertModels) -> RidgeConfig:
    """Return the settings of other binnings' models: the global model's penalty where it has chosen for all."""
    if isinstance(ridge.alpha, AlphaSearch) and ridge.alpha.by == "global":
        return ridge.model_copy(update={"alpha": main.global_alpha})
    return ridge


def _write(facts: Facts, name: str, key: str, models: Sequence[ExpertModels]) -> None:
    write_models(Path(facts.folder / name), models, {"key": key})
    facts.products.record(name, key)

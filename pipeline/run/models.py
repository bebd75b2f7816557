"""The models of a run, solved where their key has changed: for the main binning and for all others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.accumulate import AccumulationPlan, MomentsFolder
from pipeline.bins import Binning, choose_prefixes, count_in_folds
from pipeline.config import AlphaSearch, RidgeConfig, content_hash
from pipeline.noise import Noise
from pipeline.plan import ExperimentPlan
from pipeline.ridge import (
    ExpertModels,
    SolveJob,
    TooFewSpectraError,
    read_models,
    require_searchable,
    solve_folders,
    write_models,
)
from pipeline.run.folder import Run
from pipeline.run.spectra import SpectraSets
from pipeline.schema import RIDGE_ALGORITHM

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["ModelFiles", "require_searchable_folds", "settle_global", "solve_models", "warn_of_sizes"]

#: Share of a training size by which the nearest number of whole folds may miss it without a word.
_FAR = 0.1


@dataclass(frozen=True)
class ModelFiles:
    """The files of one noise's models: the main binning's for growing training sets, and all other binnings'."""

    noise: Noise
    main: str
    others: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """Those that there are."""
        return (self.main, self.others) if self.others else (self.main,)


def require_searchable_folds(run: Run, sets: SpectraSets, plan: AccumulationPlan) -> None:
    """Refuse folds that a search for the penalty cannot use, before the pass over the spectra.

    Other binnings than the main one whose experts would search on such folds are left out, with a warning.
    """
    alpha = run.config.ridge.alpha
    if not isinstance(alpha, AlphaSearch):
        return

    def require(binning: Binning) -> None:
        blocks = ((start, binning.assign(block)) for start, block in sets.train.iter_columns(binning.base.columns))
        counts = count_in_folds(plan.folds, blocks, binning.n_bins)
        require_searchable(counts.tolist(), run.config.ridge, binning)

    main, *others = run.binnings
    require(main)
    kept = [main]
    for binning in others:
        try:
            if alpha.by == "per_expert":
                require(binning)
        except TooFewSpectraError as error:
            run.warnings.append(f"the binning {binning.name!r} is left out: {error}")
        else:
            kept.append(binning)
    run.binnings = tuple(kept)


def warn_of_sizes(run: Run, plan: AccumulationPlan) -> None:
    """Say which training sizes of the learning curve whole folds cannot come near."""
    for wanted in run.config.learning_curve or ():
        nearest = min(choose_prefixes(plan.fold_lengths, [wanted]).values())
        if abs(nearest - wanted) > _FAR * wanted:
            run.warnings.append(
                f"learning_curve: {wanted:,} training spectra were asked for, and {nearest:,} are the nearest that "
                f"whole folds give; more compute.folds (now {run.config.compute.folds}) give finer steps"
            )


def solve_models(
    run: Run, plan: AccumulationPlan, moments: Sequence[MomentsFolder], cost: ExperimentPlan, client: Client | None
) -> list[ModelFiles]:
    """Solve the models that are not there yet; return the files of every noise's.

    The main binning's models are solved for every training size of the learning curve, the others' for all folds
    together.
    """
    others = run.binnings[1:]
    files = [
        ModelFiles(
            one.draw,
            f"models/{one.draw.name}.npz",
            f"models/{one.draw.name}_binnings.npz" if others and not run.is_compared(one.draw) else None,
        )
        for one in moments
    ]
    ridge, target = run.config.ridge, run.config.target
    settings = ridge.model_dump(mode="json") | ({"chosen_for": target} if isinstance(ridge.alpha, AlphaSearch) else {})
    prefixes = tuple(choose_prefixes(plan.fold_lengths, run.config.learning_curve))
    keys = [content_hash([RIDGE_ALGORITHM, plan.key, vars(one.draw), settings, prefixes]) for one in moments]
    covered = run.binnings[0].covered

    missing = [k for k, file in enumerate(files) if not run.is_made(file.main, keys[k])]
    common: dict[str, Any] = {
        "covered": covered,
        "target": target,
        "threads": cost.solve_threads,
        "holds_folds": cost.solve_holds_folds,
    }
    jobs = [SolveJob(moments[k], run.binnings[0], ridge, **common, prefixes=prefixes) for k in missing]
    for place, models in _solve(run, jobs, client):
        _write(run, files[missing[place]].main, keys[missing[place]], models)
    described = [[one.name, one.columns, one.groups, one.members] for one in others]
    keys = [content_hash([key, described]) for key in keys]
    missing = [k for k, file in enumerate(files) if file.others and not run.is_made(file.others, keys[k])]
    jobs = [
        SolveJob(
            moments[k],
            binning,
            **settle_global(run.config.ridge, run.folder / files[k].main),
            **common,
            prefixes=(moments[k].n_folds,),
        )
        for k in missing
        for binning in others
    ]
    solved: dict[int, list[ExpertModels | None]] = {k: [None] * len(others) for k in missing}
    for place, models in _solve(run, jobs, client):
        k = missing[place // len(others)]
        solved[k][place % len(others)] = replace(models[-1], search=None)
        if all(solved[k]):
            _write(run, str(files[k].others), keys[k], [one for one in solved[k] if one is not None])
    return files


def _solve(run: Run, jobs: Sequence[SolveJob], client: Client | None) -> Iterable[tuple[int, list[ExpertModels]]]:
    return solve_folders(jobs, client=client, progress=run.progress) if jobs else ()


def settle_global(ridge: RidgeConfig, main: Path) -> dict[str, Any]:
    """Return the settings of other binnings' models.

    The global model of the file ``main`` is theirs, too, and so is its penalty where it chose for all.
    """
    if isinstance(ridge.alpha, AlphaSearch) and ridge.alpha.by == "global":
        ridge = ridge.model_copy(update={"alpha": read_models(main)[-1].global_alpha})
    return {"ridge": ridge, "known_global": main}


def _write(run: Run, name: str, key: str, models: Sequence[ExpertModels]) -> None:
    write_models(run.folder / name, models, {"key": key})
    run.record(name, key)

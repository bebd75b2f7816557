"""The bin design of a run: what is still to be tried, the divisions chosen, their models, and their test scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import models
from pipeline.bins import OUTSIDE
from pipeline.checkpoints import MomentsFolder
from pipeline.checkpoints_plan import AccumulationPlan
from pipeline.config import AlphaSearch, RidgeConfig, content_hash
from pipeline.design import Band, HeldOutErrors, HeldOutJob, hold_out_models
from pipeline.design_choice import DesignSearch, DrawErrors, SpreadOfCells, choose_divisions
from pipeline.design_grid import FineGrid
from pipeline.divisions import Rectangle
from pipeline.errors import InputError
from pipeline.experiment_models import ModelFiles
from pipeline.experiment_run import Run
from pipeline.files import remove_leftovers, replacing
from pipeline.folds import count_in_folds
from pipeline.models import read_models, trained_cells, write_models
from pipeline.noise import Noise
from pipeline.predictions import predict_noisy
from pipeline.schema import LABELS
from pipeline.scored import ScoredDraw
from pipeline.solve import SolveJob, solve_folders
from pipeline.spectra_sets import SpectraSets
from pipeline.summary_ablation import ScoredBinning
from pipeline.summary_design import ScoredDesign

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["RunDesign", "design_products", "require_divisible", "score_design", "search_design"]

#: Raised when the same moments and settings would give other errors or divisions.
ALGORITHM_VERSION = 1
_GLOBAL, _BINS = "global", "bins"


@dataclass(frozen=True, eq=False)
class RunDesign:
    """The search of a run, and the file with the models of each noise draw it was made for."""

    search: DesignSearch
    files: dict[Noise, str]


@dataclass(frozen=True)
class _Part:
    """One noise draw of the search: its moments, the settled penalty, what its products are made of."""

    moments: MomentsFolder
    ridge: RidgeConfig
    trained_on: tuple[int, ...]
    target: str
    main: Path
    key: str

    @property
    def errors_file(self) -> str:
        return f"design/{self.moments.draw.name}.json"

    @property
    def models_file(self) -> str:
        return f"models/{self.moments.draw.name}_design.npz"

    def plan_job(self, name: str, bands: tuple[Band, ...], threads: int) -> HeldOutJob:
        return HeldOutJob(name, self.moments, self.ridge, self.trained_on, self.target, bands, threads)


def require_divisible(run: Run, sets: SpectraSets, plan: AccumulationPlan) -> None:
    """Refuse a fine grid that no expert could be tried on, before the pass over the spectra.

    Raises
    ------
    InputError
        If some fold leaves too few spectra in the whole grid, or hardly any test spectrum lies in it.
    """
    if run.config.design is None:
        return
    grid = plan.cells.grids[-1]
    blocks = ((start, grid.assign(block)) for start, block in sets.train.iter_columns(grid.columns))
    counts = count_in_folds(plan.folds, blocks, grid.n_bins).sum(axis=1)
    left = int(counts.sum() - counts.max())
    if left < run.config.ridge.min_spectra:
        raise InputError(
            f"design.grid has {left} training spectra outside fold {int(np.argmax(counts))} of {len(counts)}, at least "
            f"{run.config.ridge.min_spectra} are required (ridge.min_spectra) to try experts on that fold; move its "
            "edges to where the spectra are, or change compute.folds"
        )
    n_test = sum(int((grid.assign(block) != OUTSIDE).sum()) for _, block in sets.test.iter_columns(grid.columns))
    if n_test < 2:
        raise InputError(
            f"design.grid covers {n_test} test spectra, at least two are required to score its divisions; move its "
            "edges to where the spectra are"
        )


def search_design(
    run: Run,
    plan: AccumulationPlan,
    moments: Sequence[MomentsFolder],
    files: Sequence[ModelFiles],
    threads: tuple[int, int],
    client: Client | None,
) -> RunDesign | None:
    """Choose the best divisions of the run's fine grid, and solve their models on all folds; None without a design.

    Parameters
    ----------
    run
        Its products are made again only where their keys have changed.
    plan, moments, files
        Of the pass, for every noise draw: its moments and the models of the main binning. Only draws at the headline
        level, of the noise that the verdict is about, have a part in the choice.
    threads
        Bands tried, and models solved, side by side.
    client
        A Dask client whose workers solve.
    """
    design = run.config.design
    if design is None:
        return None
    remove_leftovers(run.folder / "design")
    fine, main = FineGrid.of_cells(plan.cells), run.binnings[0].members
    parts = [
        _plan_part(run, plan, one, file)
        for one, file in zip(moments, files, strict=True)
        if one.draw.level == run.config.headline_level and not run.is_compared(one.draw)
    ]
    answers = _answer_parts(run, parts, fine, threads[0], client)
    first = parts[0].moments
    spread = SpreadOfCells.of_folds([first.open(k) for k in range(first.n_folds)], LABELS.index(run.config.target))
    search = choose_divisions(fine, main, [_read_errors(one) for one in answers], spread, design.experts)
    _solve_divisions(run, parts, search, threads[1], client)
    return RunDesign(search, {part.moments.draw: part.models_file for part in parts})


def design_products(run: Run, found: RunDesign | None) -> dict[str, str]:
    """Return the keys of what test scores are made from."""
    return {name: run.products[name] for name in found.files.values()} if found else {}


def _plan_part(run: Run, plan: AccumulationPlan, moments: MomentsFolder, file: ModelFiles) -> _Part:
    ridge, target = run.config.ridge, run.config.target
    if isinstance(ridge.alpha, AlphaSearch):
        # Every rectangle takes what the global model chose: a search for each would cost as many times more.
        ridge = ridge.model_copy(update={"alpha": read_models(run.folder / file.main)[-1].global_alpha})
    covered = run.binnings[0].covered
    trained_on = trained_cells(ridge, moments.n_cells, covered)
    versions = [ALGORITHM_VERSION, models.ALGORITHM_VERSION]
    key = content_hash([versions, plan.key, vars(moments.draw), ridge.model_dump(mode="json"), target])
    return _Part(moments, ridge, trained_on, target, run.folder / file.main, key)


def _plan_bands(fine: FineGrid) -> dict[str, tuple[Band, ...]]:
    """Return a task for every choice of rows: all rectangles of these rows, by their left edge."""
    n_rows, n_columns = fine.shape
    bands = {}
    for top, bottom in combinations(range(n_rows + 1), 2):
        of_columns = [fine.cells_of(Rectangle((top, bottom), (k, k + 1))) for k in range(n_columns)]
        bands[f"rows {top}-{bottom}"] = tuple(tuple(of_columns[left:]) for left in range(n_columns))
    return bands


def _answer_parts(
    run: Run, parts: Sequence[_Part], fine: FineGrid, threads: int, client: Client | None
) -> list[dict[str, HeldOutErrors]]:
    """Return the held-out errors of every part; each task's are on disk as soon as it is done."""
    bands: dict[str, tuple[Band, ...]] = {
        _GLOBAL: (),
        _BINS: tuple((cells,) for cells in run.binnings[0].members),
        **_plan_bands(fine),
    }
    answers = [_read_answers(run, part) for part in parts]
    jobs = [
        (k, part.plan_job(name, bands[name], threads))
        for k, part in enumerate(parts)
        for name in bands
        if name not in answers[k]
    ]
    if jobs:
        for place, errors in hold_out_models([job for _, job in jobs], client=client, progress=run.progress):
            k, job = jobs[place]
            answers[k][job.name] = errors
            with replacing(run.folder / parts[k].errors_file) as temporary:
                temporary.write_text(json.dumps({"key": parts[k].key, "parts": answers[k]}), encoding="utf-8")
    return answers


def _read_answers(run: Run, part: _Part) -> dict[str, HeldOutErrors]:
    """Return what an earlier run has found, all or some of it; nothing where it was made of something else."""
    path = run.folder / part.errors_file
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found: dict[str, HeldOutErrors] = content["parts"] if content["key"] == part.key else {}
        return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError):
        run.progress.note(f"{path} is damaged; held-out errors are made again")
        return {}


def _read_errors(answers: dict[str, HeldOutErrors]) -> DrawErrors:
    rectangles = {}
    for name, bands in answers.items():
        if name in (_GLOBAL, _BINS):
            continue
        top, bottom = map(int, name.removeprefix("rows ").split("-"))
        for left, errors in enumerate(bands):
            for width, error in enumerate(errors, start=1):
                if error is not None:
                    rectangles[Rectangle((top, bottom), (left, left + width))] = error
    of_global = np.array(answers[_GLOBAL][0], dtype=np.float64)
    return DrawErrors(of_global, [errors[0] for errors in answers[_BINS]], rectangles)


def _solve_divisions(
    run: Run, parts: Sequence[_Part], search: DesignSearch, threads: int, client: Client | None
) -> None:
    """Solve one expert on all folds for every rectangle of some division, once however many share it."""
    experts = search.fine.divide("design", search.rectangles)
    covered = run.binnings[0].covered
    keys = [content_hash([part.key, experts.members]) for part in parts]
    missing = [k for k, part in enumerate(parts) if not run.is_made(part.models_file, keys[k])]
    jobs = [
        SolveJob(
            parts[k].moments,
            experts,
            parts[k].ridge,
            covered,
            prefixes=(parts[k].moments.n_folds,),
            target=run.config.target,
            threads=threads,
            known_global=parts[k].main,
        )
        for k in missing
    ]
    for place, solved in solve_folders(jobs, client=client, progress=run.progress) if jobs else ():
        part, key = parts[missing[place]], keys[missing[place]]
        write_models(run.folder / part.models_file, solved, {"key": key})
        run.record(part.models_file, key)


def score_design(
    run: Run, sets: SpectraSets, found: RunDesign | None, draws: Sequence[ScoredDraw]
) -> ScoredDesign | None:
    """Score every division on the test spectra, which had no part in its choice; ``draws`` are the main binning's."""
    if found is None:
        return None
    scored = [draw for draw in draws if draw.draw in found.files]
    with run.progress.step("predict", len(scored) * sets.test.n_spectra) as advance:
        of_draws = []
        for draw in scored:
            [solved] = read_models(run.folder / found.files[draw.draw])
            predicted, variance = predict_noisy(
                sets.test, [solved], run.config.target, draw.test_noise, run.config.precision, advance
            )
            spread = None if variance is None else variance[0]
            of_draws.append(_score_divisions(run, sets, found.search, draw, solved, (predicted[0], spread)))
    return ScoredDesign(found.search, tuple(zip(*of_draws, strict=True)))


def _score_divisions(
    run: Run,
    sets: SpectraSets,
    search: DesignSearch,
    draw: ScoredDraw,
    solved: models.ExpertModels,
    predicted: tuple[np.ndarray, np.ndarray | None],
) -> list[ScoredBinning]:
    columns, config = sets.test.columns, run.config
    labels, of_main = np.asarray(columns[config.target], np.float64), run.binnings[0].assign(columns)
    places = {one: 1 + k for k, one in enumerate(search.rectangles)}
    scored = []
    for division in search.divisions:
        binning = search.fine.divide(f"{len(division.rectangles)} experts", division.rectangles)
        own = [0, *(places[one] for one in division.rectangles)]
        mean, spread = (None if one is None else one[:, own] for one in predicted)
        assert mean is not None
        bins = (binning.assign(columns), of_main)
        scored.append(ScoredBinning.score_predictions(binning, draw, solved, labels, bins, mean, config, spread))
    return scored

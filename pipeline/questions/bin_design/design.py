"""Held-out errors of one expert for every rectangle of a fine grid, from the moments of its bins.

A *band* is all rectangles of the same rows and left edge. They grow to the right, so each Gram matrix is read and
added once for all of them, to the sum of its fold. What trains on all folds but one is the sum of the others and not
the total less one: the difference would not be exact where the total cancels, as for a pixel that is constant but in
one fold, and the F·(F − 1) additions cost a fraction of the F factorisations.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.accumulate import AccumulationPlan, MomentsFolder
from pipeline.base import Progress, remove_leftovers, replacing
from pipeline.bins import OUTSIDE, count_in_folds
from pipeline.config import AlphaSearch, RidgeConfig, content_hash
from pipeline.errors import InputError
from pipeline.moments import Moments, MomentsSum, PixelSums, SavedMoments
from pipeline.noise import Noise
from pipeline.questions.ablation import ScoredBinning
from pipeline.questions.bin_design.divisions import (
    DesignSearch,
    DrawErrors,
    FineGrid,
    Rectangle,
    SpreadOfCells,
    choose_divisions,
)
from pipeline.questions.bin_design.table import ScoredDesign
from pipeline.ridge import (
    RidgePath,
    SolveJob,
    SolveMemory,
    held_out_errors,
    models,
    pixel_scale,
    read_models,
    resolve_alpha,
    run_jobs,
    shared_scale,
    solve_folders,
    solve_ridge_path,
    solving_threads,
    trained_cells,
    write_models,
)
from pipeline.run import ModelFiles, Run, SpectraSets
from pipeline.schema import BIN_DESIGN_ALGORITHM, LABELS, RIDGE_ALGORITHM
from pipeline.scoring import ScoredDraw, predict_noisy

if TYPE_CHECKING:
    from distributed import Client

__all__ = [
    "Band",
    "HeldOutJob",
    "RunDesign",
    "design_products",
    "hold_out_models",
    "require_divisible",
    "score_design",
    "search_design",
]

FloatArray = NDArray[np.float64]
#: The cells of one rectangle, then those that the next larger one has besides, and so on.
Band = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class HeldOutJob:
    """What one task answers.

    Attributes
    ----------
    name
        What it is about, for progress and for the file that keeps the answer.
    moments
        Of one noise.
    ridge
        Scaling, the fewest spectra, and the penalty, which is no search.
    trained_on
        The cells that train the global model; ``standardize: global`` scales by them.
    target
        The label whose errors are wanted.
    bands
        The models, by growing training sets; the global model, judged on every cell by itself, if there are none.
    threads
        Bands worked on side by side, at most; each needs :func:`pipeline.ridge.workers.solve_memory`.
    """

    name: str
    moments: MomentsFolder
    ridge: RidgeConfig
    trained_on: tuple[int, ...]
    target: str
    bands: tuple[Band, ...] = ()
    threads: int = 1

    @property
    def size(self) -> int:
        """Models to solve, each once for every fold."""
        return self.moments.n_folds * (sum(map(len, self.bands)) or 1)


#: For every band the Σ(y − ŷ)² of each model over its own held-out spectra, None where a fold leaves too few to train
#: on; of the global model one list with that of every cell.
HeldOutErrors = list[list[float | None]]


def hold_out_models(
    jobs: Sequence[HeldOutJob], *, client: Client | None = None, progress: Progress
) -> Iterator[tuple[int, HeldOutErrors]]:
    """Predict every fold by models trained on the others; yield the sums of squared errors as they are done.

    Parameters
    ----------
    jobs
        What to answer.
    client
        A Dask client whose workers solve; None solves here, with the same bits.
    progress
        Told of finished models.

    Yields
    ------
    int
        Which of the jobs.
    list of list of float or None
        See :data:`HeldOutErrors`, squared label units.
    """
    subjects = [job.name.replace("-", " to ") for job in jobs]
    words = ("design", "design", "searching for divisions")
    yield from run_jobs(client, _hold_out_job, jobs, subjects, words, progress)


@dataclass(frozen=True)
class _Trial:
    """What models of all bands have in common: for each fold left out, the penalty and the shared scale (P,)."""

    folds: Sequence[SavedMoments]
    counts: NDArray[np.int64]
    ridge: RidgeConfig
    alphas: Sequence[float]
    scales: Sequence[FloatArray]
    label: int

    @classmethod
    def plan(cls, job: HeldOutJob) -> _Trial:
        folds = [job.moments.open(fold) for fold in range(job.moments.n_folds)]
        of_folds = [PixelSums.merge([sums[k] for k in job.trained_on]) for sums in map(SavedMoments.pixel_sums, folds)]
        training = [
            PixelSums.merge([one for k, one in enumerate(of_folds) if k != held_out]) for held_out in range(len(folds))
        ]
        return cls(
            folds,
            np.array([saved.counts for saved in folds]),
            job.ridge,
            [resolve_alpha(job.ridge.alpha, one.count) for one in training],
            [shared_scale(one, job.ridge) for one in training],
            LABELS.index(job.target),
        )

    def solve(self, held_out: int, training: Moments, memory: SolveMemory, *, own_scale: bool) -> RidgePath:
        """Return the model of all folds but one."""
        scale = pixel_scale(training) if own_scale else self.scales[held_out]
        return solve_ridge_path(training, self.alphas[held_out], scale, memory.system)

    def error(self, judge: Moments, path: RidgePath) -> float:
        """Return Σ(y − ŷ)² over some held-out spectra."""
        return float(held_out_errors(judge, path)[0, self.label])


def _hold_out_job(job: HeldOutJob, report: Callable[[int], None]) -> HeldOutErrors:
    """Answer one job. The body of a Dask task."""
    trial = _Trial.plan(job)
    done, lock = 0, Lock()

    def advance(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            report(done)

    n_pixels = trial.folds[0].pixel_sums()[0].x_sum.size
    if not job.bands:
        with solving_threads(n_pixels, job.threads) as run:
            of_folds = run(
                lambda fold, memory: _judge_global(trial, job.trained_on, fold, memory, advance),
                range(job.moments.n_folds),
            )
        return [[float(error) for error in np.sum(of_folds, axis=0)]]
    with solving_threads(n_pixels, job.threads, job.moments.n_folds) as run:
        return run(lambda band, memory: _judge_band(trial, band, memory, advance), job.bands)


def _judge_global(
    trial: _Trial, trained_on: Sequence[int], held_out: int, memory: SolveMemory, advance: Callable[[int], None]
) -> list[float]:
    """Return the errors of the global model on every cell of one fold that had no part in it."""
    training = MomentsSum(memory.total)
    for saved in (saved for k, saved in enumerate(trial.folds) if k != held_out):
        for cell in trained_on:
            training.add(saved.read(cell, memory.content))
    path = trial.solve(held_out, training.moments, memory, own_scale=False)
    judge = trial.folds[held_out]
    errors = [
        trial.error(judge.read(cell, memory.content), path) if count else 0.0 for cell, count in enumerate(judge.counts)
    ]
    advance(1)
    return errors


def _judge_band(trial: _Trial, band: Band, memory: SolveMemory, advance: Callable[[int], None]) -> list[float | None]:
    """Return the errors of every model of a band; each takes over the sums of the one before."""
    sums = [MomentsSum(tiles) for tiles in memory.folds]
    cells: list[int] = []
    errors: list[float | None] = []
    for added in band:
        cells += added
        for saved, total in zip(trial.folds, sums, strict=True):
            for cell in added:
                total.add(saved.read(cell, memory.content))
        of_folds = [total.moments for total in sums]
        count = trial.counts[:, cells].sum(axis=1)
        if count.sum() - count.max() < trial.ridge.min_spectra:
            errors.append(None)
            advance(len(of_folds))
            continue
        found = 0.0
        for held_out, judge in enumerate(of_folds):
            training = MomentsSum(memory.total)
            for part in (part for k, part in enumerate(of_folds) if k != held_out):
                training.add(part)
            own_scale = trial.ridge.standardize == "per_expert"
            path = trial.solve(held_out, training.moments, memory, own_scale=own_scale)
            found += trial.error(judge, path)
            advance(1)
        errors.append(found)
    return errors


# --- The bin design of a run: what is still to be tried, the divisions chosen, their models, and their test scores.


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
    versions = [BIN_DESIGN_ALGORITHM, RIDGE_ALGORITHM]
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

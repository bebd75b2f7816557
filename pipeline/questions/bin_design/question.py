"""How many experts, and where to cut: the best division of a fine grid into rectangles, from the same moments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.accumulate import MomentsFolder
from pipeline.base import is_sealed, parse_object, read_file, remove_leftovers, replacing, seal, tabulate
from pipeline.bins import OUTSIDE, count_in_folds
from pipeline.config import AlphaSearch, DesignConfig, ExperimentConfig, RidgeConfig, content_hash
from pipeline.errors import InputError
from pipeline.noise import Noise
from pipeline.questions.bin_design.answer import DesignAnswer, Division, HeldOut
from pipeline.questions.bin_design.divisions import (
    CrossValidated,
    DesignSearch,
    DrawErrors,
    FineGrid,
    Rectangle,
    SpreadOfCells,
    choose_divisions,
)
from pipeline.questions.bin_design.held_out import Band, HeldOutErrors, HeldOutJob, hold_out_models
from pipeline.questions.question import Facts, Needs, Question, Reading, Trained
from pipeline.report import Picture, Section, Show, Table, quantity
from pipeline.ridge import ExpertModels, SolveJob, read_models, solve_folders, trained_cells, write_models
from pipeline.schema import BIN_DESIGN_ALGORITHM, LABELS, RIDGE_ALGORITHM
from pipeline.scoring import (
    MISSING,
    Columns,
    Estimate,
    RunResults,
    ScoredBinning,
    Stacked,
    estimate_merits,
    score_binning,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["BinDesign"]

FloatArray = NDArray[np.float64]
_GLOBAL, _BINS = "global", "bins"
_FILE = "design.csv"


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


def _draw(results: RunResults) -> Figure:
    from pipeline.questions.bin_design.figure import draw_bin_design  # matplotlib, which only pictures need

    return draw_bin_design(results, BinDesign.read(results))


class BinDesign(Question[DesignAnswer]):
    """Search for the best rectangles of a finer grid, on held-out folds; asked by ``design``."""

    name = "bin_design"
    Answer = DesignAnswer
    step = "design"
    files = (_FILE,)
    asked_by = "`design: {grid: COLUMNS_AND_EDGES}`"
    pictures = (
        Picture(
            "moe_bin_design.png",
            "How many experts, and where to cut",
            "First panel: ΔR² of the best division against its number of experts, solid on folds of the training set "
            "that the models had not seen, dashed on the test spectra, with confidence intervals. The diamond stands "
            "for the bins of the run. Second panel: the rectangles of the recommended division, and the bins of the "
            "run. The solid curve alone decided. It can look too good, since the best of many divisions was taken; "
            "the test spectra took no part. Where the curve flattens, more experts bring nothing.",
            _draw,
            lambda results: BinDesign.read(results) is not None,
        ),
    )

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self._search: DesignSearch | None = None
        self._models: dict[Noise, ExpertModels] = {}
        self._scored: list[list[ScoredBinning]] = []

    @classmethod
    def needs(cls, settings: ExperimentConfig) -> Needs:
        """Ask that cells tell the fine grid apart."""
        return Needs(fine={"design.grid": settings.design.grid} if settings.design else {})

    def check(self) -> None:
        """Refuse a fine grid that no expert could be tried on.

        Raises
        ------
        InputError
            If some fold leaves too few spectra in the whole grid, or hardly any test spectrum lies in it.
        """
        if self.facts.settings.design is None:
            return
        grid, least = self.facts.plan.cells.grids[-1], self.facts.settings.ridge.min_spectra
        blocks = ((start, grid.assign(block)) for start, block in self.facts.train.iter_columns(grid.columns))
        counts = count_in_folds(self.facts.plan.folds, blocks, grid.n_bins).sum(axis=1)
        left = int(counts.sum() - counts.max())
        if left < least:
            raise InputError(
                f"design.grid has {left} training spectra outside fold {int(np.argmax(counts))} of {len(counts)}, at "
                f"least {least} are required (ridge.min_spectra) to try experts on that fold; move its edges to where "
                "the spectra are, or change compute.folds"
            )
        n_test = sum(
            int((grid.assign(block) != OUTSIDE).sum()) for _, block in self.facts.test.iter_columns(grid.columns)
        )
        if n_test < 2:
            raise InputError(
                f"design.grid covers {n_test} test spectra, at least two are required to score its divisions; move its "
                "edges to where the spectra are"
            )

    def prepare(self) -> Sequence[str] | None:
        """Choose the best divisions of the fine grid, and solve their models on all folds.

        Only draws at the headline level, of the noise that the verdict is about, have a part in the choice.
        """
        facts, design = self.facts, self.facts.settings.design
        if design is None:
            return None
        remove_leftovers(facts.folder / "design")
        fine, main = FineGrid.of_cells(facts.plan.cells), facts.binnings[0].members
        level = facts.settings.headline_level
        parts = [_plan_part(facts, one) for one in facts.verdict_noises if one.noise.level == level]
        answers = _answer_parts(facts, parts, fine)
        first = parts[0].moments
        spread = SpreadOfCells.of_folds(
            [first.open(k) for k in range(first.n_folds)], LABELS.index(facts.settings.target)
        )
        self._search = choose_divisions(fine, main, [_read_errors(one) for one in answers], spread, design.experts)
        _solve_divisions(facts, parts, self._search)
        for part in parts:
            [self._models[part.moments.draw]] = read_models(facts.folder / part.models_file)
        return [part.models_file for part in parts]

    def columns(self, trained: Trained, test_noise: Noise) -> Sequence[Columns]:
        """Ask the expert of every rectangle."""
        del test_noise
        models = self._models.get(trained.noise)
        return [] if models is None else [Columns.of_models(models, self.facts.settings.target)]

    def hear(self, reading: Reading, found: Sequence[Stacked]) -> None:
        """Score every division on the test spectra, which had no part in its choice."""
        if self._search is None or not found:
            return
        search, [of_rectangles], truth = self._search, found, self.facts.truth
        places = {one: 1 + k for k, one in enumerate(search.rectangles)}
        scored = []
        for division in search.divisions:
            binning = search.fine.divide(f"{len(division.rectangles)} experts", division.rectangles)
            own = of_rectangles.select([0, *(places[one] for one in division.rectangles)])
            bins = (binning.assign(self.facts.test.columns), truth.bins[0])
            models, labels = self._models[reading.trained.noise], truth.labels[self.facts.settings.target]
            scored.append(
                score_binning(
                    binning, reading.draw, models, labels, bins, own.values, self.facts.bootstrap, own.variances
                )
            )
        self._scored.append(scored)

    def answer(self) -> DesignAnswer | None:
        """Return what each number of experts gains, and which to use."""
        if self._search is None:
            return None
        tests = list(zip(*self._scored, strict=True))
        return summarise_design(self._search, tests, self.facts)

    @classmethod
    def tables(cls, answer: DesignAnswer, settings: ExperimentConfig) -> dict[str, pd.DataFrame]:
        """Return a row for each number of experts: held-out and test figures of merit, and the rectangles in words."""
        rows = [
            {
                "experts": one.experts,
                "noise_level": answer.noise_level,
                "target": settings.target,
                "n_train": answer.n_train,
                "r2_oracle_cv": one.r2_oracle,
                "r2_global_cv": one.r2_global,
                "delta_r2_cv": one.delta_r2,
                "n_test": one.n_test,
                **{f"{merit}_test": estimate.mean for merit, estimate in one.test.items()},
                "delta_r2_test_low": one.test["delta_r2"].low,
                "delta_r2_test_high": one.test["delta_r2"].high,
                "recommended": one.experts == answer.recommended,
                "rectangles": "; ".join(one.names),
            }
            for one in answer.divisions
        ]
        return {_FILE: tabulate(rows)}

    @classmethod
    def section(cls, results: RunResults) -> Section | None:
        """Return the advice, what each number of experts gains, and the rectangles to use."""
        answer = cls.read(results)
        if answer is None:
            return None
        tables = [_list_divisions(answer)]
        if answer.chosen is not None:
            tables.append(_list_rectangles(answer.chosen, list(answer.edges)))
        title = "How many experts, and where to cut"
        return Section("design", title, "How many experts", (answer.sentence, *tables, Show("moe_bin_design.png")))


# --- The search: errors of every rectangle on held-out folds, and the models of the divisions that were chosen.


def _plan_part(facts: Facts, trained: Trained) -> _Part:
    ridge, target = facts.settings.ridge, facts.settings.target
    if isinstance(ridge.alpha, AlphaSearch):
        # Every rectangle takes what the global model chose: a search for each would cost as many times more.
        ridge = ridge.model_copy(update={"alpha": trained.whole.global_alpha})
    trained_on = trained_cells(ridge, trained.moments.n_cells, facts.binnings[0].covered)
    versions = [BIN_DESIGN_ALGORITHM, RIDGE_ALGORITHM]
    key = content_hash(
        [
            versions,
            trained.moments.key,
            vars(trained.noise),
            ridge.model_dump(mode="json"),
            target,
        ]
    )
    return _Part(trained.moments, ridge, trained_on, target, facts.folder / trained.file, key)


def _plan_bands(fine: FineGrid) -> dict[str, tuple[Band, ...]]:
    """Return a task for every choice of rows: all rectangles of these rows, by their left edge."""
    n_rows, n_columns = fine.shape
    bands = {}
    for top, bottom in combinations(range(n_rows + 1), 2):
        of_columns = [fine.cells_of(Rectangle((top, bottom), (k, k + 1))) for k in range(n_columns)]
        bands[f"rows {top}-{bottom}"] = tuple(tuple(of_columns[left:]) for left in range(n_columns))
    return bands


def _answer_parts(facts: Facts, parts: Sequence[_Part], fine: FineGrid) -> list[dict[str, HeldOutErrors]]:
    """Return the held-out errors of every part; each task's are on disk as soon as it is done."""
    bands: dict[str, tuple[Band, ...]] = {
        _GLOBAL: (),
        _BINS: tuple((cells,) for cells in facts.binnings[0].members),
        **_plan_bands(fine),
    }
    answers = [_read_answers(facts, part) for part in parts]
    jobs = [
        (k, part.plan_job(name, bands[name], facts.threads["design"]))
        for k, part in enumerate(parts)
        for name in bands
        if name not in answers[k]
    ]
    if jobs:
        for place, errors in hold_out_models([job for _, job in jobs], client=facts.client, progress=facts.progress):
            k, job = jobs[place]
            answers[k][job.name] = errors
            with replacing(facts.folder / parts[k].errors_file) as temporary:
                content = seal({"key": parts[k].key, "parts": answers[k]})
                temporary.write_text(json.dumps(content), encoding="utf-8")
    return answers


def _read_answers(facts: Facts, part: _Part) -> dict[str, HeldOutErrors]:
    """Return what an earlier run has found, all or some of it; nothing where it was made of something else."""
    path = facts.folder / part.errors_file
    try:
        content = parse_object(read_file(path))
        is_sealed(content)  # earlier versions wrote no checksum
        found: dict[str, HeldOutErrors] = content["parts"] if content["key"] == part.key else {}
        return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError):
        facts.progress.note(f"{path} is damaged; held-out errors are made again")
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


def _solve_divisions(facts: Facts, parts: Sequence[_Part], search: DesignSearch) -> None:
    """Solve one expert on all folds for every rectangle of some division, once however many share it."""
    experts = search.fine.divide("design", search.rectangles)
    covered = facts.binnings[0].covered
    keys = [content_hash([part.key, experts.members]) for part in parts]
    missing = [k for k, part in enumerate(parts) if not facts.products.is_made(part.models_file, keys[k])]
    jobs = [
        SolveJob(
            parts[k].moments,
            experts,
            parts[k].ridge,
            covered,
            prefixes=(parts[k].moments.n_folds,),
            target=facts.settings.target,
            threads=facts.threads["solve"],
            known_global=parts[k].main,
        )
        for k in missing
    ]
    for place, solved in solve_folders(jobs, client=facts.client, progress=facts.progress) if jobs else ():
        part, key = parts[missing[place]], keys[missing[place]]
        write_models(facts.folder / part.models_file, solved, {"key": key})
        facts.products.record(part.models_file, key)


# --- What was found, as the summary has it.


def summarise_design(search: DesignSearch, tests: Sequence[Sequence[ScoredBinning]], facts: Facts) -> DesignAnswer:
    """Return the answer from a search and, for each division, its test scores of every seed."""
    design, confidence = facts.settings.design, facts.bootstrap.confidence
    assert design is not None
    chosen = search.recommend(design.reach)
    estimates = [estimate_merits([one.score.covered for one in draws], confidence) for draws in tests]
    divisions = tuple(
        Division(
            **dict(_held_out(score)),
            n_test=draws[0].score.covered.n_test,
            test=test,
            rectangles=tuple(
                {column: (float(low), float(high)) for column, (low, high) in search.fine.spans_of(one).items()}
                for one in division.rectangles
            ),
            names=tuple(map(search.fine.describe, division.rectangles)),
        )
        for division, score, test, draws in zip(search.divisions, search.scores, estimates, tests, strict=True)
    )
    return DesignAnswer(
        noise_level=facts.settings.headline_level,
        edges={column: tuple(map(float, edges)) for column, edges in search.fine.grid.edges.items()},
        n_train=search.n_train,
        n_test=divisions[0].n_test,
        divisions=divisions,
        main=None if search.main is None else _held_out(search.main),
        same_spectra=search.main_is_alike,
        recommended=None if chosen is None else search.scores[chosen].n_experts,
        sentence=_advise(
            search, design, chosen, None if chosen is None else estimates[chosen]["delta_r2"], facts.settings
        ),
    )


def _held_out(score: CrossValidated) -> HeldOut:
    return HeldOut(
        experts=score.n_experts, r2_oracle=score.r2_experts, r2_global=score.r2_global, delta_r2=score.delta_r2
    )


def _advise(
    search: DesignSearch, design: DesignConfig, chosen: int | None, test: Estimate | None, config: ExperimentConfig
) -> str:
    best = search.scores[search.best]
    limit = design.experts
    if chosen is None or test is None:
        return (
            f"No division into at most {limit} rectangles gains on held-out folds: the best has {_count(best)} and "
            f"ΔR² = {best.delta_r2:+.4f}. With these spectra and penalties experts in this plane are not worth "
            "building."
        )
    one = search.scores[chosen]
    most = (
        "the largest gain that was found"
        if one is best
        else f"{one.delta_r2 / best.delta_r2:.0%} of the largest gain that was found ({best.delta_r2:+.4f} with "
        f"{_count(best)})"
    )
    parts = [
        f"Use {_count(one)}, with the rectangles listed below: on held-out folds of the training set they gain "
        f"ΔR² = {one.delta_r2:+.4f}, {most}. No smaller number reaches {design.reach:.0%} of the largest gain."
    ]
    if np.isfinite(test.mean):
        parts.append(
            f"On the test spectra, which played no part in the choice, they gain {test.mean:+.4f} "
            f"({config.bootstrap.confidence:.0%} interval {test.low:+.4f} to {test.high:+.4f})."
        )
    if search.main is not None:
        where = (
            "the same spectra"
            if search.main_is_alike
            else "the spectra that they cover, which are not the same spectra"
        )
        parts.append(
            f"The {search.main.n_experts} bins of the configuration gain {search.main.delta_r2:+.4f} on held-out folds "
            f"of {where}."
        )
    if best.n_experts == limit:
        parts.append(
            f"The gain is largest at the largest number tried; raise design.experts above {limit} to try more."
        )
    if isinstance(config.ridge.alpha, AlphaSearch) and config.ridge.alpha.by == "per_expert":
        parts.append(
            "All experts here took the global model's penalty; with penalties of their own they may gain more."
        )
    edges = search.fine.edges_of(search.divisions[chosen].rectangles)
    if edges is not None:
        stated = ", ".join(f"{column}: [{', '.join(f'{edge:g}' for edge in own)}]" for column, own in edges.items())
        parts.append(f"As bins these are {{{stated}}}.")
    return " ".join(parts)


def _count(score: CrossValidated) -> str:
    return f"{score.n_experts} expert{'s' if score.n_experts > 1 else ''}"


# --- What the report says of it.


def _list_divisions(answer: DesignAnswer) -> Table:
    rows = [
        (
            str(one.experts) + (" (recommended)" if one.experts == answer.recommended else ""),
            _number(one.r2_global, ".4f"),
            _number(one.r2_oracle, ".4f"),
            _number(one.delta_r2),
            *(
                _number(value)
                for value in (one.test["delta_r2"].mean, one.test["delta_r2"].low, one.test["delta_r2"].high)
            ),
        )
        for one in answer.divisions
    ]
    caption = (
        f"Best division for each number of experts, noise level {answer.noise_level:g}, "
        f"{answer.n_train:,} training and {answer.n_test:,} test spectra"
    )
    header = ("Experts", "R²_global, held-out", "R²_oracle, held-out", "ΔR², held-out", "ΔR², test", "low", "high")
    return Table(caption, header, tuple(rows), 1)


def _list_rectangles(chosen: Division, columns: list[str]) -> Table:
    rows = [
        (str(number), *(f"{end:g}" for column in columns for end in one[column]))
        for number, one in enumerate(chosen.rectangles, start=1)
    ]
    header = ("Rectangle", *(f"{quantity(column)} {end}" for column in columns for end in ("from", "to")))
    return Table("Rectangles of the recommended division, as numbered in the figure", header, tuple(rows), 1)


def _number(value: float, form: str = "+.4f") -> str:
    if np.isnan(value):
        return MISSING
    return format(0.0 if abs(value) < 5e-5 else value, form)  # rounding may leave a zero with a minus

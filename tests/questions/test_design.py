"""The bin design from moments: held-out errors against refitting, the choice, the grid's words and the config."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.linear_model import Ridge
from tracing import trace_peak

from pipeline.accumulate import MomentsFolder
from pipeline.base import SilentProgress
from pipeline.bins import OUTSIDE, BinGrid, CellGrid, plan_binnings
from pipeline.config import ExperimentConfig, RidgeConfig, load_config
from pipeline.errors import ConfigError
from pipeline.moments import Moments, write_moments
from pipeline.noise import NoiseDraw
from pipeline.questions.bin_design.answer import DesignAnswer
from pipeline.questions.bin_design.divisions import (
    DrawErrors,
    FineGrid,
    Rectangle,
    SpreadOfCells,
    choose_divisions,
    iter_rectangles,
)
from pipeline.questions.bin_design.held_out import Band, HeldOutJob, hold_out_models
from pipeline.questions.bin_design.question import summarise_design
from pipeline.ridge import solve_memory
from pipeline.schema import LABELS, STREAM_TRAIN
from pipeline.scoring import Bootstrap, Score

N_FOLDS, PIXELS, SHAPE = 4, 12, (2, 3)
GRID = BinGrid({"T_eff": (0.0, 1.0, 2.0), "snr": (0.0, 1.0, 2.0, 3.0)})
FINE = FineGrid.of_cells(CellGrid((GRID,)))
RIDGE = RidgeConfig.model_validate({"alpha": {"per_spectrum": 0.05}, "min_spectra": 20})


class Rows:
    """Spectra whose weights change at ``snr`` = 1: the first column of fine bins needs others than the rest."""

    def __init__(self, n: int = 4000, pixels: int = PIXELS) -> None:
        generator = np.random.default_rng(5)
        self.columns = {"T_eff": generator.uniform(-0.3, 2, n), "snr": generator.uniform(0, 3, n)}
        self.cell, self.fold = GRID.cells(self.columns), generator.integers(0, N_FOLDS, n)
        self.x = generator.standard_normal((n, pixels))
        # A pixel that is constant but in one fold: without it, its scale is 1 and not what rounding leaves.
        self.x[:, -1] = np.where(self.fold == 2, 1000 * self.x[:, -1], 0.5)
        weights = generator.standard_normal((2, pixels))
        weights[:, -1] = 0
        side = (self.columns["snr"] >= 1).astype(int)
        truth = (self.x * weights[side]).sum(axis=1) + 3 * side
        self.y = np.column_stack([truth, truth**2, truth]) + generator.standard_normal((n, 3))

    def write(self, folder: Path, dtype: str = "float64") -> MomentsFolder:
        for fold in range(N_FOLDS):
            cells = []
            for cell in range(GRID.n_cells):
                own = (self.fold == fold) & (self.cell == cell)
                moments = Moments.from_samples(self.x[own], self.y[own], LABELS, x_origin=np.full(self.x.shape[1], 0.0))
                cells.append(replace(moments, gram=moments.gram.astype(dtype)))
            write_moments(folder / f"fold-{fold:03d}", cells, GRID.n_cells, {"key": "k"})
        return MomentsFolder(folder, NoiseDraw(1.0, 1, STREAM_TRAIN), N_FOLDS, GRID.n_cells)


@pytest.fixture(scope="module")
def rows() -> Rows:
    return Rows()


@pytest.fixture(scope="module")
def folder(rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> MomentsFolder:
    return rows.write(tmp_path_factory.mktemp("moments"))


def hold_out(folder: MomentsFolder, ridge: RidgeConfig, bands: tuple[Band, ...] = (), threads: int = 1) -> Any:
    trained_on = tuple(range(folder.n_cells if ridge.train_on == "all" else GRID.n_bins))
    job = HeldOutJob("x", folder, ridge, trained_on, "log_g", bands, threads)
    [(_, errors)] = hold_out_models([job], progress=SilentProgress())
    return errors


def all_errors(folder: MomentsFolder, ridge: RidgeConfig, threads: int = 1) -> dict[Rectangle, float | None]:
    errors = {}
    for top, bottom in ((0, 1), (0, 2), (1, 2)):
        cells = [FINE.cells_of(Rectangle((top, bottom), (k, k + 1))) for k in range(SHAPE[1])]
        bands = tuple(tuple(cells[left:]) for left in range(SHAPE[1]))
        for left, found in enumerate(hold_out(folder, ridge, bands, threads)):
            for k, error in enumerate(found):
                errors[Rectangle((top, bottom), (left, left + k + 1))] = error
    return errors


def refit(rows: Rows, ridge: RidgeConfig, own: np.ndarray, judged: np.ndarray, *, is_global: bool = False) -> float:
    """The slow and obvious way: scikit-learn, fold by fold."""
    trained_on = np.ones(len(rows.cell), bool) if ridge.train_on == "all" else rows.cell < GRID.n_bins
    error = 0.0
    for fold in range(N_FOLDS):
        others = trained_on & (rows.fold != fold)
        of_scale = own & (rows.fold != fold) if ridge.standardize == "per_expert" and not is_global else others
        scale = rows.x[of_scale].std(axis=0)
        scale[(scale == 0) | (ridge.standardize == "none")] = 1
        alpha = ridge.alpha if isinstance(ridge.alpha, float) else 0.05 * others.sum()
        model = Ridge(alpha).fit(rows.x[own & (rows.fold != fold)] / scale, rows.y[own & (rows.fold != fold), 0])
        test = judged & (rows.fold == fold)
        error += float(((rows.y[test, 0] - model.predict(rows.x[test] / scale)) ** 2).sum()) if test.any() else 0.0
    return error


@pytest.mark.parametrize(
    "settings",
    [{}, {"standardize": "per_expert", "alpha": 3.0}, {"standardize": "none", "train_on": "covered"}],
    ids=["shared scale", "own scale, fixed", "no scale, covered"],
)
def test_errors_are_those_of_refitting_without_each_fold(
    rows: Rows, folder: MomentsFolder, settings: dict[str, Any]
) -> None:
    ridge = RIDGE.model_copy(update=settings)
    found = all_errors(folder, ridge)
    assert sorted(found) == sorted(iter_rectangles(SHAPE))
    for one, error in found.items():
        own = np.isin(rows.cell, FINE.cells_of(one))
        assert error == pytest.approx(refit(rows, ridge, own, own), rel=1e-6)
    trained_on = rows.cell < GRID.n_bins if ridge.train_on == "covered" else np.ones(len(rows.cell), bool)
    [of_cells] = hold_out(folder, ridge)
    for cell, error in enumerate(of_cells):
        assert error == pytest.approx(refit(rows, ridge, trained_on, rows.cell == cell, is_global=True), rel=1e-6)


def test_threads_change_no_bit(folder: MomentsFolder) -> None:
    assert all_errors(folder, RIDGE, threads=1) == all_errors(folder, RIDGE, threads=3)
    assert hold_out(folder, RIDGE, threads=1) == hold_out(folder, RIDGE, threads=3)


def test_a_rectangle_that_some_fold_starves_has_no_expert(rows: Rows, folder: MomentsFolder) -> None:
    outside = {}
    for one in iter_rectangles(SHAPE):
        own = np.isin(rows.cell, FINE.cells_of(one))
        outside[one] = min(int((own & (rows.fold != fold)).sum()) for fold in range(N_FOLDS))
    least = sorted(outside.values())[3]
    found = all_errors(folder, RIDGE.model_copy(update={"min_spectra": least + 1}))
    assert {one for one, error in found.items() if error is None} == {one for one in found if outside[one] <= least}
    # A larger rectangle of the band is not touched by a smaller one that has none.
    everything = all_errors(folder, RIDGE)
    assert all(error == everything[one] for one, error in found.items() if error is not None)


def test_the_planted_division_is_found(rows: Rows, folder: MomentsFolder) -> None:
    [of_cells] = hold_out(folder, RIDGE)
    errors = {one: error for one, error in all_errors(folder, RIDGE).items() if error is not None}
    spread = SpreadOfCells.of_folds([folder.open(k) for k in range(N_FOLDS)], 0)
    main = [FINE.cells_of(Rectangle((k, k + 1), (0, 3))) for k in range(2)]
    of_main = [errors[Rectangle((k, k + 1), (0, 3))] for k in range(2)]
    draw = DrawErrors(np.array(of_cells), of_main, errors)
    search = choose_divisions(FINE, main, [draw, draw], spread, 6)
    assert search.recommend(0.95) == 1
    assert search.divisions[1].rectangles == (Rectangle((0, 2), (0, 1)), Rectangle((0, 2), (1, 3)))
    assert search.divisions[1].error == pytest.approx(2 * sum(errors[one] for one in search.divisions[1].rectangles))
    # R² on the covered spectra, two draws that happen to be the same.
    inside = rows.cell < GRID.n_bins
    y = rows.y[inside, 0]
    total = ((y - y.mean()) ** 2).sum()
    assert search.n_train == inside.sum()
    assert search.scores[1].r2_global == pytest.approx(1 - sum(of_cells[: GRID.n_bins]) / total, rel=1e-9)
    assert search.scores[1].r2_experts == pytest.approx(1 - search.divisions[1].error / 2 / total, rel=1e-9)
    assert search.scores[1].delta_r2 > 0.2
    # Rows do not matter here, so dividing by them alone gains nothing to speak of.
    assert search.main is not None
    assert search.main_is_alike
    assert abs(search.main.delta_r2) < 0.01
    assert choose_divisions(FINE, main, [replace(draw, of_bins=[None, 1.0])], spread, 6).main is None
    # Nothing to recommend where experts lose.
    worse = replace(draw, of_global=0 * draw.of_global)
    assert choose_divisions(FINE, main, [worse], spread, 6).recommend(0.95) is None


def test_the_sentence_says_what_to_use_and_what_not(rows: Rows, folder: MomentsFolder) -> None:
    errors = {one: error for one, error in all_errors(folder, RIDGE).items() if error is not None}
    spread = SpreadOfCells.of_folds([folder.open(k) for k in range(N_FOLDS)], 0)
    draw = DrawErrors(np.array(hold_out(folder, RIDGE)[0]), [None], errors)
    design = {"grid": GRID.edges, "experts": 4}
    config = ExperimentConfig.model_validate({"data": {"train": "a", "test": "b"}, "design": design})
    score = Score(50, np.array([0.9, 0.4, 0.5]), np.tile([0.9, 0.4, 0.5], (100, 1)), 0.0, 0.0)

    facts = SimpleNamespace(settings=config, bootstrap=Bootstrap())

    def summarise(draw: DrawErrors) -> DesignAnswer:
        search = choose_divisions(FINE, [FINE.covered], [draw], spread, 4)
        tests = [[SimpleNamespace(score=SimpleNamespace(covered=score))]] * len(search.divisions)
        return summarise_design(search, cast(Any, tests), cast(Any, facts))

    found = summarise(draw)
    assert found.recommended == 2
    assert found.chosen is found.divisions[1]
    assert found.sentence.startswith("Use 2 experts, with the rectangles listed below: on held-out folds")
    assert "gain +0.5000 (95% interval +0.5000 to +0.5000)" in found.sentence
    assert "As bins these are {T_eff: [0, 2], snr: [0, 1, 3]}." in found.sentence
    assert found.main is None
    assert "bins of the configuration" not in found.sentence
    # The least error is that of most experts, by a little: one may want to look further.
    assert "raise design.experts above 4" in summarise(replace(draw, of_rectangles=favour_small(errors))).sentence
    worse = summarise(replace(draw, of_global=0 * draw.of_global))
    assert worse.recommended is None
    assert worse.chosen is None
    assert worse.sentence.startswith("No division into at most 4 rectangles gains on held-out folds: the best has")


def favour_small(errors: dict[Rectangle, float]) -> dict[Rectangle, float]:
    return {one: float(len(FINE.bins_of(one)) ** 2) for one in errors}


def test_memory_does_not_depend_on_cells(tmp_path: Path) -> None:
    pixels = 600
    folder = Rows(600, pixels).write(tmp_path)
    cells = [FINE.cells_of(Rectangle((0, 1), (k, k + 1))) for k in range(SHAPE[1])]
    bands = tuple(tuple(cells[left:]) for left in range(SHAPE[1]))
    _, peak = trace_peak(lambda: hold_out(folder, RIDGE, bands, threads=2))
    assert peak <= solve_memory(pixels, 2, N_FOLDS) + 2**21  # and small sums, blocks of a matrix
    assert peak > 0.9 * solve_memory(pixels, 1, N_FOLDS)


def test_a_division_is_a_binning() -> None:
    two = Rectangle((0, 2), (0, 1)), Rectangle((0, 2), (1, 3))
    binning = FINE.divide("two", two)
    assert binning.n_bins == 2
    columns = {"T_eff": [0.5, 1.5, 2.0, 0.5, -1.0], "snr": [0.5, 0.99, 1.0, 3.0, 1.0]}
    assert binning.assign(columns).tolist() == [0, 0, 1, 1, OUTSIDE]
    assert binning.members == ((0, 3), (1, 2, 4, 5))
    assert FINE.describe(two[1]) == "T_eff 0–2, snr 1–3"
    assert FINE.edges_of(two) == {"T_eff": [0.0, 2.0], "snr": [0.0, 1.0, 3.0]}
    three = Rectangle((0, 2), (0, 1)), Rectangle((0, 1), (1, 3)), Rectangle((1, 2), (1, 3))
    assert FINE.edges_of(three) is None
    assert FINE.edges_of([Rectangle((0, 2), (0, 3))]) == {"T_eff": [0.0, 2.0], "snr": [0.0, 3.0]}


def test_fine_bins_are_cells_of_the_pass_beside_those_of_other_grids() -> None:
    main = BinGrid({"T_eff": (0.5, 1.5), "M_H": (-1.0, 0.0)})
    cells, binnings = plan_binnings(main, {}, ablation=False, fine=GRID)
    fine = FineGrid.of_cells(cells)
    generator = np.random.default_rng(0)
    columns = {name: generator.uniform(-1.5, 3.5, 3000) for name in ("T_eff", "snr", "M_H")}
    cell_of, bin_of = cells.cells(columns), GRID.assign(columns)
    for number, members in enumerate(fine.members):
        np.testing.assert_array_equal(np.isin(cell_of, members), bin_of == number)
    np.testing.assert_array_equal(np.isin(cell_of, fine.covered), bin_of != OUTSIDE)
    np.testing.assert_array_equal(np.isin(cell_of, binnings[0].members[0]), main.assign(columns) == 0)


FINE_EDGES = [-2.0, -1.0, 0.0]


@pytest.mark.parametrize(
    ("design", "message"),
    [
        ({"grid": {"T_eff": [1, 2]}}, r"two columns are required, found 1 \(T_eff\); for example"),
        ({"grid": {}}, r"two columns are required, found 0 \(none\)"),
        ({"grid": {"log_g": [1, 2], "M_H": FINE_EDGES}}, "design.grid may not use the target 'log_g'"),
        ({"grid": {"T_eff": [2, 1], "M_H": FINE_EDGES}}, "edges of 'T_eff' must be at least two increasing numbers"),
        ({"grid": {"T_eff": [1, 2], "M_H": FINE_EDGES}, "experts": 1}, "greater than or equal to 2"),
        ({"grid": {"T_eff": [1, 2], "M_H": FINE_EDGES}, "reach": 1.5}, "less than or equal to 1"),
        ({"grid": {"T_eff": [1, 2], "M_H": FINE_EDGES}, "epxerts": 3}, "epxerts"),
    ],
)
def test_config__raise_on_a_design_that_cannot_be(design: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ExperimentConfig.model_validate({"data": {"train": "a", "test": "b"}, "design": design})


@pytest.mark.parametrize(
    ("design", "words"),
    [
        ("{experts: 3}", "the setting 'design.grid' is required"),
        ("{grid: {T_eff: [1, 2]}}", r"design.grid: two columns are required, found 1"),
        ("{grid: {T_eff: [1, 2], M_H: {quantile: 3}}}", r"'design.grid.M_H.quantile' \(did you mean 'quantiles'\?\)"),
        ("{grid: {T_eff: [1, 2], M_H: [0, 1]}, epxerts: 3}", r"'design.epxerts' \(did you mean 'experts'\?\)"),
    ],
)
def test_config__says_it_in_the_words_of_the_file(design: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"data: {{train: a, test: b}}\ndesign: {design}\n")
    with pytest.raises(ConfigError, match=words):
        load_config(path)


def test_config__raise_on_one_fold() -> None:
    settings = {"data": {"train": "a", "test": "b"}, "compute": {"folds": 1}}
    design = {"grid": {"T_eff": {"quantiles": 3}, "M_H": FINE_EDGES}}
    assert ExperimentConfig.model_validate(settings).design is None
    with pytest.raises(ValidationError, match=r"compute\.folds: 1"):
        ExperimentConfig.model_validate(settings | {"design": design})


def test_config__names_every_further_grid() -> None:
    edges = {"T_eff": [1.0, 2.0], "M_H": FINE_EDGES}
    config = ExperimentConfig.model_validate(
        {"data": {"train": "a", "test": "b"}, "binnings": {"SNR": {"snr": [0, 5]}}, "design": {"grid": edges}}
    )
    assert list(config.further_grids) == ["binnings.SNR", "design.grid"]
    assert {level: replace_levels(config, level).headline_level for level in (0.2, 1.0)} == {0.2: 0.5, 1.0: 1.0}
    assert ExperimentConfig.model_validate(config.to_dict()) == config


def replace_levels(config: ExperimentConfig, level: float) -> ExperimentConfig:
    return ExperimentConfig.model_validate(config.to_dict() | {"noise": {"levels": [level, 0.5]}})

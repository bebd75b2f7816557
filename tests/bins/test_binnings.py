from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bins import MAIN, OUTSIDE, BinGrid, CellGrid, plan_binnings, quantile_edges
from pipeline.config import REFERENCE_EDGES

MAIN_GRID = BinGrid(REFERENCE_EDGES)
SNR = BinGrid({"snr": (0, 2, 4, 7, 30)})
FINE = BinGrid({"T_eff": np.linspace(3750, 6000, 7).tolist(), "M_H": [-2.5, -2, -1.5, -1, -0.5, 0, 0.25, 0.5, 0.75]})


def stars(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Columns with values on edges, between them, outside and NaN."""
    generator = np.random.default_rng(seed)
    columns = {
        "T_eff": generator.choice([*FINE.edges["T_eff"], *generator.uniform(3500, 6300, 20), np.nan], n),
        "M_H": generator.choice([*FINE.edges["M_H"], *generator.uniform(-2.7, 1, 20)], n),
        "snr": generator.choice([*SNR.edges["snr"], *generator.uniform(-1, 33, 20), np.nan], n),
    }
    return {name: values.astype(np.float64) for name, values in columns.items()}


def test_one_grid_has_its_bins_and_the_outside() -> None:
    cells = CellGrid((MAIN_GRID,))
    columns = stars(2000)
    assert cells.n_cells == 10
    np.testing.assert_array_equal(cells.cells(columns), MAIN_GRID.cells(columns))
    assert cells.members(0) == tuple((k,) for k in range(10))


@pytest.mark.parametrize("grids", [(MAIN_GRID, SNR), (MAIN_GRID, FINE), (SNR, MAIN_GRID, FINE)], ids=len)
def test_every_bin_is_the_sum_of_its_cells(grids: tuple[BinGrid, ...]) -> None:
    cells = CellGrid(grids)
    columns = stars(20_000)
    found = cells.cells(columns)
    assert 0 <= found.min() <= found.max() < cells.n_cells
    for k, grid in enumerate(grids):
        members = cells.members(k)
        assert sorted(sum(members, ())) == list(range(cells.n_cells)), "a cell lies in one bin of each grid"
        of_grid = grid.cells(columns)
        for number, own in enumerate(members):
            np.testing.assert_array_equal(of_grid == number, np.isin(found, own))


def test_cells_are_no_finer_than_needed() -> None:
    # The fine grid's edges hold all of the main grid's, so its bins tell everything but one thing: [M/H] = 0.5 exactly
    # is in the main grid, whose last edge is closed, and in a fine bin (one for each T_eff) that is not.
    assert CellGrid((MAIN_GRID, FINE)).n_cells == FINE.n_cells + 6
    assert CellGrid((MAIN_GRID, MAIN_GRID)).n_cells == MAIN_GRID.n_cells
    assert CellGrid((MAIN_GRID, SNR)).n_cells == MAIN_GRID.n_cells * SNR.n_cells


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, 3.0]), min_size=2, max_size=4, unique=True), st.data())
def test_cells_tell_apart_exactly_what_some_grid_does(edges: list[float], data: st.DataObject) -> None:
    others = data.draw(st.lists(st.sampled_from([-0.5, 0.0, 1.0, 2.5]), min_size=2, max_size=3, unique=True))
    grids = (BinGrid({"a": sorted(edges)}), BinGrid({"b": sorted(others), "a": [0.0, 1.0]}))
    values = np.array(list(product(np.arange(-2, 4, 0.25), repeat=2)))
    columns = {"a": values[:, 0], "b": values[:, 1]}
    found = CellGrid(grids).cells(columns)
    codes = np.column_stack([grid.cells(columns) for grid in grids])
    assert len(np.unique(np.column_stack([found, codes]), axis=0)) == len(np.unique(found)) == len(
        np.unique(codes, axis=0)
    )  # fmt: skip


def test_columns_alone_merge_the_main_grid() -> None:
    cells, binnings = plan_binnings(MAIN_GRID, {"SNR": SNR}, ablation=True)
    assert [one.name for one in binnings] == [MAIN, "T_eff only", "M_H only", "SNR"]
    columns = stars(20_000)
    found = cells.cells(columns)
    for one in binnings:
        bins = one.assign(columns)
        assert set(np.unique(bins)) == {OUTSIDE, *range(one.n_bins)}
        for number, own in enumerate(one.members):
            np.testing.assert_array_equal(bins == number, np.isin(found, own))
    of_main, of_t_eff, of_m_h, _ = (one.assign(columns) for one in binnings)
    for merged, axis in ((of_t_eff, 0), (of_m_h, 1)):
        np.testing.assert_array_equal(merged == OUTSIDE, of_main == OUTSIDE)
        expected = np.unravel_index(np.maximum(of_main, 0), (3, 3))[axis]
        np.testing.assert_array_equal(merged[of_main >= 0], expected[of_main >= 0])
    assert [one.describe(0) for one in binnings] == ["bin 0 (Cool, Poor)", "bin 0 (Cool)", "bin 0 (Poor)", "bin 0 (0–2)"]  # fmt: skip  # noqa: E501


def test_names_of_intervals_are_kept() -> None:
    grid = BinGrid({"T_eff": (1, 2, 3), "M_H": (0, 1)}, {"T_eff": ("low", "high")})
    _, binnings = plan_binnings(grid, {}, ablation=True)
    assert binnings[1].bin_names == (("low",), ("high",))


def test_a_single_column_has_no_ablation() -> None:
    _, binnings = plan_binnings(SNR, {}, ablation=True)
    assert [one.name for one in binnings] == [MAIN]
    _, binnings = plan_binnings(MAIN_GRID, {}, ablation=False)
    assert [one.name for one in binnings] == [MAIN]


def test_quantiles_divide_the_training_spectra_and_cover_all() -> None:
    train = [np.arange(50.0), np.arange(50.0, 101.0), np.array([np.nan])]
    assert quantile_edges(train, [np.array([-3.0, np.nan]), np.array([40.0])], 4) == (-3, 25, 50, 75, 100)
    assert quantile_edges([np.zeros(9), np.ones(1)], [np.array([0.5, 2.0])], 4) == (0.0, 2.0)

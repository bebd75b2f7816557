from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bins import OUTSIDE, BinGrid, assign_bins
from pipeline.errors import ConfigError, InputError
from pipeline.store import SpectraStore, open_spectra

REFERENCE = {"T_eff": [3750, 4500, 5250, 6000], "M_H": [-2.0, -1.0, 0.0, 0.5]}


def loop_assign(edges: dict[str, list[float]], row: dict[str, float]) -> int:
    """The definition, one spectrum at a time."""
    number = 0
    for column, cuts in edges.items():
        inside = [
            k
            for k in range(len(cuts) - 1)
            if cuts[k] <= row[column] < cuts[k + 1] or (k == len(cuts) - 2 and row[column] == cuts[-1])
        ]
        if not inside:
            return OUTSIDE
        number = number * (len(cuts) - 1) + inside[0]
    return number


@given(
    st.lists(
        st.tuples(
            st.one_of(st.sampled_from([3750.0, 4500.0, 5250.0, 6000.0]), st.floats(3000, 7000)),
            st.one_of(st.sampled_from([-2.0, -1.0, 0.0, 0.5]), st.floats(-3, 1)),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_assign_equals_the_definition(rows: list[tuple[float, float]]) -> None:
    columns = {"T_eff": np.array([r[0] for r in rows]), "M_H": np.array([r[1] for r in rows])}
    expected = [loop_assign(REFERENCE, {"T_eff": t, "M_H": m}) for t, m in rows]
    assert BinGrid(REFERENCE).assign(columns).tolist() == expected


def test_reference_numbering_and_names() -> None:
    grid = BinGrid(REFERENCE)
    assert (grid.n_bins, grid.n_cells, grid.shape) == (9, 10, (3, 3))
    columns = {"T_eff": [4000, 4000, 5000, 6000], "M_H": [-1.5, 0.5, -1.0, 0.2]}
    assert grid.assign(columns).tolist() == [0, 2, 4, 8]
    assert grid.describe(3) == "bin 3 (Mid, Poor)"
    assert grid.bin_names[5] == ("Mid", "Rich")


def test_neighbouring_floats_fall_on_their_own_side() -> None:
    grid = BinGrid({"T_eff": [3750, 4500, 6000]})
    values = [np.nextafter(4500.0, 0), 4500.0, 6000.0, np.nextafter(6000.0, np.inf), np.nextafter(3750.0, 0)]
    assert grid.assign({"T_eff": values}).tolist() == [0, 1, 1, OUTSIDE, OUTSIDE]


def test_nan_lies_outside_and_is_the_last_cell() -> None:
    grid = BinGrid(REFERENCE)
    columns = {"T_eff": [np.nan, 4000.0], "M_H": [0.0, np.nan]}
    assert grid.assign(columns).tolist() == [OUTSIDE, OUTSIDE]
    assert grid.cells(columns).tolist() == [9, 9]


def test_metallicities_are_called_solar_where_the_sun_is() -> None:
    assert BinGrid({"M_H": [-2.5, -0.7, 0.05, 0.75]}).interval_names["M_H"] == ("Poor", "Solar", "Rich")
    assert BinGrid({"M_H": [-2.5, -1.4, -0.6, 0.75]}).interval_names["M_H"][1] == "−1.4 to −0.6"
    assert BinGrid({"M_H": [-0.5, 0.1, 0.3, 0.75]}).interval_names["M_H"][1] == "0.1 to 0.3"


def test_other_columns_show_their_edges() -> None:
    grid = BinGrid({"snr": [0, 2, 4, 7]})
    assert grid.interval_names["snr"] == ("0–2", "2–4", "4–7")
    assert BinGrid({"M_H": [-2, -0.5, 0.5]}).interval_names["M_H"] == ("−2 to −0.5", "−0.5 to 0.5")
    named = BinGrid({"snr": [0, 2, 4]}, {"snr": ["low", "high"]})
    assert named.bin_names == (("low",), ("high",))


@pytest.mark.parametrize("edges", [{}, {"T_eff": [1]}, {"T_eff": [2, 1]}, {"T_eff": [1, 1]}, {"T_eff": [1, np.nan]}])
def test_grid__raise_on_bad_edges(edges: dict[str, list[float]]) -> None:
    with pytest.raises(ConfigError):
        BinGrid(edges)


def test_assign__raise_on_missing_column() -> None:
    with pytest.raises(InputError, match=r"'T_eff'.*did you mean 'Teff'"):
        BinGrid(REFERENCE).assign({"Teff": [1.0], "M_H": [0.0]})


def test_assign_bins_lets_xarray_group(train_store: SpectraStore) -> None:
    dataset = assign_bins(open_spectra(train_store.path), REFERENCE)
    bins = BinGrid(REFERENCE).assign(train_store.columns)
    means = dataset["T_eff"].groupby("bin").mean()
    assert sorted(means["bin"].values.tolist()) == sorted(set(bins.tolist()))
    for k in set(bins.tolist()):
        expected = train_store.columns["T_eff"][bins == k].mean()
        assert float(means.sel(bin=k)) == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [np.float32, np.dtype(">f4"), np.float64])
@pytest.mark.parametrize("is_widened", [False, True])
def test_labels_on_an_edge_lie_in_the_upper_bin_in_either_precision(dtype: Any, is_widened: bool) -> None:
    edges = (-0.7, -0.1, 0.3, 0.7)
    kind = np.dtype(dtype).newbyteorder("=").type
    beside = [np.nextafter(kind(-0.1), kind(-1)), np.nextafter(kind(0.7), kind(1))]
    values = np.array([*edges, *beside], dtype=dtype).astype(np.float64 if is_widened else dtype)
    assert BinGrid({"M_H": edges}).assign({"M_H": values}).tolist() == [0, 1, 2, 2, 0, -1]


def test_edges_that_single_precision_cannot_tell_apart_are_compared_in_double() -> None:
    grid = BinGrid({"snr": (1e8, 1e8 + 1, 1e8 + 16)})
    assert grid.assign({"snr": np.array([1e8, 1e8 + 8], np.float32)}).tolist() == [0, 1]


def test_bins_are_assigned_to_a_dataset_from_elsewhere() -> None:
    dataset = xr.Dataset({"T_eff": ("star", [4000.0, 5000.0, 9000.0])})
    assert assign_bins(dataset, {"T_eff": [3750, 4500, 6000]})["bin"].to_dict()["data"] == [0, 1, -1]
    with pytest.raises(ConfigError, match=r"xarray\.Dataset"):
        assign_bins("train.zarr", {"T_eff": [3750, 4500]})  # type: ignore[arg-type]

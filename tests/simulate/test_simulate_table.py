"""The params table: pandas must not be able to tell ours from its own."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from pipeline.simulate.shard import write_params_table

ROWS = 1500
# pandas 3 marks with these how it spells missing text; the users' files come from pandas 2, and ours have no such text.
PANDAS_3_ONLY = {"dataset/params@data_col_nan_rep", "dataset/params@mi_level_nan_rep"}
# pandas 2 wrote this and needs it to read a table; pandas 3 does neither.
PANDAS_2_ONLY = {"dataset/params@pandas_version"}

as_pandas_3 = pytest.mark.skipif(int(pd.__version__.split(".")[0]) < 3, reason="blocks come in the order of pandas 3")


@pytest.fixture
def columns() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(3)
    return {
        "id": np.arange(10, 10 + ROWS),
        "T_eff": generator.uniform(3750, 6000, ROWS),
        "log_g": generator.uniform(1, 5, ROWS),
        "ext": np.full(ROWS, np.nan),
        "random_seed": generator.integers(0, 2**31, ROWS),
        "interp_param": np.full(ROWS, b"none"),
    }


@pytest.fixture
def ours(tmp_path: Path, columns: dict[str, np.ndarray]) -> Path:
    path = tmp_path / "ours.h5"
    with h5py.File(path, "w") as file:
        write_params_table(file, "dataset/params", columns)
    return path


@pytest.fixture
def theirs(tmp_path: Path, columns: dict[str, np.ndarray]) -> Path:
    path = tmp_path / "theirs.h5"
    _to_frame(columns).to_hdf(path, key="dataset/params", format="table", index=False)
    return path


def _to_frame(columns: dict[str, np.ndarray]) -> pd.DataFrame:
    frame = pd.DataFrame({name: values for name, values in columns.items() if values.dtype.kind != "S"})
    # pandas 2 kept text as objects, and so do the users' files.
    frame["interp_param"] = pd.Series([text.decode() for text in columns["interp_param"]], dtype=object)
    return frame


def _list_attributes(path: Path) -> dict[str, tuple[object, ...]]:
    """Return value, type, character set and padding of each attribute in the file."""
    found: dict[str, tuple[object, ...]] = {}

    def visit(name: str, node: h5py.Group | h5py.Dataset) -> None:
        for key in node.attrs:
            identifier = h5py.h5a.open(node.id, key.encode())
            kind = identifier.get_type()
            text = (kind.get_cset(), kind.get_size()) if isinstance(kind, h5py.h5t.TypeStringID) else ()
            value = node.attrs[key]
            found[f"{name}@{key}"] = (None if isinstance(value, h5py.Empty) else bytes(value), identifier.dtype, text)

    with h5py.File(path, "r") as file:
        visit("/", file)
        file.visititems(visit)
    return found


def test_pandas_reads_the_same_frame_from_ours_and_theirs(
    ours: Path, theirs: Path, columns: dict[str, np.ndarray]
) -> None:
    read = pd.read_hdf(ours, "dataset/params")
    pd.testing.assert_frame_equal(read, pd.read_hdf(theirs, "dataset/params"))
    for name, values in columns.items():
        if values.dtype.kind != "S":
            np.testing.assert_array_equal(read[name].to_numpy(), values)
    assert list(read.columns) == list(columns)
    assert set(read["interp_param"]) == {"none"}


@as_pandas_3
def test_every_attribute_is_the_one_that_pandas_writes(ours: Path, theirs: Path) -> None:
    found, expected = _list_attributes(ours), _list_attributes(theirs)
    assert set(found) - PANDAS_2_ONLY == set(expected) - PANDAS_3_ONLY
    for name in found.keys() & expected.keys():
        assert found[name] == expected[name], name


@as_pandas_3
def test_table_has_the_layout_that_pandas_writes(ours: Path, theirs: Path) -> None:
    with h5py.File(ours, "r") as mine, h5py.File(theirs, "r") as reference:
        table, expected = mine["dataset/params/table"], reference["dataset/params/table"]
        assert table.dtype == expected.dtype
        assert table.maxshape == expected.maxshape == (None,)
        for name in table.dtype.names:
            np.testing.assert_array_equal(table[name], expected[name])


def test_pandas_appends_to_our_table(ours: Path, columns: dict[str, np.ndarray]) -> None:
    frame = _to_frame(columns)
    frame.to_hdf(ours, key="dataset/params", format="table", append=True, index=False)
    assert len(pd.read_hdf(ours, "dataset/params")) == 2 * ROWS

"""Column names come out of a shard's table without running what the table contains."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from shard_factory import make_frame, write_shard

from pipeline.errors import InputError
from pipeline.shards import read_columns, read_shard_info
from pipeline.shards.layout import parse_pickled_names

NAMES = ["T_eff", "log_g", "über", "a b"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("names", [NAMES, NAMES[:1], [], [f"c{i}" for i in range(1500)]], ids=len)
def test_parse_pickled_names__any_protocol(names: list[str], protocol: int) -> None:
    assert parse_pickled_names(pickle.dumps(names, protocol), "here") == names


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_parse_pickled_names__never_runs_code(tmp_path: Path, protocol: int) -> None:
    trap = tmp_path / "made_by_pickle"
    for value in (Touch(trap), [Touch(trap)], ["T_eff", Touch(trap)]):
        with pytest.raises(InputError, match="nothing in it was run"):
            parse_pickled_names(pickle.dumps(value, protocol), "here")
    assert not trap.exists()
    with pytest.raises(TypeError, match=r"integer|NoneType|int"):  # the trap is a real one: loading it does act
        len(pickle.loads(pickle.dumps(Touch(trap), protocol)))  # noqa: S301
    assert trap.exists()


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b"garbage",
        pickle.dumps(["a"], 0)[:-1],
        pickle.dumps(["a"], 0)[:-4],
        pickle.dumps("a", 0),
        pickle.dumps(("a",), 0),
        pickle.dumps([["a"]], 0),
        pickle.dumps(["a", 1], 0),
        pickle.dumps({"a": 1}, 0),
        b"(lp0\nVa\np1\nag1\na.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"(lp0\n" + b"Va\na" * 400_000 + b".",
    ],
    ids=lambda value: repr(value[:24]),
)
def test_parse_pickled_names__raise_on_anything_else(pickled: bytes) -> None:
    with pytest.raises(InputError, match=r"^x\.h5: .*pickled"):
        parse_pickled_names(pickled, "x.h5: attribute")


@pytest.mark.parametrize("data_columns", [None, ["T_eff", "interp_param", "is_giant"], True])
def test_read_columns__equals_pandas(tmp_path: Path, data_columns: list[str] | bool | None) -> None:
    path = write_shard(tmp_path / "dataset.h5", 20, data_columns=data_columns)
    oracle = pd.read_hdf(path, "dataset/params")
    with h5py.File(path) as file:
        columns, remarks = read_columns(file, "shard")
    assert remarks == ()
    assert sorted(columns) == sorted(oracle.columns)
    for name, values in columns.items():
        expected = oracle[name].to_numpy()
        if values.dtype.kind == "S":
            expected = np.array([text.encode() for text in expected])
        else:
            assert values.dtype == expected.dtype
        np.testing.assert_array_equal(values, expected)


def test_read_columns__malicious_shard_is_refused(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "dataset.h5", 20)
    trap = tmp_path / "trap"
    with h5py.File(path, "a") as file:
        file["dataset/params/table"].attrs["values_block_0_kind"] = np.bytes_(pickle.dumps([Touch(trap)], 0))
    with pytest.raises(InputError, match="GLOBAL"):
        read_shard_info(path)
    assert not trap.exists()


def test_read_columns__raise_on_damaged_attributes(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "dataset.h5", 20)
    with h5py.File(path, "a") as file:
        file["dataset/params/table"].attrs["values_block_0_kind"] = np.bytes_(
            pickle.dumps(["a"] * 9, 0).replace(b"g1", b"Va")
        )
    with pytest.raises(InputError, match="9 names"):
        read_shard_info(path)
    with h5py.File(path, "a") as file:
        del file["dataset/params/table"].attrs["values_block_0_kind"]
    with pytest.raises(InputError, match="found nothing"):
        read_shard_info(path)


def test_read_columns__raise_on_fixed_format(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "dataset.h5", 20)
    with h5py.File(path, "a") as file:
        del file["dataset/params/table"]
    with pytest.raises(InputError, match=r"format='table'"):
        read_shard_info(path)


@pytest.mark.parametrize("column", ["id", "T_eff", "log_g", "M_H"])
def test_require_columns__raise_on_missing(tmp_path: Path, column: str) -> None:
    frame = make_frame(20).rename(columns={column: f"{column}_x"})
    path = write_shard(tmp_path / "dataset.h5", 20, frame=frame)
    with pytest.raises(
        InputError, match=rf"{column}'? is required.*did you mean '{column}_x'|column '{column}' is required"
    ):
        read_shard_info(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_require_columns__raise_on_label_that_is_no_number(tmp_path: Path, value: float) -> None:
    frame = make_frame(20)
    frame.loc[[7, 9], "log_g"] = value
    path = write_shard(tmp_path / "some" / "dataset.h5", 20, frame=frame)
    with pytest.raises(
        InputError, match=rf"some/dataset.h5: label 'log_g' must be finite, found {value} at row 7 \(2 of 20"
    ):
        read_shard_info(path)


def test_require_columns__raise_on_row_count(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "dataset.h5", 20, frame=make_frame(19))
    with pytest.raises(InputError, match=r"20 spectra but column 'id'.*19 rows"):
        read_shard_info(path)


def rename_columns(path: Path, names: list[str]) -> Path:
    """Rename the columns of the block that has as many."""
    distinct = [name.encode().decode() for name in names]  # equal strings that are one object pickle differently
    with h5py.File(path, "a") as file:
        table = file["dataset/params/table"]
        field = next(name for name in table.dtype.names if table.dtype[name].shape == (len(names),))
        table.attrs[f"{field}_kind"] = np.bytes_(pickle.dumps(distinct, 0))
    return path


def test_read_columns__raise_on_a_name_that_occurs_twice(tmp_path: Path) -> None:
    frame = make_frame(20)[["id", "T_eff", "log_g", "M_H", "mag"]]
    path = rename_columns(write_shard(tmp_path / "a.h5", 20, frame=frame), ["T_eff", "log_g", "M_H", "log_g"])
    with pytest.raises(InputError, match=r"a\.h5: .*'log_g' 2 times"):
        read_shard_info(path)
    # once in a block, once as a data column
    path = write_shard(tmp_path / "b.h5", 20, frame=frame, data_columns=["mag"])
    with pytest.raises(InputError, match="'mag' 2 times"):
        read_shard_info(rename_columns(path, ["T_eff", "mag", "M_H"]))


@pytest.mark.parametrize("name", ["..", "", "zarr.json", "a b", "über", "größe", "a/b", "0x", "x\n"])
def test_read_columns__unusable_names_are_left_out(tmp_path: Path, name: str) -> None:
    frame = make_frame(20)[["id", "T_eff", "log_g", "M_H", "mag"]]
    path = write_shard(tmp_path / "dataset.h5", 20, frame=frame)
    info = read_shard_info(rename_columns(path, ["T_eff", "log_g", "M_H", name]))
    assert set(info.columns) == {"id", "T_eff", "log_g", "M_H"}
    assert [remark for remark in info.remarks if repr(name) in remark and "left out" in remark]
    with pytest.raises(InputError, match="'M_H' is required"):
        read_shard_info(rename_columns(path, ["T_eff", "log_g", name, "mag"]))


def test_read_columns__names_of_the_store_make_room(tmp_path: Path) -> None:
    frame = make_frame(20).assign(flux=1.0, params_flux=2.0, manifest=3.0)
    info = read_shard_info(write_shard(tmp_path / "dataset.h5", 20, frame=frame))
    assert {"params_flux", "manifest"} < set(info.columns)
    assert "flux" not in info.columns
    assert "'params_flux', which exists too" in info.remarks[0]


def test_read_columns__raise_on_an_absurd_size(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "dataset.h5", 20)
    with h5py.File(path, "a") as file:
        file["dataset/params/table"].resize(10**12, axis=0)
    with pytest.raises(InputError, match="1000000000000 rows"):
        read_shard_info(path)


@pytest.mark.parametrize("kind", ["unwritten", "contiguous", "half", "virtual", "zeros"])
def test_read_shard_info__raise_on_labels_that_were_never_written(tmp_path: Path, kind: str) -> None:
    path = write_shard(tmp_path / "train_0" / "dataset.h5")
    with h5py.File(path, "a") as file:
        table = file["dataset/params/table"]
        rows, attributes, n = table[()], dict(table.attrs), len(table)
        del file["dataset/params/table"]
        if kind == "virtual":
            layout = h5py.VirtualLayout(rows.shape, rows.dtype)
            layout[:] = h5py.VirtualSource(str(tmp_path / "gone.h5"), "table", rows.shape, rows.dtype)
            new = file.create_virtual_dataset("dataset/params/table", layout)
        else:
            chunks = None if kind in ("contiguous", "zeros") else (n // 2,)
            new = file.create_dataset("dataset/params/table", rows.shape, rows.dtype, chunks=chunks)
        if kind == "half":
            new[: n // 2] = rows[: n // 2]
        if kind == "zeros":  # some storage is written, the rest reads as zeros
            new[:5] = rows[:5]
        for name, value in attributes.items():
            new.attrs[name] = value
    with pytest.raises(InputError, match="dataset/params/table"):
        read_shard_info(path)


@pytest.mark.parametrize("data_columns", [None, ["field", "field_name"]])
def test_categories_are_read_as_the_values_that_they_stand_for(tmp_path: Path, data_columns: list[str] | None) -> None:
    """The codes of another shard mean other values; pandas writes columns of categories in two ways."""
    fields = [[30.0, 10.0, 30.0], [20.0, 30.0, None]]
    for k, values in enumerate(fields):
        frame = make_frame(3, seed=k)
        frame["field"] = pd.Categorical(values)
        frame["field_name"] = pd.Categorical([None if one is None else f"f{one:g}" for one in values])
        path = write_shard(tmp_path / f"{k}.h5", 3, seed=k, frame=frame, data_columns=data_columns)
        columns = read_shard_info(path).columns
        np.testing.assert_array_equal(columns["field"], np.array(values, float))
        assert columns["field_name"].tolist() == [b"" if one is None else b"f%d" % one for one in values]


@pytest.mark.parametrize("damage", ["no list", "short list"])
def test_categories__raise_on_codes_without_values(tmp_path: Path, damage: str) -> None:
    frame = make_frame(3)
    frame["field"] = pd.Categorical([30, 10, 20])
    path = write_shard(tmp_path / "dataset.h5", 3, frame=frame, data_columns=["field"])
    with h5py.File(path, "r+") as file:
        listed = file["dataset/params/meta/field/meta"]
        first = listed["table"][:1]
        del listed["table"]
        if damage == "short list":
            listed["table"] = first
    with pytest.raises(InputError, match="categorical column 'field'"):
        read_shard_info(path)

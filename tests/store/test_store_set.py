"""Several stores as one: the rows, folds, noise and results of one store converted from all shards."""

from __future__ import annotations

import os
import pickle
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_factory import make_first_version, make_frame, make_pixels, write_shard
from tracing import trace_peak

from pipeline import schema
from pipeline.accumulate import plan_accumulation
from pipeline.bins import BinGrid, CellGrid
from pipeline.config import REFERENCE_EDGES, ExperimentConfig
from pipeline.convert import convert_shards, inspect_path
from pipeline.errors import ConfigError, InputError
from pipeline.noise import NoiseDraw
from pipeline.report import render_report
from pipeline.run import plan_experiment, run_experiment
from pipeline.scoring import RunResults, read_noisy_rows
from pipeline.shards import find_shards
from pipeline.store import JoinedStores, SpectraStore, find_stores, open_spectra, open_stores

N, P = 130, 16
LENGTHS = (40, 60, 30)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    base = tmp_path_factory.mktemp("shards")
    found = []
    for k, n in enumerate(LENGTHS):
        noisy, _ = make_pixels(n, P, 70 + k)
        found.append(write_shard(base / f"train_{k}" / "dataset.h5", n, P, seed=k, arrays={"noisy": noisy}))
    return found


@pytest.fixture(scope="module")
def whole(shards: list[Path], tmp_path_factory: pytest.TempPathFactory) -> SpectraStore:
    return convert_shards(shards, tmp_path_factory.mktemp("whole") / "all.zarr", workers=1, chunk_rows=8)


@pytest.fixture(scope="module")
def parts(shards: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of two shards and a store of one, of different chunks."""
    folder = tmp_path_factory.mktemp("parts")
    convert_shards(shards[:2], folder / "part_2.zarr", workers=1, chunk_rows=8)
    convert_shards(shards[2:], folder / "part_10.zarr", workers=1, chunk_rows=16, shard_rows=0)
    return folder


@pytest.fixture(scope="module")
def joined(parts: Path) -> JoinedStores:
    found = open_stores(find_stores([parts]))
    assert isinstance(found, JoinedStores)
    return found


def test_open_stores__one_path_is_the_store_itself(parts: Path) -> None:
    assert isinstance(open_stores([parts / "part_2.zarr"]), SpectraStore)
    with pytest.raises(InputError, match="at least one store"):
        open_stores([])


def test_joined__describes_itself_as_one_store_does(joined: JoinedStores, whole: SpectraStore, parts: Path) -> None:
    assert joined.paths == (parts / "part_2.zarr", parts / "part_10.zarr")
    for name in ("n_spectra", "n_pixels", "variables", "has_noisy", "flagged_pixels", "sources"):
        assert getattr(joined, name) == getattr(whole, name), name
    assert joined.shard_lengths == joined.source_lengths == whole.shard_lengths == LENGTHS
    assert joined.shard_names == whole.shard_names
    assert joined.chunk_rows == 16
    np.testing.assert_array_equal(joined.wavelength, whole.wavelength)
    np.testing.assert_allclose(joined.mean_flux, whole.mean_flux, rtol=2e-7)
    np.testing.assert_array_equal(joined.mean_flux, joined.mean_flux.astype(np.float32))
    assert "2 stores (part_2.zarr to part_10.zarr)" in repr(joined)


def test_joined__fingerprint_depends_on_the_parts_and_their_order(joined: JoinedStores, parts: Path) -> None:
    again = open_stores([parts / "part_2.zarr", parts / "part_10.zarr"])
    swapped = open_stores([parts / "part_10.zarr", parts / "part_2.zarr"])
    assert again.fingerprint == joined.fingerprint
    assert len({joined.fingerprint, swapped.fingerprint, *(store.fingerprint for store in joined.stores)}) == 4


@pytest.mark.parametrize("variable", ["flux", "error", "noisy"])
def test_read_rows__any_range_equals_the_one_store(joined: JoinedStores, whole: SpectraStore, variable: str) -> None:
    expected = whole.read_rows(variable, 0, N)
    np.testing.assert_array_equal(joined.read_rows(variable, 0, N), expected)

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, N), st.integers(0, N))
    def check(a: int, b: int) -> None:
        start, stop = min(a, b), max(a, b)
        out = np.full((stop - start + 1, P), 77, np.float32)
        rows = joined.read_rows(variable, start, stop, out)
        assert rows.base is out
        np.testing.assert_array_equal(rows, expected[start:stop])
        assert (out[stop - start :] == 77).all()

    check()


def test_read_rows__raise_on_wrong_requests(joined: JoinedStores) -> None:
    with pytest.raises(InputError, match=r"part_2\.zarr has no 'mask'"):
        joined.read_rows("mask", 0, 1)
    for start, stop in ((90, N + 1), (5, 4)):
        with pytest.raises(InputError, match=f"{start} to {stop}"):
            joined.read_rows("flux", start, stop)
    with pytest.raises(ValueError, match="out must be"):
        joined.read_rows("flux", 98, 103, np.empty((4, P), np.float32))


def test_columns__equal_those_of_the_one_store(joined: JoinedStores, whole: SpectraStore) -> None:
    assert list(joined.columns) == list(whole.columns)
    for name, values in whole.columns.items():
        found = joined.columns[name]
        np.testing.assert_array_equal(found, values)  # `shard` counts through the set, too
        assert found.dtype == values.dtype
        assert not found.flags.writeable
    np.testing.assert_array_equal(joined.columns["shard"], np.repeat([0, 1, 2], LENGTHS))


def test_read_columns__any_range_equals_the_whole_columns(joined: JoinedStores, whole: SpectraStore) -> None:
    names = ["M_H", "id", "shard", "is_giant"]
    expected = {name: whole.columns[name] for name in names}

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, N), st.integers(0, N))
    def check(a: int, b: int) -> None:
        start, stop = min(a, b), max(a, b)
        for store in (joined, whole):
            found = store.read_columns(names, start, stop)
            assert list(found) == names
            for name in names:
                np.testing.assert_array_equal(found[name], expected[name][start:stop])
                assert found[name].dtype == expected[name].dtype
                assert not found[name].flags.writeable

    check()


def test_iter_columns__covers_every_row_once(joined: JoinedStores, whole: SpectraStore) -> None:
    for store in (joined, whole):
        blocks = list(store.iter_columns(["shard", "row"]))
        assert [start for start, _ in blocks] == ([0, 100] if store is joined else [0])
        for name in ("shard", "row"):
            np.testing.assert_array_equal(np.concatenate([block[name] for _, block in blocks]), whole.columns[name])


def test_iter_blocks__never_cross_a_chunk_nor_read_one_twice(joined: JoinedStores) -> None:
    starts = [*range(0, 100, 8), *range(100, N, 16)]
    chunk_of = np.searchsorted(starts, np.arange(N), side="right")

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, N), st.integers(0, N))
    def check(a: int, b: int) -> None:
        start, stop = min(a, b), max(a, b)
        blocks = list(joined.iter_blocks(start, stop))
        rows = [row for first, end in blocks for row in range(first, end)]
        assert rows == list(range(start, stop))
        assert all(first < end and end - first <= joined.chunk_rows for first, end in blocks)
        touched = [set(chunk_of[first:end]) for first, end in blocks]
        assert all(len(chunks) == 1 for chunks in touched)
        assert len(set().union(*touched)) == len(touched)

    check()


def test_joined__pickles_small_and_notices_a_change(parts: Path, shards: list[Path], tmp_path: Path) -> None:
    shutil.copytree(parts, tmp_path / "s")
    joined = open_stores(find_stores([tmp_path / "s"]))
    packed = pickle.dumps(joined)
    assert len(packed) < 1000
    assert pickle.loads(packed).fingerprint == joined.fingerprint  # noqa: S301
    convert_shards(shards[1:2], tmp_path / "s" / "part_2.zarr", workers=1, overwrite=True)
    with pytest.raises(InputError, match=r"part_2\.zarr, .*part_10\.zarr changed"):
        pickle.loads(packed)  # noqa: S301


def test_joined__keeps_what_all_stores_have(shards: list[Path], tmp_path: Path) -> None:
    frame = make_frame(20, 9).drop(columns="mag")
    frame["T_eff"] = frame["T_eff"].astype(np.float32)
    other = write_shard(tmp_path / "other" / "dataset.h5", 20, P, seed=9, frame=frame)
    stores = [
        convert_shards([shard], tmp_path / f"{k}.zarr", workers=1).path for k, shard in enumerate((shards[0], other))
    ]
    joined = open_stores(stores)
    assert joined.variables == ("flux", "error")
    assert not joined.has_noisy
    assert "mag" not in joined.columns
    assert joined.columns["T_eff"].dtype == np.float64
    np.testing.assert_array_equal(joined.columns["T_eff"][40:], frame["T_eff"])
    with pytest.raises(InputError, match=r"0\.zarr, .*1\.zarr .*'noisy'"):
        read_noisy_rows(joined, 0, 1, None)


# --- columns -------------------------------------------------------------------------------------------


def test_read_columns__raise_on_an_unknown_name_and_on_damage(parts: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(parts / "part_2.zarr", tmp_path / "copy.zarr"))
    store = SpectraStore.open(copy)
    with pytest.raises(InputError, match=r"'Teff' .*'T_eff'"):
        store.read_columns(["Teff"], 0, 1)
    with pytest.raises(InputError, match="rows 0 to 100"):
        store.read_columns(["T_eff"], 0, 101)
    with pytest.raises(KeyError):
        store.columns["Teff"]
    chunk = copy / "T_eff" / "c" / "0"
    content = bytearray(chunk.read_bytes())
    for position in (0, 7, len(content) // 2, len(content) - 1):
        damaged = bytearray(content)
        damaged[position] ^= 4
        chunk.write_bytes(damaged)
        with pytest.raises(InputError, match=r"copy\.zarr is damaged: .*'T_eff'"):
            store.read_columns(["T_eff"], 3, 5)
    for damaged in (content[:-5], content[:2], b""):
        chunk.write_bytes(damaged)
        with pytest.raises(InputError, match="column 'T_eff'"):
            store.read_columns(["T_eff"], 3, 5)
    chunk.unlink()
    with pytest.raises(InputError, match=r"'T_eff' .*chunk c/0"):
        store.read_columns(["T_eff"], 3, 5)


def make_long_store(folder: Path, n: int) -> SpectraStore:
    return convert_shards([write_shard(folder / "dataset.h5", n, 2, chunks=None)], folder / "store.zarr", workers=1)


def peak_of(store: SpectraStore) -> int:
    """Traced peak of what a task reads, and of a driver's look at all rows, block by block."""
    names = ["T_eff", "M_H", "log_g"]
    grid = BinGrid(REFERENCE_EDGES)
    store.read_columns(names, 0, 1)

    def look() -> None:
        grid.cells(store.read_columns(names, 30_000, 60_000))
        for _, block in store.iter_columns(names):
            grid.assign(block)

    # Clusters that other tests have left in this process allocate beside it at times, which can only add.
    return min(trace_peak(look)[1] for _ in range(3))


def test_memory_of_reading_columns_does_not_grow_with_the_spectra(tmp_path: Path) -> None:
    small, large = (make_long_store(tmp_path / str(n), n) for n in (140_000, 560_000))
    assert large.columns.chunk_rows == 65_536
    assert peak_of(large) < 1.1 * peak_of(small)
    tracemalloc.start()
    try:
        means = [float(np.mean(large.columns[name])) for name in ("T_eff", "M_H", "log_g", "snr", "mag")]
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(means) == 5
    assert kept < 560_000, "a column that was read is not kept"
    assert peak < 1.9 * 8 * 560_000, "whole columns are held one at a time, beside chunks on their way"


def test_stores_with_columns_in_one_chunk_still_open(whole: SpectraStore, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole.path, tmp_path / "copy.zarr"))
    make_first_version(copy)
    root = zarr.open_group(copy, mode="r+")
    for name, values in whole.columns.items():
        with zarr.config.set({"array.write_empty_chunks": True}):
            root.create_array(name, data=values, chunks=(N,), compressors=root[name].compressors, overwrite=True)
    store = SpectraStore.open(copy)
    assert store.columns.chunk_rows == N
    np.testing.assert_array_equal(store.columns["T_eff"], whole.columns["T_eff"])
    np.testing.assert_array_equal(store.read_columns(["id"], 20, 30)["id"], whole.columns["id"][20:30])


# --- what a user can get wrong -------------------------------------------------------------------------


def test_find_stores__paths_globs_and_folders_in_order(parts: Path, shards: list[Path]) -> None:
    two, ten = parts / "part_2.zarr", parts / "part_10.zarr"
    assert find_stores([parts]) == find_stores([parts / "part_*.zarr"]) == (two, ten)  # naturally sorted
    assert find_stores([ten, str(two)]) == (ten, two)
    assert find_stores([parts.parent / f"{parts.name[:-1]}[0-9]"]) == (two, ten)  # a glob of folders
    assert find_stores([shards[0], shards[0].parent, parts / "nowhere"]) == ()


def test_find_stores__raise_on_mixtures(parts: Path, shards: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"part_2\.zarr .*train_1/dataset\.h5"):
        find_stores([parts / "part_2.zarr", shards[1]])
    shutil.copytree(parts / "part_10.zarr", tmp_path / "a.zarr")
    (tmp_path / "notes.txt").write_text("mine")
    assert find_stores([tmp_path]) == find_stores([tmp_path / "*"]) == (tmp_path / "a.zarr",)
    shutil.copytree(shards[0].parent, tmp_path / "train_0")
    with pytest.raises(InputError, match=r"a\.zarr and train_0"):
        find_stores([tmp_path])
    (tmp_path / "train_0").rename(tmp_path / "b.zarr.partial")
    assert find_stores([tmp_path / "b.zarr"]) == ()  # nothing says that it is a conversion's
    (tmp_path / "b.zarr.partial" / "plan.json").write_text("{}")
    for pattern in (tmp_path, tmp_path / "*", tmp_path / "b.zarr"):
        with pytest.raises(InputError, match=r"b\.zarr\.partial"):
            find_stores([pattern])


def test_open_stores__raise_on_the_same_spectra_twice(parts: Path, shards: list[Path], tmp_path: Path) -> None:
    two = parts / "part_2.zarr"
    (tmp_path / "link.zarr").symlink_to(two)
    for again in (two, tmp_path / "link.zarr", Path(os.path.relpath(two))):
        with pytest.raises(InputError, match="twice"):
            open_stores([two, again])
    one = convert_shards(shards[1:2], tmp_path / "one.zarr", workers=1)
    message = r"part_2\.zarr and .*one\.zarr were both converted from shard train_1/dataset\.h5"
    with pytest.raises(InputError, match=message):
        open_stores([two, one.path])


def test_open_stores__raise_on_other_wavelengths(parts: Path, tmp_path: Path) -> None:
    wave = np.linspace(7100, 8850, P)
    grids = {"close": wave * (1 + 1e-12), "shifted": np.r_[wave[:5], wave[5:] + 0.25]}
    stores = {
        name: convert_shards(
            [write_shard(tmp_path / name / "dataset.h5", 20, P, seed=9, wavelength=grid)],
            tmp_path / f"{name}.zarr",
            workers=1,
        ).path
        for name, grid in grids.items()
    }
    np.testing.assert_array_equal(open_stores([parts / "part_2.zarr", stores["close"]]).wavelength, wave)
    with pytest.raises(InputError, match=r"part_2\.zarr and .*shifted\.zarr .* 7683\.583333 .* pixel 5"):
        open_stores([parts / "part_2.zarr", stores["shifted"]])
    shard = write_shard(tmp_path / "few" / "dataset.h5", 20, P - 1, seed=9)
    few = convert_shards([shard], tmp_path / "few.zarr", workers=1)
    with pytest.raises(InputError, match=r"part_2\.zarr and .*few\.zarr .* 16 and 15"):
        open_stores([parts / "part_2.zarr", few.path])


# --- xarray, inspection ---------------------------------------------------------------------------------


def test_open_spectra__several_stores_are_one_lazy_dataset(parts: Path, whole: SpectraStore) -> None:
    dataset = open_spectra(find_stores([parts]))
    one = open_spectra(whole.path)
    assert dict(dataset.sizes) == {"spectrum": N, "wavelength": P}
    assert dataset.flux.chunks[0][-2:] == (16, 14)
    xr.testing.assert_equal(dataset.drop_vars("mean_flux"), one.drop_vars("mean_flux"))
    assert dataset.T_eff.attrs == one.T_eff.attrs
    assert dataset.attrs["fingerprint"] == open_stores(find_stores([parts])).fingerprint
    assert open_spectra(find_stores([parts]), chunks=16).flux.chunks[0][:2] == (16, 16)
    with pytest.raises(ConfigError, match="multiple of the store's 16"):
        open_spectra(find_stores([parts]), chunks=8)
    with pytest.raises(ConfigError, match=r"chunks=None .* 2"):
        open_spectra(find_stores([parts]), chunks=None)


def test_inspect_path__a_folder_of_stores(parts: Path, shards: list[Path], tmp_path: Path) -> None:
    found = inspect_path(parts)
    assert [(one.path.name, one.kind, one.n_spectra) for one in found] == [
        ("part_2.zarr", "store", 100),
        ("part_10.zarr", "store", 30),
    ]
    shutil.copytree(parts / "part_10.zarr", tmp_path / "a.zarr")
    shutil.copytree(shards[0].parent, tmp_path / "train_0")
    (mixed,) = inspect_path(tmp_path)
    assert "which is none" in (mixed.problem or "")


# --- the whole pipeline ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def train_parts(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every shard of the training sample as a store of its own."""
    folder = tmp_path_factory.mktemp("train_parts")
    for k, shard in enumerate(find_shards([sample / "train"], sample)):
        convert_shards([shard], folder / f"train_{k}.zarr", workers=1, chunk_rows=(64, 128)[k])
    return folder


@pytest.fixture(scope="module")
def in_parts(small_config: ExperimentConfig, train_parts: Path) -> ExperimentConfig:
    plain = small_config.to_dict()
    return ExperimentConfig.model_validate(plain | {"data": plain["data"] | {"train": [str(train_parts)]}})


@pytest.fixture(scope="module")
def run_in_parts(in_parts: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    return run_experiment(in_parts, tmp_path_factory.mktemp("run_in_parts"))


def test_folds_partitions_and_noise_are_those_of_one_store(
    small_config: ExperimentConfig, train_parts: Path, train_store: SpectraStore
) -> None:
    joined = open_stores(find_stores([train_parts]))
    grid = BinGrid(small_config.bins)
    ours = plan_accumulation(joined, CellGrid((grid,)), small_config.compute)
    theirs = plan_accumulation(train_store, CellGrid((grid,)), small_config.compute)
    assert (ours.folds, ours.partitions) == (theirs.folds, theirs.partitions)
    # Origins are the first store's means: they stay when another one comes.
    first = joined.stores[0] if isinstance(joined, JoinedStores) else joined
    assert ours.y_origin == tuple(first.columns[label].mean() for label in schema.LABELS)
    assert ours.stores == tuple(str(train_parts / f"train_{k}.zarr") for k in range(2))
    draw = NoiseDraw(1.0, 42, 0)
    for start, stop in ((0, 1600), (777, 903)):
        np.testing.assert_array_equal(
            read_noisy_rows(joined, start, stop, draw), read_noisy_rows(train_store, start, stop, draw)
        )


def test_results_are_those_of_one_store(
    small_config: ExperimentConfig, run_in_parts: RunResults, tmp_path: Path
) -> None:
    exact = {"precision": "float64"}
    plain = small_config.to_dict() | exact
    one = run_experiment(ExperimentConfig.model_validate(plain), tmp_path / "one")
    train = run_in_parts.metadata["config"]["data"]["train"]
    several = run_experiment(
        ExperimentConfig.model_validate(plain | {"data": plain["data"] | {"train": train}}), tmp_path / "several"
    )
    # Origins differ in the last digits of float32, so the bits do, too.
    for merit in ("r2_oracle", "r2_global", "delta_r2"):
        np.testing.assert_allclose(several.overall[merit], one.overall[merit], rtol=0, atol=1e-9)
        np.testing.assert_allclose(several.per_bin[merit], one.per_bin[merit], rtol=0, atol=1e-9)
        np.testing.assert_allclose(several.learning[merit], one.learning[merit], rtol=0, atol=1e-9)
    pd.testing.assert_frame_equal(several.sample, one.sample)


@pytest.mark.slow  # two workers of their own; whole runs of drawn noise on one store have the same test
def test_workers_do_not_change_the_results_of_several_stores(
    in_parts: ExperimentConfig, run_in_parts: RunResults, two_workers: Client, tmp_path: Path
) -> None:
    run_experiment(in_parts, tmp_path, client=two_workers)
    for name in ("results.csv", "per_bin_results.csv", "learning_curve.csv"):
        assert (tmp_path / name).read_bytes() == (run_in_parts.folder / name).read_bytes()


def test_metadata_and_report_name_every_store(
    run_in_parts: RunResults, train_parts: Path, train_store: SpectraStore
) -> None:
    facts = run_in_parts.metadata["stores"]["train"]
    paths = [str(train_parts / f"train_{k}.zarr") for k in range(2)]
    assert facts["paths"] == paths
    assert facts["n_spectra"] == 1600
    assert [source["name"] for source in facts["sources"]] == list(train_store.shard_names)
    markdown, _ = render_report(run_in_parts, ())
    text = markdown.read_text(encoding="utf-8").replace("\\", "")
    assert all(path in text for path in paths)


def test_plan_of_several_stores(in_parts: ExperimentConfig, small_config: ExperimentConfig) -> None:
    ours, theirs = plan_experiment(in_parts, [2**33]), plan_experiment(small_config, [2**33])
    assert (ours.n_spectra, ours.store_disk, ours.n_pieces) == (1600, 0, theirs.n_pieces)


def test_run__raise_on_shards_among_stores(
    in_parts: ExperimentConfig, sample: Path, train_parts: Path, tmp_path: Path
) -> None:
    shard = find_shards([sample / "train"], sample)[0]
    plain = in_parts.to_dict()
    plain["data"]["train"] = [str(train_parts / "train_1.zarr"), str(shard)]
    with pytest.raises(InputError, match=r"data\.train: .*train_1\.zarr .*dataset\.h5"):
        run_experiment(ExperimentConfig.model_validate(plain), tmp_path / "run")


def test_run__raise_on_test_spectra_in_a_later_store(
    in_parts: ExperimentConfig, train_parts: Path, tmp_path: Path
) -> None:
    plain = in_parts.to_dict()
    plain["data"]["test"] = [str(train_parts / "train_1.zarr")]
    with pytest.raises(InputError, match=r"800 of 800 test spectra .*row 800 of 2 stores"):
        run_experiment(ExperimentConfig.model_validate(plain), tmp_path / "run")


def test_columns_of_any_number_type_can_make_the_bins(in_parts: ExperimentConfig, tmp_path: Path) -> None:
    plain = in_parts.to_dict() | {"bins": {"shard": [0, 1, 2]}, "bin_names": {}, "seeds": [1]}
    results = run_experiment(ExperimentConfig.model_validate(plain), tmp_path / "run")
    assert results.per_bin["n_train"].tolist() == [800, 800]
    plain["bins"] = {"shard": [7, 8]}
    with pytest.raises(InputError, match=r"2 stores .*shard 0 … 1"):
        run_experiment(ExperimentConfig.model_validate(plain), tmp_path / "other")

"""The hot loop of factored moments against plain sums over the same rows, and the choice of a basis for a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from loop_rows import SETTINGS, rows_of
from random_moments import take_sample
from tracing import trace_peak

from pipeline.accumulate import (
    LoopSettings,
    MomentsFolder,
    accumulate_moments,
    accumulate_noises,
    decide_factoring,
    plan_accumulation,
)
from pipeline.accumulate.projection import project_parts, projection_memory
from pipeline.bins import BinGrid, CellGrid
from pipeline.config import REFERENCE_EDGES, ComputeConfig
from pipeline.convert import convert_shards
from pipeline.errors import InputError
from pipeline.moments import (
    CHECK_EVERY,
    Basis,
    FactoredMoments,
    SavedMoments,
    choose_basis,
    find_class_edges,
    write_basis,
    write_moments,
)
from pipeline.noise import FaintPixels, MarginalNoise, Noise, NoiseDraw
from pipeline.schema import LABELS, STREAM_TRAIN
from pipeline.shards import find_shards
from pipeline.store import AnyStore, JoinedStores, SpectraStore, open_stores

NOISES = [MarginalNoise(1.0), MarginalNoise(0.4)]
CELLS = CellGrid((BinGrid(REFERENCE_EDGES),))


@pytest.fixture(scope="module")
def basis(train_store: SpectraStore) -> Basis:
    means, variances = NOISES[0].read(train_store, 0, 400)
    sample = take_sample(means - train_store.mean_flux, variances)
    return choose_basis(sample, train_store.mean_flux, 1e-4, 48, rank=20)[0]


def project(
    store: AnyStore,
    parts: Sequence[Any],
    basis: Basis,
    settings: LoopSettings,
    noises: Sequence[Noise] = NOISES,
    advance: Callable[[int], None] | None = None,
) -> dict[tuple[int, int, int], FactoredMoments]:
    found: dict[tuple[int, int, int], FactoredMoments] = {}
    project_parts(
        store,
        parts,
        parts[0].n_cells,
        len(parts[0].labels),
        noises,
        [basis] * len(noises),
        settings,
        lambda number, draw, cell, moments: found.__setitem__((number, draw, cell), moments),
        advance,
    )
    return found


def test_sums_are_those_of_the_rows(train_store: SpectraStore, basis: Basis) -> None:
    start, stop = 37, 1501
    rows = rows_of(train_store, start, stop)
    found = project(train_store, [rows], basis, replace(SETTINGS, precision="float64"))
    for k, noise in enumerate(NOISES):
        means, variances = noise.read(train_store, start, stop)
        z = (means - basis.x_origin) @ basis.projection
        beside = np.column_stack([z, np.ones(len(z)), rows.y - rows.y_origin])
        left = means - basis.x_origin - z @ basis.vectors.T
        is_checked = np.arange(start, stop) % CHECK_EVERY == 0
        for cell in range(rows.n_cells):
            own, members = found[0, k, cell], rows.cells == cell
            assert own.count == members.sum()
            assert own.n_check == (members & is_checked).sum()
            expected = beside[members].T @ beside[members]
            np.testing.assert_allclose(own.inner, expected, atol=1e-9 * np.abs(expected).max())
            np.testing.assert_allclose(own.noise, variances[members].sum(axis=0), rtol=1e-9)
            squares = (left[members & is_checked] ** 2).sum(axis=0)
            np.testing.assert_allclose(own.residual, squares, atol=1e-12 + 1e-6 * squares.max())


@pytest.fixture(scope="module")
def spotted(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> SpectraStore:
    """Spectra of which each has one pixel with next to no flux."""
    folder = tmp_path_factory.mktemp("spotted")
    [shard, *_] = find_shards([sample / "train"], sample)
    (folder / "dataset.h5").write_bytes(shard.read_bytes())
    with h5py.File(folder / "dataset.h5", "r+") as file:
        flux = file["dataset/arrays/flux/value"][:]
        flux[np.arange(len(flux)), np.arange(len(flux)) * 7 % flux.shape[1]] = np.resize([0.01, 0.0, 0.05], len(flux))
        file["dataset/arrays/flux/value"][:] = flux
    return convert_shards([folder / "dataset.h5"], folder / "store.zarr", workers=1, chunk_rows=128)


@pytest.mark.parametrize(("precision", "bound"), [("float32", 2e-5), ("float64", 1e-9)])
def test_faint_pixels_change_means_variances_and_what_is_left_out(
    spotted: SpectraStore, basis: Basis, precision: str, bound: float
) -> None:
    noise, rows = MarginalNoise(0.2), replace(rows_of(spotted), x_origin=basis.x_origin)
    found = project(spotted, [rows], basis, replace(SETTINGS, precision=precision), [noise])
    means, variances = noise.read(spotted, 0, spotted.n_spectra)
    flux = spotted.read_rows("flux", 0, spotted.n_spectra)
    assert np.abs(means - np.maximum(flux, 0)).max() > 1e-3, "clipping matters"
    z = (means - basis.x_origin) @ basis.projection
    left = means - basis.x_origin - z @ basis.vectors.T
    energies = (left**2 / basis.variance).sum(axis=1)
    is_checked = np.arange(spotted.n_spectra) % CHECK_EVERY == 0
    for cell in range(rows.n_cells):
        own, members = found[0, 0, cell], rows.cells == cell
        expected = z[members].T @ z[members]
        np.testing.assert_allclose(own.inner[:-4, :-4], expected, atol=bound * np.abs(expected).max())
        np.testing.assert_allclose(own.noise, variances[members].sum(axis=0), rtol=bound)
        squares = (left[members & is_checked] ** 2).sum(axis=0)
        np.testing.assert_allclose(own.residual, squares, atol=bound * squares.max())
        largest = np.sort(energies[members])[::-1][: len(own.worst)]
        np.testing.assert_allclose(own.worst[: len(largest), 1], largest, rtol=10 * bound)


def test_noises_of_this_file_take_both_ways(train_store: SpectraStore) -> None:
    """Under the lower one few pixels are faint, and clean flux is projected; under the other one its means are."""
    flux, error = (train_store.read_rows(name, 0, SETTINGS.run_rows) for name in ("flux", "error"))
    room = FaintPixels(
        np.empty(len(flux) + 1, np.int64), np.empty(flux.size, np.int32), np.empty(flux.size, np.float32),
        np.empty(flux.size, np.float32),
    )  # fmt: skip
    for noise, is_bright in zip(NOISES, (False, True), strict=True):
        kernel = noise.kernel(np.dtype(np.float32))
        assert kernel.find_faint(flux, error, room, flux.size // 16) is is_bright
    assert room.starts[-1] > 0, "some pixels are faint"


def test_bits_depend_on_neither_threads_nor_chunks_nor_company(
    train_store: SpectraStore, sample: Path, tmp_path: Path, basis: Basis
) -> None:
    shards = find_shards([sample / "train"], sample)
    others = [convert_shards(shards, tmp_path / f"{n}.zarr", workers=1, chunk_rows=n) for n in (96, 512)]
    cuts = [0, 3, 700, 701, train_store.n_spectra]
    parts = [rows_of(train_store, a, b) for a, b in pairwise(cuts)]
    expected = project(train_store, parts, basis, SETTINGS)
    for threads in (1, 3):
        found = project(train_store, parts, basis, replace(SETTINGS, threads=threads))
        assert all(found[key].identical(own) for key, own in expected.items())
    for store in others:
        found = project(store, parts, basis, SETTINGS)
        assert all(found[key].identical(own) for key, own in expected.items())
    alone = project(train_store, parts[1:2], basis, SETTINGS, NOISES[1:])
    assert all(own.identical(expected[1, 1, cell]) for (_, _, cell), own in alone.items())


@pytest.fixture(scope="module")
def divided(train_store: SpectraStore, basis: Basis) -> Basis:
    """The basis with the edges of four classes of like noise."""
    return replace(basis, edges=find_class_edges(train_store.read_rows("error", 0, 400), basis, 4))


def test_classes_are_sums_over_rows_of_like_noise(train_store: SpectraStore, divided: Basis) -> None:
    start, stop = 37, 1501
    rows = rows_of(train_store, start, stop)
    exact = replace(SETTINGS, precision="float64")
    found = project(train_store, [rows], divided, exact)
    undivided = project(train_store, [rows], replace(divided, edges=np.empty(0)), exact)
    errors = train_store.read_rows("error", start, stop).astype(np.float64)
    numbers = np.digitize((errors**2 / divided.variance).sum(axis=1), divided.edges)
    assert (np.bincount(numbers) > 200).all(), "the sample's quantiles divide the spectra"
    for k, noise in enumerate(NOISES):
        means, variances = noise.read(train_store, start, stop)
        z = (means - divided.x_origin) @ divided.projection
        beside = np.column_stack([z, np.ones(len(z)), rows.y - rows.y_origin])
        for cell in range(rows.n_cells):
            own = found[0, k, cell]
            for number, of_class in enumerate(own.classes):
                members = (rows.cells == cell) & (numbers == number)
                expected = beside[members].T @ beside[members]
                assert of_class.count == members.sum()
                np.testing.assert_allclose(of_class.inner, expected, atol=1e-9 * max(1, np.abs(expected).max()))
                np.testing.assert_allclose(of_class.noise, variances[members].sum(axis=0), rtol=1e-9)
            whole = undivided[0, k, cell]
            assert (own.count, own.n_check) == (whole.count, whole.n_check)
            np.testing.assert_allclose(own.inner, whole.inner, atol=1e-9 * max(1, np.abs(whole.inner).max()))
            np.testing.assert_allclose(own.noise, whole.noise, rtol=1e-9)
            np.testing.assert_array_equal(own.residual, whole.residual)


def test_bits_of_classes_depend_on_neither_threads_nor_chunks(
    train_store: SpectraStore, sample: Path, tmp_path: Path, divided: Basis
) -> None:
    shards = find_shards([sample / "train"], sample)
    other = convert_shards(shards, tmp_path / "96.zarr", workers=1, chunk_rows=96)
    parts = [rows_of(train_store, a, b) for a, b in pairwise([0, 700, train_store.n_spectra])]
    expected = project(train_store, parts, divided, SETTINGS)
    for store, threads in ((train_store, 1), (other, 3)):
        found = project(store, parts, divided, replace(SETTINGS, threads=threads))
        assert all(found[key].identical(own) for key, own in expected.items())


def test_classes_survive_the_disk_and_belong_to_the_basis(
    train_store: SpectraStore, tmp_path: Path, divided: Basis, basis: Basis
) -> None:
    found = project(train_store, [rows_of(train_store)], divided, SETTINGS, NOISES[:1])
    cells = [found[0, 0, cell] for cell in range(len(found))]
    write_basis(tmp_path, divided, {})
    write_moments(tmp_path / "fold-000", cells, len(cells), {"key": "a"})
    saved = SavedMoments.open(tmp_path / "fold-000")
    assert saved.n_classes == 4
    assert all(saved.read_divided(cell).identical(own) for cell, own in enumerate(cells))
    size = basis.rank + 1 + len(LABELS)
    numbers = len(cells) * (4 * (size * (size + 1) // 2 + basis.x_origin.size) + basis.x_origin.size)
    assert (tmp_path / "fold-000" / "sums.npz").stat().st_size < 8 * numbers * 1.02 + 4096
    undivided = project(train_store, [rows_of(train_store)], basis, SETTINGS, NOISES[:1])
    with pytest.raises(InputError, match="two bases"):
        cells[0] + undivided[0, 0, 0]


def accumulate(store: SpectraStore, folder: Path, compute: ComputeConfig, noises: Sequence[Noise] = NOISES) -> Any:
    plan, notes = plan_accumulation(store, CELLS, compute, "float64"), list[str]()
    factoring = decide_factoring(plan, store, noises, folder, compute)

    def run(of: Sequence[Noise], bases: Mapping[Noise, str]) -> list[MomentsFolder]:
        return accumulate_moments(plan, of, folder, bases=bases)

    return *accumulate_noises(plan, factoring, store, noises, folder, compute, run, notes.append), notes


FORCED = ComputeConfig(moments="factored", folds=2, partition_rows=500, run_rows=128, rank_tolerance=2.5e-3)


def test_few_pixels_are_dense_unless_asked(train_store: SpectraStore, tmp_path: Path) -> None:
    auto = FORCED.model_copy(update={"moments": "auto"})
    made, factoring, _ = accumulate(train_store, tmp_path / "auto", auto)
    assert all(one.open(0).is_tiled for one in made)
    assert not factoring.of_noise
    made, factoring, notes = accumulate(train_store, tmp_path / "forced", FORCED, [*NOISES, MarginalNoise(0.0)])
    assert [one.open(0).is_tiled for one in made] == [False, False, True]
    assert [one.draw for one in made] == [*NOISES, MarginalNoise(0.0)]
    assert "without noise" in factoring.reasons[0]
    assert not notes
    for one in made[:2]:
        assert all(one.total(cell).lost <= 1e-3 for cell in range(9) if one.total(cell).n_check)  # type: ignore[attr-defined]


def test_a_spike_that_the_sample_never_saw_extends_the_basis(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.accumulate.factoring.SAMPLE_SPECTRA", 256)  # rows 320 and 323 are not in it
    shards = find_shards([sample / "train"], sample)
    for row in (320, 323):  # a check row, and one that is none
        copies = [tmp_path / f"{row}" / path.parent.name / path.name for path in shards]
        for path, copy in zip(shards, copies, strict=True):
            copy.parent.mkdir(parents=True)
            copy.write_bytes(path.read_bytes())
        with h5py.File(copies[0], "r+") as file:
            file["dataset/arrays/flux/value"][row, 17] += 40.0
        store = convert_shards(copies, tmp_path / f"{row}.zarr", workers=1, chunk_rows=128)
        coarse = FORCED.model_copy(update={"rank_tolerance": 0.02})
        made, factoring, notes = accumulate(store, tmp_path / f"moments-{row}", coarse, NOISES[:1])
        assert factoring.of_noise[NOISES[0]].rank < 40
        assert notes
        assert all("extended" in note for note in notes)
        means, _ = NOISES[0].read(store, row, row + 1)
        centred = means - factoring.of_noise[NOISES[0]].x_origin
        np.testing.assert_allclose(
            centred @ factoring.of_noise[NOISES[0]].projection @ factoring.of_noise[NOISES[0]].vectors.T,
            centred,
            atol=1e-6 * centred.max(),
        )
        assert sum(one.counts[cell] for one in map(made[0].open, range(2)) for cell in range(10)) == store.n_spectra


def test_only_a_level_that_fails_is_passed_again(sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.accumulate.factoring.SAMPLE_SPECTRA", 256)  # row 320 is not in it
    [shard, *_] = find_shards([sample / "train"], sample)
    copy = tmp_path / "dataset.h5"
    copy.write_bytes(shard.read_bytes())
    with h5py.File(copy, "r+") as file:
        file["dataset/arrays/flux/value"][320, 17] += 0.08  # little against noise of level 1
    store = convert_shards([copy], tmp_path / "store.zarr", workers=1, chunk_rows=128)
    noises = [MarginalNoise(1.0), MarginalNoise(0.2)]
    loose = FORCED.model_copy(update={"rank_tolerance": 0.02})
    made, factoring, notes = accumulate(store, tmp_path / "moments", loose, noises)
    high, low = (factoring.of_noise[noise] for noise in noises)
    assert len(notes) == 1
    assert "noise level 0.2" in notes[0]
    assert low.rank > high.rank
    for one, basis in zip(made, (high, low), strict=True):
        totals = [one.total(cell) for cell in range(10)]
        assert sum(own.count for own in totals) == store.n_spectra
        assert {own.basis.digest for own in totals if isinstance(own, FactoredMoments)} == {basis.digest}
    parts, exact = [rows_of(store)], replace(SETTINGS, precision="float64")
    alone = [project(store, parts, own, exact, [noise]) for noise, own in zip(noises, (high, low), strict=True)]
    both: dict[tuple[int, int, int], FactoredMoments] = {}
    project_parts(
        store, parts, 10, len(LABELS), noises, [high, low], exact,
        lambda number, draw, cell, moments: both.__setitem__((number, draw, cell), moments),
    )  # fmt: skip
    assert all(both[0, k, cell].identical(alone[k][0, 0, cell]) for k in range(2) for cell in range(10))


def test_a_basis_is_kept_until_the_settings_change(train_store: SpectraStore, tmp_path: Path) -> None:
    first = accumulate(train_store, tmp_path, FORCED)[1]
    stamp = (tmp_path / NOISES[0].name / "fold-000" / "sums.npz").stat().st_mtime_ns
    again = accumulate(train_store, tmp_path, FORCED)[1]
    assert again.bases == first.bases
    assert (tmp_path / NOISES[0].name / "fold-000" / "sums.npz").stat().st_mtime_ns == stamp
    finer = accumulate(train_store, tmp_path, FORCED.model_copy(update={"rank_tolerance": 1e-6}))[1]
    assert finer.of_noise[NOISES[0]].rank > first.of_noise[NOISES[0]].rank


def test_factored__raise_on_drawn_noise_alone(train_store: SpectraStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"compute\.moments"):
        accumulate(train_store, tmp_path, FORCED, [NoiseDraw(1.0, 42, STREAM_TRAIN)])


def test_a_part_that_begins_within_a_chunk_decodes_every_chunk_once(
    train_store: SpectraStore, basis: Basis, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, stop, read = 37, 1501, []
    read_rows = SpectraStore.read_rows

    def note(store: SpectraStore, name: str, first: int, end: int, out: np.ndarray | None = None) -> np.ndarray:
        read.append((name, first // store.chunk_rows))
        return read_rows(store, name, first, end, out)

    monkeypatch.setattr(SpectraStore, "read_rows", note)
    settings = replace(SETTINGS, run_rows=train_store.chunk_rows)
    project(train_store, [rows_of(train_store, start, stop)], basis, settings)
    chunks = range(start // train_store.chunk_rows, -(-stop // train_store.chunk_rows))
    assert sorted(read) == sorted((name, chunk) for name in ("flux", "error") for chunk in chunks)


@pytest.fixture(scope="module")
def joined(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> JoinedStores:
    """The training spectra in one store for each shard. Chunks of later stores begin within a run of all rows."""
    folder, shards = tmp_path_factory.mktemp("stores"), find_shards([sample / "train"], sample)
    paths = [folder / f"{k}.zarr" for k in range(len(shards))]
    for shard, path in zip(shards, paths, strict=True):
        convert_shards([shard], path, workers=1, chunk_rows=128)
    stores = open_stores(paths)
    assert isinstance(stores, JoinedStores)
    assert all(start % 128 for start in stores.starts[1:])
    return stores


def test_several_stores_are_decoded_once_and_give_the_sums_of_one(
    train_store: SpectraStore, joined: JoinedStores, basis: Basis, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Counter[tuple[str, str, int]]()
    read_rows = SpectraStore.read_rows

    def note(store: SpectraStore, name: str, first: int, end: int, out: np.ndarray | None = None) -> np.ndarray:
        reads[str(store.path), name, first // 128] += 1
        return read_rows(store, name, first, end, out)

    monkeypatch.setattr(SpectraStore, "read_rows", note)
    rows = rows_of(train_store)
    found = project(joined, [rows], basis, SETTINGS)
    assert len(reads) == 2 * sum(-(-store.n_spectra // 128) for store in joined.stores)
    assert set(reads.values()) == {1}
    for key, own in project(train_store, [rows], basis, SETTINGS).items():
        np.testing.assert_allclose(found[key].inner, own.inner, atol=1e-5 * np.abs(own.inner).max())
        np.testing.assert_allclose(found[key].noise, own.noise, rtol=1e-6)
    # A run that begins with a store has the rows of the same run of that store alone.
    start = joined.starts[1]
    part = rows_of(train_store, start, start + 128)
    alone = replace(part, start=0)
    expected = project(joined.stores[1], [alone], basis, SETTINGS)
    inner = {key: own.inner for key, own in project(joined, [part], basis, SETTINGS).items()}
    assert all(np.array_equal(inner[key], own.inner) for key, own in expected.items())


@pytest.mark.parametrize("begin", [-200, -1, 0, 10, 127])
@pytest.mark.parametrize("length", [1, 300])
def test_a_part_may_begin_anywhere_in_several_stores(
    train_store: SpectraStore, joined: JoinedStores, basis: Basis, begin: int, length: int
) -> None:
    start, done = joined.starts[1] + begin, list[int]()
    rows = rows_of(train_store, start, start + length)
    found = project(joined, [rows], basis, SETTINGS, NOISES[:1], done.append)
    assert min(done) > 0
    assert sum(done) == length
    for key, own in project(train_store, [rows], basis, SETTINGS, NOISES[:1]).items():
        np.testing.assert_allclose(found[key].inner, own.inner, atol=1e-5 * max(1, np.abs(own.inner).max()))


@pytest.mark.parametrize(("n_cells", "n_classes"), [(10, 1), (60, 1), (10, 4)])
def test_memory_stays_below_what_is_planned(
    train_store: SpectraStore, divided: Basis, n_cells: int, n_classes: int
) -> None:
    basis = divided if n_classes == divided.n_classes else replace(divided, edges=np.empty(0))
    rows = replace(rows_of(train_store), n_cells=n_cells)
    project(train_store, [rows], basis, SETTINGS)  # compiles, and fills the caches of the store

    def work() -> None:
        bases = [basis] * len(NOISES)
        project_parts(train_store, [rows], n_cells, len(LABELS), NOISES, bases, SETTINGS, lambda *_: None)

    # Clusters that other tests have left in this process allocate beside it at times, which can only add.
    peak = min(trace_peak(work)[1] for _ in range(3))
    chunk_rows, n_noises = train_store.chunk_rows, len(NOISES)
    planned = projection_memory(
        train_store.n_pixels, len(LABELS), n_cells, n_noises, basis.rank, chunk_rows, SETTINGS, n_classes
    )
    assert peak <= planned
    assert n_cells > 10 or planned <= 4 * peak


def test_parts_before_one_that_cannot_be_taken_are_kept(train_store: SpectraStore, basis: Basis) -> None:
    parts = [rows_of(train_store, a, a + 200) for a in (0, 200)]

    def take() -> Iterator[Any]:
        yield from parts
        raise InputError("the next part cannot be read")

    kept: list[int] = []
    with pytest.raises(InputError, match="the next part"):
        project_parts(
            train_store, take(), parts[0].n_cells, len(LABELS), NOISES[:1], [basis], SETTINGS,
            lambda number, *_: kept.append(number),
        )  # fmt: skip
    assert sorted(set(kept)) == [0, 1]


def test_a_sample_of_damaged_chunks_is_an_error_and_no_wait(
    train_store: SpectraStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise InputError("rows are damaged")

    monkeypatch.setattr(SpectraStore, "read_rows", fail)
    monkeypatch.setattr("pipeline.accumulate.factoring.WINDOW_ROWS", 128)  # more windows than buffers
    with pytest.raises(InputError, match="damaged"):
        accumulate(train_store, tmp_path, FORCED)

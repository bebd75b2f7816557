"""The store: what opens, what is refused, and that no damaged chunk ever becomes a number."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_factory import make_first_version, make_frame, make_pixels, write_shard

from pipeline.base import seal
from pipeline.convert import convert_shards
from pipeline.errors import ConfigError, InputError, ResourceError
from pipeline.store import SpectraStore, StoreLayout, digest_rows, open_spectra, plan_layout, write_chunks
from pipeline.store.chunks import ChunkError, read_chunk_rows

N, P = 100, 16


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    base = tmp_path_factory.mktemp("shards")
    mask = np.zeros((60, P), np.int64)
    mask[50, 3] = 4
    noisy = [make_pixels(n, P, 7)[0] for n in (40, 60)]
    return [
        write_shard(base / "train_0" / "dataset.h5", 40, P, arrays={"noisy": noisy[0], "mask": None}),
        write_shard(base / "train_1" / "dataset.h5", 60, P, seed=1, arrays={"noisy": noisy[1], "mask": mask}),
    ]


@pytest.fixture(scope="module", params=[(8, 16), (8, 0), (32, None), (None, None)], ids=str)
def path(request: pytest.FixtureRequest, sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store") / "train.zarr"
    chunk_rows, shard_rows = request.param
    convert_shards(sources, store, workers=1, chunk_rows=chunk_rows, shard_rows=shard_rows)
    return store


@pytest.fixture
def copy(path: Path, tmp_path: Path) -> Path:
    shutil.copytree(path, tmp_path / "copy.zarr")
    return tmp_path / "copy.zarr"


def expected(variable: str) -> np.ndarray:
    if variable == "mask":
        mask = np.zeros((N, P), np.uint8)
        mask[90, 3] = 1
        return mask
    seeds = {"noisy": (7, 7)}.get(variable, (0, 1))
    position = 1 if variable == "error" else 0
    parts = [make_pixels(n, P, seed)[position] for n, seed in zip((40, 60), seeds, strict=True)]
    return np.concatenate(parts).astype(np.float32)


def test_open__describes_itself(path: Path, sources: list[Path]) -> None:
    store = SpectraStore.open(str(path))
    assert (store.n_spectra, store.n_pixels, store.has_noisy) == (N, P, True)
    assert store.variables == ("flux", "error", "mask", "noisy")
    assert store.shard_lengths == store.source_lengths == (40, 60)
    assert store.shard_names == ("train_0/dataset.h5", "train_1/dataset.h5")
    np.testing.assert_array_equal(store.wavelength, np.linspace(7100, 8850, P))
    np.testing.assert_array_equal(
        store.mean_flux, np.maximum(expected("flux"), 0).mean(axis=0, dtype=np.float64).astype(np.float32)
    )
    frame = make_frame(40), make_frame(60, 1)
    for name in ("id", "T_eff", "log_g", "M_H", "a_M", "C_M", "mag", "snr", "is_giant"):
        np.testing.assert_array_equal(store.columns[name], np.concatenate([part[name] for part in frame]))
    assert "redshift" not in store.columns  # all NaN
    assert "interp_param" not in store.columns  # text
    np.testing.assert_array_equal(store.columns["shard"], np.repeat([0, 1], (40, 60)))
    np.testing.assert_array_equal(store.columns["row"], np.r_[:40, :60])
    assert store.manifest.counts["flagged_pixels"] == 1


@pytest.mark.parametrize("variable", ["flux", "error", "mask", "noisy"])
def test_read_rows__equals_the_shards_and_zarr(path: Path, variable: str) -> None:
    store = SpectraStore.open(path)
    whole = store.read_rows(variable, 0, N)
    np.testing.assert_array_equal(whole, expected(variable))
    np.testing.assert_array_equal(zarr.open_array(path / variable, mode="r")[...], whole)  # the independent reader
    assert whole.dtype == (np.uint8 if variable == "mask" else np.float32)


@pytest.mark.parametrize("direct", [False, True])
def test_read_rows__any_range_into_a_buffer(path: Path, direct: bool) -> None:
    store, flux = SpectraStore.open(path), expected("flux")
    store.direct_reads = direct

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, N), st.integers(0, N))
    def check(a: int, b: int) -> None:
        start, stop = min(a, b), max(a, b)
        out = np.full((stop - start + 1, P), 77, np.float32)
        rows = store.read_rows("flux", start, stop, out)
        assert rows.base is out
        np.testing.assert_array_equal(rows, flux[start:stop])
        assert (out[stop - start :] == 77).all()

    check()


def test_read_rows__from_threads_and_after_pickling(path: Path) -> None:
    store = SpectraStore.open(path)
    again = pickle.loads(pickle.dumps(store))  # noqa: S301
    assert (again.fingerprint, again.path) == (store.fingerprint, store.path)
    assert len(pickle.dumps(store)) < 1000
    flux = expected("flux")
    with ThreadPoolExecutor(4) as pool:
        reads = list(pool.map(lambda row: again.read_rows("flux", row, row + 20), range(80)))
    for row, rows in enumerate(reads):
        np.testing.assert_array_equal(rows, flux[row : row + 20])


def test_read_rows__raise_on_wrong_requests(path: Path) -> None:
    store = SpectraStore.open(path)
    with pytest.raises(InputError, match="has no 'fluxx'"):
        store.read_rows("fluxx", 0, 1)
    with pytest.raises(InputError, match="rows 0 to 100"):
        store.read_rows("flux", 90, 101)
    for out in (np.empty((5, P)), np.empty((4, P), "f4"), np.empty((5, P + 1), "f4"), np.empty((P, 5), "f4").T):
        with pytest.raises(ValueError, match="out must be"):
            store.read_rows("flux", 0, 5, out)


def chunk_files(store: Path, variable: str) -> list[Path]:
    return sorted((store / variable / "c").glob("*/0"), key=lambda file: int(file.parent.name))


@pytest.mark.parametrize("direct", [False, True])
def test_read_rows__every_flipped_byte_is_an_error(copy: Path, direct: bool) -> None:
    file = chunk_files(copy, "flux")[-1]
    content = file.read_bytes()
    store = SpectraStore.open(copy)
    store.direct_reads = direct
    first = (len(chunk_files(copy, "flux")) - 1) * store.layout.file_rows
    positions = [0, 5, len(content) - 1, *np.random.default_rng(0).integers(0, len(content), 60).tolist()]
    message = rf"{re.escape(str(copy))} is damaged: rows {first} to {N - 1} of 'flux' cannot be read"
    for position in positions:
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        file.write_bytes(damaged)
        SpectraStore.open(copy)  # sizes are right: only reading can tell
        with pytest.raises(InputError, match=message):
            store.read_rows("flux", first, N)
    file.write_bytes(content)
    np.testing.assert_array_equal(store.read_rows("flux", first, N), expected("flux")[first:])


def test_read_rows__chunk_lost_after_opening(copy: Path) -> None:
    store = SpectraStore.open(copy)
    chunk_files(copy, "error")[0].unlink()
    with pytest.raises(InputError, match=r"rows 0 to 3 of 'error' .*error/c/0/0"):
        store.read_rows("error", 0, 4)
    # plain xarray cannot know, but shows NaN and never a plausible number
    plain = xr.open_zarr(copy, consolidated=False)
    assert np.isnan(plain["error"][:8].to_numpy()).all()


def test_read_rows__chunk_absent_within_a_zarr_shard(copy: Path) -> None:
    store = SpectraStore.open(copy)
    if store.shard_rows < 2 * store.chunk_rows:
        pytest.skip("one chunk per file")
    file = chunk_files(copy, "flux")[0]
    n_chunks = store.shard_rows // store.chunk_rows
    content = file.read_bytes()
    index = np.frombuffer(content[-n_chunks * 16 - 4 : -4], "<u8").copy()
    index[:2] = 2**64 - 1
    import google_crc32c

    tail = index.tobytes() + google_crc32c.value(index.tobytes()).to_bytes(4, "little")
    file.write_bytes(content[: -n_chunks * 16 - 4] + tail)
    with pytest.raises(InputError, match="rows from 0"):
        store.read_rows("flux", 0, 1)


def test_a_chunk_that_is_read_in_pieces_is_checked_to_the_last_byte(tmp_path: Path) -> None:
    layout = plan_layout(700, 512, chunk_rows=700, shard_rows=None)
    rows = np.random.default_rng(5).standard_normal((700, 512), dtype=np.float32)
    write_chunks(tmp_path, layout, 0, iter([rows]))
    [file] = [path for path in tmp_path.rglob("*") if path.is_file()]
    content = file.read_bytes()
    assert len(content) > 2 * 2**19, "it has at least three pieces"
    out = np.empty_like(rows)
    read_chunk_rows(tmp_path, layout, 0, 700, out)
    np.testing.assert_array_equal(out, rows)
    size = len(content)
    for place in (0, 17, 2**19 - 1, 2**19, 2**20 - 1, 2**20, size // 2, size - 30, size - 5, size - 1):
        damaged = bytearray(content)
        damaged[place] ^= 16
        file.write_bytes(damaged)
        with pytest.raises(ChunkError):
            read_chunk_rows(tmp_path, layout, 0, 700, out)
    for length in (3, 2**19, 2**20 + 1, size - 1):
        file.write_bytes(content[:length])
        with pytest.raises(ChunkError):
            read_chunk_rows(tmp_path, layout, 0, 700, out)


def rewrite(file: Path, change: Callable[[dict], None]) -> None:
    value = json.loads(file.read_text())
    change(value["attributes"])
    file.write_text(json.dumps(value))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: chunk_files(s, "flux")[-1].unlink(), r"flux/c/\d+/0 \(rows \d+ to 99\) is missing"),
        (lambda s: cut(chunk_files(s, "noisy")[0]), r"noisy/c/0/0 \(rows 0 to \d+\) has \d+ bytes instead"),
        (lambda s: shutil.rmtree(s / "error"), "error"),
        (lambda s: shutil.rmtree(s / "wavelength"), "wavelength"),
        (lambda s: shutil.rmtree(s / "manifest"), "manifest cannot be read"),
        (lambda s: (s / "zarr.json").write_text("{"), "zarr.json cannot be read"),
        (lambda s: (s / "zarr.json").unlink(), "must be a store, found no zarr.json"),
        (lambda s: shutil.rmtree(s), "must be a store, found nothing there"),
        (
            lambda s: rewrite(s / "zarr.json", lambda a: a.update(version=99)),
            "version 99 .* reads version",
        ),
        (lambda s: rewrite(s / "zarr.json", lambda a: a.update(format="x")), "not a store .format 'x'"),
        (lambda s: rewrite(s / "zarr.json", lambda a: a.pop("fingerprint")), "manifest cannot be read"),
        (
            lambda s: rewrite(s / "manifest" / "zarr.json", lambda a: a["ranges"][0]["digests"].update(flux="12")),
            "does not match its checksum",
        ),
        (lambda s: rewrite(s / "manifest" / "zarr.json", lambda a: a.pop("ranges")), "manifest cannot be read"),
    ],
)
def test_open__raise_on_damage(copy: Path, damage: Callable[[Path], object], message: str) -> None:
    SpectraStore.open(copy)
    damage(copy)
    with pytest.raises(InputError, match=message) as caught:
        SpectraStore.open(copy)
    text = str(caught.value)
    assert text.count("headroom convert") == 1
    if "damaged" in text:
        assert text.startswith(f"store {copy} is damaged: ")
        assert f"delete the folder and run again, or rebuild it: headroom convert SHARDS {copy} --overwrite" in text


def test_open__raise_on_changed_vectors(copy: Path) -> None:
    columns = SpectraStore.open(copy)
    zarr.open_array(copy / "log_g", mode="r+")[3] = 2.5
    with pytest.raises(InputError, match="column 'log_g'"):
        _ = columns.columns["log_g"]
    zarr.open_array(copy / "mean_flux", mode="r+")[3] = 2.5
    with pytest.raises(InputError, match="mean spectrum differ"):
        SpectraStore.open(copy)


def exchange(one: Path, other: Path) -> None:
    """Give two files each other's names: both are sound, and hold what they should not."""
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize(("one", "other"), [("log_g", "M_H"), ("flux", "error"), ("error", "noisy")])
def test_read__raise_on_exchanged_arrays(copy: Path, one: str, other: str, is_old: bool) -> None:
    if is_old:
        make_first_version(copy)
    before = SpectraStore.open(copy)
    files = [(file, copy / other / file.relative_to(copy / one)) for file in (copy / one / "c").rglob("*")]
    for mine, theirs in files:
        if mine.is_file():
            exchange(mine, theirs)
    sizes = copy / "manifest" / "zarr.json"
    content = json.loads(sizes.read_text())
    for part in content["attributes"]["ranges"]:  # as if both had been compressed as well as each other
        if one in part["file_bytes"]:
            bytes_of = part["file_bytes"]
            bytes_of[one], bytes_of[other] = bytes_of[other], bytes_of[one]
    content["attributes"] = content["attributes"] if is_old else seal(content["attributes"])
    sizes.write_text(json.dumps(content))
    store = SpectraStore.open(copy)
    for name in (one, other):
        read = partial(store.read_columns, [name]) if name in store.columns else partial(store.read_rows, name)
        with pytest.raises(InputError, match=name):
            read(30, 40)
    assert before.fingerprint == store.fingerprint


def test_read__raise_on_exchanged_chunks_of_one_array(copy: Path) -> None:
    store = SpectraStore.open(copy)
    names = [name for name, *_ in store.layout.iter_files(0, N)]
    if len(names) < 3:
        pytest.skip("one chunk file")
    content = {name: (copy / "flux" / name).read_bytes() for name in names[:2]}
    if len({len(one) for one in content.values()}) > 1:
        pytest.skip("they differ in size, which shows at once")
    exchange(*(copy / "flux" / name for name in names[:2]))
    with pytest.raises(InputError, match=names[0]):
        SpectraStore.open(copy).read_rows("flux", 0, 4)


@pytest.mark.parametrize("damage", ["[]", "null", "3", '{"attributes": []}', "[" * 100_000, '{"a": ' * 100_000])
@pytest.mark.parametrize("name", ["zarr.json", "manifest/zarr.json", "log_g/zarr.json", "wavelength/zarr.json"])
def test_open__raise_on_json_of_another_kind(copy: Path, name: str, damage: str) -> None:
    (copy / name).write_text(damage)
    with pytest.raises(InputError, match=r"zarr\.json|manifest"):
        SpectraStore.open(copy)


def test_open__first_version_reads_the_same(copy: Path) -> None:
    store, old = SpectraStore.open(copy), SpectraStore.open(make_first_version(copy))
    np.testing.assert_array_equal(old.read_rows("flux", 3, 90), store.read_rows("flux", 3, 90))
    np.testing.assert_array_equal(old.read_columns(["log_g"], 3, 90)["log_g"], store.columns["log_g"][3:90])


def test_open_spectra__dataset(path: Path) -> None:
    store, dataset = SpectraStore.open(path), open_spectra(path)
    assert dict(dataset.sizes) == {"spectrum": N, "wavelength": P}
    assert set(dataset.data_vars) == {"flux", "error", "mask", "noisy", "mean_flux"}
    assert set(store.columns) | {"wavelength"} == set(dataset.coords)
    rows = store.layout.file_rows
    assert dataset.flux.chunks == (tuple(min(rows, N - start) for start in range(0, N, rows)), (P,))
    assert (dataset.T_eff.attrs["units"], dataset.wavelength.attrs["units"]) == ("K", "angstrom")
    assert [dataset[name].attrs["long_name"] for name in ("flux", "error")] == ["flux", "1-sigma error of the flux"]
    for variable in store.variables:
        np.testing.assert_array_equal(dataset[variable].to_numpy(), expected(variable))
    poor = dataset.flux[dataset.M_H < -1]
    np.testing.assert_array_equal(poor.to_numpy(), expected("flux")[store.columns["M_H"] < -1])


def test_open_spectra__chunks(path: Path) -> None:
    store = SpectraStore.open(path)
    assert open_spectra(path, chunks=None).flux.chunks is None
    assert open_spectra(path, chunks=3 * store.chunk_rows).flux.chunks[0][0] == min(N, 3 * store.chunk_rows)
    assert open_spectra(path, chunks={"spectrum": store.chunk_rows}).flux.chunks[0][0] == min(N, store.chunk_rows)
    for wrong in (store.chunk_rows + 1, 0, "auto"):
        with pytest.raises(ConfigError, match="chunks must be"):
            open_spectra(path, chunks=wrong)


def test_open_zarr__plain_and_without_warnings(path: Path) -> None:
    dataset = xr.open_zarr(path)  # a warning would be an error
    assert dataset.attrs["Conventions"].startswith("CF-")
    assert dataset.wavelength.attrs["standard_name"] == "radiation_wavelength"
    xr.testing.assert_identical(dataset, xr.open_zarr(path, consolidated=False))
    assert "T_eff" in dataset.coords
    np.testing.assert_array_equal(dataset.flux.to_numpy(), expected("flux"))
    group = zarr.open_group(path, mode="r", use_consolidated=False)
    assert {name for name, _ in group.arrays()} >= {"flux", "error", "T_eff"}
    assert list(group.group_keys()) == ["manifest"]


def test_digest_rows__adds_up_however_divided() -> None:
    rows = np.random.default_rng(0).random((50, 7), dtype=np.float32)
    whole = digest_rows(rows, 10)
    for cut_at in (0, 1, 17, 50):
        assert (digest_rows(rows[:cut_at], 10) + digest_rows(rows[cut_at:], 10 + cut_at)) % 2**64 == whole
    swapped = rows.copy()
    swapped[[3, 4]] = rows[[4, 3]]
    changed = rows.copy()
    changed[20, 2] = np.nextafter(changed[20, 2], 1)
    assert len({whole, digest_rows(swapped, 10), digest_rows(changed, 10), digest_rows(rows, 11)}) == 4


def test_plan_layout__defaults_and_limits() -> None:
    assert plan_layout(10**6, 4096, None, None) == StoreLayout(10**6, 4096, 1024, 8192)
    assert plan_layout(10**6, 7200, None, None) == StoreLayout(10**6, 7200, 512, 4096)
    assert plan_layout(1000, 4096, None, None) == StoreLayout(1000, 4096, 1024, 1024)
    assert plan_layout(1, 1, None, None) == StoreLayout(1, 1, 1, 1)
    assert plan_layout(100, 10**8, None, None).chunk_rows == 1
    for chunk_rows, shard_rows in ((0, None), (-1, None), (8, 12), (8, -8)):
        with pytest.raises(ConfigError):
            plan_layout(100, 16, chunk_rows, shard_rows)


# --- What is not ours, and what is no regular file.


@pytest.mark.parametrize("attributes", [{}, {"title": "mine"}, None])
def test_open__a_zarr_folder_of_another_program_is_not_damaged(
    tmp_path: Path, attributes: dict[str, str] | None
) -> None:
    path = tmp_path / "mine.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=3, attributes=attributes or {})
    group.create_array("flux", data=np.ones((3, 4)), dimension_names=("star", "pixel"))
    if attributes is None:
        (path / "zarr.json").write_text("[]")
    with pytest.raises(InputError, match="headroom convert") as refused:
        SpectraStore.open(path)
    assert not any(word in str(refused.value) for word in ("delete", "damaged", "overwrite"))


@pytest.mark.parametrize("name", ["manifest/zarr.json", "flux/zarr.json", "wavelength/c/0", "log_g/c/0", "flux/c/0/0"])
def test_open__never_waits_for_a_pipe(copy: Path, name: str) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(InputError, match="damaged"):
        SpectraStore.open(copy)


def test_open__too_many_open_files_are_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = SpectraStore.open(path)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(zarr.Group, "__getitem__", fail)
    with pytest.raises(ResourceError, match="too many open files"):
        SpectraStore.open(path)
    with pytest.raises(ResourceError, match="too many open files"):
        stored.read_columns(["log_g"], 0, 1)

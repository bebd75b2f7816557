"""Shards: which files are meant, every layout check, and reading rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from shard_factory import make_pixels, write_shard

from pipeline.errors import InputError
from pipeline.shards import ShardReader, find_shards, read_shard_info


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_find_shards__folders_in_natural_order(tmp_path: Path) -> None:
    made = [touch(tmp_path / f"train_{i}" / "dataset.h5") for i in (1, 2, 10)]
    (tmp_path / "logs").mkdir()
    assert find_shards([tmp_path], Path("/")) == tuple(made)
    assert find_shards(["train_*"], tmp_path) == tuple(made)
    assert find_shards(["train_*/dataset.h5"], tmp_path) == tuple(made)
    assert find_shards(["train_10", "train_1/dataset.h5"], tmp_path) == (made[2], made[0])
    assert find_shards([made[1].parent], tmp_path) == (made[1],)


def test_find_shards__one_name_is_looked_for_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spectra.h5").touch()
    monkeypatch.chdir(tmp_path)
    assert find_shards("spectra.h5") == (Path("spectra.h5"),)


def test_find_shards__plain_files_of_a_folder(tmp_path: Path) -> None:
    made = [touch(tmp_path / "set" / name) for name in ("a2.h5", "a10.hdf5")]
    touch(tmp_path / "set" / "notes.md")
    assert find_shards(["set"], tmp_path) == tuple(made)


def test_find_shards__index(tmp_path: Path) -> None:
    made = [touch(tmp_path / "data" / f"s{i}" / "dataset.h5") for i in range(3)]
    index = tmp_path / "data" / "shard_index.txt"
    index.write_text(f"# the order counts\ns2\n\n{made[0].parent}  # absolute\ns1/dataset.h5\n")
    expected = (made[2], made[0], made[1])
    assert find_shards([index], Path("/")) == expected
    assert find_shards(["data"], tmp_path) == expected
    index.write_text("s2\n#\ns7\n")
    with pytest.raises(InputError, match=r"shard_index\.txt, line 3: 's7'"):
        find_shards([index], tmp_path)
    index.write_bytes("sch\u00f6n\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"shard_index\.txt .*0xf6 at position 3"):
        find_shards([index], tmp_path)
    index.write_text("# nothing\n")
    with pytest.raises(InputError, match="lists no shard"):
        find_shards([index], tmp_path)


@pytest.mark.parametrize("pattern", ["data/*", "data/**", "data/*.txt", "d*/shard_index.txt"])
def test_find_shards__a_glob_passes_over_texts_beside_shards(tmp_path: Path, pattern: str) -> None:
    made = [touch(tmp_path / "data" / f"s{i}" / "dataset.h5") for i in range(2)]
    (tmp_path / "data" / "README.txt").write_text("my spectra\n")
    (tmp_path / "data" / "shard_index.txt").write_text("s0\ns1\n")
    assert find_shards([pattern], tmp_path) == tuple(made)
    (tmp_path / "data" / "shard_index.txt").unlink()
    if pattern.endswith("txt"):
        with pytest.raises(InputError, match="no shard matches"):
            find_shards([pattern], tmp_path)


def test_find_shards__raise_on_nothing_and_on_duplicates(tmp_path: Path) -> None:
    made = touch(tmp_path / "a" / "dataset.h5")
    (tmp_path / "empty").mkdir()
    for pattern in ("nowhere", "no*where", "empty"):
        with pytest.raises(InputError, match=pattern.replace("*", r"\*")):
            find_shards(["a", pattern], tmp_path)
    with pytest.raises(InputError, match="at least one shard"):
        find_shards([], tmp_path)
    (tmp_path / "link.h5").symlink_to(made)
    for again in ("a", "a/dataset.h5", "*/dataset.h5", "link.h5", "a/../a"):
        with pytest.raises(InputError, match="named twice"):
            find_shards(["a", again], tmp_path)


@pytest.mark.parametrize("chunks", [None, (8, 16), (7, 5), (40, 16)])
@pytest.mark.parametrize("storage", [{}, {"compression": "gzip"}, {"dtype": "f4"}])
def test_read__layouts(tmp_path: Path, chunks: tuple[int, int] | None, storage: dict[str, object]) -> None:
    if chunks is None and "compression" in storage:
        pytest.skip("HDF5 compresses chunks only")
    noisy = make_pixels(40, 16, 9)[0]
    arrays = {"noisy": noisy, "mask": np.zeros((40, 16))} if "dtype" in storage else {"noisy": noisy}
    if "dtype" in storage:
        arrays["mask"] = None
    path = write_shard(tmp_path / "dataset.h5", chunks=chunks, arrays=arrays, storage=storage)
    info = read_shard_info(path)
    assert (info.n_spectra, info.n_pixels, info.has_noisy, info.has_mask) == (40, 16, True, "dtype" not in storage)
    assert info.chunks["flux"] == chunks
    buffer = np.full((30, 16), np.nan)
    with ShardReader(path) as reader:
        rows = reader.read_rows("flux", 5, 25, buffer)
        assert np.shares_memory(rows, buffer)
        dtype = storage.get("dtype", "f8")
        np.testing.assert_array_equal(rows, make_pixels(40, 16)[0][5:25].astype(dtype))
        np.testing.assert_array_equal(reader.read_rows("noisy", 39, 40), noisy[39:].astype(dtype))
        assert reader.read_rows("error", 3, 3).shape == (0, 16)
        with pytest.raises(IndexError):
            reader.read_rows("flux", 0, 41)


def test_read__masks_mean_the_opposite(tmp_path: Path) -> None:
    flagged = np.zeros((40, 16), bool)
    flagged[3, 4] = True
    integers = write_shard(tmp_path / "a.h5", arrays={"mask": flagged * np.int64(6)})
    booleans = write_shard(tmp_path / "b.h5", arrays={"mask": ~flagged})
    assert (read_shard_info(integers).mask_is_boolean, read_shard_info(booleans).mask_is_boolean) == (False, True)
    for path in (integers, booleans):
        with ShardReader(path) as reader:
            mask = reader.read_rows("mask", 0, 40)
            assert mask.dtype == np.uint8
            np.testing.assert_array_equal(mask, flagged)


def test_fingerprint__follows_content_not_place(tmp_path: Path) -> None:
    first = read_shard_info(write_shard(tmp_path / "a" / "dataset.h5"))
    moved = read_shard_info(write_shard(tmp_path / "b" / "other.h5"))
    assert first.fingerprint == moved.fingerprint
    flux = make_pixels(40, 16)[0]
    flux[39, 0] += 1e-9
    assert read_shard_info(write_shard(tmp_path / "c.h5", arrays={"flux": flux})).fingerprint != first.fingerprint
    assert read_shard_info(write_shard(tmp_path / "d.h5", seed=1)).fingerprint != first.fingerprint


def test_read_shard_info__raise_on_files_that_are_no_shards(tmp_path: Path) -> None:
    good = write_shard(tmp_path / "dataset.h5")
    with pytest.raises(InputError, match="does not exist"):
        read_shard_info(tmp_path / "none.h5")
    with pytest.raises(InputError, match="is a folder"):
        read_shard_info(tmp_path)
    with pytest.raises(InputError, match="is empty"):
        read_shard_info(touch(tmp_path / "empty.h5"))
    (tmp_path / "text.h5").write_text("not HDF5 " * 1000)
    with pytest.raises(InputError, match="not an HDF5 file"):
        read_shard_info(tmp_path / "text.h5")
    cut = tmp_path / "cut.h5"
    cut.write_bytes(good.read_bytes()[:-1000])
    with pytest.raises(InputError, match="cut off"):
        read_shard_info(cut)


def edit(path: Path, name: str, values: np.ndarray | None, **options: object) -> Path:
    with h5py.File(path, "a") as file:
        del file[name]
        if values is not None:
            file.create_dataset(name, data=values, **options)
    return path


WAVE = "spectrumdataset/wave"
FLUX = "dataset/arrays/flux/value"


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("dataset/params", None, "'dataset/params' is missing, so the simulation"),
        (FLUX, None, "flux/value' is missing"),
        ("dataset/arrays/error/value", None, "error/value' is missing"),
        (WAVE, None, "wave' must hold 16 wavelengths.*found nothing"),
        (WAVE, np.arange(15.0), r"wave' must hold 16 wavelengths.*\(15,\)"),
        (WAVE, np.r_[np.arange(15.0), 3.0], "strictly increasing, found 3.0 at pixel 15"),
        (WAVE, np.r_[np.arange(8.0), np.nan, np.arange(9.0, 16)], "found nan at pixel 8"),
        ("dataset/arrays/error/value", np.ones((39, 16)), r"flux has \(40, 16\) and error has \(39, 16\)"),
        ("dataset/arrays/mask/value", np.ones((40, 15), int), r"mask has \(40, 15\)"),
        (FLUX, np.ones((40, 16), int), "must hold floats.*int64"),
        (FLUX, np.ones(40), r"must hold floats of shape \(spectra, pixels\)"),
        ("dataset/arrays/mask/value", np.ones((40, 16)), "must hold integers or booleans"),
    ],
)
def test_read_shard_info__raise_on_layout(tmp_path: Path, name: str, values: np.ndarray | None, message: str) -> None:
    path = edit(write_shard(tmp_path / "train_2" / "dataset.h5"), name, values)
    with pytest.raises(InputError, match=f"shard train_2/dataset.h5: .*{message}"):
        read_shard_info(path)


@pytest.mark.parametrize("variable", ["flux", "error", "noisy"])
@pytest.mark.parametrize("chunks", [(8, 16), None])
def test_read_shard_info__raise_on_unwritten(tmp_path: Path, variable: str, chunks: tuple[int, int] | None) -> None:
    path = write_shard(tmp_path / "dataset.h5", arrays={"noisy": np.ones((40, 16)), variable: None})
    with h5py.File(path, "a") as file:
        dataset = file.create_dataset(f"dataset/arrays/{variable}/value", (40, 16), "f8", chunks=chunks)
        if chunks:
            dataset[:16] = dataset[24:] = 1.0
    where = "1 unwritten.*row 16, pixel 0" if chunks else "1 unwritten.*row 0"
    with pytest.raises(InputError, match=f"{variable}/value' has {where}"):
        read_shard_info(path)


def test_read_shard_info__unwritten_masks(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "dataset.h5", arrays={"mask": None})
    with h5py.File(path, "a") as file:
        mask = file.create_dataset("dataset/arrays/mask/value", (40, 16), "i8", chunks=(8, 16))
    assert read_shard_info(path).has_mask  # no chunk at all: nothing is flagged
    with h5py.File(path, "a") as file:
        mask = file["dataset/arrays/mask/value"]
        mask[:8] = 0
    with pytest.raises(InputError, match="4 unwritten"):
        read_shard_info(path)
    with h5py.File(path, "a") as file:
        del file["dataset/arrays/mask/value"]
        file.create_dataset("dataset/arrays/mask/value", (40, 16), bool, chunks=(8, 16))
    with pytest.raises(InputError, match="5 unwritten"):  # as a boolean it would flag every pixel
        read_shard_info(path)


def test_read_shard_info__wrong_edges_are_a_remark(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "dataset.h5")
    assert read_shard_info(path).remarks == ()
    info = read_shard_info(edit(path, "spectrumdataset/wave_edges", np.arange(16.0)))
    assert "wave_edges" in info.remarks[0]
    assert info.n_pixels == 16


def test_reader__never_writes(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "dataset.h5")
    before = path.read_bytes(), path.stat().st_mtime_ns
    path.chmod(0o444)
    read_shard_info(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_reader__raise_on_damaged_chunk(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "dataset.h5", storage={"compression": "gzip", "fletcher32": True})
    with h5py.File(path) as file:
        place = file[FLUX].id.get_chunk_info(2)
    with open(path, "r+b") as raw:
        raw.seek(place.byte_offset + 5)
        raw.write(b"\xff\x00\xff")
    with ShardReader(path) as reader, pytest.raises(InputError, match="rows 10 to 19"):
        reader.read_rows("flux", 10, 20)


def test_read_shard_info__raise_on_virtual(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "dataset.h5", arrays={"flux": None})
    layout = h5py.VirtualLayout((40, 16), "f8")
    layout[:] = h5py.VirtualSource(tmp_path / "lost.h5", "flux", (40, 16))
    with h5py.File(path, "a") as file:
        file.create_virtual_dataset(FLUX, layout)
        assert not file[FLUX][()].any()  # the part is missing, and reads as zeros
    with pytest.raises(InputError, match=r"flux/value' .*virtual dataset"):
        read_shard_info(path)


@pytest.mark.parametrize("error", [RuntimeError, KeyError, ValueError, TypeError, OSError, OverflowError, MemoryError])
def test_read__raise_on_whatever_h5py_raises(
    tmp_path: Path, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_shard(tmp_path / "train_2" / "dataset.h5")

    def fail(*_: object, **__: object) -> None:
        raise error("wrong\nB-tree")

    with ShardReader(path) as reader, monkeypatch.context() as patch:
        patch.setattr(h5py.Dataset, "read_direct", fail)
        with pytest.raises(InputError, match=r"rows 0 to 1 of .*flux.*B-tree"):
            reader.read_rows("flux", 0, 2)
    monkeypatch.setattr(h5py.Dataset, "__getitem__", fail)
    with pytest.raises(InputError, match=r"^shard train_2/dataset\.h5: .*B-tree"):
        read_shard_info(path)


#: Runs by itself: HDF5 may bring the interpreter down on a damaged file.
FUZZ = """
import sys
from pathlib import Path
import h5py
import numpy as np
from pipeline.errors import HeadroomError
from pipeline.shards import ShardReader, read_shard_info

good, bad = map(Path, sys.argv[1:])
content = good.read_bytes()
pixels = np.zeros(len(content), bool)
with h5py.File(good) as file:
    for name in file["dataset/arrays"]:
        dataset = file[f"dataset/arrays/{name}/value"].id
        for chunk in map(dataset.get_chunk_info, range(dataset.get_num_chunks())):
            pixels[chunk.byte_offset : chunk.byte_offset + chunk.size] = True
places = [place for place in np.flatnonzero(~pixels) if content[place]]  # most zeros are padding
rng, refused = np.random.default_rng(0), 0
for place in rng.choice(places, 150, replace=False):
    damaged = bytearray(content)
    damaged[place] ^= int(rng.integers(1, 256))
    bad.write_bytes(damaged)
    try:
        info = read_shard_info(bad)
        with ShardReader(bad) as reader:
            for variable in info.variables:
                reader.read_rows(variable, 0, info.n_spectra)
    except HeadroomError as error:
        assert len(str(error).splitlines()) == 1, error
        refused += 1
    except BaseException:
        print("byte", place, "became", damaged[place], file=sys.stderr)
        raise
print(refused)
"""


def test_read__damaged_metadata_is_an_input_error(tmp_path: Path) -> None:
    good = write_shard(tmp_path / "good.h5", 12, 8, chunks=(4, 8))
    command = [sys.executable, "-c", FUZZ, str(good), str(tmp_path / "bad.h5")]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 10


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (np.linspace(710, 885, 16), "nanometres; multiply them by 10"),
        (np.linspace(0.71, 0.885, 16), "micrometres; multiply them by 10,000"),
        (np.linspace(3.85, 3.95, 16), r"log10 of Å.*10\*\*w"),
        (np.linspace(8.8, 9.1, 16), "natural logarithms"),
        (np.linspace(7.1e-7, 8.85e-7, 16), "metres; multiply them by 1e10"),
    ],
)
def test_wavelengths_in_other_units_are_noticed(tmp_path: Path, grid: np.ndarray, words: str) -> None:
    with pytest.raises(InputError, match=f"must be in Å.*{words}"):
        read_shard_info(write_shard(tmp_path / "dataset.h5", 8, wavelength=grid))


def test_wavelengths_that_may_be_nanometres_are_remarked_on(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "dataset.h5", 8, wavelength=np.linspace(1510, 1700, 16))
    assert any("nanometres" in remark for remark in read_shard_info(path).remarks)


def test_shards__raise_on_spectra_of_one_pixel(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least two pixels"):
        read_shard_info(write_shard(tmp_path / "dataset.h5", 8, 1))


def test_files_that_macos_leaves_are_no_shards_and_capitals_do_not_matter(tmp_path: Path) -> None:
    write_shard(tmp_path / "S.H5", 8)
    (tmp_path / "._S.H5").write_bytes(b"resource fork")
    assert find_shards([tmp_path], tmp_path) == (tmp_path / "S.H5",)


@pytest.mark.parametrize("line", ["**Would experts predict better?**", "word " * 1000, "a\0b"])
def test_find_shards__raise_on_a_text_that_is_no_list_of_paths(tmp_path: Path, line: str) -> None:
    """One line says what the file is not, and shows the first line that is no path."""
    text = tmp_path / "README.txt"
    text.write_text(f"# headroom\n\n{line}\nMore words\n")
    with pytest.raises(
        InputError, match=r"README\.txt is neither HDF5, Zarr, netCDF nor a list of paths: line 3, "
    ) as no:
        find_shards(text)
    assert len(str(no.value)) < len(str(tmp_path)) + 260
    text.write_text("run/a.h5\nrun/b.h5\n")  # a list, whose paths count from another folder
    with pytest.raises(InputError, match=r"README\.txt, line 1: .*run/a\.h5 does not exist"):
        find_shards(text)
    (tmp_path / "shard_index.txt").write_text(line)  # by its name it is a list
    with pytest.raises(InputError, match=r"shard_index\.txt, line 1"):
        find_shards(tmp_path)

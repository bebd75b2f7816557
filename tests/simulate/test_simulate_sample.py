"""Whole samples: layout, determinism, resume, refusals, and what is left when the disk is full."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

import pipeline.simulate.sample as sample_module
import pipeline.simulate.shard as shard_module
from pipeline.base.progress import LogProgress
from pipeline.cli import main
from pipeline.errors import ConfigError, InputError, ResourceError
from pipeline.schema import SHARD_ERROR, SHARD_FLUX, SHARD_MASK, SHARD_NOISY, SHARD_WAVE, SHARD_WAVE_EDGES
from pipeline.shards import find_shards
from pipeline.simulate import SampleSpec, SampleSummary, is_sample, write_sample
from pipeline.simulate.spectra import SpectrumModel, plan_wavelengths

# More than one block of rows per shard, and shards of different length.
SPEC = SampleSpec(train=901, shards=3, test=270, pixels=64, seed=7)
ARRAYS = (SHARD_FLUX, SHARD_ERROR, SHARD_MASK)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SampleSummary:
    return write_sample(tmp_path_factory.mktemp("sample"), SPEC, workers=1)


def _die(_plan: object) -> None:
    os._exit(9)


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _arrays(path: Path) -> dict[str, bytes]:
    with h5py.File(path, "r") as file:
        names = [*ARRAYS, *([SHARD_NOISY] if SHARD_NOISY in file else []), "dataset/params/table", SHARD_WAVE]
        return {name: file[name][()].tobytes() for name in names}


def test_layout_is_the_one_of_pfsspec(sample: SampleSummary) -> None:
    for path, rows in zip([*sample.train_files, sample.test_file], [300, 300, 301, 270], strict=True):
        with h5py.File(path, "r") as file:
            for name, dtype in zip(ARRAYS, ("f8", "f8", "i8"), strict=True):
                array = file[name]
                assert (array.shape, array.dtype, array.chunks) == ((rows, 64), np.dtype(dtype), (rows, 64))
                assert array.compression is None
                assert array.id.get_num_chunks() == 1
            assert (SHARD_NOISY in file) == (path == sample.test_file)
            np.testing.assert_allclose(file[SHARD_WAVE_EDGES][[0, -1]], [7100, 8850])
            edges = file[SHARD_WAVE_EDGES][:]
            np.testing.assert_allclose(file[SHARD_WAVE][:], (edges[1:] + edges[:-1]) / 2)
            error = file[SHARD_ERROR][:]
            assert np.isnan(error[:, [0, -1]]).all()
            assert (error[:, 1:-1] > 0).all()
            assert not file[SHARD_MASK][:].any()
            np.testing.assert_allclose(np.median(file[SHARD_FLUX][:], axis=1), 1.0)


def test_chunks_hold_4096_rows_and_the_last_one_is_padded(tmp_path: Path) -> None:
    spec = SampleSpec(train=4200, shards=1, test=1, pixels=16)
    summary = write_sample(tmp_path, spec, workers=1)
    with h5py.File(summary.train_files[0], "r") as file:
        assert file[SHARD_FLUX].chunks == (4096, 16)
        assert file[SHARD_FLUX].id.get_num_chunks() == 2
        assert (file[SHARD_FLUX][:] > 0).all()


def test_params_agree_with_the_arrays_and_ids_are_unique(sample: SampleSummary) -> None:
    ids = []
    for path in (*sample.train_files, sample.test_file):
        params = pd.read_hdf(path, "dataset/params")
        ids.append(params["id"].to_numpy())
        with h5py.File(path, "r") as file:
            flux, error = file[SHARD_FLUX][:], file[SHARD_ERROR][:]
        # snr is measured before the edges are lost, so it may differ from the inner median by a hair.
        np.testing.assert_allclose(params["snr"], np.nanmedian(flux / error, axis=1), rtol=0.1)
        assert params["mag"].between(20.5, 22.5).all()
        assert (params["redshift"] == 0).all()
        assert params[["ext", "target_zenith_angle"]].isna().all(axis=None)
        assert params["interp_param"].iloc[0] == "none"
        assert params["random_seed"].nunique() > 0.99 * len(params)
    np.testing.assert_array_equal(np.concatenate(ids), np.arange(901 + 270))


def test_spectra_are_those_of_the_labels_in_the_table(sample: SampleSummary) -> None:
    from pipeline.simulate.spectra import Labels

    params = pd.read_hdf(sample.train_files[1], "dataset/params")
    labels = Labels(*(params[name].to_numpy() for name in ("T_eff", "log_g", "M_H", "a_M", "C_M")))
    _, edges = plan_wavelengths(SPEC.wave_range, SPEC.pixels)
    with h5py.File(sample.train_files[1], "r") as file:
        np.testing.assert_allclose(file[SHARD_FLUX][:], SpectrumModel(edges).render(labels), rtol=1e-9)


def test_noisy_is_a_clipped_draw_at_noise_level_one(sample: SampleSummary) -> None:
    with h5py.File(sample.test_file, "r") as file:
        flux, error, noisy = (file[name][:] for name in (SHARD_FLUX, SHARD_ERROR, SHARD_NOISY))
    assert np.isfinite(noisy).all()
    assert (noisy >= 0).all()
    draws = ((noisy - flux) / error)[:, 1:-1][(flux > 5 * error)[:, 1:-1]]
    assert abs(draws.mean()) < 5 / np.sqrt(draws.size)
    assert abs(draws.std() - 1) < 5 / np.sqrt(2 * draws.size)


def test_index_and_readme_say_that_the_spectra_are_simulated(sample: SampleSummary) -> None:
    lines = sample.shard_index.read_text().splitlines()
    assert lines[0].startswith("#")
    assert "imulated" in lines[0]
    assert lines[1:] == ["shard_0", "shard_1", "shard_2"]
    assert all((sample.shard_index.parent / line / "dataset.h5").is_file() for line in lines[1:])
    readme = (sample.directory / "README.txt").read_text()
    assert "SIMULATED SPECTRA" in readme
    assert "not the output of a stellar atmosphere code" in readme
    assert '"seed": 7' in readme


@pytest.mark.parametrize("first_line", [" and not the output of a stellar atmosphere code.", "; from a grid"])
def test_samples_of_every_version_are_known_by_their_readme(tmp_path: Path, first_line: str) -> None:
    assert not is_sample(tmp_path)
    (tmp_path / "README.txt").write_text(f"SIMULATED SPECTRA: a stand-in, not observations{first_line}\n")
    assert is_sample(tmp_path)
    (tmp_path / "README.txt").write_text("SIMULATED SPECTRA of my own\n")
    assert not is_sample(tmp_path)


def test_summary_counts_what_was_written(sample: SampleSummary) -> None:
    assert (sample.train, sample.test, sample.pixels, sample.kept, sample.clipped_labels) == (901, 270, 64, 0, 0)
    assert sample.bytes == sum(path.stat().st_size for path in (*sample.train_files, sample.test_file))
    assert list(sample.snr) == sorted(sample.snr)
    np.testing.assert_allclose(sample.snr[1:4], [3.7, 8.2, 17.2], rtol=0.15)


def test_shards_and_seeds_differ(sample: SampleSummary, tmp_path: Path) -> None:
    other = write_sample(tmp_path, replace(SPEC, seed=8), workers=1)
    flux = [_arrays(path)[SHARD_FLUX][:512] for path in (*sample.train_files, sample.test_file, *other.train_files)]
    assert len(set(flux)) == len(flux)


def test_two_workers_write_the_bytes_of_one(
    sample: SampleSummary, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = write_sample(tmp_path / "two", SPEC, workers=2, progress=LogProgress(interval=0.0))
    for one, two in zip((*sample.train_files, sample.test_file), (*again.train_files, again.test_file), strict=True):
        assert _arrays(one) == _arrays(two)
    assert _files(again.directory) == _files(sample.directory)
    assert "1,171 spectra" in capsys.readouterr().err


def test_finished_shards_are_kept_and_missing_ones_written(sample: SampleSummary, tmp_path: Path) -> None:
    shutil.copytree(sample.directory, tmp_path / "copy")
    lost, kept = (tmp_path / "copy" / "train" / f"shard_{k}" / "dataset.h5" for k in (1, 0))
    lost.unlink()
    before = kept.stat().st_mtime_ns
    summary = write_sample(tmp_path / "copy", SPEC, workers=1)
    assert summary.kept == 3
    assert kept.stat().st_mtime_ns == before
    assert _arrays(lost) == _arrays(sample.train_files[1])
    assert write_sample(tmp_path / "copy", SPEC, workers=1).kept == 4


def test_write_sample__raise_on_another_specification_unless_overwriting(tmp_path: Path) -> None:
    small = SampleSpec(train=20, shards=2, test=5, pixels=16)
    write_sample(tmp_path, small, workers=1)
    fewer = replace(small, shards=1, seed=3)
    with pytest.raises(InputError, match="seed 0 instead of 3, shards 2 instead of 1"):
        write_sample(tmp_path, fewer, workers=1)
    summary = write_sample(tmp_path, fewer, workers=1, overwrite=True)
    # The shard that the new sample does not have is gone, so nobody can train on it by mistake.
    assert _files(tmp_path) == ["README.txt", "test/dataset.h5", "train/shard_0/dataset.h5", "train/shard_index.txt"]
    assert summary.kept == 0


@pytest.mark.parametrize("content", ["text", "hdf5"])
def test_write_sample__raise_on_files_of_others_even_when_overwriting(tmp_path: Path, content: str) -> None:
    path = tmp_path / "test" / "dataset.h5"
    path.parent.mkdir()
    if content == "text":
        path.write_text("precious")
    else:
        with h5py.File(path, "w") as file:
            file[SHARD_FLUX] = np.ones((2, 2))
    before = path.read_bytes()
    with pytest.raises(InputError, match="`headroom sample`"):
        write_sample(tmp_path, SPEC, workers=1, overwrite=True)
    assert path.read_bytes() == before


def test_write_sample__raise_on_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a folder is required"):
        write_sample(tmp_path / "file", SPEC)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"train": 0}, "train must be a whole number of at least 1, found 0"),
        ({"test": 2.5}, "test must be a whole number"),
        ({"pixels": 8}, "pixels must be a whole number of at least 16"),
        ({"seed": -1}, "seed must be"),
        ({"shards": 902}, "use at most 901 shards"),
        ({"wave_range": (8000.0, 7000.0)}, "two increasing wavelengths"),
        ({"wave_range": (5000.0, 8850.0)}, "within 6300–9700 Å"),
        ({"wave_range": (3800.0, 5000.0), "grid": Path("grid.npz")}, "must overlap 6500–9500 Å"),
    ],
)
def test_sample_spec__raise_on_a_bad_setting(change: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        replace(SPEC, **change)


def test_write_sample__raise_on_no_workers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="workers"):
        write_sample(tmp_path, SPEC, workers=0)


def test_write_sample__raise_before_writing_when_the_disk_is_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(2**30, 2**30 - 2**20, 2**20))
    with pytest.raises(ResourceError, match=r"0\.02 GiB .* 0\.00 GiB"):
        write_sample(tmp_path / "new", SPEC, workers=1)
    assert not (tmp_path / "new").exists()


def test_write_sample__raise_when_a_write_fails_and_leave_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = shard_module.write_block
    calls = []

    def fail_late(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        original(*arguments)

    monkeypatch.setattr(shard_module, "write_block", fail_late)
    with pytest.raises(ResourceError, match=r"shard_1.*No space left"):
        write_sample(tmp_path, SPEC, workers=1)
    # The finished shard stays for the next attempt; no index announces an incomplete sample.
    assert _files(tmp_path) == ["train/shard_0/dataset.h5"]
    monkeypatch.undo()
    assert write_sample(tmp_path, SPEC, workers=1).kept == 1


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="space cannot be reserved here")
def test_write_sample__raise_when_the_system_refuses_the_space(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        with pytest.raises(ResourceError, match="File too large"):
            write_sample(tmp_path, SPEC, workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert _files(tmp_path) == []


def test_a_failure_in_another_process_arrives_whole(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "shard_1").write_text("in the way")
    with pytest.raises(ResourceError, match="shard_1"):
        write_sample(tmp_path, SPEC, workers=2)
    assert not list(tmp_path.rglob("*.partial"))


def test_write_sample__raise_when_another_process_writes_the_shard(tmp_path: Path) -> None:
    path = tmp_path / "train" / "shard_0" / "dataset.h5.partial"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        file["theirs"] = np.ones(1000)
    before = path.read_bytes()
    # HDF5 locks a file that it writes with flock, which excludes other descriptors even of this process.
    with path.open("r+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(ResourceError, match="another process"):
            write_sample(tmp_path, SPEC, workers=1)
    assert path.read_bytes() == before


# Python's own pool counts its processes in a thread while they are being removed (3.11: "dictionary changed size").
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_killed_process_is_reported_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_module, "write_in_worker", _die)
    with pytest.raises(ResourceError, match=r"was killed.*fewer workers"):
        write_sample(tmp_path, SPEC, workers=2)
    assert not (tmp_path / "train" / "shard_index.txt").exists()


def test_what_an_interrupted_run_left_is_replaced(tmp_path: Path, sample: SampleSummary) -> None:
    path = tmp_path / "train" / "shard_0" / "dataset.h5.partial"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a file")
    summary = write_sample(tmp_path, SPEC, workers=1)
    assert not path.exists()
    assert _arrays(summary.train_files[0]) == _arrays(sample.train_files[0])


def test_a_sample_from_a_grid_names_it_and_counts_clipped_labels(tmp_path: Path) -> None:
    from pipeline.simulate.spectra import Labels

    wave, edges = plan_wavelengths((7050.0, 8900.0), 512)
    nodes = np.random.default_rng(0).uniform([4000, 1, -2], [5800, 5, 0.5], (200, 3))
    flux = SpectrumModel(edges).render(Labels(*nodes.T, np.zeros(200), np.zeros(200)))
    np.savez(tmp_path / "grid.npz", wave=wave, flux=flux, teff=nodes[:, 0], logg=nodes[:, 1], mh=nodes[:, 2])
    spec = SampleSpec(train=300, shards=2, test=50, pixels=32, grid=tmp_path / "grid.npz")
    one = write_sample(tmp_path / "one", spec, workers=1)
    readme = (tmp_path / "one" / "README.txt").read_text()
    assert "atmosphere code" not in readme, "a grid may well be the output of one"
    assert "interpolated" in readme
    assert is_sample(tmp_path / "one")
    two = write_sample(tmp_path / "two", spec, workers=2)
    assert _arrays(one.train_files[1]) == _arrays(two.train_files[1])
    assert 50 < one.clipped_labels < 350
    params = pd.read_hdf(one.train_files[0], "dataset/params")
    assert params["T_eff"].between(3999, 5801).all()
    assert params["interp_param"].iloc[0] == "rbf"
    with h5py.File(one.test_file, "r") as file:
        record = json.loads(bytes(file.attrs["headroom_sample"]))
    assert len(record["fingerprint"]["grid"]) == 64
    # Another grid is another sample, even under the same name.
    np.savez(tmp_path / "grid.npz", wave=wave, flux=flux**1.1, teff=nodes[:, 0], logg=nodes[:, 1], mh=nodes[:, 2])
    with pytest.raises(InputError, match="another sample"):
        write_sample(tmp_path / "one", spec, workers=1)


# --- a part of a sample ----------------------------------------------------------------------------------


def test_only__files_are_those_of_the_whole_sample(sample: SampleSummary, tmp_path: Path) -> None:
    one = write_sample(tmp_path / "one", SPEC, only=["train/shard_1"], workers=1)
    assert _files(one.directory) == ["README.txt", "train/shard_1/dataset.h5", "train/shard_index.txt"]
    assert _arrays(one.train_files[0]) == _arrays(sample.train_files[1])
    assert one.train_files[0].read_bytes() == sample.train_files[1].read_bytes()
    assert (one.train, one.test, one.test_file, one.kept) == (300, 0, None, 0)
    assert one.bytes == one.train_files[0].stat().st_size
    assert find_shards([one.directory / "train"], tmp_path) == one.train_files
    assert "train/shard_1, out of 4 files" in (one.directory / "README.txt").read_text()
    assert '"shards": 3' in (one.directory / "README.txt").read_text()


def test_only__parts_make_up_the_whole_in_any_order(sample: SampleSummary, tmp_path: Path) -> None:
    write_sample(tmp_path, SPEC, only=["test", "train/shard_2"], workers=2)
    assert (tmp_path / "train" / "shard_index.txt").read_text().splitlines()[1:] == ["shard_2"]
    again = write_sample(tmp_path, SPEC, only=["train/shard_0/", "test"], workers=1)
    assert (again.kept, again.test, again.test_file) == (1, 270, tmp_path / "test" / "dataset.h5")
    assert (tmp_path / "train" / "shard_index.txt").read_text().splitlines()[1:] == ["shard_0", "shard_2"]
    whole = write_sample(tmp_path, SPEC, workers=1)
    assert whole.kept == 3
    for name in _files(sample.directory):
        assert (tmp_path / name).read_bytes() == (sample.directory / name).read_bytes(), name


def test_only__shard_by_shard_with_deletion(tmp_path: Path) -> None:
    for k in range(3):
        write_sample(tmp_path, SPEC, only=[f"train/shard_{k}"], workers=1)
        assert (tmp_path / "train" / "shard_index.txt").read_text().splitlines()[1:] == [f"shard_{k}"]
        (tmp_path / "train" / f"shard_{k}" / "dataset.h5").unlink()
    write_sample(tmp_path, SPEC, only=["test"], workers=1)
    assert _files(tmp_path) == ["README.txt", "test/dataset.h5"]


def test_only__goes_on_after_the_test_file_alone_was_written_and_deleted(tmp_path: Path) -> None:
    write_sample(tmp_path, SPEC, only=["test"], workers=1)
    shutil.rmtree(tmp_path / "test")
    write_sample(tmp_path, SPEC, only=["train/shard_0"], workers=1)
    assert (tmp_path / "train/shard_0/dataset.h5").is_file()


def test_only__overwriting_leaves_no_file_of_the_other_sample(tmp_path: Path) -> None:
    small = SampleSpec(train=20, shards=2, test=5, pixels=16)
    write_sample(tmp_path, small, workers=1)
    with pytest.raises(InputError, match="another sample"):
        write_sample(tmp_path, replace(small, seed=3), only=["train/shard_1"], workers=1)
    write_sample(tmp_path, replace(small, seed=3), only=["train/shard_1"], workers=1, overwrite=True)
    assert _files(tmp_path) == ["README.txt", "train/shard_1/dataset.h5", "train/shard_index.txt"]


@pytest.mark.parametrize("name", ["train/shard_3", "shard_0", "tests", "", "train"])
def test_only__raise_on_a_file_that_the_sample_lacks(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="'train/shard_0' to 'train/shard_2'"):
        write_sample(tmp_path / "new", SPEC, only=[name], workers=1)
    assert not (tmp_path / "new").exists()


def test_only__on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--train", "40", "--shards", "2", "--test", "5", "--pixels", "16", "--workers", "1", "--quiet"]
    main(["sample", str(tmp_path), *settings, "--only", "train/shard_1"])
    assert "20 training and 0 test spectra" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["sample", str(tmp_path), *settings, "--only", "train/shard_2"])
    assert "did you mean 'train/shard_" in capsys.readouterr().err

"""A folder of BOSZ files as MAST serves them: labels from names, what is chosen, what is missing, what is refused."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from bosz_files import LOGG, MH, TEFF, WAVE, name_file, render, write_bosz, write_spectrum
from commands import invoke

from pipeline.base import SilentProgress
from pipeline.errors import InputError
from pipeline.simulate import SampleSpec, write_sample
from pipeline.simulate.bosz import find_bosz
from pipeline.simulate.grid import fingerprint_grid, open_grid
from pipeline.simulate.spectra import Labels, plan_wavelengths

_, EDGES = plan_wavelengths((8400.0, 8800.0), 64)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in MAST's layout: one sub-folder for each metallicity, the wavelengths beside them."""
    return write_bosz(tmp_path_factory.mktemp("bosz") / "r2000")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "r2000"))


def test_labels_come_from_the_names(whole: Path) -> None:
    found = find_bosz(whole)
    assert {tuple(node) for node in found.labels} == set(product(TEFF, LOGG, MH))
    assert [f"t{t:.0f}_g{g:+.1f}_m{m:+.2f}" in f.name for (t, g, m), f in zip(found.labels, found.files, strict=True)]
    assert found.notes == (
        "BOSZ grid: 27 spectra, T_eff 4000 to 6000 (3 values), log g 1 to 5 (3 values), [M/H] -2 to 0.5 (3 values), at "
        "[α/M] +0, [C/M] +0, microturbulence 2 km/s",
    )


def test_nodes_are_those_of_a_file_of_the_same_spectra(whole: Path, tmp_path: Path) -> None:
    nodes = np.array(list(product(TEFF, LOGG, MH)), dtype=float)
    arrays = dict(zip(("teff", "logg", "mh"), nodes.T, strict=True))
    np.savez(tmp_path / "grid.npz", wave=WAVE, flux=render(nodes), **arrays)
    zero = np.zeros(27)
    labels = Labels(*nodes.T, zero, zero)
    ours = open_grid(whole, EDGES).render(labels)
    np.testing.assert_allclose(ours, open_grid(tmp_path / "grid.npz", EDGES).render(labels), atol=2e-6)


def test_missing_spectra_are_listed(folder: Path) -> None:
    (folder / "m-1.00" / name_file(5000, 3, -1)).unlink()
    (folder / "m+0.50" / name_file(6000, 5, 0.5)).unlink()
    [_, missing] = find_bosz(folder).notes
    assert (
        "2 of the 27 combinations of these values have no spectrum: t5000_g+3.0_m-1.00, t6000_g+5.0_m+0.50" in missing
    )
    assert open_grid(folder, EDGES).notes == find_bosz(folder).notes


def test_one_composition_and_one_atmosphere_are_chosen(folder: Path) -> None:
    flux = render([(4000, 1, -2)])[0]
    extra = folder / "m-2.00"
    write_spectrum(extra / name_file(4000, 1, -2, kind="a+0.50_c+0.00_v2"), flux)  # fewer of this composition
    write_spectrum(extra / name_file(4000, 1, -2, kind="a+0.00_c+0.00_v0"), flux)
    write_spectrum(extra / name_file(4000, 1, -2, atmosphere="ap"), flux)
    write_spectrum(extra / name_file(4000, 1, -2, atmosphere="ms"), flux)
    found = find_bosz(folder)
    assert len(found.files) == 27
    assert found.files[0].name == name_file(4000, 1, -2, atmosphere="ms")
    assert found.notes[0].endswith("; 4 other files are not used")


def test_the_fingerprint_is_that_of_the_content(folder: Path, whole: Path) -> None:
    assert fingerprint_grid(folder) == fingerprint_grid(whole)
    write_spectrum(folder / "m-2.00" / name_file(4000, 1, -2), render([(4000, 1, -1.9)])[0])
    assert fingerprint_grid(folder) != fingerprint_grid(whole)


class _Notes(SilentProgress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_sample_is_made_of_the_folder(whole: Path, tmp_path: Path) -> None:
    spec = SampleSpec(train=40, shards=1, test=10, pixels=32, grid=whole, wave_range=(8400.0, 8800.0))
    progress = _Notes()
    summary = write_sample(tmp_path / "spectra", spec, workers=1, progress=progress)
    assert (summary.train, summary.test) == (40, 10)
    assert progress.notes == list(find_bosz(whole).notes)
    again = write_sample(tmp_path / "spectra", spec, workers=1)
    assert again.kept == 2


def test_wavelengths_must_cover_the_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = write_bosz(tmp_path / "r2000", *plan_wavelengths((8300.0, 8900.0), 400))
    code, _, err = invoke(capsys, "sample", tmp_path / "out", "--grid", grid, "--train", 8, "--test", 4, "--quiet")
    assert code == 2
    assert "'wave' must cover 7100–8850 Å" in err


def _damage(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "bosz2024_wave_r2000.txt").unlink(), r"bosz2024_wave_r2000\.txt is missing; put it into"),
        (
            lambda f: (f / "bosz2024_wave_r2000.txt").rename(f / "bosz2024_wave_r500.txt"),
            r"bosz2024_wave_r2000\.txt is missing, found bosz2024_wave_r500\.txt",
        ),
        (lambda f: _damage(f / "m-2.00" / name_file(4000, 1, -2), b"no gzip"), "t4000.*cannot be read"),
        (
            lambda f: write_spectrum(f / "m-2.00" / name_file(4000, 1, -2), np.ones(3)),
            "t4000_g.*one line for each of the 400 wavelengths is required, found 3",
        ),
        (
            lambda f: write_spectrum(f / name_file(4000, 1, -2).replace("r2000", "r500"), np.ones(3)),
            "one resolution is required, found r500 and r2000",
        ),
        (lambda f: (f / "bosz2024_wave_r2000.txt").write_text("a\nb\n"), "wave_r2000.*cannot be read"),
        (lambda f: [shutil.rmtree(f / f"m{m:+.2f}") for m in MH[:2]], "'mh' has one value only"),
        (lambda f: [shutil.rmtree(f / f"m{m:+.2f}") for m in MH], "no spectra of BOSZ 2024 in it; files such as"),
    ],
)
def test_open_grid__raise_on_a_folder(folder: Path, change: object, message: str) -> None:
    assert callable(change)
    change(folder)
    with pytest.raises(InputError, match=message) as caught:
        open_grid(folder, EDGES)
    assert "\n" not in str(caught.value)

"""A user's grid of model spectra: interpolation, clipping at its hull, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.simulate.grid import average_over_pixels, fingerprint_grid, open_grid
from pipeline.simulate.spectra import Labels, SpectrumModel, normalise_spectra, plan_wavelengths

_, EDGES = plan_wavelengths((8400.0, 8800.0), 128)
GRID_WAVE, GRID_EDGES = plan_wavelengths((8390.0, 8810.0), 1024)


def _labels(nodes: np.ndarray) -> Labels:
    zero = np.zeros(len(nodes))
    return Labels(nodes[:, 0], nodes[:, 1], nodes[:, 2], zero, zero)


def _render_truth(nodes: np.ndarray) -> np.ndarray:
    """The model itself on the grid's fine pixels, brought to the wanted ones."""
    flux = SpectrumModel(GRID_EDGES).render(_labels(nodes))
    return normalise_spectra(average_over_pixels(GRID_WAVE, flux, EDGES), (EDGES[1:] + EDGES[:-1]) / 2)


def _make_arrays(nodes: np.ndarray) -> dict[str, np.ndarray]:
    flux = SpectrumModel(GRID_EDGES).render(_labels(nodes))
    return {"wave": GRID_WAVE, "flux": flux, "teff": nodes[:, 0], "logg": nodes[:, 1], "mh": nodes[:, 2]}


@pytest.fixture(scope="module")
def regular() -> dict[str, np.ndarray]:
    axes = (np.linspace(3700, 6000, 11), np.linspace(1, 5, 9), np.linspace(-2.5, 0.75, 10))
    return _make_arrays(np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 3))


@pytest.fixture
def small() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return _make_arrays(generator.uniform([4000, 2, -2], [5500, 4, 0.5], (30, 3)))


def _save(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(path, **arrays)
    return path


def test_interpolation_in_a_grid_of_our_own_spectra_errs_little(tmp_path: Path, regular: dict[str, np.ndarray]) -> None:
    grid = open_grid(_save(tmp_path / "grid.npz", regular), EDGES)
    stars = np.random.default_rng(1).uniform([3800, 1.1, -2.4], [5950, 4.9, 0.7], (300, 3))
    error = np.abs(grid.render(_labels(stars)) - _render_truth(stars))
    # The noise of a typical spectrum is 0.12: hundreds of times more.
    assert np.median(error) < 5e-4
    assert np.quantile(error, 0.99) < 5e-3
    assert error.max() < 0.03


def test_nodes_are_reproduced(tmp_path: Path, regular: dict[str, np.ndarray]) -> None:
    grid = open_grid(_save(tmp_path / "grid.npz", regular), EDGES)
    some = np.column_stack([regular[key] for key in ("teff", "logg", "mh")])[::37]
    np.testing.assert_allclose(grid.render(_labels(some)), _render_truth(some), atol=1e-4)


def test_hdf5_and_scattered_grids_serve_too(tmp_path: Path, small: dict[str, np.ndarray]) -> None:
    path = tmp_path / "grid.h5"
    with h5py.File(path, "w") as file:
        for name, values in small.items():
            file[name] = values
    first = open_grid(path, EDGES).render(_labels(np.array([[4700.0, 3.0, -0.5]])))
    second = open_grid(_save(tmp_path / "grid.npz", small), EDGES).render(_labels(np.array([[4700.0, 3.0, -0.5]])))
    np.testing.assert_array_equal(first, second)
    assert fingerprint_grid(path) != fingerprint_grid(tmp_path / "grid.npz")


def test_labels_outside_a_box_move_to_its_nearest_point_and_are_counted(
    tmp_path: Path, regular: dict[str, np.ndarray]
) -> None:
    grid = open_grid(_save(tmp_path / "grid.npz", regular), EDGES)
    wanted = np.array([[3000.0, 3.0, 0.0], [7000.0, 6.0, 2.0], [5000.0, 0.5, -1.0], [5000.0, 3.0, 0.0]])
    clipped, count = grid.clip_labels(_labels(wanted))
    assert count == 3
    found = np.column_stack([clipped.T_eff, clipped.log_g, clipped.M_H])
    expected = [[3700.0, 3.0, 0.0], [6000.0, 5.0, 0.75], [5000.0, 1.0, -1.0], [5000.0, 3.0, 0.0]]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_array_equal(found[3], wanted[3])


def test_labels_outside_a_scattered_hull_end_inside_it(tmp_path: Path, small: dict[str, np.ndarray]) -> None:
    grid = open_grid(_save(tmp_path / "grid.npz", small), EDGES)
    wanted = np.random.default_rng(2).uniform([3750, 1, -2.5], [6000, 5, 0.75], (2000, 3))
    clipped, count = grid.clip_labels(_labels(wanted))
    points = (np.column_stack([clipped.T_eff, clipped.log_g, clipped.M_H]) - grid.centre) / grid.spread
    assert (points @ grid.facets[:, :3].T + grid.facets[:, 3]).max() < 1e-6
    assert 1000 < count < 2000
    again, moved = grid.clip_labels(clipped)
    np.testing.assert_allclose(again.T_eff, clipped.T_eff, atol=1e-3)
    assert moved < count


def test_resampling_conserves_flux() -> None:
    generator = np.random.default_rng(3)
    wave = np.sort(generator.uniform(0, 100, 400))
    flux = generator.uniform(0, 1, (3, 400))
    edges = np.linspace(wave[0], wave[-1], 18)
    pixels = average_over_pixels(wave, flux, edges)
    np.testing.assert_allclose((pixels * np.diff(edges)).sum(axis=1), np.trapezoid(flux, wave, axis=1), rtol=1e-12)


def test_resampling_a_straight_line_is_exact() -> None:
    wave = np.array([0.0, 1.0, 4.0, 10.0])
    edges = np.array([0.5, 2.5, 4.5, 9.5])
    np.testing.assert_allclose(average_over_pixels(wave, 3 * wave[None] + 1, edges), [[5.5, 11.5, 22.0]])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"teff": None, "tef": np.ones(30)}, r"'teff' is missing \(did you mean 'tef'\?\)"),
        ({"mh": np.zeros(29)}, "shapes disagree"),
        ({"flux": np.ones(30)}, "shapes disagree"),
        ({"logg": np.full(30, np.nan)}, "'logg' must be finite, found nan at"),
        ({"wave": GRID_WAVE[::-1]}, "'wave' must increase strictly"),
        ({"wave": GRID_WAVE + 20}, "'wave' must cover 8400–8800 Å"),
        ({"mh": np.zeros(30)}, "'mh' has one value only"),
        ({"mh": np.linspace(0, 1, 30), "teff": np.linspace(4000, 5000, 30)}, "in one plane"),
        (dict.fromkeys(("teff", "logg", "mh"), np.repeat(np.arange(15.0), 2)), "may occur once"),
        ({"flux": -np.ones((30, 1024))}, "median flux of zero or less"),
        ({key: np.ones(3) for key in ("teff", "logg", "mh")} | {"flux": np.ones((3, 1024))}, "at least 8 spectra"),
        ({"mh": np.array(["a"] * 30)}, "cannot be read"),
        ({"mh": np.array([{}] * 30, dtype=object)}, "cannot be read"),
    ],
)
def test_open_grid__raise_on_a_bad_grid(
    tmp_path: Path, small: dict[str, np.ndarray], change: dict[str, np.ndarray | None], match: str
) -> None:
    arrays = {key: values for key, values in {**small, **change}.items() if values is not None}
    path = _save(tmp_path / "grid.npz", arrays)
    with pytest.raises(InputError, match=match) as caught:
        open_grid(path, EDGES)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["grid.npz", "grid.h5"])
def test_open_grid__raise_on_a_file_of_another_kind(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("not a grid")
    with pytest.raises(InputError, match="NPZ or HDF5"):
        open_grid(path, EDGES)
    with pytest.raises(InputError, match="check the path"):
        fingerprint_grid(tmp_path / "absent.npz")
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(InputError, match="a regular file is required"):
        fingerprint_grid(tmp_path / "pipe.npz")

"""Spectra of any layout: an xarray Dataset, netCDF, Zarr and plain HDF5 become the store that they should be."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from commands import invoke, require_one_line

import pipeline
from pipeline.errors import ConfigError, HeadroomError, InputError

_N, _P = 150, 12
#: Names and dimensions as another program might choose them.
_BARE = b"This is a netCDF dimension but not a netCDF variable.        12"


def make_dataset(n_spectra: int = _N, n_pixels: int = _P) -> xr.Dataset:
    """Spectra with names, units and an order of pixels that are not ours."""
    rng = np.random.default_rng(0)
    flux = 1 + 0.1 * rng.standard_normal((n_spectra, n_pixels))
    return xr.Dataset(
        {
            "spectra": (("star", "pixel"), flux),
            "flux_err": (("star", "pixel"), rng.uniform(0.05, 0.15, flux.shape)),
            "Teff": ("star", rng.uniform(3750, 6000, n_spectra), {"units": "K"}),
            "logg": ("star", rng.uniform(1, 5, n_spectra)),
            "feh": ("star", rng.uniform(-2.5, 0.75, n_spectra)),
            "Gmag": ("star", rng.uniform(14, 16, n_spectra)),
        },
        coords={"wave": ("pixel", np.linspace(710.0, 885.0, n_pixels), {"units": "nm"})},
    )


def write_netcdf4(path: Path, dataset: xr.Dataset, *, scales: bool = True) -> Path:
    """Write what netCDF-4 writes, which is HDF5 with dimension scales; or plain HDF5 without them."""
    with h5py.File(path, "w") as file:
        for dim, size in dataset.sizes.items() if scales else ():
            file.create_dataset(str(dim), data=np.zeros(size, ">f4")).make_scale(_BARE.decode())
        for name, array in dataset.variables.items():
            chunks = (32, 5) if array.ndim == 2 else None
            made = file.create_dataset(str(name), data=array.values, chunks=chunks)
            made.attrs.update(array.attrs)
            for axis, dim in enumerate(array.dims if scales else ()):
                made.dims[axis].attach_scale(file[str(dim)])
    return path


def check_store(store: pipeline.SpectraStore, dataset: xr.Dataset) -> None:
    """The store holds the Dataset's numbers, in single precision and under our names."""
    np.testing.assert_allclose(store.wavelength, np.linspace(7100, 8850, _P), rtol=1e-12)
    n = store.n_spectra
    np.testing.assert_array_equal(store.read_rows("flux", 0, n), dataset["spectra"].values.astype(np.float32))
    np.testing.assert_array_equal(store.read_rows("error", 0, n), dataset["flux_err"].values.astype(np.float32))
    for ours, yours in (("T_eff", "Teff"), ("log_g", "logg"), ("M_H", "feh"), ("Gmag", "Gmag")):
        np.testing.assert_array_equal(store.columns[ours], dataset[yours].values)


def test_write_store__a_dataset_in_memory(tmp_path: Path) -> None:
    dataset = make_dataset()
    store = pipeline.write_store(dataset, tmp_path / "own.zarr")
    check_store(store, dataset)
    [source] = store.sources
    assert "T_eff is read from 'Teff'" in source.remarks
    assert "wavelengths in nm were turned into Å" in source.remarks
    again = pipeline.write_store(dataset, tmp_path / "own.zarr")  # as when a notebook's cell is run again
    assert again.fingerprint == store.fingerprint


def test_write_store__a_changed_dataset_is_no_finished_store(tmp_path: Path) -> None:
    dataset = make_dataset()
    pipeline.write_store(dataset, tmp_path / "own.zarr")
    dataset["spectra"][77, 3] += 1  # a row that the fingerprint does not see
    with pytest.raises(InputError, match="flux of row 77 differs"):
        pipeline.write_store(dataset, tmp_path / "own.zarr")
    with pytest.raises(InputError, match=r"exists, made of other spectra .*Dataset; .*, or overwrite=True in Python$"):
        pipeline.write_store(make_dataset(_N - 1), tmp_path / "own.zarr")
    check_store(pipeline.write_store(dataset, tmp_path / "own.zarr", overwrite=True), dataset)


def test_write_store__any_order_of_dimensions_and_pixels(tmp_path: Path) -> None:
    dataset = make_dataset()
    turned = dataset.isel(pixel=slice(None, None, -1)).transpose("pixel", "star")
    store = pipeline.write_store(turned, tmp_path / "own.zarr")
    check_store(store, dataset)
    assert any("rising order" in remark for remark in store.sources[0].remarks)
    assert store.fingerprint == pipeline.write_store(dataset, tmp_path / "other.zarr").fingerprint


def test_write_store__lazy_arrays_in_chunks(tmp_path: Path) -> None:
    dataset = make_dataset()
    lazy = dataset.chunk({"star": 40, "pixel": 5})
    check_store(pipeline.write_store(lazy, tmp_path / "own.zarr", chunk_rows=16), dataset)


@pytest.mark.parametrize("kind", ["netcdf3", "netcdf4", "hdf5", "zarr2", "zarr3"])
def test_write_store__files(tmp_path: Path, kind: str) -> None:
    dataset = make_dataset()
    if kind == "netcdf3":
        path = tmp_path / "mine.nc"
        dataset.to_netcdf(path, engine="scipy")
    elif kind in ("netcdf4", "hdf5"):
        path = write_netcdf4(tmp_path / ("mine.nc" if kind == "netcdf4" else "mine.h5"), dataset, scales=kind != "hdf5")
    else:
        path = tmp_path / "mine.zarr"
        dataset.to_zarr(path, zarr_format=int(kind[-1]), consolidated=False)
    workers = 2 if kind == "netcdf4" else 1
    store = pipeline.write_store(path, tmp_path / "own.zarr", workers=workers, chunk_rows=16, shard_rows=32)
    check_store(store, dataset)
    assert store.fingerprint == pipeline.write_store(dataset, tmp_path / "other.zarr").fingerprint


def test_write_store__scales_and_fill_values_of_netcdf_are_applied(tmp_path: Path) -> None:
    dataset = make_dataset()
    path = write_netcdf4(tmp_path / "mine.nc", dataset)
    packed = np.round((dataset["spectra"].values - 1) / 1e-4).astype(np.int16)
    with h5py.File(path, "a") as file:
        del file["spectra"]
        made = file.create_dataset("spectra", data=packed)
        made.attrs.update({"scale_factor": 1e-4, "add_offset": 1.0, "_FillValue": np.int16(-32768)})
        for axis, dim in enumerate(("star", "pixel")):
            made.dims[axis].attach_scale(file[dim])
    store = pipeline.write_store(path, tmp_path / "own.zarr")
    np.testing.assert_allclose(store.read_rows("flux", 0, _N), 1 + 1e-4 * packed, rtol=1e-6)
    with h5py.File(path, "a") as file:
        file["spectra"][5, 6] = -32768
    with pytest.raises(InputError, match="flux must be finite, found nan at row 5, pixel 6"):
        pipeline.write_store(path, tmp_path / "second.zarr")
    left = pipeline.write_store(path, tmp_path / "third.zarr", nonfinite="drop")
    assert left.sources[0].dropped_rows == (5,)


def test_write_store__several_files_are_one_set(tmp_path: Path) -> None:
    dataset = make_dataset()
    paths = []
    for k in range(2):
        paths.append(tmp_path / f"part_{k}.nc")
        dataset.isel(star=slice(75 * k, 75 * k + 75)).to_netcdf(paths[-1], engine="scipy")
    store = pipeline.write_store(paths, tmp_path / "own.zarr")
    assert store.shard_lengths == (75, 75)
    check_store(store, dataset)


def test_write_store__mask_and_noisy(tmp_path: Path) -> None:
    dataset = make_dataset()
    flags = np.zeros((_N, _P), np.int16)
    flags[3, 4] = 8
    noisy = dataset["spectra"] + 0.1
    whole = dataset.assign(mask=(("star", "pixel"), flags), noisy=noisy).isel(pixel=slice(None, None, -1))
    store = pipeline.write_store(whole, tmp_path / "own.zarr")
    assert store.variables == ("flux", "error", "mask", "noisy")
    np.testing.assert_array_equal(store.read_rows("mask", 0, _N), flags != 0)
    np.testing.assert_array_equal(store.read_rows("noisy", 0, _N), noisy.values.astype(np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d.drop_vars("flux_err"),
            "error is missing; it has spectra, .*headroom convert .* --name error=NAME$",
        ),
        (lambda d: d.rename(flux_err="ivar"), "'ivar' is the inverse variance, error = 1 / √ivar$"),
        (lambda d: d.drop_vars(["Teff", "logg"]), r"T_eff and log_g are missing.*names=\{'T_eff': 'NAME'\}"),
        (lambda d: d.assign(teff=d["Teff"]), "T_eff may be 'Teff' or 'teff'; say which"),
        (lambda d: d.assign_coords(wave=d["wave"].assign_attrs(units="log10(nm)")), "must be one of Å.*'log10.nm.'"),
        (lambda d: d.assign_coords(wave=d["wave"].drop_attrs()), "which look like nanometres; multiply"),
        (lambda d: d.assign(Teff=d["Teff"].assign_attrs(units="eV")), "'Teff' must be in K, found the unit 'eV'"),
        (lambda d: d.assign(spectra=d["spectra"].isel(pixel=0)), r"flux must have two dimensions.*\(star: 150\)"),
        (lambda d: d.assign(flux_err=d["flux_err"].isel(star=0)), r"error must hold numbers along 'star' and 'pixel'"),
        (lambda d: d.assign(logg=d["logg"].where(d["logg"] > 2)), "'log_g' must be finite, found nan at row"),
        (lambda d: d.assign(flux_err=-d["flux_err"]), "the Dataset: error must be non-negative.*row 0, pixel 0"),
        (lambda d: d.assign(mask=d["spectra"] > 1), "mask must hold whole numbers, 0 = good"),
        (lambda d: d.assign(spectra=d["spectra"] * 1e40), "typical flux must lie between"),
        (lambda d: d.assign(spectra=d["spectra"].astype(str)), "flux must hold numbers"),
        (
            lambda d: d.assign(feh=0.0),
            r"'feh' \(M_H\) must hold one number .* 'star'; found float64 along no dim",
        ),
        (lambda d: d.assign(Teff=d["Teff"].astype(str)), r"'Teff' \(T_eff\) must hold one number .*; found <U"),
    ],
)
def test_write_store__raise_on(tmp_path: Path, change: object, message: str) -> None:
    assert callable(change)
    with pytest.raises(InputError, match=message) as caught:
        pipeline.write_store(change(make_dataset()), tmp_path / "own.zarr")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "own.zarr").exists()


def test_stores_of_datasets_are_told_apart_by_their_names(tmp_path: Path) -> None:
    paths = [tmp_path / "first.zarr", tmp_path / "second.zarr"]
    for path, rows in zip(paths, (slice(0, 70), slice(70, _N)), strict=True):
        pipeline.write_store(make_dataset().isel(star=rows), path)
    assert [pipeline.SpectraStore.open(path).shard_names for path in paths] == [("first/Dataset",), ("second/Dataset",)]


def test_write_store__names(tmp_path: Path) -> None:
    dataset = make_dataset().rename({"Teff": "temperature"})
    with pytest.raises(InputError, match=r"T_eff is missing"):
        pipeline.write_store(dataset, tmp_path / "own.zarr")
    store = pipeline.write_store(dataset, tmp_path / "own.zarr", names={"T_eff": "temperature"})
    np.testing.assert_array_equal(store.columns["T_eff"], dataset["temperature"])
    with pytest.raises(InputError, match=r"no 'temperatur' to take T_eff from \(did you mean 'temperature'"):
        pipeline.write_store(dataset, tmp_path / "b.zarr", names={"T_eff": "temperatur"})
    with pytest.raises(ConfigError, match=r"names: 'teff' is none of .*did you mean 'T_eff'"):
        pipeline.write_store(dataset, tmp_path / "b.zarr", names={"teff": "temperature"})


def test_write_store__raise_on_what_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a path, found ndarray"):
        pipeline.write_store(np.ones((3, 4)), tmp_path / "own.zarr")  # type: ignore[arg-type]
    with pytest.raises(HeadroomError, match="does not exist"):
        pipeline.write_store(tmp_path / "none.nc", tmp_path / "own.zarr")
    (tmp_path / "cut.nc").write_bytes(b"CDF\x01 and then nothing")
    with pytest.raises(InputError, match=r"cut\.nc.*cannot be read"):
        pipeline.write_store(tmp_path / "cut.nc", tmp_path / "own.zarr")


def test_write_store__refuses_links_to_other_files(tmp_path: Path) -> None:
    path = write_netcdf4(tmp_path / "mine.h5", make_dataset(), scales=False)
    path.rename(tmp_path / "other.h5")
    with h5py.File(path, "w") as file:
        for name in ("spectra", "flux_err", "Teff", "logg", "feh", "wave"):
            file[name] = h5py.ExternalLink("other.h5", name)
        file["here"] = [1.0]
    with pytest.raises(InputError, match=r"external link to 'other\.h5'"):
        pipeline.write_store(path, tmp_path / "own.zarr")


def test_the_commands_take_such_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = make_dataset().rename({"Teff": "temperature"})
    path = write_netcdf4(tmp_path / "mine.nc", dataset)
    code, _, err = invoke(capsys, "convert", path, tmp_path / "own.zarr", "--quiet")
    assert code == 2
    require_one_line(err)
    assert "--name T_eff=NAME" in err
    store = tmp_path / "own.zarr"
    code, out, _ = invoke(capsys, "convert", path, store, "--name", "T_eff=temperature", "--verify", "--quiet")
    assert code == 0
    assert "the store and 1 shard are the same" in out
    code, _, err = invoke(capsys, "convert", path, store, "--name", "T_eff", "--quiet")
    assert code == 2
    assert "OURS=YOURS" in err
    plain = write_netcdf4(tmp_path / "plain.h5", make_dataset(), scales=False)
    code, out, _ = invoke(capsys, "inspect", plain, "--quiet")
    assert code == 0
    assert "150 spectra × 12 pixels, 7100.00 to 8850.00 Å" in out.replace("710.00 to 885.00", "")

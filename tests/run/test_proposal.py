"""``headroom init``: a configuration that runs, made of what headers and labels tell."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
import xarray as xr
import yaml
from commands import invoke, require_one_line

import pipeline
from pipeline.config import REFERENCE_EDGES, load_config
from pipeline.errors import InputError
from pipeline.run import propose_config
from pipeline.store import SpectraStore


def write_spectra(
    path: Path, n_spectra: int, *, seed: int = 0, teff: tuple[float, float] = (3750, 6000), n_pixels: int = 8
) -> Path:
    """A netCDF file whose labels lie where we say."""
    rng = np.random.default_rng(seed)
    flux = 1 + 0.1 * rng.standard_normal((n_spectra, n_pixels))
    dataset = xr.Dataset(
        {
            "flux": (("spectrum", "wavelength"), flux),
            "error": (("spectrum", "wavelength"), np.full_like(flux, 0.1)),
            "teff": ("spectrum", rng.uniform(*teff, n_spectra)),
            "logg": ("spectrum", rng.uniform(1, 5, n_spectra)),
            "feh": ("spectrum", rng.uniform(-2.5, 0.75, n_spectra)),
        },
        coords={"wavelength": np.linspace(7100.0, 8850.0, n_pixels)},
    )
    dataset.to_netcdf(path, engine="scipy")
    return path


def test_the_proposal_of_reference_spectra_runs(sample: Path, tmp_path: Path, no_figures: None) -> None:
    text, notes = propose_config(sample / "train", sample / "test")
    (tmp_path / "my.yaml").write_text(text, encoding="utf-8")
    config = load_config(tmp_path / "my.yaml")
    assert config.bins == dict(REFERENCE_EDGES)
    assert config.data.stores == str(tmp_path / "stores")
    assert notes[0] == "bins are those of the reference experiment"
    assert "# train: 1,600 spectra × 48 pixels" in text
    results = pipeline.run_experiment(tmp_path / "my.yaml", tmp_path / "run", convert_workers=1)

    found = {line.split(": ")[0][6:]: line.split(": ")[1] for line in text.splitlines() if line.startswith("  #   ")}
    for one in results.summary.headline.bins:
        name = f"bin {one.bin} ({', '.join(one.names)})"
        assert found[name] == f"{one.n_train:,} / {one.n_test:,}"


def test_the_first_line_names_a_schema_that_fits(sample: Path) -> None:
    text, _ = propose_config(sample / "train", sample / "test")
    first, *_ = text.splitlines()
    path = Path(unquote(urlparse(first.removeprefix("# yaml-language-server: $schema=")).path))
    schema = json.loads(path.read_text(encoding="utf-8"))
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(yaml.safe_load(text), schema)


def test_a_forecast_of_few_pixels_is_said_to_need_factored_moments(tmp_path: Path) -> None:
    words = "it needs compute: {moments: factored}, too"
    for n_pixels in (8, 700):
        train, test = (write_spectra(tmp_path / f"{n_pixels}_{k}.nc", 2000, seed=k, n_pixels=n_pixels) for k in (1, 2))
        text, _ = propose_config(train, test)
        assert (words in text) == (n_pixels == 8)
        load_config(yaml.safe_load(text))


def test_stores_serve_too(train_store: SpectraStore, test_store: SpectraStore) -> None:
    text, _ = propose_config(str(train_store.path), [test_store.path])
    assert yaml.safe_load(text)["data"]["train"] == [str(train_store.path)]


def test_bins_lie_where_the_spectra_are(tmp_path: Path) -> None:
    train = write_spectra(tmp_path / "train.nc", 2000, teff=(6500, 8000))
    test = write_spectra(tmp_path / "test.nc", 300, seed=1, teff=(6500, 8000))
    text, [why, *_] = propose_config(train, test)
    bins = yaml.safe_load(text)["bins"]
    assert [len(edges) for edges in bins.values()] == [4, 4]
    assert bins["T_eff"][0] <= 6500
    assert bins["T_eff"][-1] >= 8000
    assert all(edge % 50 == 0 for edge in bins["T_eff"])
    assert "the reference bins hold too few" in why
    assert yaml.safe_load(text)["ridge"]["alpha"]["search"] == [0.002, 0.02, 0.2, 2, 20, 200]


def test_few_spectra_get_few_bins(tmp_path: Path) -> None:
    train = write_spectra(tmp_path / "train.nc", 320)
    text, _ = propose_config(train, write_spectra(tmp_path / "test.nc", 60, seed=1))
    assert [len(edges) for edges in yaml.safe_load(text)["bins"].values()] == [3, 3]
    with pytest.raises(InputError, match="at least 50 training spectra outside every fold and 2 test spectra: there"):
        propose_config(tmp_path / "test.nc", write_spectra(tmp_path / "other.nc", 20, seed=2))


@pytest.mark.parametrize("n", [170, 210, 270, 450, 620])
def test_every_fold_leaves_enough_for_the_search(tmp_path: Path, n: int) -> None:
    train = write_spectra(tmp_path / "train.nc", n)
    text, _ = propose_config(train, write_spectra(tmp_path / "test.nc", 200, seed=1))
    with xr.open_dataset(train, engine="scipy") as spectra:
        columns = {name: spectra[own].values for name, own in (("T_eff", "teff"), ("M_H", "feh"))}
    edges = yaml.safe_load(text)["bins"]
    inside = np.all([(columns[name] >= own[0]) & (columns[name] <= own[-1]) for name, own in edges.items()], axis=0)
    places = [
        np.clip(np.searchsorted(own, columns[name], side="right"), 1, len(own) - 1) for name, own in edges.items()
    ]
    kinds = np.where(inside, np.ravel_multi_index(places, [len(own) for own in edges.values()]), -1)
    for fold in np.array_split(np.arange(n), 5):
        left = np.delete(kinds, fold)
        assert min(np.count_nonzero(left == kind) for kind in np.unique(kinds[inside])) >= 50


def test_without_test_spectra_the_last_shard_is_kept(sample: Path, tmp_path: Path) -> None:
    text, notes = propose_config(sample / "train")
    assert (text, notes) == propose_config(sample / "train/*"), "shard_index.txt is no shard"
    data = yaml.safe_load(text)["data"]
    assert data["train"] == [str(sample / "train/shard_0/dataset.h5")]
    assert data["test"] == [str(sample / "train/shard_1/dataset.h5")]
    assert "the last shard" in notes[0]
    text, notes = propose_config(sample / "test")
    assert yaml.safe_load(text)["data"]["test"] == ["PATH/OF/THE/TEST/SPECTRA"]
    assert "write their path" in notes[0]


def test_the_command(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = invoke(capsys, "init", sample / "train", "--test", sample / "test")
    assert code == 0
    assert out.startswith("# yaml-language-server: $schema=file:///")
    assert "note: bins are those of the reference experiment" in err
    code, out, err = invoke(capsys, "init", tmp_path / "none")
    assert (code, out) == (2, "")
    require_one_line(err)
    code, out, err = invoke(capsys, "init", sample / "train", "--test", sample / "train")
    assert (code, out) == (2, "")
    assert "test spectra also occur in train" in err

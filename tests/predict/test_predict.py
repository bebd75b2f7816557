"""`headroom predict`: from spectra in files to a table of labels, however it is cut, interrupted or stored."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import xarray as xr
from shard_factory import write_shard
from sklearn.metrics import r2_score

from pipeline import schema
from pipeline.bins import BinGrid
from pipeline.cli import main
from pipeline.config import ExperimentConfig
from pipeline.convert import convert_shards
from pipeline.errors import InputError, ResourceError
from pipeline.noise import NoiseDraw
from pipeline.predict import MixtureModel, PredictOptions, export_model, load_model, predict_spectra
from pipeline.predict.predict import PredictionParts
from pipeline.predict.sources import ShardSource
from pipeline.questions.gate import ROUTES, Route
from pipeline.run import run_experiment
from pipeline.scoring import read_noisy_rows
from pipeline.shards import read_shard_info
from pipeline.store import SpectraStore, open_spectra

STORED = PredictOptions(noise="stored")


@pytest.fixture(scope="module")
def run(small_config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gated")
    gated = {"gate": {}, "seeds": [42]}
    run_experiment(ExperimentConfig.model_validate(small_config.to_dict() | gated), folder)
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_store_is_predicted_as_the_run_has_tested_it(
    model: MixtureModel, run: Path, test_store: SpectraStore, tmp_path: Path, small_config: ExperimentConfig
) -> None:
    before = digests(test_store.path)
    summary = predict_spectra(model, [test_store.path], tmp_path / "p.parquet", STORED)
    table = pd.read_parquet(tmp_path / "p.parquet")
    saved = pd.read_parquet(run / "predictions.parquet")
    np.testing.assert_allclose(table["log_g_global"], saved["y_global"], atol=1e-5)
    np.testing.assert_array_equal(table["log_g_true"], saved["y_true"])
    routing = pd.read_csv(run / "routing.csv").query("route == 'fallback'").set_index("scope")
    scores = {(one.label, one.scope): one for one in summary.scores}
    for scope in ("covered", "all"):
        assert scores["log_g", scope].r2 == pytest.approx(routing.loc[scope, "r2"], abs=1e-4)
        assert scores["log_g", scope].r2_global == pytest.approx(routing.loc[scope, "r2_global"], abs=1e-4)
        assert scores["log_g", scope].n_spectra == routing.loc[scope, "n_test"]
    covered = BinGrid(small_config.bins).assign(test_store.columns) >= 0
    for label in ("T_eff", "M_H"):
        truth = np.asarray(test_store.columns[label])
        assert scores[label, "all"].r2 == pytest.approx(r2_score(truth, table[label]), abs=1e-9)
        assert scores[label, "covered"].r2 == pytest.approx(r2_score(truth[covered], table[label][covered]), abs=1e-9)
    assert summary.n_out_of_domain == table["out_of_domain"].sum()
    assert list(table["row"]) == list(test_store.columns["row"])
    assert digests(test_store.path) == before


def test_a_logistic_gate_routes_as_the_run_has_tested_it(
    small_config: ExperimentConfig, test_store: SpectraStore, tmp_path: Path
) -> None:
    """Its features come from the same product as the labels; the bundle holds what they need."""
    gated = {"gate": {"kind": "logistic"}, "seeds": [42]}
    run_experiment(ExperimentConfig.model_validate(small_config.to_dict() | gated), tmp_path / "run")
    made = export_model(tmp_path / "run", tmp_path / "model")
    assert made.recipe is not None
    noisy = read_noisy_rows(test_store, 0, test_store.n_spectra, None)
    expected = made.gate.probabilities((), made.recipe.compute(noisy))  # type: ignore[union-attr]
    np.testing.assert_allclose(made.predict(noisy).probabilities, expected, atol=1e-4)
    routing = pd.read_csv(tmp_path / "run" / "routing.csv").query("scope == 'all'").set_index("route")
    for route in ("soft", "fallback"):
        options = PredictOptions(noise="stored", route=route)
        scores = predict_spectra(made, [test_store.path], tmp_path / f"{route}.parquet", options).scores
        [score] = [one for one in scores if (one.label, one.scope) == ("log_g", "all")]
        assert score.r2 == pytest.approx(routing.loc[route, "r2"], abs=1e-4)


def test_a_drawn_noise_is_that_of_the_pipeline(model: MixtureModel, test_store: SpectraStore, tmp_path: Path) -> None:
    draw = NoiseDraw(0.5, 7, schema.STREAM_TEST)
    predict_spectra(model, [test_store.path], tmp_path / "p.parquet", PredictOptions(noise=draw, route="soft"))
    noisy = read_noisy_rows(test_store, 0, test_store.n_spectra, draw)
    expected = model.predict(noisy, route="soft", zeros_are_bad=False).to_frame()
    found = pd.read_parquet(tmp_path / "p.parquet")
    pd.testing.assert_frame_equal(found[expected.columns], expected, check_dtype=False)


@pytest.mark.parametrize("noise", [None, "stored", NoiseDraw(1.0, 3, schema.STREAM_TEST)])
def test_shards_give_what_their_store_gives(
    model: MixtureModel, sample: Path, test_store: SpectraStore, tmp_path: Path, noise: Any
) -> None:
    options = PredictOptions(noise=noise)
    before = digests(sample / "test")
    predict_spectra(model, [sample / "test"], tmp_path / "shards.parquet", options)
    predict_spectra(model, [test_store.path], tmp_path / "store.parquet", options)
    of_shards, of_store = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("shards", "store"))
    assert digests(sample / "test") == before
    shared = [name for name in of_store.columns if name != "shard"]
    truths = [name for name in shared if name.endswith("_true")]
    others = [name for name in shared if name not in truths]
    pd.testing.assert_frame_equal(of_shards[others], of_store[others], check_dtype=False)
    pd.testing.assert_frame_equal(of_shards[truths], of_store[truths], check_dtype=False, rtol=1e-6)
    assert set(of_shards["shard"]) == set(of_store["shard"]) == {"test/dataset.h5"}


def test_several_shards_are_one_set(
    model: MixtureModel, sample: Path, train_store: SpectraStore, tmp_path: Path
) -> None:
    options = PredictOptions(noise=NoiseDraw(1.0, 3, schema.STREAM_TEST))
    predict_spectra(model, [sample / "train"], tmp_path / "shards.parquet", options)
    predict_spectra(model, [train_store.path], tmp_path / "store.parquet", options)
    of_shards, of_store = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("shards", "store"))
    np.testing.assert_array_equal(of_shards["log_g"], of_store["log_g"])
    np.testing.assert_array_equal(of_shards["row"], of_store["row"])
    assert sorted(set(of_shards["shard"])) == sorted(set(of_store["shard"]))


def test_spectra_need_no_labels(model: MixtureModel, sample: Path, tmp_path: Path) -> None:
    shard = tmp_path / "observed.h5"
    shard.write_bytes((sample / "test" / "dataset.h5").read_bytes())
    with h5py.File(shard, "a") as file:
        del file["dataset/params"]
    summary = predict_spectra(model, [shard], tmp_path / "p.parquet")
    predict_spectra(model, [sample / "test"], tmp_path / "labelled.parquet")
    found, expected = pd.read_parquet(tmp_path / "p.parquet"), pd.read_parquet(tmp_path / "labelled.parquet")
    assert summary.scores == ()
    assert not [name for name in found if name.endswith("_true")]
    assert "id" not in found
    pd.testing.assert_series_equal(found["log_g"], expected["log_g"])


@pytest.mark.parametrize("kind", ["nc", "h5", "zarr"])
@pytest.mark.parametrize("has_labels", [True, False])
def test_files_of_other_layouts_give_what_their_store_gives(
    model: MixtureModel, test_store: SpectraStore, tmp_path: Path, kind: str, has_labels: bool
) -> None:
    opened = open_spectra(test_store.path).load()
    dataset = xr.Dataset(
        {
            "flux": (("star", "pixel"), opened["flux"].values[:, ::-1]),
            "sigma": (("star", "pixel"), opened["error"].values[:, ::-1]),
            **({"Teff": ("star", opened["T_eff"].values), "feh": ("star", opened["M_H"].values)} if has_labels else {}),
        },
        {"wave": ("pixel", opened["wavelength"].values[::-1] / 10, {"units": "nm"})},
    )
    path = tmp_path / f"night.{kind}"
    if kind == "zarr":
        dataset.to_zarr(path, consolidated=False)
    elif kind == "nc":
        dataset.to_netcdf(path, engine="scipy")
    else:
        with h5py.File(path, "w") as file:
            for name, array in dataset.variables.items():
                file[str(name)] = array.values
                file[str(name)].attrs.update(array.attrs)
    summary = predict_spectra(model, path, tmp_path / "p.parquet")
    expected = predict_spectra(model, test_store.path, tmp_path / "store.parquet")
    found, theirs = (pd.read_parquet(tmp_path / name) for name in ("p.parquet", "store.parquet"))
    np.testing.assert_allclose(found["log_g"], theirs["log_g"], rtol=1e-6)
    assert set(found["shard"]) == {path.name}
    assert {name for name in found if name.endswith("_true")} == ({"T_eff_true", "M_H_true"} if has_labels else set())
    assert summary.n_spectra == expected.n_spectra


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 64 rows, blocks of as many."""
    monkeypatch.setattr("pipeline.predict.predict.PART_ROWS", 64)
    monkeypatch.setattr("pipeline.predict.sources.BLOCK_ROWS", 64)


@pytest.fixture(scope="module")
def chunked(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> SpectraStore:
    shards = [sample / "test" / "dataset.h5"]
    return convert_shards(shards, tmp_path_factory.mktemp("chunked") / "test.zarr", workers=1, chunk_rows=32)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("killed_at", [0, 1, 5])
def test_an_interrupted_prediction_goes_on_and_ends_in_the_same_bytes(
    model: MixtureModel, chunked: SpectraStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    whole, resumed = tmp_path / "whole.parquet", tmp_path / "resumed.parquet"
    predict_spectra(model, [chunked.path], whole, STORED)
    assert pq.ParquetFile(whole).num_row_groups == 7
    write, written = PredictionParts.write, []

    def killed(self: PredictionParts, number: int, table: Any) -> None:
        if number == killed_at:
            raise KeyboardInterrupt
        written.append(number)
        write(self, number, table)

    monkeypatch.setattr(PredictionParts, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        predict_spectra(model, [chunked.path], resumed, STORED)
    assert not resumed.exists()
    killed_at = -1
    predict_spectra(model, [chunked.path], resumed, STORED)
    assert sorted(written) == sorted(set(written)) == list(range(7))
    assert resumed.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resumed.parquet", "whole.parquet"]


@pytest.mark.usefixtures("small_parts")
def test_threads_and_damaged_parts_change_no_byte(
    model: MixtureModel, chunked: SpectraStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict_spectra(model, [chunked.path], tmp_path / "1.parquet", PredictOptions(noise="stored", threads=1))
    predict_spectra(model, [chunked.path], tmp_path / "4.parquet", PredictOptions(noise="stored", threads=4))
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "4.parquet").read_bytes()

    def stop(self: PredictionParts, n_parts: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PredictionParts, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            predict_spectra(model, [chunked.path], tmp_path / "d.parquet", STORED)
    part = tmp_path / "d.parquet.partial" / "part-000003.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    predict_spectra(model, [chunked.path], tmp_path / "d.parquet", STORED)
    assert (tmp_path / "d.parquet").read_bytes() == (tmp_path / "1.parquet").read_bytes()


@pytest.mark.usefixtures("small_parts")
def test_parts_of_other_settings_are_not_used(
    model: MixtureModel, chunked: SpectraStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: PredictionParts, n_parts: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PredictionParts, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            predict_spectra(model, [chunked.path], tmp_path / "p.parquet", PredictOptions(noise="stored", route="hard"))
    predict_spectra(model, [chunked.path], tmp_path / "p.parquet", STORED)
    predict_spectra(model, [chunked.path], tmp_path / "fresh.parquet", STORED)
    assert (tmp_path / "p.parquet").read_bytes() == (tmp_path / "fresh.parquet").read_bytes()


def test_finished_predictions_stay_unless_they_are_to_be_replaced(
    model: MixtureModel, test_store: SpectraStore, tmp_path: Path
) -> None:
    out = tmp_path / "p.parquet"
    first = predict_spectra(model, [test_store.path], out, STORED)
    stamp = out.stat().st_mtime_ns
    assert predict_spectra(model, [test_store.path], out, STORED) == first
    assert out.stat().st_mtime_ns == stamp
    other = PredictOptions(route="hard", noise="stored")
    with pytest.raises(InputError, match="predictions of another model"):
        predict_spectra(model, [test_store.path], out, other)
    predict_spectra(model, [test_store.path], out, PredictOptions(route="hard", noise="stored", overwrite=True))
    assert set(pd.read_parquet(out)["route"]) == {"hard"}
    notes = tmp_path / "notes.parquet"
    notes.write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="holds no predictions"):
        predict_spectra(model, [test_store.path], notes, PredictOptions(noise="stored", overwrite=True))
    assert notes.read_text(encoding="utf-8") == "mine"


def split_pixels(path: Path, source: Path) -> Path:
    """A shard whose pixels are halves of another's: equal flux in both halves."""
    info = read_shard_info(source)
    step = np.diff(info.wavelength).mean()
    wave = (info.wavelength[:, None] + np.array([-0.25, 0.25]) * step).ravel()
    with h5py.File(source) as file:
        flux, error = (np.repeat(file[name][:], 2, axis=1) for name in (schema.SHARD_FLUX, schema.SHARD_ERROR))
    arrays = {"flux": flux, "error": error, "mask": np.zeros(flux.shape, np.int64)}
    frame = pd.DataFrame({name: info.columns[name] for name in ("id", "T_eff", "log_g", "M_H")})
    return write_shard(path, arrays=arrays, frame=frame, wavelength=wave)


@pytest.mark.usefixtures("small_parts")
def test_memory_does_not_grow_with_the_spectra(
    model: MixtureModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that are read stay few steps ahead of the parts that are written, however many there are."""
    shard = write_shard(tmp_path / "shard.h5", 2000, 48, wavelength=model.wavelength)
    read, behind = [0], [0]
    read_rows, write = ShardSource.read_rows, PredictionParts.write

    def counted(self: ShardSource, variable: str, start: int, stop: int, out: Any = None) -> Any:
        read[0] += variable == "flux"
        return read_rows(self, variable, start, stop, out)

    def watched(self: PredictionParts, number: int, table: Any) -> None:
        behind[0] = max(behind[0], read[0] - number)
        write(self, number, table)

    monkeypatch.setattr(ShardSource, "read_rows", counted)
    monkeypatch.setattr(PredictionParts, "write", watched)
    predict_spectra(model, [shard], tmp_path / "p.parquet", PredictOptions(threads=2))
    assert read[0] == 32
    assert behind[0] <= 2 + 2 + 1  # threads, blocks that wait, and the one that is written


def test_another_wavelength_grid_is_refused_unless_it_is_to_be_resampled(
    model: MixtureModel, sample: Path, tmp_path: Path
) -> None:
    fine = split_pixels(tmp_path / "fine.h5", sample / "test" / "dataset.h5")
    out = tmp_path / "p.parquet"
    with pytest.raises(InputError, match=r"48 pixels, .* 96 pixels, .*--resample"):
        predict_spectra(model, [fine], out)
    assert not (tmp_path / "p.parquet.partial").exists()
    predict_spectra(model, [fine], out, PredictOptions(resample=True))
    predict_spectra(model, [sample / "test"], tmp_path / "native.parquet")
    found, expected = pd.read_parquet(out), pd.read_parquet(tmp_path / "native.parquet")
    np.testing.assert_allclose(found["log_g"], expected["log_g"], atol=1e-4)
    assert not found["bad_pixels"].any()


def test_wavelengths_that_differ_a_little_are_refused_by_pixel(model: MixtureModel, tmp_path: Path) -> None:
    wave = model.wavelength.copy()
    wave[20:] += 0.01
    shard = write_shard(tmp_path / "shard.h5", 40, 48, wavelength=wave)
    with pytest.raises(InputError, match="pixel 20"):
        predict_spectra(model, [shard], tmp_path / "p.parquet")
    far = write_shard(tmp_path / "far.h5", 40, 48, wavelength=np.linspace(3000, 4000, 48))
    with pytest.raises(InputError, match="cover no pixel of the model"):
        predict_spectra(model, [far], tmp_path / "p.parquet", PredictOptions(resample=True))


def test_resampled_spectra_that_end_early_have_bad_pixels(model: MixtureModel, tmp_path: Path) -> None:
    short = model.wavelength[:40]
    shard = write_shard(tmp_path / "shard.h5", 40, 40, wavelength=short)
    predict_spectra(model, [shard], tmp_path / "p.parquet", PredictOptions(resample=True))
    found = pd.read_parquet(tmp_path / "p.parquet")
    np.testing.assert_allclose(found["bad_pixels"], 8 / 48)
    assert found["reason"].str.contains("bad pixels").all()


def test_bad_pixels_are_told_and_stand_for_the_mean(model: MixtureModel, tmp_path: Path) -> None:
    flux = np.tile(model.components.mean, (40, 1))
    flux[1, 3], flux[2] = np.nan, np.nan
    mask = np.zeros(flux.shape, np.int64)
    mask[3, :24], flux[3, :24] = 1, 1e6
    shard = write_shard(tmp_path / "shard.h5", 40, 48, arrays={"flux": flux, "mask": mask}, wavelength=model.wavelength)
    summary = predict_spectra(model, [shard], tmp_path / "p.parquet")
    found = pd.read_parquet(tmp_path / "p.parquet")
    np.testing.assert_allclose(found["bad_pixels"][:5], [0, 1 / 48, 1, 0.5, 0])
    np.testing.assert_allclose(found["log_g"][1:4], found["log_g"][0], rtol=1e-6)
    assert summary.reasons["bad pixels"] == 2
    assert [("bad pixels" in reason) for reason in found["reason"][:5]] == [False, False, True, True, False]


@pytest.mark.parametrize("resample", [False, True])
def test_absurd_pixels_and_errors_are_bad_pixels(model: MixtureModel, tmp_path: Path, resample: bool) -> None:
    flux = np.tile(model.components.mean, (40, 1))
    error = np.full(flux.shape, 0.01)
    arrays = {"flux": flux, "error": error, "mask": None}
    wavelength = model.wavelength + (1e-3 if resample else 0)
    shard = write_shard(tmp_path / "clean.h5", 40, 48, arrays=arrays, wavelength=wavelength)
    noise = NoiseDraw(1.0, 3, schema.STREAM_TEST)
    predict_spectra(model, [shard], tmp_path / "clean.parquet", PredictOptions(noise=noise, resample=resample))
    flux[1, 5], error[2:22, 5] = 9.97e36, 1e20
    shard = write_shard(tmp_path / "absurd.h5", 40, 48, arrays=arrays, wavelength=wavelength)
    predict_spectra(model, [shard], tmp_path / "absurd.parquet", PredictOptions(noise=noise, resample=resample))
    clean, found = (pd.read_parquet(tmp_path / name) for name in ("clean.parquet", "absurd.parquet"))
    wrong = np.arange(40)
    wrong = (wrong > 0) & (wrong < 22)
    spoiled = found["bad_pixels"] - clean["bad_pixels"]
    assert (spoiled[wrong] > 0).all(), "whichever way the noise was drawn"
    np.testing.assert_array_equal(spoiled[~wrong], 0)
    assert (found["log_g"] - clean["log_g"]).abs().max() < 0.5


def test_the_command_predicts_from_a_run_and_prints_r2(
    run: Path, bundle: Path, test_store: SpectraStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p.parquet"
    main(["predict", str(run), str(test_store.path), "--out", str(out), "--noise", "stored", "--quiet"])
    shown = capsys.readouterr().out
    assert "400 spectra" in shown
    assert len([line for line in shown.splitlines() if line.startswith(("log_g", "T_eff", "M_H"))]) == 6
    again = tmp_path / "again.parquet"
    command = ["predict", str(bundle), str(test_store.path), "--out", str(again), "--noise", "stored", "--quiet"]
    main([*command, "--json"])
    summary = json.loads(capsys.readouterr().out)
    assert summary["n_spectra"] == 400
    assert {(one["label"], one["scope"]) for one in summary["scores"]} >= {("log_g", "covered"), ("log_g", "all")}
    assert again.read_bytes() == out.read_bytes()
    assert load_model(run / "model").fingerprint == load_model(bundle).fingerprint


def test_export_is_a_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["export", str(run), str(tmp_path / "model"), "--quiet", "--quantile", "0.9"])
    assert "9 experts, a gate" in capsys.readouterr().out
    assert load_model(tmp_path / "model").limits.quantile == 0.9
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(run), str(tmp_path / "model"), "--quiet"])
    assert stopped.value.code == 2
    assert "--overwrite" in capsys.readouterr().err


def test_the_command_lists_every_rule_that_needs_no_truth(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    even = Route("even", "Even", "All models answer alike.", lambda known: np.full(known.probabilities.shape, 0.1))
    monkeypatch.setitem(ROUTES, even.name, even)
    main(["predict", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--route [even|blend|fallback|soft|hard|global]" in shown
    assert "even: All models answer alike." in shown
    assert "oracle" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/none", "{store}"], "no such folder"),
        (["{model}", "{tmp}/none.h5"], "no shard matches"),
        (["{model}", "{store}", "--noise", "loud"], "--noise must be none, stored or a level"),
        (["{model}", "{store}", "--noise", "nan"], "--noise must be none, stored or a level"),
        (["{model}", "{store}", "--noise", "1e300"], "(0, or from 1e-06 to 1e+06), found '1e300'"),
        (["{model}", "{store}", "--seed", "3"], "only a drawn noise has a seed"),
        (["{model}", "{store}", "--route", "oracle"], "route must be one of"),
        (["{model}", "{train}", "--noise", "stored"], "needs a pre-drawn 'noisy' array"),
        (["{model}", "{store}", "--out", "{tmp}"], "a file is required, found a folder"),
    ],
)
def test_predict__raise_on_wrong_input(
    bundle: Path,
    test_store: SpectraStore,
    train_store: SpectraStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    places = {"tmp": tmp_path, "model": bundle, "store": test_store.path, "train": train_store.path}
    given = [argument.format(**places) for argument in arguments]
    if "--out" not in given:
        given += ["--out", str(tmp_path / "p.parquet")]
    with pytest.raises(SystemExit) as stopped:
        main(["predict", *given, "--quiet"])
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert list(tmp_path.iterdir()) == []


def test_predict__raise_where_the_file_cannot_be(model: MixtureModel, test_store: SpectraStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ResourceError, match="cannot write"):
        predict_spectra(model, [test_store.path], tmp_path / "file" / "p.parquet", STORED)


def test_predict__raise_on_damaged_spectra_and_resume_once_they_are_mended(
    model: MixtureModel, sample: Path, tmp_path: Path
) -> None:
    whole = (sample / "test" / "dataset.h5").read_bytes()
    shard = tmp_path / "shard.h5"
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is cut off"):
        predict_spectra(model, [shard], tmp_path / "p.parquet")
    assert not (tmp_path / "p.parquet").exists()
    shard.write_bytes(whole)
    with h5py.File(shard, "a") as file:
        del file[schema.SHARD_WAVE]
    with pytest.raises(InputError, match="one per pixel"):
        predict_spectra(model, [shard], tmp_path / "p.parquet")
    shard.write_bytes(whole)
    assert predict_spectra(model, [shard], tmp_path / "p.parquet").n_spectra == 400


def test_the_ending_of_the_name_chooses_the_format(
    model: MixtureModel, test_store: SpectraStore, tmp_path: Path
) -> None:
    whole = predict_spectra(model, [test_store.path], tmp_path / "p.parquet", STORED)
    text = predict_spectra(model, [test_store.path], tmp_path / "p.CSV", STORED)
    assert text.scores == whole.scores
    found, expected = pd.read_csv(tmp_path / "p.CSV", keep_default_na=False), pd.read_parquet(tmp_path / "p.parquet")
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=1e-6)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["p.CSV", "p.parquet"]
    with pytest.raises(InputError, match="--overwrite"):
        predict_spectra(model, [test_store.path], tmp_path / "p.CSV", STORED)
    predict_spectra(model, [test_store.path], tmp_path / "p.CSV", replace(STORED, overwrite=True))
    (tmp_path / "notes.csv").write_text("a,b\n")
    with pytest.raises(InputError, match="holds no predictions"):
        predict_spectra(model, [test_store.path], tmp_path / "notes.csv", replace(STORED, overwrite=True))
    for name in ("p", "p.txt", "p.h5"):
        with pytest.raises(InputError, match=r"\.parquet or \.csv"):
            predict_spectra(model, [test_store.path], tmp_path / name, STORED)


def test_no_cell_of_a_table_is_a_formula(model: MixtureModel, sample: Path, tmp_path: Path) -> None:
    (tmp_path / "=1+1").symlink_to(sample / "test")
    predict_spectra(model, [tmp_path / "=1+1" / "dataset.h5"], tmp_path / "p.csv")
    assert set(pd.read_csv(tmp_path / "p.csv")["shard"]) == {"'=1+1/dataset.h5"}

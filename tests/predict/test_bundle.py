"""The model bundle: what is written is what is read, what is predicted is what the run's models say."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import invoke

import pipeline
from pipeline import schema
from pipeline.base import hash_file, seal
from pipeline.bins import OUTSIDE, spread_rows
from pipeline.config import ExperimentConfig
from pipeline.errors import InputError
from pipeline.noise import NoiseDraw
from pipeline.predict import MODEL_FILE, SUMS_FILE, MixtureModel, export, export_model, load_model, model_of_run
from pipeline.predict.export import render_card
from pipeline.predict.files import CARD_FILE, save_model
from pipeline.questions.gate import BLEND, ROUTES, Blend, Evidence, Route, mix_predictions
from pipeline.questions.gate.blend import HeldOutErrors
from pipeline.ridge import read_models
from pipeline.run import run_experiment
from pipeline.scoring import read_noisy_rows
from pipeline.store import SpectraStore


@pytest.fixture(scope="module")
def run(small_config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gated")
    run_experiment(ExperimentConfig.model_validate(small_config.to_dict() | {"gate": {}}), folder)
    return folder


@pytest.fixture(scope="module")
def ungated(small_config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ungated")
    noise = {"mode": "marginal", "levels": [0.2, 1.0]}
    run_experiment(ExperimentConfig.model_validate(small_config.to_dict() | {"noise": noise}), folder)
    return folder


@pytest.fixture(scope="module")
def noisy(test_store: SpectraStore) -> np.ndarray:
    return np.asarray(read_noisy_rows(test_store, 0, test_store.n_spectra, None))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_bundle_is_written_and_read_bit_for_bit(
    run: Path, bundle: Path, model: MixtureModel, tmp_path: Path, small_config: ExperimentConfig
) -> None:
    again = export_model(run, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(bundle)
    assert again.fingerprint == model.fingerprint
    save_model(model, tmp_path / "copy", (bundle / CARD_FILE).read_text(encoding="utf-8"))
    copied = contents(tmp_path / "copy")
    assert {k: v for k, v in copied.items() if k.endswith(".npy")} == {
        k: v for k, v in contents(bundle).items() if k.endswith(".npy")
    }
    assert json.loads(copied[MODEL_FILE]) == json.loads(contents(bundle)[MODEL_FILE])
    solved = read_models(run / "models" / f"{NoiseDraw(1.0, small_config.seeds[0], schema.STREAM_TRAIN).name}.npz")[-1]
    np.testing.assert_array_equal(model.weights[:, 0], solved.global_weights)
    np.testing.assert_array_equal(model.weights[:, 1:].transpose(1, 0, 2), solved.expert_weights)
    np.testing.assert_array_equal(model.intercepts[1:], solved.expert_intercepts)


def test_a_bundle_needs_no_run_and_names_no_path(run: Path, bundle: Path, train_store: SpectraStore) -> None:
    for name, content in contents(bundle).items():
        for path in (run, train_store.path):
            assert str(path).encode() not in content, name


def test_predictions_are_those_of_the_models_in_double_precision(
    run: Path, model: MixtureModel, noisy: np.ndarray, small_config: ExperimentConfig
) -> None:
    solved = read_models(run / "models" / f"{NoiseDraw(1.0, small_config.seeds[0], schema.STREAM_TRAIN).name}.npz")[-1]
    assert model.gate is not None
    found = model.predict(noisy)
    x = noisy.astype(np.float64)
    probabilities = model.gate.probabilities(x @ solved.global_weights + solved.global_intercepts)
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities, probabilities, atol=1e-5)
    for q, label in enumerate(model.labels):
        expected = solved.predict(x, label)
        width = expected[:, 0].std()
        np.testing.assert_allclose(found.of_models[:, :, q], expected, atol=1e-5 * width)
        known = Evidence(probabilities, unsure=0.2)
        for route in ("fallback", "soft", "hard"):
            own = model.predict(noisy, route=route).values[:, q]
            right = mix_predictions(ROUTES[route].weights(known), expected)
            # Where two bins are equally probable, rounding decides which expert is asked.
            assert np.mean(np.abs(own - right) > 1e-4 * width) < 0.01
        np.testing.assert_array_equal(model.predict(noisy, route="global").values[:, q], found.of_global[:, q])


def test_what_is_said_of_a_spectrum_does_not_depend_on_the_others(model: MixtureModel, noisy: np.ndarray) -> None:
    """To the bit where it keeps its place in a tile; elsewhere some BLAS add up a row in another order."""
    whole = model.predict(noisy)
    names = ("values", "of_models", "distances", "bins", "reasons", "bad_shares")
    for rows in (slice(0, 1), slice(0, 127), slice(128, 131), slice(256, None)):
        others = np.random.default_rng(rows.start).permuted(noisy, axis=0)
        others[rows] = noisy[rows]
        part, among = model.predict(noisy[rows]), model.predict(others)
        for name in names:
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[rows], err_msg=name)
            np.testing.assert_array_equal(getattr(among, name)[rows], getattr(whole, name)[rows], err_msg=name)
    scatter = whole.values.std(axis=0)
    for rows in (slice(5, 6), slice(3, 200), slice(399, 400), slice(127, 130)):
        part = model.predict(noisy[rows])
        assert np.abs((part.values - whole.values[rows]) / scatter).max() < 1e-5
        np.testing.assert_allclose(part.distances, whole.distances[rows], rtol=1e-5)
        for name in ("bins", "reasons", "bad_shares"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[rows], err_msg=name)
    single = model.predict(noisy[17])
    assert single.values.shape == (1, 3)
    assert np.abs((single.values[0] - whole.values[17]) / scatter).max() < 1e-5
    assert len(model.predict(noisy[:0]).to_frame()) == 0


def test_prediction_leaves_its_input_alone(model: MixtureModel, noisy: np.ndarray) -> None:
    flux = noisy[:200].copy()
    flux[3, 5], flux[7] = np.nan, -1.0
    before = flux.tobytes()
    model.predict(flux)
    assert flux.tobytes() == before


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38])
def test_pixels_that_are_not_finite_take_the_training_mean(
    model: MixtureModel, noisy: np.ndarray, value: float
) -> None:
    flux, filled = noisy[:300].astype(np.float64), noisy[:300].copy()
    flux[150, [4, 20, 31]] = value
    filled[150, [4, 20, 31]] = model.components.mean[[4, 20, 31]]
    found, expected = model.predict(flux), model.predict(filled)
    np.testing.assert_array_equal(found.values, expected.values)
    assert found.bad_shares[150] == pytest.approx(3 / 48)
    assert "bad pixels" in found.reason_texts[150]
    assert "bad pixels" not in found.reason_texts[149]
    flagged = np.zeros(filled.shape, bool)
    flagged[150, [4, 20, 31]] = True
    np.testing.assert_array_equal(model.predict(noisy[:300], bad=flagged).values, expected.values)


def test_spectra_that_are_all_bad_or_all_zero_are_flagged(model: MixtureModel, noisy: np.ndarray) -> None:
    flux = np.stack([np.full(48, np.nan), np.zeros(48), noisy[0]])
    found = model.predict(flux)
    assert found.bad_shares[:2].tolist() == [1, 1]
    assert found.out_of_domain[:2].all()
    assert np.isfinite(found.values).all()
    assert model.predict(flux, zeros_are_bad=False).bad_shares[1] == 0


def test_distances_and_their_limit_are_those_of_the_training_spectra(
    model: MixtureModel, train_store: SpectraStore, small_config: ExperimentConfig
) -> None:
    """Against the eigenvectors of NumPy's covariance of all training rows."""
    draw = NoiseDraw(1.0, small_config.seeds[0], schema.STREAM_TRAIN)
    x = np.asarray(read_noisy_rows(train_store, 0, train_store.n_spectra, draw, "float64"))
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    scores = (x - x.mean(axis=0)) @ vectors[:, -10:]
    distances = np.sqrt((scores**2 / values[-10:]).sum(axis=1))
    np.testing.assert_allclose(model.predict(x).distances, distances, rtol=1e-3)
    assert model.limits.distance == pytest.approx(np.quantile(distances, 0.999), rel=1e-3)
    assert model.facts["sample"]["spectra"] == len(x)
    shifted = x.mean(axis=0) + 1.01 * model.limits.distance * np.sqrt(values[-1]) * vectors[:, -1]
    shifted = np.where(shifted > 0, shifted, 1e-3) if (shifted < 0).any() else shifted
    assert "far from the training spectra" in model.predict(3 * x[0]).reason_texts[0]


def test_the_outside_is_a_reason_where_it_is_probable(model: MixtureModel, noisy: np.ndarray) -> None:
    found = model.predict(noisy)
    assert found.probabilities is not None
    said = np.array(["outside the bins" in text for text in found.reason_texts])
    np.testing.assert_array_equal(said, found.probabilities[:, -1] > 0.5)
    assert 0 < said.sum() < len(said)
    table = found.to_frame()
    assert list(table["bin"][said].unique()) == [OUTSIDE]
    np.testing.assert_array_equal(table["out_of_domain"], found.out_of_domain)


def test_without_a_gate_the_global_model_answers(
    ungated: Path, tmp_path: Path, noisy: np.ndarray, test_store: SpectraStore, capsys: pytest.CaptureFixture[str]
) -> None:
    model = export_model(ungated, tmp_path / "model", level=0.2)
    assert model.gate is None
    assert model.facts["training"]["noise"] == {"mode": "marginal", "level": 0.2, "seed": None}
    found = model.predict(noisy)
    np.testing.assert_array_equal(found.values, found.of_global)
    assert set(found.routes) == {"global"}
    assert "log_g_expert_8" in found.to_frame(experts="log_g")
    with pytest.raises(InputError, match=r"route .*no gate"):
        model.predict(noisy, route="soft")
    assert "no gate" in (tmp_path / "model" / CARD_FILE).read_text(encoding="utf-8")
    call = ("predict", tmp_path / "model", test_store.path, "--out", tmp_path / "guesses.csv", "--overwrite")
    assert "the global model answers, since" in invoke(capsys, *call)[2]
    assert "the global model answers" not in invoke(capsys, *call, "--route", "global")[2], "it was asked for"


def test_a_blend_answers_for_the_target_and_survives_the_bundle(
    model: MixtureModel, noisy: np.ndarray, tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    better = HeldOutErrors(blend=0.1, soft=0.2, fallback=0.2, of_global=0.3, margin=0.01, count=100)
    blend = Blend(
        tau=0.7,
        slopes=rng.normal(size=(10, 10)) / 10,
        centre=np.array([3.0, 4900.0, -0.7]),
        scale=np.array([1.0, 500.0, 0.6]),
        strength=1.0,
        errors={"covered": better, "all": better},
    )
    blended = dataclasses.replace(model, blend=blend, route="blend", facts=dict(model.facts))
    save_model(blended, tmp_path / "model", "a card")
    again = load_model(tmp_path / "model")
    assert again.routes == ("blend", "fallback", "soft", "hard", "global")
    found, plain = again.predict(noisy), model.predict(noisy)
    assert set(found.routes) == {"blend"}
    assert plain.probabilities is not None
    known = Evidence(plain.probabilities, of_labels=plain.of_global, learned=blend)
    expected = mix_predictions(BLEND.weights(known), plain.of_models[:, :, 0])
    np.testing.assert_allclose(found.values[:, 0], expected, rtol=1e-12)
    np.testing.assert_array_equal(found.values[:, 1:], plain.values[:, 1:])
    assert np.abs(found.values[:, 0] - plain.values[:, 0]).max() > 1e-3
    with pytest.raises(InputError, match="fallback, soft, hard, global"):
        model.predict(noisy, route="blend")


def test_a_rule_that_is_added_to_the_list_predicts(
    model: MixtureModel, noisy: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    even = Route("even", "Even", "All models answer alike.", lambda known: np.full(known.probabilities.shape, 0.1))
    monkeypatch.setitem(ROUTES, even.name, even)
    assert model.routes == ("even", "fallback", "soft", "hard", "global")
    found = model.predict(noisy, route="even")
    np.testing.assert_allclose(found.values, found.of_models.mean(axis=1), rtol=1e-12)
    assert set(found.routes) == {"even"}
    assert "The default route is `even`: all models answer alike." in render_card(
        dataclasses.replace(model, route="even")
    )


def test_a_run_and_its_models_are_read_once(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    for name in ("read_results", "read_models", "load_model"):
        original = getattr(export, name)

        def counted(path: Path, name: str = name, original: Any = original) -> Any:
            asked.append(name)
            return original(path)

        monkeypatch.setattr(export, name, counted)
    export_model(run, tmp_path / "model")
    assert asked == ["read_results", "read_models", "load_model"]
    asked.clear()
    shutil.rmtree(run / "model", ignore_errors=True)
    first = model_of_run(run)
    assert asked == ["read_results", "read_models", "load_model"]
    asked.clear()
    assert model_of_run(run).fingerprint == first.fingerprint
    assert asked == ["read_results", "load_model"]


def test_any_changed_byte_is_detected_and_its_file_named(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(bundle, copy)
    for name, content in contents(bundle).items():
        for place in sorted({0, 1, len(content) // 3, len(content) // 2, len(content) - 2, len(content) - 1}):
            for bit in (0, 5):
                changed = bytearray(content)
                changed[place] ^= 1 << bit
                (copy / name).write_bytes(changed)
                with pytest.raises(InputError, match="is damaged") as error:
                    load_model(copy)
                # A digest that changed is told from a file that did by nothing: either may be named.
                assert name in str(error.value) or name == SUMS_FILE, (name, place)
        (copy / name).write_bytes(content[:-1])
        with pytest.raises(InputError, match="is damaged"):
            load_model(copy)
        (copy / name).unlink()
        with pytest.raises(InputError, match=name.split("/")[-1]):
            load_model(copy)
        (copy / name).write_bytes(content)
    assert load_model(copy).fingerprint == load_model(bundle).fingerprint


def restate_sums(bundle: Path) -> None:
    """Let ``SHA256SUMS`` state what the files are now, as if they had been written so."""
    names = sorted(str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file())
    sums = "".join(f"{hash_file(bundle / name)}  {name}\n" for name in names if name != SUMS_FILE)
    (bundle / SUMS_FILE).write_text(sums, encoding="utf-8")


@pytest.mark.parametrize("name", ["weights", "wavelength", "component_vectors", "component_variances", "intercepts"])
@pytest.mark.parametrize("damage", ["shape", "dtype", "nan", "object"])
def test_arrays_that_cannot_be_are_refused(bundle: Path, tmp_path: Path, name: str, damage: str) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "model"))
    values = np.load(copy / "arrays" / f"{name}.npy")
    if damage == "shape":
        values = values[:-1]
    elif damage == "nan":
        values.flat[0] = np.nan
    else:
        values = values.astype(np.float32 if damage == "dtype" else object)
    np.save(copy / "arrays" / f"{name}.npy", values, allow_pickle=True)
    restate_sums(copy)
    with pytest.raises(InputError, match="arrays"):
        load_model(copy)


@pytest.mark.parametrize("value", [None, [], 3, "x", {}, float("nan")])
@pytest.mark.parametrize(
    "name", ["labels", "target", "bins", "gate", "features", "route", "unsure", "out_of_domain", "arrays", "version"]
)
def test_facts_of_another_kind_are_refused(bundle: Path, tmp_path: Path, name: str, value: object) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "model"))
    facts = json.loads((copy / MODEL_FILE).read_text(encoding="utf-8"))
    (copy / MODEL_FILE).write_text(json.dumps(facts | {name: value}), encoding="utf-8")
    restate_sums(copy)
    if (name, value) in [("gate", None), ("features", None), ("unsure", 3)]:  # models may be so
        return
    with pytest.raises(InputError, match=r"model\.json|model "):
        load_model(copy)


def test_a_gate_that_does_not_fit_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "model"))
    facts = json.loads((copy / MODEL_FILE).read_text(encoding="utf-8"))
    for name, value in facts["gate"].items():
        if isinstance(value, list) and value and not isinstance(value[0], str):
            changed = facts | {"gate": facts["gate"] | {name: value[:-1]}}
            (copy / MODEL_FILE).write_text(json.dumps(changed), encoding="utf-8")
            restate_sums(copy)
            with pytest.raises(InputError, match="model "):
                load_model(copy)


def test_a_product_that_changed_is_not_exported(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    for path in sorted((copy / "models").iterdir()):
        content = path.read_bytes()
        path.write_bytes(content[:-3] + b"   ")
        if path.name in ("seed-42_noise-1.0.npz",):
            with pytest.raises(InputError, match=path.name):
                export_model(copy, tmp_path / "model")
        path.write_bytes(content)


def test_the_digests_are_what_sha256sum_reads_and_list_no_other_path(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(bundle, copy)
    (tmp_path / "stray").write_bytes(b"")
    sums = (copy / SUMS_FILE).read_text(encoding="utf-8")
    (copy / SUMS_FILE).write_text(f"{'0' * 64}  ../stray\n{sums}", encoding="utf-8")
    with pytest.raises(InputError, match=r"\.\./stray"):
        load_model(copy)
    short = [line for line in sums.splitlines(keepends=True) if "weights" not in line]
    (copy / SUMS_FILE).write_text("".join(short), encoding="utf-8")
    with pytest.raises(InputError, match=r"weights\.npy"):
        load_model(copy)


def test_the_model_of_a_run_that_may_only_be_read_is_not_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(run / "model", ignore_errors=True)
    first, mkdir = model_of_run(run), Path.mkdir
    shutil.rmtree(run / "model")

    def read_only(path: Path, *given: Any, **options: Any) -> None:
        if run in path.parents:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        mkdir(path, *given, **options)

    monkeypatch.setattr(Path, "mkdir", read_only)
    assert model_of_run(run).fingerprint == first.fingerprint
    assert not (run / "model").exists()


def test_the_model_of_a_run_is_made_once_and_again_where_the_run_has_changed(run: Path) -> None:
    first = model_of_run(run)
    stamps = {path: path.stat().st_mtime_ns for path in (run / "model").rglob("*")}
    assert model_of_run(run).fingerprint == first.fingerprint
    assert stamps == {path: path.stat().st_mtime_ns for path in (run / "model").rglob("*")}
    metadata = json.loads((run / "metadata.json").read_text(encoding="utf-8"))
    text = json.dumps(seal(metadata | {"key": "0123456789abcdef"}))
    before = (run / "metadata.json").read_bytes()
    (run / "metadata.json").write_text(text, encoding="utf-8")
    assert model_of_run(run).facts["provenance"]["results"] == "0123456789abcdef"
    (run / "metadata.json").write_bytes(before)


def test_the_card_says_what_the_model_is(bundle: Path, model: MixtureModel) -> None:
    card = (bundle / CARD_FILE).read_text(encoding="utf-8")
    assert "simulated by this package" in card
    assert f"{model.limits.distance:.3g} standard deviations" in card
    covered = model.facts["metrics"]["scopes"]["covered"]["r2_global"]
    assert f"{covered['mean']:.3f} ({covered['low']:.3f} to {covered['high']:.3f})" in card
    low, high = model.facts["training"]["ranges"]["T_eff"]
    assert 3750 <= low < high <= 6000
    for words in ("## Limits", "## Provenance", "headroom predict"):
        assert words in card


@pytest.mark.parametrize("total", [1, 63, 64, 1000, 1601, 20_001])
@pytest.mark.parametrize("wanted", [64, 100, 1000])
def test_a_sample_of_rows_is_spread_evenly_and_repeats_none(total: int, wanted: int) -> None:
    spans = [(0, total // 3), (total // 3 + 10, total + 10)]  # ten rows are left out
    rows = np.concatenate([np.arange(a, b) for a, b in spread_rows(spans, wanted, 64)])
    assert len(np.unique(rows)) == len(rows) <= wanted or total <= wanted
    assert len(rows) == total if total <= wanted else len(rows) >= wanted - 2 * 64
    assert not ((rows >= total // 3) & (rows < total // 3 + 10)).any()
    assert rows.max() < total + 10
    if total > 10 * wanted and wanted >= 10 * 64:
        halves = np.histogram(rows, 4, (0, total + 10))[0]
        assert np.ptp(halves) <= 2 * 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 0.3}, r"--level must be one of the run's noise levels \(1\), found 0.3"),
        ({"seed": 7}, r"--seed must be one of the run's seeds \(42, 123\), found 7"),
        ({"quantile": 1.0}, "--quantile must lie between 0 and 1"),
    ],
)
def test_export__raise_on_what_a_run_does_not_have(
    run: Path, tmp_path: Path, options: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        export_model(run, tmp_path / "model", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_export__raise_on_a_folder_among_the_spectra(run: Path, train_store: SpectraStore) -> None:
    before = sorted(train_store.path.iterdir())
    with pytest.raises(InputError, match=r"data\.train"):
        export_model(run, train_store.path / "model")
    assert sorted(train_store.path.iterdir()) == before


def test_export__raise_on_runs_and_folders(run: Path, ungated: Path, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        export_model(tmp_path / "nothing", tmp_path / "model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="nothing in it is a run"):
        export_model(tmp_path / "empty", tmp_path / "model")
    with pytest.raises(InputError, match="--overwrite"):
        export_model(run, bundle)
    for overwrite in (False, True):  # what is no model is never said to be replaceable
        with pytest.raises(InputError, match="than a model") as refused:
            export_model(run, run, overwrite=overwrite)
        assert "--overwrite" not in str(refused.value)
    with pytest.raises(InputError, match="seed"):
        export_model(ungated, tmp_path / "model", seed=42)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("moments"))
    with pytest.raises(InputError, match=r"moments of seed-42_noise-1\.0"):
        export_model(copy, tmp_path / "model")
    stated = json.loads((copy / "metadata.json").read_text(encoding="utf-8"))
    del stated["checksum"]  # an earlier version wrote none
    metadata = json.dumps(stated)
    (copy / "metadata.json").write_text(metadata.replace("train.zarr", "gone.zarr"), encoding="utf-8")
    with pytest.raises(InputError, match=r"gone\.zarr"):
        export_model(copy, tmp_path / "model")
    (copy / "metadata.json").write_text(metadata.replace('"run_rows"', '"block_rows"'), encoding="utf-8")
    with pytest.raises(InputError, match="block_rows"):
        export_model(copy, tmp_path / "model")
    (copy / "metadata.json").write_text(metadata.replace('"folds": {', '"fields": {'), encoding="utf-8")
    with pytest.raises(InputError, match=r"metadata\.json .*folds"):
        export_model(copy, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_predict__raise_on_other_pixels(model: MixtureModel) -> None:
    with pytest.raises(InputError, match=r"48 pixels .*\(2, 47\)"):
        model.predict(np.ones((2, 47)))
    with pytest.raises(InputError, match="bad pixels"):
        model.predict(np.ones((2, 48)), bad=np.zeros((1, 48)))
    with pytest.raises(InputError, match=r"'sotf' .*'soft'"):
        model.predict(np.ones((2, 48)), route="sotf")


def test_load__raise_on_what_is_no_bundle(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load_model(tmp_path / "nothing")
    with pytest.raises(InputError, match="SHA256SUMS"):
        pipeline.load_model(tmp_path)


def test_a_bundle_of_another_version_is_refused(bundle: Path, tmp_path: Path) -> None:
    import hashlib

    copy = tmp_path / "model"
    shutil.copytree(bundle, copy)
    text = (copy / MODEL_FILE).read_text(encoding="utf-8").replace('"version": 1,', '"version": 3,', 1)
    (copy / MODEL_FILE).write_text(text, encoding="utf-8")
    old, new = (hashlib.sha256((one / MODEL_FILE).read_bytes()).hexdigest() for one in (bundle, copy))
    sums = (copy / SUMS_FILE).read_text(encoding="utf-8").replace(old, new)
    (copy / SUMS_FILE).write_text(sums, encoding="utf-8")
    with pytest.raises(InputError, match=r"version 3, .*versions 1 to 2"):
        load_model(copy)


def test_predictions_are_not_written_into_a_model(
    bundle: Path, sample: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(bundle)
    code, _, err = invoke(capsys, "predict", bundle, sample / "test", "--out", bundle / "mine.csv")
    assert code == 2
    assert "--out" in err
    assert contents(bundle) == before

"""Whole runs with a logistic gate, a blend and experts by signal-to-noise ratio, recomputed from what they leave."""

from __future__ import annotations

import copy
import dataclasses
import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from distributed import Client
from results_factory import render_page
from scipy import stats
from scipy.special import softmax
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from pipeline import schema
from pipeline.bins import BinGrid, plan_folds
from pipeline.config import ExperimentConfig
from pipeline.errors import InputError
from pipeline.noise import NoiseDraw
from pipeline.predict import export_model
from pipeline.questions.gate import Gates
from pipeline.questions.gate.blend import HeldOutRows, fit_blend
from pipeline.questions.gate.collect import FeatureRows
from pipeline.ridge import read_models
from pipeline.run import run_experiment
from pipeline.scoring import RunResults, read_noisy_rows
from pipeline.store import SpectraStore

ROUTING_FILE, ROUTING_BINNINGS_FILE = "routing.csv", "routing_binnings.csv"
#: Wide windows: the sample has a pixel in 36 Å.
WINDOWS = [
    {"name": "triplet", "centre": 8580, "half_width": 100, "continuum": [[8350, 8450], [8720, 8800]], "total": "all"},
    {"name": "sodium", "centre": 8190, "half_width": 60, "continuum": [[8060, 8110]], "total": "all"},
]
PRODUCTS = 2
GATE = {
    "kind": "logistic",
    "blend": True,
    "binnings": ["SNR"],
    "features": {"components": 4, "products": PRODUCTS, "windows": WINDOWS},
}
SETTINGS: dict[str, Any] = {
    "gate": GATE,
    "binnings": {"SNR": {"snr": {"quantiles": 3}}},
    "ridge": {"alpha": {"per_spectrum": 0.1}, "min_spectra": 10},
    "precision": "float64",
}


def gated(config: ExperimentConfig, **sections: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate(config.to_dict() | SETTINGS | sections)


@pytest.fixture(scope="module")
def finished(small_config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    return run_experiment(gated(small_config), tmp_path_factory.mktemp("run"))


def name_of(seed: int) -> str:
    return NoiseDraw(1.0, seed, schema.STREAM_TRAIN).name


def read_plain(run: RunResults, name: str) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads((run.folder / "gates" / f"{name}.json").read_text(encoding="utf-8"))
    return plain


def read_noisy(store: SpectraStore, draw: NoiseDraw | None) -> np.ndarray:
    return read_noisy_rows(store, 0, store.n_spectra, draw, "float64")


def window_features(x: np.ndarray, wavelength: np.ndarray) -> np.ndarray:
    """Means, depths and widths of all windows, and their total width, by a loop over spectra."""
    rows, widths_of_pixels = [], np.gradient(wavelength)
    for spectrum in x:
        row, total = [], 0.0
        for window in WINDOWS:
            inside = np.abs(wavelength - window["centre"]) <= window["half_width"]
            bands = [spectrum[(wavelength >= low) & (wavelength <= high)] for low, high in window["continuum"]]
            level = np.concatenate(bands).mean()
            central = np.argsort(np.abs(wavelength - window["centre"]), kind="stable")[:3]
            width = ((1 - spectrum / level) * widths_of_pixels)[inside].sum()
            row += [spectrum[inside].mean(), 1 - spectrum[central].mean() / level, width]
            total += width
        rows.append([*row, total])
    return np.array(rows)


def told_by(plain: dict[str, Any], features: np.ndarray, n_cells: int) -> np.ndarray:
    """Ask a logistic gate, from its file alone."""
    z = (features - np.array(plain["centre"])) / np.array(plain["scale"])
    pairs = [z[:, i] * z[:, j] for i in range(plain["multiplied"]) for j in range(i, plain["multiplied"])]
    logits = np.column_stack([z, *pairs]) @ np.array(plain["weights"]).T + np.array(plain["intercepts"])
    probabilities = np.zeros((len(z), n_cells))
    probabilities[:, plain["cells"]] = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities


def told_by_main_gate(run: RunResults, seed: int, x: np.ndarray, wavelength: np.ndarray, grid: BinGrid) -> np.ndarray:
    """Ask the gate over the bins about spectra, from its recipe and its file."""
    with np.load(run.folder / "gates" / f"{name_of(seed)}_recipe.npz") as recipe:
        scores = (x - recipe["mean"]) @ recipe["vectors"]
    features = np.concatenate([scores, window_features(x, np.asarray(wavelength))], axis=1)
    return told_by(read_plain(run, name_of(seed)), features, grid.n_bins + 1)


def routes_of(experts: np.ndarray, told: np.ndarray, unsure: float) -> dict[str, np.ndarray]:
    """Hard, soft and fall-back routing, spectrum by spectrum; ``experts`` has the global model first."""
    routed: dict[str, list[float]] = {"hard": [], "soft": [], "fallback": []}
    for (of_global, *own), probabilities in zip(experts, told, strict=True):
        bins, outside = probabilities[:-1], probabilities[-1]
        mixed = float(bins @ np.array(own))
        routed["hard"].append(own[int(bins.argmax())])
        routed["soft"].append(mixed / bins.sum())
        routed["fallback"].append(mixed + outside * of_global if bins.max() > unsure else of_global)
    return {route: np.array(values) for route, values in routed.items()}


def fold_of_rows(store: SpectraStore) -> np.ndarray:
    return np.concatenate(
        [np.full(stop - start, fold) for fold, (start, stop) in enumerate(plan_folds(store.shard_lengths, 3))]
    )


def predict_without_folds(x: np.ndarray, store: SpectraStore, bins: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """All labels by the global model, then log g by every expert, of scikit-learn refitted without each fold."""
    y = np.column_stack([np.asarray(store.columns[label], np.float64) for label in schema.LABELS])
    predicted = np.empty((len(x), 3 + bins.max() + 1))
    for fold in np.unique(folds):
        own = folds == fold
        scaler = StandardScaler().fit(x[~own])
        z = scaler.transform(x)
        columns = [Ridge(0.1 * (~own).sum()).fit(z[~own], y[~own]).predict(z[own])]
        for k in range(bins.max() + 1):
            members = ~own & (bins == k)
            alpha = 0.1 * len(x) * members.sum() / (bins == k).sum()  # what a spectrum weighs stays
            columns.append(Ridge(alpha).fit(z[members], y[members, 0]).predict(z[own])[:, None])
        predicted[own] = np.concatenate(columns, axis=1)
    return predicted


def test_rows_are_features_and_held_out_predictions_under_the_experts_own_noise(
    finished: RunResults, small_config: ExperimentConfig, train_store: SpectraStore
) -> None:
    """Components by scikit-learn, windows by a loop, predictions by refitting: all on the draw of that seed."""
    wavelength = np.asarray(train_store.wavelength, np.float64)
    bins, folds = BinGrid(small_config.bins).assign(train_store.columns), fold_of_rows(train_store)
    for seed in small_config.seeds:
        rows = FeatureRows.read(finished.folder / "gates" / f"{name_of(seed)}_rows.npz")
        np.testing.assert_array_equal(rows.rows, np.arange(train_store.n_spectra))
        np.testing.assert_array_equal(rows.bins, bins)
        np.testing.assert_array_equal(rows.folds, folds)
        x = read_noisy(train_store, NoiseDraw(1.0, seed, schema.STREAM_TRAIN))
        scores = PCA(4, svd_solver="full").fit_transform(x)
        signs = np.sign((scores * rows.features[:, :4]).sum(axis=0))
        np.testing.assert_allclose(rows.features[:, :4], scores * signs, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(rows.features[:, 4:], window_features(x, wavelength), rtol=1e-6, atol=1e-9)
        expected = predict_without_folds(x, train_store, bins, folds)
        np.testing.assert_allclose(rows.predicted, expected, rtol=1e-6, atol=1e-8)
        assert rows.quality.shape == (train_store.n_spectra, 0), "no gate but one over snr may look at errors"


def test_the_gate_and_what_it_says_of_held_out_folds_are_scikit_learns(
    finished: RunResults, small_config: ExperimentConfig
) -> None:
    seed = small_config.seeds[0]
    rows = FeatureRows.read(finished.folder / "gates" / f"{name_of(seed)}_rows.npz")
    plain, n_cells = read_plain(finished, name_of(seed)), BinGrid(small_config.bins).n_bins + 1
    cells = np.where(rows.bins < 0, n_cells - 1, rows.bins)

    def expand(features: np.ndarray) -> np.ndarray:
        pairs = PolynomialFeatures(2, include_bias=False).fit_transform(features[:, :PRODUCTS])[:, PRODUCTS:]
        return np.concatenate([features, pairs], axis=1)

    def fit_and_ask(train: np.ndarray, asked: np.ndarray) -> np.ndarray:
        scaler = StandardScaler().fit(rows.features[train])
        peer = LogisticRegression(C=plain["penalty"], tol=1e-7, max_iter=5000)
        peer.fit(expand(scaler.transform(rows.features[train])), cells[train])
        told = np.zeros((asked.sum(), n_cells))
        told[:, peer.classes_] = peer.predict_proba(expand(scaler.transform(rows.features[asked])))
        return told

    everyone = np.full(len(cells), True)
    np.testing.assert_allclose(told_by(plain, rows.features, n_cells), fit_and_ask(everyone, everyone), atol=5e-3)
    held_out = np.load(finished.folder / "gates" / f"{name_of(seed)}_held_out.npy")
    for fold in np.unique(rows.folds):
        own = rows.folds == fold
        np.testing.assert_allclose(held_out[own], fit_and_ask(~own, own), atol=5e-3)
    losses = dict(plain["fit"]["log_losses"])
    assert plain["penalty"] == min(losses, key=losses.__getitem__)
    right = held_out[np.arange(len(cells)), cells]
    assert losses[plain["penalty"]] == pytest.approx(-np.log(np.maximum(right, 1e-12)).mean(), rel=1e-9)


def test_the_blend_is_learned_from_held_out_folds_of_the_training_set(
    finished: RunResults, small_config: ExperimentConfig, train_store: SpectraStore
) -> None:
    """The same blend from predictions that scikit-learn makes without each fold, and errors by hand."""
    seed, bins = small_config.seeds[0], BinGrid(small_config.bins).assign(train_store.columns)
    folds, y = fold_of_rows(train_store), np.asarray(train_store.columns["log_g"], np.float64)
    held_out = np.load(finished.folder / "gates" / f"{name_of(seed)}_held_out.npy")
    x = read_noisy(train_store, NoiseDraw(1.0, seed, schema.STREAM_TRAIN))
    columns = predict_without_folds(x, train_store, bins, folds)
    experts = columns[:, [0, *range(3, columns.shape[1])]]
    expected = fit_blend(HeldOutRows(y, experts, held_out, columns[:, :3], folds, bins >= 0))
    plain = read_plain(finished, f"{name_of(seed)}_blend")
    assert plain["strength"] == expected.strength
    assert plain["tau"] == pytest.approx(expected.tau, rel=1e-3)
    np.testing.assert_allclose(plain["slopes"], expected.slopes, atol=1e-3)
    np.testing.assert_allclose(plain["centre"], columns[:, :3].mean(axis=0), rtol=1e-9)
    routed = routes_of(experts, held_out, 0.0)
    for scope, members in (("covered", bins >= 0), ("all", bins >= -1)):
        errors = plain["errors"][scope]
        assert errors["count"] == members.sum()
        for name, values in {**routed, "of_global": experts[:, 0]}.items():
            if name in errors:
                assert errors[name] == pytest.approx(((values - y)[members] ** 2).mean(), rel=1e-6)


def blended(plain: dict[str, Any], experts: np.ndarray, told: np.ndarray, of_labels: np.ndarray) -> np.ndarray:
    u = (of_labels - np.array(plain["centre"])) / np.array(plain["scale"])
    pairs = [u[:, i] * u[:, j] for i in range(3) for j in range(i, 3)]
    inputs = np.column_stack([np.ones(len(u)), u, *pairs])
    log_p = np.log(np.maximum(told[:, [told.shape[1] - 1, *range(told.shape[1] - 1)]], 1e-6))
    weights = softmax(plain["tau"] * log_p + inputs @ np.array(plain["slopes"]).T, axis=1)
    return np.asarray((weights * experts).sum(axis=1))


def compare_table(table: pd.DataFrame, truth: np.ndarray, bins: np.ndarray, routed: dict[str, np.ndarray]) -> None:
    """Hold rows of a routing table, of one seed, against R² by scikit-learn."""
    for scope in dict.fromkeys(table["scope"].astype(str)):
        members = bins >= {"covered": 0, "all": -1}[scope] if not scope.isdigit() else bins == int(scope)
        rows = table[table["scope"].astype(str) == scope].set_index("route")
        assert set(rows.index) == {"oracle", *routed}
        for route, values in routed.items():
            assert rows.loc[route, "n_test"] == members.sum()
            if members.sum() > 1:
                expected = r2_score(truth[members], values[members])
                assert rows.loc[route, "r2"] == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_predictions_and_tables_follow_from_the_files_of_the_gate(
    finished: RunResults, small_config: ExperimentConfig, test_store: SpectraStore
) -> None:
    """Only recipes, gates, models and blends as they lie in the folder, on the test store's own noise."""
    grid, noisy = BinGrid(small_config.bins), read_noisy(test_store, None)
    table = pd.read_csv(finished.folder / ROUTING_FILE)
    for seed in small_config.seeds:
        told = told_by_main_gate(finished, seed, noisy, test_store.wavelength, grid)
        models = read_models(finished.folder / "models" / f"{name_of(seed)}.npz")[-1]
        of_labels = noisy @ models.global_weights + models.global_intercepts
        saved = finished.predictions.query(f"seed == {seed}")
        experts = saved[["y_global", *(f"expert_{k}" for k in range(grid.n_bins))]].to_numpy()
        np.testing.assert_allclose(experts[:, 0], of_labels[:, 0], rtol=1e-9)
        routed = routes_of(experts, told, 0.2)
        blend = read_plain(finished, f"{name_of(seed)}_blend")
        routed["blend"] = blended(blend, experts, told, of_labels) if blend["kept"] else routed["soft"]
        for route, values in routed.items():
            np.testing.assert_allclose(saved[f"y_{route}"], values, rtol=1e-7, err_msg=route)
        compare_table(table.query(f"seed == {seed}"), saved["y_true"].to_numpy(), saved["bin"].to_numpy(), routed)


def test_binnings_are_routed_by_aggregates_of_the_errors(
    finished: RunResults, small_config: ExperimentConfig, train_store: SpectraStore, test_store: SpectraStore
) -> None:
    """The gate over snr from scipy's aggregates; with the main one p(i, j) = p(i) p(j)."""
    table, seed = pd.read_csv(finished.folder / ROUTING_BINNINGS_FILE), small_config.seeds[1]
    assert list(dict.fromkeys(table["binning"])) == ["SNR", "bins × SNR"]

    def aggregates(store: SpectraStore) -> np.ndarray:
        e = np.asarray(store.read_rows("error", 0, store.n_spectra), np.float64)
        quartiles = np.percentile(e, [25, 75], axis=1)
        return np.column_stack(
            [e.mean(1), e.std(1), e.min(1), e.max(1), np.median(e, 1), e.sum(1), *quartiles, stats.skew(e, 1),
             stats.kurtosis(e, 1)]
        )  # fmt: skip

    plain, grid = read_plain(finished, "quality_0"), BinGrid(small_config.bins)
    inner = np.quantile(np.asarray(train_store.columns["snr"], np.float64), [1 / 3, 2 / 3])
    by_snr = np.searchsorted(inner, np.asarray(test_store.columns["snr"], np.float64), "right")
    told = told_by(plain, aggregates(test_store), 4)
    np.testing.assert_allclose(plain["centre"], aggregates(train_store).mean(axis=0), rtol=1e-6)
    models = read_models(finished.folder / "models" / f"{name_of(seed)}_binnings.npz")[-2:]  # after the ablation's
    noisy, truth = read_noisy(test_store, None), np.asarray(test_store.columns["log_g"], np.float64)
    of_main = told_by_main_gate(finished, seed, noisy, test_store.wavelength, grid)
    pairs = np.stack([of_main[:, i] * told[:, j] for i in range(grid.n_bins) for j in range(3)], axis=1)
    crossed = np.column_stack([pairs, 1 - pairs.sum(axis=1)])
    main_bins = grid.assign(test_store.columns)
    both = np.where(main_bins < 0, -1, 3 * main_bins + by_snr)  # outermost quantiles reach as far as the test set
    for name, own, probabilities, bins in zip(
        ("SNR", "bins × SNR"), models, (told, crossed), (by_snr, both), strict=True
    ):
        weights, intercepts = own.columns("log_g")
        experts = noisy @ weights + intercepts
        rows = table.query(f"binning == '{name}' and seed == {seed}")
        compare_table(rows, truth, bins, routes_of(experts, probabilities, 0.2))


def test_nothing_learned_sees_the_test_spectra(
    finished: RunResults, small_config: ExperimentConfig, train_store: SpectraStore, tmp_path: Path
) -> None:
    """With another test store all that gates and blends are made of, and made into, is the same bytes."""
    swapped = {"train": [str(train_store.path)], "test": [str(train_store.path)], "allow_overlap": True}
    other = run_experiment(gated(small_config, data=swapped), tmp_path)
    assert not pd.read_csv(other.folder / ROUTING_FILE).equals(pd.read_csv(finished.folder / ROUTING_FILE))
    learned = sorted(path.name for path in (finished.folder / "gates").glob("*_noise-*"))
    assert {name.split("_noise-1.0")[1] for name in learned} == {
        ".json", "_recipe.npz", "_rows.npz", "_held_out.npy", "_folds.npz", "_blend.json"
    }  # fmt: skip
    for name in [*learned, "quality_0.json"]:
        assert (other.folder / "gates" / name).read_bytes() == (finished.folder / "gates" / name).read_bytes(), name


@pytest.mark.slow  # two more workers of their own; the gates of other features have the same test
def test_workers_change_no_bit(
    finished: RunResults, small_config: ExperimentConfig, two_workers: Client, tmp_path: Path
) -> None:
    other = run_experiment(gated(small_config), tmp_path, client=two_workers)
    for name in (ROUTING_FILE, ROUTING_BINNINGS_FILE, "predictions.parquet"):
        assert (other.folder / name).read_bytes() == (finished.folder / name).read_bytes(), name


@pytest.mark.parametrize(
    ("kept", "expected", "unexpected"),
    [
        (0.84, "its route keeps 84% of the headroom.", "more than all"),
        (1.31, "its route keeps 131% of the headroom. That is more than all, because the oracle asks one expert", None),
        (None, "", "its route keeps"),
    ],
)
def test_the_report_says_what_the_blend_keeps(
    finished: RunResults, kept: float | None, expected: str, unexpected: str | None
) -> None:
    answers = copy.deepcopy(finished.summary.answers)
    answers["gate"]["levels"][0]["scopes"]["covered"]["blend"]["kept"]["mean"] = kept
    summary = finished.summary.model_copy(update={"answers": answers})
    section = Gates.section(dataclasses.replace(finished, summary=summary))
    assert section is not None
    blend = answers["gate"]["levels"][0]["blend"]
    told = [block for block in section.blocks if isinstance(block, str) and blend["sentence"] in block]
    assert len(told) == 1
    assert expected in told[0]
    assert unexpected is None or unexpected not in told[0]


def test_both_reports_name_the_blend_and_the_features_that_matter(finished: RunResults) -> None:
    routing = Gates.at_headline(finished)
    assert routing is not None
    assert routing.blend is not None
    most = max(routing.importance, key=routing.importance.__getitem__)
    expected = f"Of {len(routing.importance)} features the gate would miss {most}"
    for path in render_page(finished):
        text = html.unescape(path.read_text(encoding="utf-8")).replace("\\", "")
        assert expected in text
        assert routing.blend.sentence.split(":")[0] in text


@pytest.mark.parametrize(
    ("file", "content"),
    [
        *(("{name}.json", content) for content in ("{", "[]", '{"kind": "logistic"}')),
        ("{name}_blend.json", '{"kind": "logistic"}'),
        ("quality_0.json", "[]"),
    ],
)
def test_gates__damaged_files_are_made_again(
    finished: RunResults, small_config: ExperimentConfig, tmp_path: Path, file: str, content: str
) -> None:
    """An export of a run's models names the file; another run of the folder makes it again."""
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    path = folder / "gates" / file.format(name=name_of(small_config.seeds[0]))
    whole = path.read_bytes()
    path.write_text(content)
    if not file.startswith("quality"):  # no model has one of these
        with pytest.raises(InputError, match=re.escape(str(path))):
            export_model(folder, tmp_path / "model")
        assert not (tmp_path / "model").exists()
    again = gated(small_config, decision={"continue": 0.04})  # the gates stay, what is said of them does not
    run_experiment(again, folder)
    assert path.read_bytes() == whole

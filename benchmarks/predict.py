"""Labels for all spectra of a store: ten experts, three labels, a gate, principal components, and a Parquet file.

    python benchmarks/predict.py STORE OUT [--gate ridge|logistic|none] [--threads N]    # one process, one line of JSON

The model is made up: its numbers mean nothing, and take the time of any other's. Everything is part of the time but
making that model and opening the store.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from measure import count_repeats, format_gib, measure_script, median, warm_up
from samples import Sample
from table import Row

from pipeline import MixtureModel, PredictOptions, predict_spectra
from pipeline.base import peak_memory
from pipeline.bins import BinGrid
from pipeline.config.settings import DEFAULT_WINDOWS
from pipeline.moments import PrincipalComponents
from pipeline.predict.model import DomainLimits
from pipeline.predict.sources import open_spectra_source
from pipeline.questions.gate import FeatureRecipe
from pipeline.questions.gate.features import choose_windows
from pipeline.questions.gate.gates import RidgeGate
from pipeline.questions.gate.logistic import LogisticGate
from pipeline.schema import LABELS

TARGET_RATE = 20_000
COMPONENTS, SEED = 10, 1
EDGES = {"T_eff": (3750.0, 4200.0, 4650.0, 5100.0, 5550.0, 6000.0), "M_H": (-2.0, -0.5, 0.5)}


def measure_predict(sample: Sample, repeats: int | None) -> list[Row]:
    """Return the rate with either gate, and the peak memory."""
    warm_up(sample.train_store)
    rows = []
    peaks: list[int] = []
    for gate in ("ridge", "logistic"):
        rates: list[float] = []
        wanted = 1
        while len(rates) < wanted:
            out = sample.scratch("predict") / "predictions.parquet"
            facts = measure_script("predict.py", sample.train_store, out, "--gate", gate).facts
            rates.append(facts["spectra"] / facts["seconds"])
            peaks.append(facts["peak"])
            wanted = count_repeats(repeats, facts["seconds"])
        rows.append(
            Row(
                f"predict 10 experts × 3 labels, {gate} gate, {sample.size}",
                f"{median(rates):,.0f} spectra/s (median of {len(rates)})",
                f"{TARGET_RATE:,} spectra/s",
                median(rates) / TARGET_RATE,
                1.0 if sample.pixels <= 4096 else None,
                "≥",
            )
        )
    size = 4 * sample.rows * sample.pixels
    rows.append(Row("its peak memory", format_gib(max(peaks)), f"spectra {format_gib(size)}", max(peaks) / size))
    return rows


def make_model(wavelength: np.ndarray, gate: str) -> MixtureModel:
    """Return a model of random numbers on a wavelength grid."""
    rng, n_pixels, grid = np.random.default_rng(SEED), len(wavelength), BinGrid(EDGES)
    vectors = np.linalg.qr(rng.normal(size=(n_pixels, COMPONENTS)))[0]
    components = PrincipalComponents(np.ones(n_pixels), vectors, np.ones(COMPONENTS))
    # Labels of the right size, so that probabilities are spread over the bins as those of real spectra are.
    scale = np.array([1.0, 500.0, 0.6])
    model = MixtureModel(
        labels=LABELS,
        target="log_g",
        wavelength=wavelength,
        weights=rng.normal(size=(n_pixels, 1 + grid.n_bins, 3)) * scale / np.sqrt(n_pixels),
        intercepts=np.tile([3.0, 4900.0, -0.7], (1 + grid.n_bins, 1)),
        grid=grid,
        components=components,
        limits=DomainLimits(distance=10.0, quantile=0.999),
        facts={},
        fingerprint=gate,
    )
    if gate == "ridge":
        ridge = RidgeGate(grid, LABELS, np.eye(3)[1:], np.zeros(2), np.array([[4e4, 10.0], [10.0, 0.1]]))
        return replace(model, gate=ridge, route="fallback", unsure=0.2)
    if gate == "logistic":
        recipe = FeatureRecipe(components, choose_windows(DEFAULT_WINDOWS, wavelength)[0], wavelength)
        n, k = len(recipe.names), grid.n_bins + 1
        logistic = LogisticGate(
            grid, recipe.names, np.zeros(n), np.ones(n), tuple(range(k)), rng.normal(size=(k, n)), np.zeros(k), 1.0
        )
        return replace(model, gate=logistic, recipe=recipe, route="fallback", unsure=0.2)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--gate", choices=["ridge", "logistic", "none"], default="ridge")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    source = open_spectra_source([options.store.resolve()], Path.cwd())
    model = make_model(source.wavelength, options.gate)
    started = time.perf_counter()
    summary = predict_spectra(model, source, options.out, PredictOptions(threads=options.threads, overwrite=True))
    seconds = time.perf_counter() - started
    print(json.dumps({"spectra": summary.n_spectra, "seconds": seconds, "peak": peak_memory()}))


if __name__ == "__main__":
    main()

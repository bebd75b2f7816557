"""Experts by signal-to-noise ratio: gates that tell it from the errors of a spectrum, alone and with the main gate.

Each binning that ``gate.binnings`` names gets a logistic regression on ten aggregates of the errors. They are the same
under every noise draw, and so is the gate. For experts of both (``bins × SNR``) the two gates look at different things,
the flux and the errors, and are taken as independent: p(i, j) = p(i) p(j).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.accumulate import AccumulationPlan
from pipeline.base import read_json, replacing
from pipeline.bins import Binning, crossed_name
from pipeline.config import ExperimentConfig, content_hash
from pipeline.errors import InputError
from pipeline.noise import NoiseDraw
from pipeline.questions.ablation import ScoredBinning
from pipeline.questions.gate.collect import FeatureJob, FeatureRows, accumulate_features
from pipeline.questions.gate.features import QUALITY_COLUMN, QUALITY_NAMES, quality_features, require_no_leak
from pipeline.questions.gate.logistic import LogisticGate, fit_logistic_gate
from pipeline.questions.gate.routing import Evidence, assess_gate, cross_probabilities, route_spectra, score_routes
from pipeline.questions.gate.table import ScoredGate, summarise_routing, tabulate_routing
from pipeline.report import Table, estimate_view, number_cell
from pipeline.run import Run
from pipeline.schema import SNR_GATE_ALGORITHM, STREAM_TRAIN
from pipeline.scoring import resampling
from pipeline.store import AnyStore

if TYPE_CHECKING:
    from distributed import Client

__all__ = [
    "QualityGates",
    "QualityRouting",
    "ScoredBinningGate",
    "fit_quality_gates",
    "list_binning_gates",
    "summarise_binning_gates",
    "tabulate_binning_gates",
]

# --- Gated binnings in the run folder's tables: what gates by signal-to-noise ratio keep, alone and with the main gate.

#: What is said of a gated binning, of all that is said of the main gate's routing.
_SAID = ("keep", "scopes", "accuracy", "calibration_error")


@dataclass(frozen=True, eq=False)
class ScoredBinningGate:
    """A binning, and how its experts are routed to under one noise."""

    binning: Binning
    gate: ScoredGate


def tabulate_binning_gates(scored: Sequence[ScoredBinningGate], config: ExperimentConfig) -> pd.DataFrame:
    """Return a row for each binning, seed, noise level, scope and route; bins have the binning's own numbers."""
    tables = []
    for one in scored:
        table = tabulate_routing([one.gate], config)
        words = {str(k): ", ".join(names) for k, names in enumerate(one.binning.bin_names)}
        table.insert(0, "binning", one.binning.name)
        table.insert(list(table.columns).index("scope") + 1, "bin_name", table["scope"].map(words).fillna(""))
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def summarise_binning_gates(scored: Sequence[ScoredBinningGate], config: ExperimentConfig) -> list[dict[str, Any]]:
    """Return what each binning's gate keeps at one noise level, means over seeds."""
    entries = []
    for name in dict.fromkeys(one.binning.name for one in scored):
        own = [one for one in scored if one.binning.name == name]
        routing = summarise_routing([one.gate for one in own], config) or {}
        first = own[0]
        entries.append(
            {
                "name": name,
                "n_bins": first.binning.n_bins,
                "n_test": first.gate.scores["oracle"].covered.n_test,
                **{key: routing[key] for key in _SAID},
            }
        )
    return entries


FloatArray = NDArray[np.float64]
_BLOCK_ROWS = 1024


@dataclass(frozen=True, eq=False)
class QualityGates:
    """The gate of every binning by signal-to-noise ratio, by the binning's name, and the files that hold them."""

    gates: Mapping[str, LogisticGate]
    files: tuple[str, ...]

    def ask(self, store: AnyStore) -> QualityRouting:
        """Ask all gates about all spectra of a store."""
        blocks = [
            (start, min(start + _BLOCK_ROWS, store.n_spectra)) for start in range(0, store.n_spectra, _BLOCK_ROWS)
        ]
        features = np.concatenate([quality_features(store.read_rows("error", *block)) for block in blocks])
        return QualityRouting({name: gate.probabilities((), features) for name, gate in self.gates.items()})


@dataclass(frozen=True, eq=False)
class QualityRouting:
    """What the gates say of the test spectra: probabilities (N, K + 1) for every gated binning."""

    of_binnings: Mapping[str, FloatArray]

    def route(
        self,
        run: Run,
        scored: ScoredBinning,
        truth: tuple[FloatArray, NDArray[np.int64]],
        predicted: FloatArray,
        main: ScoredGate,
    ) -> Iterator[ScoredBinningGate]:
        """Route the test spectra among a binning's experts: none where no gate tells its bins.

        Parameters
        ----------
        run, scored
            Settings; the binning, scored by its true bins under the same noise.
        truth
            Labels and the binning's bins, shapes (N,).
        predicted
            By the global model and the experts, shape (N, 1 + K).
        main
            The main gate under that noise.
        """
        binning, (y_true, bins) = scored.binning, truth
        probabilities = self._tell(binning.name, run.binnings[0].name, main)
        if probabilities is None or run.config.gate is None:
            return
        routed = route_spectra(predicted, Evidence(probabilities, bins, unsure=run.config.gate.unsure))
        scores = score_routes(y_true, routed, predicted[:, 0], bins, binning.n_bins, resampling(run.config))
        quality = assess_gate(probabilities, bins)
        yield ScoredBinningGate(binning, ScoredGate(main.seed, main.noise_level, scores, quality))

    def _tell(self, name: str, of_main: str, main: ScoredGate) -> FloatArray | None:
        if name in self.of_binnings:
            return self.of_binnings[name]
        for other, probabilities in self.of_binnings.items():
            if name == crossed_name(of_main, other) and main.probabilities is not None:
                return cross_probabilities(main.probabilities, probabilities)
        return None


def fit_quality_gates(run: Run, plan: AccumulationPlan, client: Client | None) -> QualityGates | None:
    """Fit the gates that are not there yet; None in a run without any. Nothing here sees the test spectra.

    A binning whose gate cannot be fitted is left without one, with a warning.
    """
    if run.config.gate is None or not run.config.gate.binnings:
        return None
    wanted = [binning for binning in run.binnings if binning.name in run.config.gate.binnings]
    (run.folder / "gates").mkdir(exist_ok=True)
    found: dict[str, tuple[LogisticGate, str]] = {}
    for k, binning in enumerate(wanted):
        name = f"gates/quality_{k}.json"
        edges = list(binning.base.edges[QUALITY_COLUMN])
        key = content_hash([SNR_GATE_ALGORITHM, plan.key, run.config.gate.spectra, edges])
        if not run.is_made(name, key):
            rows = _read_quality(run, plan, binning, key, client)
            try:
                gate = fit_logistic_gate(rows.quality, QUALITY_NAMES, rows.bins, rows.folds, binning.base).gate
            except InputError as error:
                run.warnings.append(f"the binning {binning.name!r} has no gate: {error}")
                continue
            with replacing(run.folder / name) as temporary:
                temporary.write_text(json.dumps(gate.to_dict(), indent=1), encoding="utf-8")
            run.record(name, key)
        found[binning.name] = read_json(run.folder / name, partial(LogisticGate.from_dict, grid=binning.base)), name
    return QualityGates({name: gate for name, (gate, _) in found.items()}, tuple(file for _, file in found.values()))


def _read_quality(run: Run, plan: AccumulationPlan, binning: Binning, key: str, client: Client | None) -> FeatureRows:
    """Read the quality features of evenly spread training spectra; no noise is drawn, since errors have none."""
    require_no_leak(QUALITY_NAMES, binning.columns)
    path = run.folder / "gates" / f"quality_{key}.npz"
    grid = tuple((column, tuple(edges)) for column, edges in binning.base.edges.items())
    spectra = run.config.gate.spectra if run.config.gate is not None else plan.n_spectra
    job = FeatureJob(NoiseDraw(0.0, 0, STREAM_TRAIN), str(path), key, spectra, grid, quality=True)
    accumulate_features(plan, [job], client=client, progress=run.progress)
    rows = FeatureRows.read(path)
    path.unlink()  # the gate is what stays
    return rows


# --- What the report says of binnings by signal-to-noise ratio that have gates of their own.


def list_binning_gates(level: dict[str, Any]) -> Table:
    """Return a row for every gated binning at one noise level: what its experts gain, and what its gate keeps."""
    rows = []
    for entry in level["gated_binnings"]:
        routes = entry["scopes"]["covered"]
        r2, gain = (estimate_view(routes["oracle"][merit]) for merit in ("r2", "gain"))
        soft, hard = (estimate_view(routes[route]["kept"]) for route in ("soft", "hard"))
        rows.append(
            (
                entry["name"],
                str(entry["n_bins"]),
                f"{entry['n_test']:,}",
                number_cell(r2.mean),
                *(number_cell(value, "+.4f").replace("-", "−") for value in (gain.mean, gain.low, gain.high)),
                *(number_cell(value, ".3f").replace("-", "−") for value in (soft.mean, soft.low, soft.high, hard.mean)),
                f"{entry['accuracy']:.0%}",
            )
        )
    header = (
        "Experts by", "experts", "test", "R² oracle", "ΔR²", "low", "high", "ρ soft", "low", "high", "ρ hard", "right",
    )  # fmt: skip
    return Table(f"Experts by signal-to-noise ratio at noise level {level['noise_level']:g}", header, tuple(rows), 1)

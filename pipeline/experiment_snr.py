"""Experts by signal-to-noise ratio: gates that tell it from the errors of a spectrum, alone and with the main gate.

Each binning that ``gate.binnings`` names gets a logistic regression on ten aggregates of the errors. They are the same
under every noise draw, and so is the gate. For experts of both (``bins × SNR``) the two gates look at different things,
the flux and the errors, and are taken as independent: p(i, j) = p(i) p(j).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.accumulate_features import FeatureJob, FeatureRows, accumulate_features
from pipeline.binnings import Binning, crossed_name
from pipeline.checkpoints_plan import AccumulationPlan
from pipeline.config import content_hash
from pipeline.errors import InputError
from pipeline.experiment_run import Run
from pipeline.features_quality import QUALITY_COLUMN, QUALITY_NAMES, quality_features, require_no_leak
from pipeline.files import replacing
from pipeline.files_json import read_json
from pipeline.gates_logistic import LogisticGate, fit_logistic_gate
from pipeline.noise import NoiseDraw
from pipeline.routing import assess_gate, cross_probabilities, route_spectra, score_routes
from pipeline.schema import STREAM_TRAIN
from pipeline.store_set import AnyStore
from pipeline.summary_ablation import ScoredBinning
from pipeline.summary_merits import resampling
from pipeline.summary_routing import ScoredGate
from pipeline.summary_snr import ScoredBinningGate

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["QualityGates", "QualityRouting", "fit_quality_gates"]

FloatArray = NDArray[np.float64]
#: Raised when the same spectra and settings would give another gate.
ALGORITHM_VERSION = 1
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
        routed = route_spectra(predicted, probabilities, bins, run.config.gate.unsure)
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
        key = content_hash([ALGORITHM_VERSION, plan.key, run.config.gate.spectra, edges])
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

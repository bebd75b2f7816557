"""Experts by signal-to-noise ratio: gates that tell it from the errors of a spectrum, alone and with the main gate.

Each binning that ``gate.binnings`` names gets a logistic regression on ten aggregates of the errors. They are the same
under every noise draw, and so is the gate. For experts of both (``bins × SNR``) the two gates look at different things,
the flux and the errors, and are taken as independent: p(i, j) = p(i) p(j).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.base import read_json, replacing
from pipeline.bins import Binning, crossed_name
from pipeline.config import content_hash
from pipeline.errors import InputError
from pipeline.noise import NoiseDraw
from pipeline.questions.gate.collect import FeatureJob, FeatureRows, accumulate_features
from pipeline.questions.gate.features import QUALITY_COLUMN, QUALITY_NAMES, quality_features, require_no_leak
from pipeline.questions.gate.logistic import LogisticGate, fit_logistic_gate
from pipeline.questions.gate.routing import cross_probabilities
from pipeline.questions.question import Facts
from pipeline.schema import SNR_GATE_ALGORITHM, STREAM_TRAIN
from pipeline.store import AnyStore

if TYPE_CHECKING:
    pass

__all__ = ["QualityGates", "QualityRouting", "fit_quality_gates"]

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

    def tell(self, name: str, of_main: str, main: FloatArray) -> FloatArray | None:
        """Return the probabilities of a binning's bins, shape (N, K + 1); None where no gate tells them.

        Parameters
        ----------
        name
            Of the binning: one that is gated, or one crossed with the main one.
        of_main, main
            The name of the main binning, and what its gate says, shape (N, K + 1).
        """
        if name in self.of_binnings:
            return self.of_binnings[name]
        for other, probabilities in self.of_binnings.items():
            if name == crossed_name(of_main, other):
                return cross_probabilities(main, probabilities)
        return None


def fit_quality_gates(facts: Facts) -> QualityGates | None:
    """Fit the gates that are not there yet; None in a run without any. Nothing here sees the test spectra.

    A binning whose gate cannot be fitted is left without one, with a warning.
    """
    if facts.settings.gate is None or not facts.settings.gate.binnings:
        return None
    wanted = [binning for binning in facts.binnings if binning.name in facts.settings.gate.binnings]
    (facts.folder / "gates").mkdir(exist_ok=True)
    found: dict[str, tuple[LogisticGate, str]] = {}
    for k, binning in enumerate(wanted):
        name = f"gates/quality_{k}.json"
        edges = list(binning.base.edges[QUALITY_COLUMN])
        key = content_hash([SNR_GATE_ALGORITHM, facts.plan.key, facts.settings.gate.spectra, edges])
        if not facts.products.is_made(name, key):
            rows = _read_quality(facts, binning, key)
            try:
                gate = fit_logistic_gate(rows.quality, QUALITY_NAMES, rows.bins, rows.folds, binning.base).gate
            except InputError as error:
                facts.warnings.append(f"the binning {binning.name!r} has no gate: {error}")
                continue
            with replacing(facts.folder / name) as temporary:
                temporary.write_text(json.dumps(gate.to_dict(), indent=1), encoding="utf-8")
            facts.products.record(name, key)
        found[binning.name] = read_json(facts.folder / name, partial(LogisticGate.from_dict, grid=binning.base)), name
    return QualityGates({name: gate for name, (gate, _) in found.items()}, tuple(file for _, file in found.values()))


def _read_quality(facts: Facts, binning: Binning, key: str) -> FeatureRows:
    """Read the quality features of evenly spread training spectra; no noise is drawn, since errors have none."""
    require_no_leak(QUALITY_NAMES, binning.columns)
    path = facts.folder / "gates" / f"quality_{key}.npz"
    grid = tuple((column, tuple(edges)) for column, edges in binning.base.edges.items())
    spectra = facts.settings.gate.spectra if facts.settings.gate is not None else facts.plan.n_spectra
    job = FeatureJob(NoiseDraw(0.0, 0, STREAM_TRAIN), str(path), key, spectra, grid, quality=True)
    accumulate_features(facts.plan, [job], client=facts.client, progress=facts.progress)
    rows = FeatureRows.read(path)
    path.unlink()  # the gate is what stays
    return rows

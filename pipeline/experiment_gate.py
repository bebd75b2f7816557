"""The gate of a run: fitted to the training folds alone, then held against the test spectra."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.checkpoints import MomentsFolder
from pipeline.checkpoints_plan import AccumulationPlan
from pipeline.config import content_hash
from pipeline.experiment_models import ModelFiles
from pipeline.experiment_run import Run
from pipeline.files import remove_leftovers, replacing
from pipeline.gates import RidgeGate, fit_ridge_gate
from pipeline.models import read_models
from pipeline.noise import NoiseDraw
from pipeline.predictions import predict_columns
from pipeline.routing import assess_gate, route_spectra, score_routes
from pipeline.solve_gate import GateJob, predict_folders
from pipeline.spectra_sets import SpectraSets
from pipeline.summary import ScoredDraw
from pipeline.summary_merits import resampling
from pipeline.summary_routing import ScoredGate

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["RunGate", "fit_gates", "gate_products", "score_gate"]

FloatArray = NDArray[np.float64]
#: Raised when the same moments and settings would give another gate.
ALGORITHM_VERSION = 1


@dataclass(frozen=True, eq=False)
class RunGate:
    """The gate of every training noise, by the file of its models; the files that hold the gates; what is unsure."""

    gates: dict[str, RidgeGate]
    files: tuple[str, ...]
    unsure: float


def fit_gates(
    run: Run,
    plan: AccumulationPlan,
    moments: Sequence[MomentsFolder],
    files: Sequence[ModelFiles],
    client: Client | None,
) -> RunGate | None:
    """Fit the gates that are not there yet; None in a run without one. Nothing here sees the test spectra.

    Parameters
    ----------
    run
        Its gates are fitted again only where their keys have changed.
    plan, moments, files
        Of the pass, for every noise: its moments and models. Noise that is only compared has no gate.
    client
        A Dask client whose workers predict the folds.
    """
    if run.config.gate is None:
        return None
    remove_leftovers(run.folder / "gates")
    (run.folder / "gates").mkdir(exist_ok=True)
    parts = [one for one in zip(moments, files, strict=True) if not run.is_compared(one[0].draw)]
    names = [f"gates/{one.draw.name}.json" for one, _ in parts]
    keys = [content_hash([ALGORITHM_VERSION, run.config.gate.kind, run.products[file.main]]) for _, file in parts]
    missing = [k for k, name in enumerate(names) if not run.is_made(name, keys[k])]
    covered = run.binnings[0].covered
    jobs = [
        GateJob(
            parts[k][0],
            run.config.ridge,
            covered,
            read_models(run.folder / parts[k][1].main)[-1].global_alpha,
        )
        for k in missing
    ]
    for place, sums in predict_folders(jobs, client=client, progress=run.progress) if jobs else ():
        gate = fit_ridge_gate(sums, plan.labels, plan.y_origin, run.grid)
        with replacing(run.folder / names[missing[place]]) as temporary:
            temporary.write_text(json.dumps(gate.to_dict(), indent=1), encoding="utf-8")
        run.record(names[missing[place]], keys[missing[place]])
    gates = {
        file.main: RidgeGate.from_dict(json.loads((run.folder / name).read_text(encoding="utf-8")), run.grid)
        for (_, file), name in zip(parts, names, strict=True)
    }
    return RunGate(gates, tuple(names), run.config.gate.unsure)


def gate_products(run: Run, found: RunGate | None) -> dict[str, str]:
    """Return the keys of what test scores are made from."""
    return {name: run.products[name] for name in found.files} if found else {}


def score_gate(
    run: Run,
    sets: SpectraSets,
    found: RunGate,
    name: str,
    draw: ScoredDraw,
    truth: tuple[FloatArray, NDArray[np.int64]],
    predicted: FloatArray,
) -> ScoredGate:
    """Route the test spectra by a gate.

    Parameters
    ----------
    run, sets
        Settings and spectra.
    found, name
        The run's gates, and whose: the file of its models.
    draw
        Those models, and the noise of the test spectra: drawn, or the test store's own.
    truth
        Labels and bins of the test spectra, shapes (N,).
    predicted
        What the models of all folds say of them, shape (N, 1 + K).
    """
    y_true, bins = truth
    models = draw.models[-1]
    drawn = draw.test_noise if isinstance(draw.test_noise, NoiseDraw) else None
    of_labels = predict_columns(sets.test, models.global_weights, models.global_intercepts, drawn, run.config.precision)
    probabilities = found.gates[name].probabilities(of_labels)
    routed = route_spectra(predicted, probabilities, bins, found.unsure)
    scores = score_routes(y_true, routed, predicted[:, 0], bins, models.n_experts, resampling(run.config))
    return ScoredGate(draw.seed, draw.draw.level, scores, assess_gate(probabilities, bins))

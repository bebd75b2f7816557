"""The blend of a run: fold models, and routing weights learned from what these say of training spectra.

``gates/<noise>_folds.npz`` holds the models without each fold, ``gates/<noise>_blend.json`` the blend. Nothing here
sees the test spectra.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.checkpoints import MomentsFolder
from pipeline.config import content_hash
from pipeline.experiment_features import grid_items, rows_file
from pipeline.experiment_models import ModelFiles
from pipeline.experiment_run import Run
from pipeline.files import replacing
from pipeline.files_json import read_json
from pipeline.models import read_models
from pipeline.noise import Noise
from pipeline.routing_blend import Blend
from pipeline.solve_blend import BlendJob, fit_blend_jobs
from pipeline.solve_held_out import FoldModelsJob, find_starved_bin, solve_fold_models, write_fold_models

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["blend_file", "fit_blends", "fold_models_file", "solve_folds"]

#: Raised when the same models and rows would give another blend.
ALGORITHM_VERSION = 1


def fold_models_file(noise: Noise) -> str:
    """Return the name of a noise's models without each fold in the run folder."""
    return f"gates/{noise.name}_folds.npz"


def blend_file(noise: Noise) -> str:
    """Return the name of a noise's blend in the run folder."""
    return f"gates/{noise.name}_blend.json"


def solve_folds(run: Run, parts: Sequence[tuple[MomentsFolder, ModelFiles]], client: Client | None) -> list[str] | None:
    """Solve the models without each fold that are not there yet; return the files of all noises.

    None in a run without a blend, and, with a warning, where a bin has too few spectra outside some fold.
    """
    if run.config.gate is None or not run.config.gate.blend:
        return None
    jobs = [
        FoldModelsJob.of_models(
            one, run.binnings[0], run.config.ridge, read_models(run.folder / file.main)[-1], run.config.target
        )
        for one, file in parts
    ]
    if starved := next((words for job in jobs if (words := find_starved_bin(job))), None):
        run.warnings.append(f"the blend is left out: {starved}")
        return None
    names = [fold_models_file(one.draw) for one, _ in parts]
    keys = [content_hash([ALGORITHM_VERSION, run.products[file.main], run.config.target]) for _, file in parts]
    missing = [k for k, name in enumerate(names) if not run.is_made(name, keys[k])]
    if missing:
        for place, models_of_folds in solve_fold_models(
            [jobs[k] for k in missing], client=client, progress=run.progress
        ):
            k = missing[place]
            write_fold_models(run.folder / names[k], models_of_folds)
            run.record(names[k], keys[k])
    return names


def fit_blends(
    run: Run, parts: Sequence[tuple[MomentsFolder, ModelFiles]], gates: Mapping[str, str | None], client: Client | None
) -> tuple[dict[str, Blend], tuple[str, ...]]:
    """Fit the blends that are not there yet; return that of every noise by the file of its models, and their files.

    Parameters
    ----------
    run
        Holds the rows of every noise, with predictions by :func:`solve_folds`' models.
    parts
        The moments and models of every noise.
    gates
        For the file of each noise's gate that of its held-out probabilities, in the same order; None where the gate is
        to be asked itself.
    client
        A Dask client whose workers fit.
    """
    noises = [one.draw for one, _ in parts]
    names = [blend_file(noise) for noise in noises]
    keys = [
        content_hash([ALGORITHM_VERSION, run.products[gate], run.products[rows_file(noise)]])
        for gate, noise in zip(gates, noises, strict=True)
    ]
    jobs = [
        BlendJob(
            rows=str(run.folder / rows_file(noise)),
            fold_models=str(run.folder / fold_models_file(noise)),
            gate=str(run.folder / gate),
            held_out=None if held_out is None else str(run.folder / held_out),
            grid=grid_items(run.grid),
        )
        for noise, (gate, held_out) in zip(noises, gates.items(), strict=True)
    ]
    missing = [k for k, name in enumerate(names) if not run.is_made(name, keys[k])]
    if missing:
        for place, plain in fit_blend_jobs([jobs[k] for k in missing], client=client, progress=run.progress):
            k = missing[place]
            with replacing(run.folder / names[k]) as temporary:
                temporary.write_text(json.dumps(plain, indent=1), encoding="utf-8")
            run.record(names[k], keys[k])
    blends = {
        file.main: read_json(run.folder / name, Blend.from_dict) for (_, file), name in zip(parts, names, strict=True)
    }
    return blends, tuple(names)

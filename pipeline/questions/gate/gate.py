"""The gate of a run: fitted to the training folds alone, then held against the test spectra."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.accumulate import AccumulationPlan, MomentsFolder
from pipeline.base import read_json, remove_leftovers, replacing
from pipeline.config import content_hash
from pipeline.noise import Noise
from pipeline.questions.gate.blend import Blend, fit_blends, solve_folds
from pipeline.questions.gate.collect import compute_rows, grid_items, recipe_file, rows_file, write_recipes
from pipeline.questions.gate.features import FeatureRecipe, read_recipe
from pipeline.questions.gate.gates import Gate, fit_ridge_gate, gate_from_dict
from pipeline.questions.gate.logistic import require_scikit_learn
from pipeline.questions.gate.routing import Evidence, assess_gate, route_spectra, score_routes
from pipeline.questions.gate.snr import QualityGates, fit_quality_gates
from pipeline.questions.gate.solve import GateJob, LogisticJob, fit_logistic_jobs, predict_folders
from pipeline.questions.gate.table import ScoredGate
from pipeline.ridge import read_models
from pipeline.run import ModelFiles, Run, SpectraSets
from pipeline.schema import GATE_ALGORITHM
from pipeline.scoring import ScoredDraw, predict_columns, resampling

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["RunGate", "fit_gates", "gate_file", "gate_products", "held_out_file", "require_gate", "score_gate"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RunGate:
    """The gates of a run.

    Attributes
    ----------
    gates
        The gate of every training noise, by the file of its models.
    recipes
        How its features come from pixels, likewise; only where it needs any.
    fits
        What its file says of the fit itself, likewise.
    files
        The files that gates and recipes are in.
    unsure
        See :class:`pipeline.questions.gate.routing.Evidence`.
    blends
        The blend of every training noise, by the file of its models, where blends were asked for.
    quality
        The gates of other binnings, where they were asked for.
    """

    gates: Mapping[str, Gate]
    recipes: Mapping[str, FeatureRecipe]
    fits: Mapping[str, Mapping[str, Any]]
    files: tuple[str, ...]
    unsure: float
    blends: Mapping[str, Blend] = field(default_factory=dict)
    quality: QualityGates | None = None


def gate_file(noise: Noise) -> str:
    """Return the name of a noise's gate in the run folder."""
    return f"gates/{noise.name}.json"


def held_out_file(noise: Noise) -> str:
    """Return the name of the probabilities of the rows that a noise's logistic gate was fitted to, held out."""
    return f"gates/{noise.name}_held_out.npy"


def require_gate(run: Run) -> None:
    """Refuse a gate that cannot be fitted here, before the pass over the spectra.

    Raises
    ------
    ConfigError
        If it needs a library that is not installed.
    """
    if run.config.gate is not None and (run.config.gate.kind == "logistic" or run.config.gate.binnings):
        require_scikit_learn()


def fit_gates(
    run: Run,
    sets: SpectraSets,
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
    sets
        The training spectra, for what a logistic gate looks at.
    plan, moments, files
        Of the pass, for every noise: its moments and models. Noise that is only compared has no gate.
    client
        A Dask client whose workers read spectra and moments.
    """
    settings = run.config.gate
    if settings is None:
        return None
    remove_leftovers(run.folder / "gates")
    (run.folder / "gates").mkdir(exist_ok=True)
    parts = [one for one in zip(moments, files, strict=True) if not run.is_compared(one[0].draw)]
    noises, is_logistic = [one.draw for one, _ in parts], settings.kind == "logistic"
    fold_models = solve_folds(run, parts, client)
    if is_logistic:
        write_recipes(run, sets.train, plan, [one for one, _ in parts], client)
    if is_logistic or fold_models is not None:
        compute_rows(run, plan, noises, client, fold_models=fold_models)
    fitted = _fit_missing(run, plan, parts, client)
    blends: dict[str, Blend] = {}
    of_blends: tuple[str, ...] = ()
    if fold_models is not None:
        held_out = [held_out_file(noise) if is_logistic else None for noise in noises]
        blends, of_blends = fit_blends(run, parts, dict(zip(map(gate_file, noises), held_out, strict=True)), client)
    quality = fit_quality_gates(run, plan, client)
    recipes = {file.main: recipe_file(one.draw) for one, file in parts} if is_logistic else {}
    return RunGate(
        gates={name: gate for name, (gate, _) in fitted.items()},
        recipes={name: read_recipe(run.folder / path) for name, path in recipes.items()},
        fits={name: fit for name, (_, fit) in fitted.items()},
        files=(*map(gate_file, noises), *recipes.values(), *of_blends, *(quality.files if quality else ())),
        unsure=settings.unsure,
        blends=blends,
        quality=quality,
    )


def _fit_missing(
    run: Run, plan: AccumulationPlan, parts: Sequence[tuple[MomentsFolder, ModelFiles]], client: Client | None
) -> dict[str, tuple[Gate, dict[str, Any]]]:
    """Fit and write the main gates that are not there yet; return all, and their fits, by the file of their models."""
    assert run.config.gate is not None
    kind, names = run.config.gate.kind, [gate_file(one.draw) for one, _ in parts]
    made_of = [rows_file(one.draw) if kind == "logistic" else file.main for one, file in parts]
    settings = [GATE_ALGORITHM, kind, *([run.config.gate.features.products] if kind == "logistic" else [])]
    keys = [content_hash([*settings, run.products[name]]) for name in made_of]
    missing = [k for k, name in enumerate(names) if not run.is_made(name, keys[k])]
    fit = _fit_logistic if kind == "logistic" else _fit_ridge
    for place, plain in fit(run, plan, [parts[k] for k in missing], client) if missing else ():
        k = missing[place]
        with replacing(run.folder / names[k]) as temporary:
            temporary.write_text(json.dumps(plain, indent=1), encoding="utf-8")
        run.record(names[k], keys[k])
    return {
        file.main: read_json(run.folder / name, lambda plain: (gate_from_dict(plain, run.grid), plain.get("fit", {})))
        for (_, file), name in zip(parts, names, strict=True)
    }


def _fit_ridge(
    run: Run, plan: AccumulationPlan, parts: Sequence[tuple[MomentsFolder, ModelFiles]], client: Client | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    covered = run.binnings[0].covered
    jobs = [
        GateJob(one, run.config.ridge, covered, read_models(run.folder / file.main)[-1].global_alpha)
        for one, file in parts
    ]
    for place, sums in predict_folders(jobs, client=client, progress=run.progress):
        yield place, fit_ridge_gate(sums, plan.labels, plan.y_origin, run.grid).to_dict()


def _fit_logistic(
    run: Run, plan: AccumulationPlan, parts: Sequence[tuple[MomentsFolder, ModelFiles]], client: Client | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    assert run.config.gate is not None
    grid, folder, products = grid_items(run.grid), run.folder, run.config.gate.features.products
    jobs = [
        LogisticJob(
            rows=str(folder / rows_file(one.draw)),
            recipe=str(folder / recipe_file(one.draw)),
            held_out=str(folder / held_out_file(one.draw)),
            grid=grid,
            products=products,
        )
        for one, _ in parts
    ]
    yield from fit_logistic_jobs(jobs, client=client, progress=run.progress)


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
    advance: Callable[[int], None] | None = None,
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
    advance
        Called with the number of finished spectra: they are read once more.
    """
    y_true, bins = truth
    models, recipe = draw.models[-1], found.recipes.get(name)
    weights, intercepts, n_labels = models.global_weights, models.global_intercepts, len(models.labels)
    if recipe is not None:  # one product gives predictions and features
        weights = np.concatenate([weights, recipe.columns], axis=1)
        intercepts = np.concatenate([intercepts, np.zeros(recipe.columns.shape[1])])
    products = predict_columns(sets.test, weights, intercepts, draw.test_noise, run.config.precision, advance)
    features = None if recipe is None else recipe.from_products(products[:, n_labels:])
    probabilities = found.gates[name].probabilities(products[:, :n_labels], features)
    known = Evidence(probabilities, bins, products[:, :n_labels], found.unsure, found.blends.get(name))
    routed = route_spectra(predicted, known)
    scores = score_routes(y_true, routed, predicted[:, 0], bins, models.n_experts, resampling(run.config))
    importance = found.fits[name].get("importance", {})
    quality = assess_gate(probabilities, bins)
    return ScoredGate(
        draw.seed, draw.draw.level, scores, quality, routed, importance, found.blends.get(name), probabilities
    )

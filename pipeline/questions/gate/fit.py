"""The gates of a run, fitted to the training folds alone: nothing here sees the test spectra."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base import read_json, remove_leftovers, replacing
from pipeline.bins import Binning, crossed_name
from pipeline.config import GateConfig, content_hash
from pipeline.errors import InputError
from pipeline.noise import Noise, NoiseDraw
from pipeline.questions.gate.blend import Blend, fit_blends, solve_folds
from pipeline.questions.gate.collect import (
    FeatureJob,
    FeatureRows,
    accumulate_features,
    compute_rows,
    grid_items,
    recipe_file,
    rows_file,
    write_recipes,
)
from pipeline.questions.gate.features import (
    QUALITY_COLUMN,
    QUALITY_NAMES,
    FeatureRecipe,
    quality_features,
    read_recipe,
    require_no_leak,
)
from pipeline.questions.gate.gates import Gate, fit_ridge_gate, gate_from_dict
from pipeline.questions.gate.logistic import LogisticGate, fit_logistic_gate
from pipeline.questions.gate.routing import cross_probabilities
from pipeline.questions.gate.solve import GateJob, LogisticJob, fit_logistic_jobs, predict_folders
from pipeline.questions.question import Facts, Trained
from pipeline.schema import GATE_ALGORITHM, SNR_GATE_ALGORITHM, STREAM_TRAIN
from pipeline.store import AnyStore

__all__ = ["QualityGates", "QualityRouting", "RunGate", "fit_gates", "fit_quality_gates", "gate_file", "held_out_file"]

# --- Experts by signal-to-noise ratio: gates that tell it from the errors of a spectrum, alone and with the main gate.
#
# Each binning that ``gate.binnings`` names gets a logistic regression on ten aggregates of the errors. They are the
# same under every noise draw, and so is the gate. For experts of both (``bins × SNR``) the two gates look at
# different things, the flux and the errors, and are taken as independent: p(i, j) = p(i) p(j).


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


@dataclass(frozen=True, eq=False)
class RunGate:
    """The gates of a run.

    Attributes
    ----------
    gates
        The gate of every training noise.
    recipes
        How its features come from pixels; only where it needs any.
    fits
        What its file says of the fit itself.
    files
        The files that gates and recipes are in.
    unsure
        See :class:`pipeline.questions.gate.routing.Evidence`.
    blends
        The blend of every training noise, where blends were asked for.
    quality
        The gates of other binnings, where they were asked for.
    """

    gates: Mapping[Noise, Gate]
    recipes: Mapping[Noise, FeatureRecipe]
    fits: Mapping[Noise, Mapping[str, Any]]
    files: tuple[str, ...]
    unsure: float
    blends: Mapping[Noise, Blend] = field(default_factory=dict)
    quality: QualityGates | None = None


def gate_file(noise: Noise) -> str:
    """Return the name of a noise's gate in the run folder."""
    return f"gates/{noise.name}.json"


def held_out_file(noise: Noise) -> str:
    """Return the name of the probabilities of the rows that a noise's logistic gate was fitted to, held out."""
    return f"gates/{noise.name}_held_out.npy"


def fit_gates(facts: Facts, settings: GateConfig) -> RunGate:
    """Fit the gates that are not there yet, for every noise that the verdict is about."""
    (facts.folder / "gates").mkdir(exist_ok=True)
    remove_leftovers(facts.folder / "gates")
    trained, is_logistic = facts.verdict_noises, settings.kind == "logistic"
    noises = [one.noise for one in trained]
    fold_models = solve_folds(facts, trained)
    if is_logistic:
        write_recipes(facts, trained)
    if is_logistic or fold_models is not None:
        compute_rows(facts, noises, fold_models=fold_models)
    fitted = _fit_missing(facts, settings, trained)
    blends: dict[Noise, Blend] = {}
    of_blends: tuple[str, ...] = ()
    if fold_models is not None:
        held_out = [held_out_file(noise) if is_logistic else None for noise in noises]
        blends, of_blends = fit_blends(facts, trained, dict(zip(map(gate_file, noises), held_out, strict=True)))
    quality = fit_quality_gates(facts)
    recipes = {noise: recipe_file(noise) for noise in noises} if is_logistic else {}
    return RunGate(
        gates={noise: gate for noise, (gate, _) in fitted.items()},
        recipes={noise: read_recipe(facts.folder / path) for noise, path in recipes.items()},
        fits={noise: fit for noise, (_, fit) in fitted.items()},
        files=(*map(gate_file, noises), *recipes.values(), *of_blends, *(quality.files if quality else ())),
        unsure=settings.unsure,
        blends=blends,
        quality=quality,
    )


def _fit_missing(
    facts: Facts, settings: GateConfig, trained: Sequence[Trained]
) -> dict[Noise, tuple[Gate, dict[str, Any]]]:
    """Fit and write the main gates that are not there yet; return all, and what their files say of the fits."""
    is_logistic, names = settings.kind == "logistic", [gate_file(one.noise) for one in trained]
    made_of = [rows_file(one.noise) if is_logistic else one.file for one in trained]
    stated = [GATE_ALGORITHM, settings.kind, *([settings.features.products] if is_logistic else [])]
    keys = [content_hash([*stated, facts.products[name]]) for name in made_of]
    missing = [k for k, name in enumerate(names) if not facts.products.is_made(name, keys[k])]
    fit = _fit_logistic if is_logistic else _fit_ridge
    for place, plain in fit(facts, settings, [trained[k] for k in missing]) if missing else ():
        k = missing[place]
        with replacing(facts.folder / names[k]) as temporary:
            temporary.write_text(json.dumps(plain, indent=1), encoding="utf-8")
        facts.products.record(names[k], keys[k])
    return {
        one.noise: read_json(
            facts.folder / name, lambda plain: (gate_from_dict(plain, facts.grid), plain.get("fit", {}))
        )
        for one, name in zip(trained, names, strict=True)
    }


def _fit_ridge(facts: Facts, settings: GateConfig, trained: Sequence[Trained]) -> Iterator[tuple[int, dict[str, Any]]]:
    del settings
    ridge, covered = facts.settings.ridge, facts.binnings[0].covered
    jobs = [GateJob(one.moments, ridge, covered, one.whole.global_alpha) for one in trained]
    for place, sums in predict_folders(jobs, client=facts.client, progress=facts.progress):
        yield place, fit_ridge_gate(sums, facts.plan.labels, facts.plan.y_origin, facts.grid).to_dict()


def _fit_logistic(
    facts: Facts, settings: GateConfig, trained: Sequence[Trained]
) -> Iterator[tuple[int, dict[str, Any]]]:
    grid, folder, products = grid_items(facts.grid), facts.folder, settings.features.products
    jobs = [
        LogisticJob(
            rows=str(folder / rows_file(one.noise)),
            recipe=str(folder / recipe_file(one.noise)),
            held_out=str(folder / held_out_file(one.noise)),
            grid=grid,
            products=products,
        )
        for one in trained
    ]
    yield from fit_logistic_jobs(jobs, client=facts.client, progress=facts.progress)

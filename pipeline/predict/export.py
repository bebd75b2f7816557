"""From a finished run to a model bundle: the models of one noise draw, and what the training spectra were like.

The run's folder gives the models and their gate. Its training stores give the ranges of the labels and a sample of
spectra, which tells how far from the mean training spectrum a spectrum may lie.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from pipeline import schema
from pipeline.accumulate import MomentsFolder
from pipeline.base import Products, Progress, SilentProgress, describe_environment, one_blas_thread, read_json
from pipeline.bins import BinGrid
from pipeline.config import ExperimentConfig, describe_findings
from pipeline.errors import InputError, ResourceError, enumerate_words
from pipeline.moments import Moments, find_components
from pipeline.noise import Noise, describe_training_noise, verdict_noises
from pipeline.predict.files import load_model, require_free, save_model
from pipeline.predict.model import DomainLimits, MixtureModel
from pipeline.questions.gate import (
    BLEND,
    FALLBACK,
    GLOBAL,
    ORACLE,
    ROUTES,
    Blend,
    Gate,
    Gates,
    blend_file,
    gate_file,
    gate_from_dict,
    read_recipe,
    recipe_file,
)
from pipeline.ridge import ExpertModels, read_models
from pipeline.scoring import METADATA_FILE, RunResults, read_noisy_rows, read_results
from pipeline.shards import require_outside_data
from pipeline.store import AnyStore, match_shards, open_stores, sample_rows, select_shards

__all__ = [
    "COMPONENTS",
    "QUANTILE",
    "SAMPLE_SPECTRA",
    "TrainingSample",
    "export_model",
    "find_ranges",
    "measure_sample",
    "model_of_run",
    "render_card",
]

# --- The model card of a bundle: what the model is, what it was trained on, how good it is, and where not to use it.
#
# After Mitchell et al. (2019), "Model Cards for Model Reporting".


def render_card(model: MixtureModel) -> str:
    """Return the model card, Markdown; the same model gives the same bytes."""
    training, metrics = model.facts["training"], model.facts["metrics"]
    parts = [
        f"# {model.target} and other labels from stellar spectra: {model.n_experts} ridge experts",
        _introduce(model, training),
        "## How to use it",
        _explain_use(model),
        "## Trained on",
        _describe_training(model, training),
        "## How good it is",
        _describe_merits(model, metrics),
        "## Limits",
        _list(_find_limits(model, training)),
        "## Provenance",
        _describe_provenance(model.facts["provenance"]),
    ]
    return "\n\n".join(parts) + "\n"


def _introduce(model: MixtureModel, training: Mapping[str, Any]) -> str:
    gate = "a gate that says how probable each bin is" if model.gate is not None else "no gate"
    bins = " × ".join(f"{len(edges) - 1} of {column}" for column, edges in model.grid.edges.items())
    caption = ROUTES[model.route].caption
    text = (
        f"One global ridge model, {model.n_experts} experts (bins: {bins}) and {gate}. It predicts "
        f"{', '.join(model.labels)} from {len(model.wavelength):,} pixels, {model.wavelength[0]:.1f} to "
        f"{model.wavelength[-1]:.1f} Å. The default route is `{model.route}`: {caption[0].lower()}{caption[1:]}"
    )
    if training["simulated"]:
        text += (
            "\n\n**The spectra it was trained on are simulated by this package: a stand-in for "
            "observed ones. What it says of real stars means nothing.**"
        )
    return text


def _explain_use(model: MixtureModel) -> str:
    return f"""```sh
headroom predict . spectra.h5 --out predictions.parquet
```

```python
import pipeline

model = pipeline.load_model(".")      # every byte is checked
table = model.predict(flux).to_frame()  # flux: (N, {len(model.wavelength)}), normalised as in training
```

Spectra must be on the model's wavelength grid, or are put there with `--resample`."""


def _describe_training(model: MixtureModel, training: Mapping[str, Any]) -> str:
    noise, units = training["noise"], model.facts["label_units"]
    kind = describe_training_noise(noise)
    lines = [
        f"{training['spectra']:,} {'simulated ' if training['simulated'] else ''}spectra for the global model; for the "
        f"experts {', '.join(f'{n:,}' for n in training['spectra_of_experts'])}",
        f"noise level {noise['level']:g} × the 1σ error of each pixel, {kind}",
        *(f"{label}: {low:g} to {high:g} {units[label]}" for label, (low, high) in training["ranges"].items()),
        f"penalty α = {training['alpha']:g} (global), pixels scaled: {training['standardize']}",
    ]
    return _list(lines)


def _describe_merits(model: MixtureModel, metrics: Mapping[str, Any]) -> str:
    confidence = f"{metrics['confidence']:.0%} interval"
    rows = []
    for scope, found in metrics["scopes"].items():
        routed = metrics["routing"]["scopes"][scope] if metrics["routing"] else {}
        rows.append([scope, GLOBAL.name, found["n_test"], _interval(found["r2_global"]), "", ""])
        rows.append(
            [scope, ORACLE.name, found["n_test"], _interval(found["r2_oracle"]), _interval(found["delta_r2"]), ""]
        )
        rows += [
            [scope, route, found["n_test"], _interval(one["r2"]), _interval(one["gain"]), _interval(one["kept"])]
            for route, one in routed.items()
            if route != ORACLE.name
        ]
    heads = ["test spectra", "route", "n", f"R² of {metrics['target']} ({confidence})", "ΔR²", "ρ"]
    table = [
        heads,
        ["---"] * len(heads),
        *([f"{cell:,}" if isinstance(cell, int) else cell for cell in r] for r in rows),
    ]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in table)
    return (
        f"{lines}\n\nMeans over the run's seeds, test noise {metrics['test_noise']}. `oracle` knows the true bin, "
        "which no prediction does; ΔR² is against the global model, ρ the share of the oracle's gain."
    )


def _find_limits(model: MixtureModel, training: Mapping[str, Any]) -> list[str]:
    limits, sample = model.limits, model.facts["sample"]
    found = [
        "Labels outside the training ranges above cannot be trusted, and the model does not know them.",
        f"A spectrum is flagged `out_of_domain` if it lies farther than {limits.distance:.3g} standard deviations from "
        f"the mean training spectrum along its {model.components.vectors.shape[1]} principal components (the "
        f"{limits.quantile:g} quantile of {sample['spectra']:,} training spectra), if more than {limits.bad_share:.0%} "
        "of its pixels are bad"
        + (f", or if it lies outside the bins with more than {limits.outside:.0%}." if model.gate is not None else ".")
        + f" Of those training spectra {sample['out_of_domain']:.1%} are flagged.",
        "What is strange in no direction of those components is not flagged: no flag is no proof.",
        f"It was trained for noise level {training['noise']['level']:g}: much cleaner or noisier spectra get more "
        "error than its R² says.",
        "Spectra must be normalised, in vacuum or air, and shifted to rest, as the training spectra are.",
    ]
    if model.gate is None:
        found.append("The run had no gate: labels come from the global model, and experts are given for information.")
    return found


def _describe_provenance(provenance: Mapping[str, Any]) -> str:
    software = ", ".join(f"{name} {version}" for name, version in sorted(provenance["software"].items()))
    lines = [
        f"run started {provenance['started']}, configuration {provenance['config_hash']}, results "
        f"{provenance['results']}",
        f"software: {software}; commit {provenance['git_commit'] or 'unknown'}",
        *(
            f"{role}: {one['n_spectra']:,} spectra, fingerprint {one['fingerprint'][:16]}"
            for role, one in provenance["stores"].items()
        ),
        "`sha256sum -c SHA256SUMS` checks the files; `model.json` states everything above in full",
    ]
    return _list(lines)


def _interval(estimate: Mapping[str, Any]) -> str:
    mean, low, high = (estimate[name] for name in ("mean", "low", "high"))
    if mean is None:
        return "–"
    return f"{mean:.3f}" if low is None or high is None else f"{mean:.3f} ({low:.3f} to {high:.3f})"


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


#: Principal components that distances are measured along, where no gate has components of its own.
COMPONENTS = 10
#: A model's limit of distance is this quantile of the training spectra's distances, unless another is asked for.
QUANTILE = 0.999
#: How many training spectra are read to find that limit, at most.
SAMPLE_SPECTRA = 20_000
#: They are read in runs of so many consecutive rows, since a chunk is decoded as a whole.
_RUN_ROWS = 256
#: The bundle that ``headroom predict RUN`` makes for itself.
_OWN_FOLDER = "model"


def export_model(
    run: str | Path,
    path: str | Path,
    *,
    level: float | None = None,
    seed: int | None = None,
    quantile: float = QUANTILE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MixtureModel:
    """Write the models of a finished run as a bundle that needs neither the run nor its spectra any more.

    Parameters
    ----------
    run
        The run folder. Its training stores are read once more, at most
        :data:`pipeline.predict.export.SAMPLE_SPECTRA` spectra of them.
    path
        A new folder.
    level, seed
        Which noise the models were trained with, if the run has several. By default it is the level that the run's
        conclusions are about, and the first seed.
    quantile
        Spectra farther from the mean than this share of the training spectra are out of domain.
    overwrite
        Replace a bundle that is there.
    progress
        Told of the sample's reading.

    Returns
    -------
    MixtureModel
        As :func:`pipeline.load_model` reads it.

    Raises
    ------
    InputError
        If the run is not finished, has no such noise, or its moments or training stores are gone; or if something
        is at the path already.
    ResourceError
        If the disk is full or not writable; nothing is left behind.
    """
    out = Path(path)
    require_free(out, overwrite=overwrite)
    if not 0 < quantile < 1:
        raise InputError(f"--quantile must lie between 0 and 1, found {quantile:g}; for example {QUANTILE:g}")
    source = _open_run(read_results(Path(run)), level, seed)
    require_outside_data(out, source.config.data.sources, f"model folder {out}: a model", "such as models/first")
    model = _complete(source, quantile, progress)
    save_model(model, out, render_card(model), overwrite=overwrite)
    return load_model(out)


def model_of_run(run: str | Path, progress: Progress | None = None) -> MixtureModel:
    """Return the model of a run, with the defaults of :func:`export_model`. It is made once and kept as ``RUN/model``.

    Where the run folder may only be read, the model is made each time and not kept.

    Raises
    ------
    InputError, ResourceError
        See :func:`export_model`.
    """
    folder = Path(run)
    results, own = read_results(folder), folder / _OWN_FOLDER
    if own.exists():
        try:
            model = load_model(own)
            if model.facts["provenance"]["results"] == results.metadata["key"]:
                return model
        except InputError:
            pass  # It is damaged or of another version, so it is made again.
    require_free(own, overwrite=True)
    model = _complete(_open_run(results), QUANTILE, progress)
    try:
        save_model(model, own, render_card(model), overwrite=True)
    except ResourceError:
        # The folder is somebody else's, or the disk is full: predictions need not be written there.
        with tempfile.TemporaryDirectory(prefix="headroom-") as scratch:
            save_model(model, Path(scratch) / _OWN_FOLDER, render_card(model))
            return load_model(Path(scratch) / _OWN_FOLDER)
    return load_model(own)


def _complete(source: _Source, quantile: float, progress: Progress | None) -> MixtureModel:
    """Return the model of a run with its limits, which a sample of the training spectra gives, and its facts."""
    model = source.build()
    sample = measure_sample(
        model, source.store, source.sample_noise, source.config.precision, progress or SilentProgress()
    )
    limits = DomainLimits(distance=float(np.quantile(sample.distances, quantile)), quantile=quantile)
    return replace(model, limits=limits, facts=source.describe(sample, limits))


@dataclass(frozen=True, eq=False)
class _Source:
    """What a bundle is made from: a run's results, one noise of it, its models, and its training spectra."""

    results: RunResults
    config: ExperimentConfig
    noise: Noise
    models: ExpertModels
    store: AnyStore
    products: Products

    @property
    def grid(self) -> BinGrid:
        return BinGrid(self.config.bins, self.config.bin_names)

    @property
    def sample_noise(self) -> Noise:
        """The training noise, or a draw of it where the models were trained on the expectation over all draws."""
        return self.noise.drawn(self.config.seeds[0])

    def read_moments(self) -> Moments:
        """Read the moments of all training spectra, inside the bins and outside."""
        saved = MomentsFolder.of_run(
            self.results.folder, self.noise, self.results.metadata.get("moments", {}).get(self.noise.name, "")
        )
        return Moments.merge(saved.read(fold, cell) for fold in range(saved.n_folds) for cell in range(saved.n_cells))

    def build(self) -> MixtureModel:
        """Return the model. It has no limits yet, so nothing is out of its domain."""
        columns = [self.models.columns(label) for label in self.models.labels]
        gate, blend = self._read_gate(), self._read_blend()
        recipe = read_recipe(self.products.require(recipe_file(self.noise))) if gate and gate.feature_names else None
        if recipe is not None and gate is not None and gate.feature_names != recipe.names:
            raise InputError(
                f"run folder {self.results.folder}: its gate needs {', '.join(gate.feature_names)}, and only features "
                "of the flux can be computed for spectra without labels; export a run with another gate"
            )
        components = recipe.components if recipe is not None else None
        if components is None:
            components = find_components(self.read_moments(), min(COMPONENTS, len(self.store.wavelength)))
        return MixtureModel(
            labels=self.models.labels,
            target=self.config.target,
            wavelength=self.store.wavelength,
            weights=np.ascontiguousarray(np.stack([weights for weights, _ in columns], axis=2)),
            intercepts=np.ascontiguousarray(np.stack([intercepts for _, intercepts in columns], axis=1)),
            grid=self.grid,
            components=components,
            limits=DomainLimits(distance=np.inf, quantile=1.0),
            gate=gate,
            recipe=recipe,
            blend=blend,
            route=(GLOBAL if gate is None else FALLBACK if blend is None else BLEND).name,
            unsure=0.0 if self.config.gate is None else self.config.gate.unsure,
            exponent=self.store.exponent,
        )

    def _read_gate(self) -> Gate | None:
        name = gate_file(self.noise)
        if self.config.gate is None or name not in self.products:
            return None  # A noise that is only compared has no gate.
        return read_json(self.products.require(name), partial(gate_from_dict, grid=self.grid))

    def _read_blend(self) -> Blend | None:
        """Return the blend, where it was better than its gate on held-out folds of the training spectra."""
        name = blend_file(self.noise)
        if self.config.gate is None or not self.config.gate.blend or name not in self.products:
            return None
        blend = read_json(self.products.require(name), Blend.from_dict)
        return blend if blend.is_kept else None

    def describe(self, sample: TrainingSample, limits: DomainLimits) -> dict[str, Any]:
        """Return what ``model.json`` says besides what predicting needs."""
        metadata = self.results.metadata
        ranges = find_ranges(self.store, self.models.labels)
        flagged = sample.distances > limits.distance
        if sample.outside is not None:
            flagged |= sample.outside > limits.outside
        return {
            "label_units": {label: schema.COLUMN_UNITS[label] for label in self.models.labels},
            "training": {
                "ranges": {label: list(ranges[label]) for label in self.models.labels},
                "wavelength_range": [float(self.store.wavelength[0]), float(self.store.wavelength[-1])],
                "spectra": self.models.global_count,
                "spectra_of_experts": self.models.expert_counts.tolist(),
                "noise": self.noise.record(),
                "alpha": self.models.global_alpha,
                "alpha_of_experts": self.models.expert_alphas.tolist(),
                "standardize": self.config.ridge.standardize,
                "train_on": self.config.ridge.train_on,
                "simulated": bool(metadata["simulated"]),
            },
            "sample": {
                "spectra": len(sample.distances),
                "noise": vars(self.sample_noise),
                "median_distance": float(np.median(sample.distances)),
                "out_of_domain": float(flagged.mean()),
            },
            "metrics": _describe_metrics(self.results, self.noise),
            "provenance": {
                "results": metadata["key"],
                "config_hash": metadata["config_hash"],
                "started": metadata["started"],
                "software": metadata["versions"],
                "git_commit": metadata["git_commit"],
                "exported_with": describe_environment()["versions"].get("headroom"),
                "stores": {role: _describe_store(metadata["stores"][role]) for role in ("train", "test")},
            },
        }


def _open_run(results: RunResults, level: float | None = None, seed: int | None = None) -> _Source:
    """Open what a bundle is made from; see :func:`export_model` for the noise that is meant."""
    folder, config = results.folder, _read_config(results)
    noise = _choose_noise(config, level, seed)
    products = Products(folder)
    models = read_models(products.require(f"models/{noise.name}.npz"))[-1]
    stated = results.metadata["stores"]["train"]
    gone = [path for path in stated["paths"] if not Path(path).is_dir()]
    if gone:
        raise InputError(
            f"run folder {folder}: its training store {gone[0]} is gone, and a sample of it says what is out of "
            "domain; put it back where it was"
        )
    store = open_stores(stated["paths"])
    if store.fingerprint != stated["fingerprint"]:
        raise InputError(
            f"run folder {folder}: its training store changed since (fingerprint {stated['fingerprint'][:12]} became "
            f"{store.fingerprint[:12]}); run the experiment again with another --out"
        )
    left_out = match_shards(stated["left_out"], store.shard_names)
    selected = select_shards(store, [store.shard_names[k] for k in left_out])
    selected = selected.scaled(int(stated.get("flux_exponent", 0)))
    return _Source(results, config, noise, models, selected, products)


def _read_config(results: RunResults) -> ExperimentConfig:
    """Return the configuration of a run's results, which another version may have written."""
    wanted = ("config", "key", "folds", "stores", "simulated", "config_hash", "started", "versions", "git_commit")
    missing = [name for name in wanted if name not in results.metadata]
    try:
        if not missing:
            return ExperimentConfig.model_validate(results.metadata["config"])
        found = f"{METADATA_FILE} lacks {enumerate_words(missing)}"
    except ValidationError as error:
        found = describe_findings(error, ExperimentConfig)
    raise InputError(
        f"run folder {results.folder}: another version of this program wrote its results ({found}); run the experiment "
        "again with the same --out"
    )


def _choose_noise(config: ExperimentConfig, level: float | None, seed: int | None) -> Noise:
    """Return the training noise whose models are meant."""
    chosen = config.headline_level if level is None else level
    if chosen not in config.noise.levels:
        known = ", ".join(f"{one:g}" for one in config.noise.levels)
        raise InputError(f"--level must be one of the run's noise levels ({known}), found {chosen:g}")
    noises = verdict_noises(config.noise.mode, [chosen], config.seeds)
    if not noises[0].has_seed:
        if seed is not None:
            kind = noises[0].kind
            raise InputError(f"--seed {seed}: this run trained on {kind} noise, which has no seed; leave --seed out")
        return noises[0]
    wanted = config.seeds[0] if seed is None else seed
    if wanted not in config.seeds:
        known = ", ".join(map(str, config.seeds))
        raise InputError(f"--seed must be one of the run's seeds ({known}), found {wanted}")
    return next(noise for noise in noises if noise.seed == wanted)


def _describe_metrics(results: RunResults, noise: Noise) -> dict[str, Any]:
    """Return the run's figures of merit at this noise level; means over its seeds."""
    level = next(one for one in results.summary.levels if one.noise_level == noise.level)
    answer = Gates.read(results)
    gate = answer.at(noise.level) if answer else None
    return {
        "target": results.summary.target,
        "confidence": results.summary.confidence,
        "test_noise": level.test_noise,
        "scopes": {name: scope.to_dict() for name, scope in level.scopes.items()},
        "decision": level.decision.to_dict(),
        "routing": gate and gate.model_dump(mode="json", include={"sentence", "scopes"}),
    }


def _describe_store(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells a set of spectra from another, without where it lies."""
    names = [source["name"] for source in stated["sources"]]
    return {"fingerprint": stated["fingerprint"], "n_spectra": stated["n_spectra"], "sources": names}


@dataclass(frozen=True, eq=False)
class TrainingSample:
    """What the model says of N of its training spectra.

    ``distances`` are those from the mean training spectrum, ``outside`` the probabilities of lying outside all bins,
    both (N,). Without a gate there are no probabilities.
    """

    distances: np.ndarray
    outside: np.ndarray | None


def measure_sample(
    model: MixtureModel, store: AnyStore, noise: Noise, precision: str, progress: Progress
) -> TrainingSample:
    """Ask the model about an evenly spread sample of the training spectra, with their training noise."""
    runs = sample_rows(store, SAMPLE_SPECTRA, _RUN_ROWS)
    store = store.scaled(0)  # a model takes flux as the files have it
    distances, outside = [], []
    with (
        progress.step("read training spectra", sum(b - a for a, b in runs)) as advance,
        one_blas_thread(),
    ):
        for start, stop in runs:
            noisy = read_noisy_rows(store, start, stop, noise, precision)
            found = model.predict_block(noisy, zeros_are_bad=False)
            distances.append(found.distances)
            if found.probabilities is not None:
                outside.append(found.probabilities[:, -1])
            advance(stop - start)
    return TrainingSample(np.concatenate(distances), np.concatenate(outside) if outside else None)


def find_ranges(store: AnyStore, labels: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return the smallest and largest value of every label among the training spectra."""
    low, high = np.full(len(labels), np.inf), np.full(len(labels), -np.inf)
    for _, block in store.iter_columns(labels):
        for q, label in enumerate(labels):
            if len(block[label]):
                low[q], high[q] = min(low[q], block[label].min()), max(high[q], block[label].max())
    return {label: (float(low[q]), float(high[q])) for q, label in enumerate(labels)}

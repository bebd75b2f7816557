"""The model card of a bundle: what the model is, what it was trained on, how good it is, and where not to use it.

After Mitchell et al. (2019), "Model Cards for Model Reporting".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.noise import describe_training_noise
from pipeline.predict.model import MixtureModel
from pipeline.questions.gate import GLOBAL, ORACLE, ROUTES

__all__ = ["render_card"]


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
            "\n\n**The spectra it was trained on are simulated by this package: a stand-in, no synthesised and no "
            "observed spectra. What it says of real stars means nothing.**"
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

"""The model bundle: a run's models of one noise, with all that predicting needs, in a folder of its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pipeline.bins import BinGrid
from pipeline.bundle_files import read_bundle, write_bundle
from pipeline.bundle_model import MixtureModel
from pipeline.bundle_prediction import DomainLimits
from pipeline.components import PrincipalComponents
from pipeline.errors import InputError
from pipeline.features_files import recipe_from_plain, recipe_to_plain
from pipeline.gates import gate_from_dict
from pipeline.routing_blend import Blend

__all__ = ["load_model", "save_model"]


def save_model(model: MixtureModel, path: str | Path, card: str, *, overwrite: bool = False) -> None:
    """Write a model as a bundle; :func:`load_model` gives back the same numbers, bit for bit.

    Parameters
    ----------
    model
        The model.
    path
        A new folder.
    card
        The model card, Markdown.
    overwrite
        Replace a bundle that is there.

    Raises
    ------
    InputError
        If there is something at the path that may not be replaced.
    ResourceError
        If the disk is full or not writable; nothing is left behind.
    """
    stated = {
        "labels": list(model.labels),
        "target": model.target,
        "bins": {
            "edges": {column: list(map(float, edges)) for column, edges in model.grid.edges.items()},
            "names": {column: list(names) for column, names in model.grid.interval_names.items()},
        },
        "gate": None if model.gate is None else model.gate.to_dict(),
        "features": None if model.recipe is None else recipe_to_plain(model.recipe),
        "blend": None if model.blend is None else model.blend.to_dict(),
        "route": model.route,
        "unsure": model.unsure,
        "out_of_domain": dataclasses.asdict(model.limits),
    }
    arrays = {
        "wavelength": model.wavelength,
        "weights": model.weights,
        "intercepts": model.intercepts,
        "component_mean": model.components.mean,
        "component_vectors": model.components.vectors,
        "component_variances": model.components.variances,
    }
    write_bundle(Path(path), {**stated, **model.facts, **stated}, arrays, card, overwrite=overwrite)


def load_model(path: str | Path) -> MixtureModel:
    """Load a model that ``headroom export`` wrote; every byte of it is checked, and no code in it is run.

    ::

        model = pipeline.load_model("model/")
        table = model.predict(flux).to_frame()  # flux of shape (N, P), or (P,) for one spectrum

    Parameters
    ----------
    path
        The folder.

    Raises
    ------
    InputError
        If it is no model bundle, is of another version, or any byte of it changed; the message names the file.
    """
    folder = Path(path)
    facts, arrays, fingerprint = read_bundle(folder)
    try:
        grid = BinGrid(facts["bins"]["edges"], facts["bins"]["names"])
        components = PrincipalComponents(*(arrays[f"component_{name}"] for name in ("mean", "vectors", "variances")))
        recipe = facts["features"] and recipe_from_plain(facts["features"], components, arrays["wavelength"])
        return MixtureModel(
            labels=tuple(facts["labels"]),
            target=facts["target"],
            wavelength=arrays["wavelength"],
            weights=arrays["weights"],
            intercepts=arrays["intercepts"],
            grid=grid,
            components=components,
            limits=DomainLimits(**facts["out_of_domain"]),
            gate=None if facts["gate"] is None else gate_from_dict(facts["gate"], grid),
            recipe=recipe,
            blend=facts["blend"] and Blend.from_dict(facts["blend"]),
            route=facts["route"],
            unsure=facts["unsure"],
            facts=facts,
            fingerprint=fingerprint,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"model {folder}: it lacks {error}; export the run again") from None

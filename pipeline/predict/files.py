"""The files of a model bundle: a run's models of one noise and all that predicting needs, in a folder of its own.

::

    MODEL/model.json       what the model is, in words and numbers
    MODEL/arrays/*.npy     its arrays, float64
    MODEL/README.md        the model card
    MODEL/SHA256SUMS       the digest of every other file, as ``sha256sum -c`` reads it

A bundle is written whole or not at all, and it is read only if every byte is what was written. ``docs/model.md``
describes the files for other programs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from pipeline.base import parse_object, read_file, refuse_environment, replacing_folder
from pipeline.bins import BinGrid
from pipeline.errors import InputError
from pipeline.moments import PrincipalComponents
from pipeline.predict.model import DomainLimits, MixtureModel
from pipeline.questions.gate import Blend, gate_from_dict, recipe_from_plain, recipe_to_plain
from pipeline.schema import BUNDLE_VERSION

__all__ = [
    "BUNDLE_FORMAT",
    "CARD_FILE",
    "MODEL_FILE",
    "SUMS_FILE",
    "load_model",
    "read_bundle",
    "save_model",
    "write_bundle",
]

BUNDLE_FORMAT = "headroom-model"
MODEL_FILE = "model.json"
CARD_FILE = "README.md"
SUMS_FILE = "SHA256SUMS"

#: P wavelengths; weights and intercepts of the 1 + K models; mean, vectors and variances of the principal components.
_ARRAYS = ("wavelength", "weights", "intercepts", "component_mean", "component_vectors", "component_variances")
_LINE = re.compile(r"([0-9a-f]{64})  (\S+)")
_ARRAY = re.compile(r"arrays/(\w+)\.npy")


def write_bundle(
    path: Path, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], card: str, *, overwrite: bool = False
) -> None:
    """Write a bundle. Its folder appears at once, with all its files.

    Raises
    ------
    InputError
        If there is something at the path that may not be replaced. With ``overwrite``, another bundle may be replaced.
    ResourceError
        If the disk is full or not writable; nothing is left behind.
    """
    require_free(path, overwrite=overwrite)
    # Without an exponent, earlier programs read the bundle rightly, too.
    version = BUNDLE_VERSION if facts.get("flux_exponent") else 1
    stated = {"format": BUNDLE_FORMAT, "version": version, **facts, "arrays": sorted(arrays)}
    text = json.dumps(stated, indent=1, ensure_ascii=False, allow_nan=False)
    contents = {MODEL_FILE: text.encode(), CARD_FILE: card.encode()}
    for name, values in arrays.items():
        stream = io.BytesIO()
        np.save(stream, np.ascontiguousarray(values), allow_pickle=False)
        contents[f"arrays/{name}.npy"] = stream.getvalue()
    contents[SUMS_FILE] = _list_sums({name: _digest(content) for name, content in contents.items()})
    with replacing_folder(path, lambda _: False) as temporary:
        (temporary / "arrays").mkdir()
        for name, content in contents.items():
            (temporary / name).write_bytes(content)


def require_free(path: Path, *, overwrite: bool) -> None:
    """Refuse a path where a bundle may not be put.

    Raises
    ------
    InputError
        If anything is there. With ``overwrite``: if anything but a bundle is there.
    """
    if not path.exists():
        return
    is_model = (path / SUMS_FILE).is_file() and (path / MODEL_FILE).is_file()
    if not is_model:
        raise InputError(f"model folder {path}: something else than a model is there; choose another name")
    if not overwrite:
        raise InputError(
            f"model folder {path}: it is there already; choose another name, or replace it with --overwrite"
        )


def read_bundle(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]], str]:
    """Read a bundle, and check every byte of it.

    Returns
    -------
    facts
        What ``model.json`` says.
    arrays
        By name.
    fingerprint
        SHA-256 of ``SHA256SUMS``, hence of all files.

    Raises
    ------
    InputError
        If the folder is no bundle, if it is of another version, or if a file differs from what was written. The message
        names the file.
    """
    if not (path / SUMS_FILE).is_file():
        found = "no such folder" if not path.exists() else f"{SUMS_FILE} is missing"
        raise InputError(f"model {path}: {found}; give a folder that `headroom export RUN MODEL` made")
    sums = _read(path, SUMS_FILE)
    contents = {name: _read(path, name) for name in _parse_sums(path, sums)}
    for line in sums.decode().splitlines():
        digest, name = line.split("  ")
        if _digest(contents[name]) != digest:
            raise _damaged(path, name, f"its SHA-256 is not the one that {SUMS_FILE} states")
    facts = _parse_facts(path, contents.get(MODEL_FILE))
    if not (isinstance(facts.get("arrays"), list) and all(isinstance(name, str) for name in facts["arrays"])):
        raise _damaged(path, MODEL_FILE, "it does not list its arrays")
    wanted = {MODEL_FILE, CARD_FILE, *(f"arrays/{name}.npy" for name in facts["arrays"])}
    if wanted != contents.keys():
        name = sorted(wanted ^ contents.keys())[0]
        raise _damaged(path, SUMS_FILE, f"it does not list the files of the model ({name})")
    try:
        arrays = {
            name: np.load(io.BytesIO(contents[f"arrays/{name}.npy"]), allow_pickle=False) for name in facts["arrays"]
        }
    except (ValueError, EOFError, SyntaxError, MemoryError) as error:
        raise _damaged(path, "arrays", str(error)) from None
    return facts, arrays, _digest(sums)


def _parse_sums(path: Path, sums: bytes) -> list[str]:
    """Return the files that the list of digests names. The list must be exactly as it was written."""
    lines = [_LINE.fullmatch(line) for line in sums.decode("utf-8", "replace").splitlines()]
    named = {match.group(2): match.group(1) for match in lines if match}
    if any(match is None for match in lines) or _list_sums(named) != sums:
        raise _damaged(path, SUMS_FILE, "it is not a sorted list of digests and names")
    for name in named:
        if name not in (MODEL_FILE, CARD_FILE) and not _ARRAY.fullmatch(name):
            raise _damaged(path, SUMS_FILE, f"it names {name!r}, which is no part of a model")
    return list(named)


def _parse_facts(path: Path, content: bytes | None) -> dict[str, Any]:
    try:
        facts = parse_object(content or b"")
        if facts["format"] == BUNDLE_FORMAT and isinstance(facts["version"], int):
            found = facts["version"]
        else:
            raise ValueError(f"its format is {facts['format']!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, MODEL_FILE, f"it describes no model ({error})") from None
    if not 1 <= found <= BUNDLE_VERSION:
        raise InputError(
            f"model {path} has version {found}, but this program reads versions 1 to {BUNDLE_VERSION}; use the program "
            "that wrote it, or export the run again"
        )
    return facts


def _read(path: Path, name: str) -> bytes:
    try:
        return read_file(path / name)
    except OSError as error:
        refuse_environment(path / name, error)
        raise _damaged(path, name, f"it cannot be read ({error.strerror})") from None


def _list_sums(digests: Mapping[str, str]) -> bytes:
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _damaged(path: Path, name: str, what: str) -> InputError:
    return InputError(f"model {path} is damaged: {name}: {what}; copy it again, or export the run again")


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
        "flux_exponent": model.exponent,
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
    """Load a model that ``headroom export`` wrote. Every byte of it is checked, and no code in it is run.

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
        If it is no model bundle, if it is of another version, or if any byte of it changed. The message names the file.
    """
    folder = Path(path)
    facts, arrays, fingerprint = read_bundle(folder)
    _require_arrays(folder, facts, arrays)
    try:
        grid = BinGrid(facts["bins"]["edges"], facts["bins"]["names"])
        components = PrincipalComponents(*(arrays[f"component_{name}"] for name in ("mean", "vectors", "variances")))
        recipe = facts["features"] and recipe_from_plain(facts["features"], components, arrays["wavelength"])
        model = MixtureModel(
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
            exponent=facts.get("flux_exponent", 0),
            facts=facts,
            fingerprint=fingerprint,
        )
        _require_usable(model)
        return model
    except (InputError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"model {folder}: its parts do not fit together ({error}); export the run again") from None


def _require_usable(model: MixtureModel) -> None:
    """Refuse a model whose parts do not fit together: it cannot label the mean training spectrum."""
    model.require_route(model.route)
    found = model.predict(model.components.mean, zeros_are_bad=False)
    numbers = (found.values, found.of_models, found.distances, found.probabilities)
    if not all(np.isfinite(values).all() for values in numbers if values is not None):
        raise ValueError("finite labels of the mean training spectrum")


class _Bins(BaseModel):
    """The bins of a model."""

    model_config = ConfigDict(strict=True)

    edges: dict[str, list[FiniteFloat]]
    names: dict[str, list[str]]


class _Stated(BaseModel):
    """Kinds of what predicting needs of ``model.json``."""

    model_config = ConfigDict(strict=True)

    labels: list[str]
    target: str
    bins: _Bins
    gate: dict[str, Any] | None
    features: dict[str, Any] | None
    blend: dict[str, Any] | None
    route: str
    unsure: FiniteFloat
    out_of_domain: dict[str, FiniteFloat]


def _require_arrays(folder: Path, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Refuse facts of another kind, arrays of another shape or type, and numbers that are not finite."""
    try:
        stated = _Stated.model_validate(facts)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
        raise _damaged(folder, MODEL_FILE, what) from None
    missing = [name for name in _ARRAYS if name not in arrays]
    if missing:
        raise _damaged(folder, MODEL_FILE, f"it lists no array {missing[0]!r}")
    n_pixels, n_labels = arrays["wavelength"].size, len(stated.labels)
    n_models = 1 + math.prod(len(edges) - 1 for edges in stated.bins.edges.values())
    n_components = arrays["component_variances"].size
    shapes = (
        (n_pixels,),
        (n_pixels, n_models, n_labels),
        (n_models, n_labels),
        (n_pixels,),
        (n_pixels, n_components),
        (n_components,),
    )
    for name, shape in zip(_ARRAYS, shapes, strict=True):
        values = arrays[name]
        if values.dtype != np.float64 or values.shape != shape:
            found = f"{values.dtype} {values.shape}"
            raise _damaged(folder, f"arrays/{name}.npy", f"float64 {shape} is required, found {found}")
        wrong = np.argwhere(~np.isfinite(values))
        if len(wrong):
            place = tuple(wrong[0].tolist())
            found = f"{values[place]} at {place}"
            raise _damaged(folder, f"arrays/{name}.npy", f"finite numbers are required, found {found}")
    if not (np.diff(arrays["wavelength"]) > 0).all():
        raise _damaged(folder, "arrays/wavelength.npy", "increasing wavelengths are required")
    if stated.target not in stated.labels:
        raise _damaged(folder, MODEL_FILE, f"its target {stated.target!r} is none of its labels")

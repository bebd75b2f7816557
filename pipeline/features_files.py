"""The file of a feature recipe: one ``.npz``, written whole, without pickle."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.components import PrincipalComponents
from pipeline.config import LineWindow
from pipeline.errors import InputError
from pipeline.features import FeatureRecipe
from pipeline.files import replacing

__all__ = ["read_recipe", "recipe_from_plain", "recipe_to_plain", "write_recipe"]

FORMAT = "headroom-features"
FORMAT_VERSION = 1
_COMPONENTS = ("mean", "vectors", "variances")


def recipe_to_plain(recipe: FeatureRecipe) -> dict[str, Any]:
    """Return what JSON can hold of a recipe: its windows, not its components and wavelengths."""
    return {
        "names": list(recipe.names),
        "components": recipe.n_components,
        "windows": [window.model_dump(mode="json") for window in recipe.windows],
    }


def recipe_from_plain(
    plain: dict[str, Any], components: PrincipalComponents | None, wavelength: np.ndarray
) -> FeatureRecipe:
    """Return the recipe of :func:`recipe_to_plain`, with at least as many components as it had, and its wavelengths."""
    own = None
    if components is not None and (n := int(plain["components"])):
        vectors = np.ascontiguousarray(components.vectors[:, :n])
        own = PrincipalComponents(components.mean, vectors, components.variances[:n])
    windows = tuple(LineWindow.model_validate(window) for window in plain["windows"])
    recipe = FeatureRecipe(own, windows, np.asarray(wavelength, dtype=np.float64))
    if list(recipe.names) != list(plain["names"]):
        raise ValueError("its features are not those that their names say")
    return recipe


def write_recipe(path: Path, recipe: FeatureRecipe) -> None:
    """Write a recipe, atomically: the same recipe gives the same bytes."""
    facts = {"format": FORMAT, "version": FORMAT_VERSION, **recipe_to_plain(recipe)}
    arrays: dict[str, Any] = {"header": np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)}
    if recipe.components is not None:
        arrays |= {name: getattr(recipe.components, name) for name in _COMPONENTS}
    with replacing(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, allow_pickle=False, wavelength=recipe.wavelength, **arrays)


def read_recipe(path: Path) -> FeatureRecipe:
    """Read what :func:`write_recipe` wrote.

    Raises
    ------
    InputError
        If the file is missing, damaged or of another version.
    """
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            facts = json.loads(archive["header"].tobytes().decode())
            if facts.get("format") != FORMAT or facts.get("version") != FORMAT_VERSION:
                raise ValueError(f"{FORMAT} version {FORMAT_VERSION} is required")
            components = None
            if facts["components"]:
                components = PrincipalComponents(*(archive[name] for name in _COMPONENTS))
            return recipe_from_plain(facts, components, archive["wavelength"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"feature recipe {path}: cannot be read ({error}); delete the file and run again") from None

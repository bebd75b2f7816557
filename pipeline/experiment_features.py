"""What gates are fitted to, in a run: a recipe of features for every noise, and a pass over some training spectra.

``gates/<noise>_recipe.npz`` says how features come from pixels, ``gates/<noise>_rows.npz`` holds those of the spectra
that the pass has read, with predictions by models that did not see their fold, where such models are given. Nothing
here sees the test spectra.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline import schema
from pipeline.accumulate_features import ALGORITHM_VERSION, FeatureJob, accumulate_features
from pipeline.bins import BinGrid
from pipeline.checkpoints import MomentsFolder
from pipeline.checkpoints_plan import AccumulationPlan
from pipeline.components import PrincipalComponents
from pipeline.config import content_hash
from pipeline.errors import ConfigError
from pipeline.experiment_run import Run
from pipeline.features import FeatureRecipe, choose_windows
from pipeline.features_files import write_recipe
from pipeline.noise import Noise, NoiseDraw
from pipeline.solve_components import ComponentsJob, find_folder_components
from pipeline.store_set import AnyStore

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["compute_rows", "grid_items", "recipe_file", "rows_file", "write_recipes"]

#: Raised when the same moments and settings would give another recipe.
RECIPE_VERSION = 1


def recipe_file(noise: Noise) -> str:
    """Return the name of a noise's recipe in the run folder."""
    return f"gates/{noise.name}_recipe.npz"


def rows_file(noise: Noise) -> str:
    """Return the name of a noise's rows in the run folder."""
    return f"gates/{noise.name}_rows.npz"


def grid_items(grid: BinGrid) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """Return the edges of bins by column, as items that a task's argument can hold."""
    return tuple((column, tuple(map(float, edges))) for column, edges in grid.edges.items())


def write_recipes(
    run: Run,
    store: AnyStore,
    plan: AccumulationPlan,
    moments: Sequence[MomentsFolder],
    client: Client | None,
) -> None:
    """Write the recipe of every noise that has none of these settings yet.

    Windows that the pixels do not cover are left out, with a warning.

    Raises
    ------
    ConfigError
        If that leaves no feature at all.
    """
    assert run.config.gate is not None
    settings = run.config.gate.features
    wavelength = np.asarray(store.wavelength, dtype=np.float64)
    windows, others = choose_windows(settings.windows, wavelength)
    span = f"the spectra cover {wavelength[0]:.0f} to {wavelength[-1]:.0f} Å with {wavelength.size:,} pixels"
    if not windows and not settings.components:
        raise ConfigError(
            f"gate.features: none of the windows {', '.join(others)} is covered ({span}) and components is 0; use "
            "components: 10, or windows that hold pixels"
        )
    if others:
        run.warnings.append(f"the gate has no features of {', '.join(others)}: {span}")
    shared = [RECIPE_VERSION, settings.model_dump(mode="json", exclude={"products"}), plan.key]
    keys = [content_hash([*shared, vars(one.draw)]) for one in moments]
    missing = [k for k, one in enumerate(moments) if not run.is_made(recipe_file(one.draw), keys[k])]

    def write(k: int, components: PrincipalComponents | None) -> None:
        name = recipe_file(moments[k].draw)
        write_recipe(run.folder / name, FeatureRecipe(components, windows, wavelength))
        run.record(name, keys[k])

    n = min(settings.components, wavelength.size)
    if not n:
        for k in missing:
            write(k, None)
    elif missing:
        jobs = [ComponentsJob(moments[k], n) for k in missing]
        for place, components in find_folder_components(jobs, client=client, progress=run.progress):
            write(missing[place], components)


def compute_rows(
    run: Run,
    plan: AccumulationPlan,
    noises: Sequence[Noise],
    client: Client | None,
    *,
    fold_models: Sequence[str] | None = None,
    quality: bool = False,
) -> None:
    """Write the rows of every noise that has none of these settings yet, in one pass.

    Spectra that models were trained on with marginal noise are drawn with the first seed: a gate routes single spectra.

    Parameters
    ----------
    run
        Where :func:`write_recipes` wrote; a noise without a recipe there gets no features.
    plan
        Of the moments.
    noises
        Of the moments.
    client
        Whose workers read the spectra.
    fold_models
        For every noise the name of its models without each fold, a product of the run; None for no predictions.
    quality
        Whether aggregates of the error vector are asked for.
    """
    gate = run.config.gate
    assert gate is not None
    items = grid_items(run.grid)
    jobs, names = [], []
    for k, noise in enumerate(noises):
        recipe = recipe_file(noise) if recipe_file(noise) in run.products and gate.kind == "logistic" else None
        models = fold_models[k] if fold_models else None
        made_of = [run.products.get(name) for name in (recipe, models) if name]
        draw = (
            noise if isinstance(noise, NoiseDraw) else NoiseDraw(noise.level, run.config.seeds[0], schema.STREAM_TRAIN)
        )
        key = content_hash(
            [ALGORITHM_VERSION, plan.key, items, vars(draw), gate.spectra, made_of, bool(models), quality]
        )
        if not run.is_made(rows_file(noise), key):
            of_recipe, of_models = (None if name is None else str(run.folder / name) for name in (recipe, models))
            path = str(run.folder / rows_file(noise))
            jobs.append(FeatureJob(draw, path, key, gate.spectra, items, of_recipe, of_models, quality))
            names.append(rows_file(noise))
    accumulate_features(plan, jobs, client=client, progress=run.progress)
    for name, job in zip(names, jobs, strict=True):
        run.record(name, job.key)

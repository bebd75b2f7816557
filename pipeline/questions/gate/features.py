"""Features of a noisy spectrum that a gate may look at: principal components and windows around spectral lines.

Of a window W of pixels with flux x, widths Δλ, and the mean flux c of its continuum bands::

    mean = mean of x over W
    depth = 1 − (mean of x over the three pixels of W nearest the centre) / c
    equivalent width = Σ_W (1 − x/c) Δλ                                        (Å, positive in absorption)

All but the division is linear in the pixels, so one product with :attr:`FeatureRecipe.columns` gives everything.
Features are made of the flux alone: the error vector gives labels away (photon noise follows the flux).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.accumulate import MomentsFolder
from pipeline.base import Progress, SilentProgress, open_npz, write_npz
from pipeline.config import LineWindow
from pipeline.errors import ConfigError, InputError
from pipeline.moments import MomentsSum, PrincipalComponents, find_components
from pipeline.ridge import SolveMemory, run_jobs, solving_threads
from pipeline.schema import FEATURE_RECIPE_VERSION

if TYPE_CHECKING:
    from distributed import Client

__all__ = [
    "QUALITY_COLUMN",
    "QUALITY_NAMES",
    "ComponentsJob",
    "FeatureRecipe",
    "choose_windows",
    "find_folder_components",
    "quality_features",
    "read_recipe",
    "recipe_from_plain",
    "recipe_to_plain",
    "require_no_leak",
    "write_recipe",
]

FloatArray = NDArray[np.float64]
#: Pixels whose mean is the flux at the centre of a line: one alone is mostly noise.
_CENTRAL_PIXELS = 3
#: Columns of a window: mean and central flux, Σ x Δλ, and the continuum.
_PER_WINDOW = 4


@dataclass(frozen=True, eq=False)
class FeatureRecipe:
    """How F features come from P pixels.

    Attributes
    ----------
    components
        C principal components, whose scores come first; None for none.
    windows
        W windows whose pixels are all there, see :func:`choose_windows`.
    wavelength
        Of the pixels, shape (P,), Å, increasing.
    """

    components: PrincipalComponents | None
    windows: tuple[LineWindow, ...]
    wavelength: FloatArray

    @property
    def n_components(self) -> int:
        """C."""
        return 0 if self.components is None else self.components.vectors.shape[1]

    @property
    def totals(self) -> tuple[str, ...]:
        """Names that the equivalent widths of several windows are summed under."""
        return tuple(dict.fromkeys(window.total for window in self.windows if window.total is not None))

    @property
    def names(self) -> tuple[str, ...]:
        """The F features, in order."""
        return (
            *(f"pc_{k + 1}" for k in range(self.n_components)),
            *(f"{window.name}_{what}" for window in self.windows for what in ("mean", "depth", "width")),
            *(f"{total}_width" for total in self.totals),
        )

    @cached_property
    def columns(self) -> FloatArray:
        """What a block of spectra is multiplied by, shape (P, C + 4 W): see :meth:`from_products`."""
        own = [] if self.components is None else [self.components.vectors]
        own += [_window_columns(window, self.wavelength) for window in self.windows]
        return np.concatenate(own, axis=1)

    @cached_property
    def _widths(self) -> FloatArray:
        """Σ_W Δλ of every window, shape (W,), Å."""
        return np.asarray(self.columns[:, self.n_components + 2 :: _PER_WINDOW].sum(axis=0))

    @cached_property
    def _offsets(self) -> FloatArray:
        """Scores of no flux at all, shape (C,)."""
        return np.zeros(0) if self.components is None else -self.components.mean @ self.components.vectors

    def from_products(self, products: ArrayLike) -> FloatArray:
        """Return the features of spectra x from their products ``x @ columns``.

        Parameters
        ----------
        products
            Shape (N, C + 4 W), of spectra with nothing subtracted.

        Returns
        -------
        FloatArray
            Shape (N, F). Where a continuum has no flux, there is no depth and no width: both are 0.
        """
        given = np.asarray(products, dtype=np.float64)
        scores = given[:, : self.n_components] + self._offsets
        mean, central, sums, continuum = (given[:, self.n_components + k :: _PER_WINDOW] for k in range(_PER_WINDOW))
        has_flux = continuum > 0
        level = np.where(has_flux, continuum, 1.0)
        depth = np.where(has_flux, 1 - central / level, 0.0)
        width = np.where(has_flux, self._widths - sums / level, 0.0)
        of_windows = np.stack([mean, depth, width], axis=2).reshape(len(given), -1)
        names = [window.total for window in self.windows]
        totals = [width[:, [name == total for name in names]].sum(axis=1, keepdims=True) for total in self.totals]
        return np.concatenate([scores, of_windows, *totals], axis=1)

    def compute(self, noisy: ArrayLike) -> FloatArray:
        """Return the features, shape (N, F), of spectra (N, P) as the models see them: noisy and never negative."""
        return self.from_products(np.asarray(noisy, dtype=np.float64) @ self.columns)


def choose_windows(windows: Sequence[LineWindow], wavelength: ArrayLike) -> tuple[tuple[LineWindow, ...], list[str]]:
    """Return the windows whose line and continuum are covered by pixels, and the names of the others.

    A window is covered if it and each of its continuum bands lie within the wavelengths and hold a pixel's centre.

    Raises
    ------
    InputError
        If the wavelengths do not increase.
    """
    grid = np.asarray(wavelength, dtype=np.float64)
    if not (np.diff(grid) > 0).all():
        raise InputError("windows need wavelengths that increase; convert the spectra again, or leave the windows out")

    def is_covered(low: float, high: float) -> bool:
        return bool(grid[0] <= low and high <= grid[-1] and _inside(grid, low, high).any())

    usable = tuple(
        window for window in windows if all(is_covered(*span) for span in (_span(window), *window.continuum))
    )
    return usable, [window.name for window in windows if window not in usable]


def _span(window: LineWindow) -> tuple[float, float]:
    return window.centre - window.half_width, window.centre + window.half_width


def _inside(wavelength: FloatArray, low: float, high: float) -> NDArray[np.bool_]:
    return (wavelength >= low) & (wavelength <= high)


def _window_columns(window: LineWindow, wavelength: FloatArray) -> FloatArray:
    """Return the columns of a window, shape (P, 4); see :data:`_PER_WINDOW`."""
    inside = np.flatnonzero(_inside(wavelength, *_span(window)))
    nearest = np.argsort(np.abs(wavelength[inside] - window.centre), kind="stable")[:_CENTRAL_PIXELS]
    continuum = np.zeros(wavelength.size, dtype=bool)
    for band in window.continuum:
        continuum |= _inside(wavelength, *band)
    columns = np.zeros((wavelength.size, _PER_WINDOW))
    columns[inside, 0] = 1 / len(inside)
    columns[inside[nearest], 1] = 1 / len(nearest)
    columns[inside, 2] = np.gradient(wavelength)[inside]
    columns[continuum, 3] = 1 / continuum.sum()
    return columns


# --- The file of a feature recipe: one ``.npz``, written whole, without pickle.


FORMAT = "headroom-features"
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
    facts = {"format": FORMAT, "version": FEATURE_RECIPE_VERSION, **recipe_to_plain(recipe)}
    arrays: dict[str, Any] = {"wavelength": recipe.wavelength}
    if recipe.components is not None:
        arrays |= {name: getattr(recipe.components, name) for name in _COMPONENTS}
    write_npz(path, arrays, facts)


def read_recipe(path: Path) -> FeatureRecipe:
    """Read what :func:`write_recipe` wrote.

    Raises
    ------
    InputError
        If the file is missing, damaged or of another version.
    """

    def refuse(reason: object) -> InputError:
        return InputError(f"feature recipe {path}: cannot be read ({reason}); delete the file and run again")

    with open_npz(path, refuse, (FORMAT, FEATURE_RECIPE_VERSION)) as (facts, arrays):
        components = None
        if facts["components"]:
            components = PrincipalComponents(*(arrays[name] for name in _COMPONENTS))
        return recipe_from_plain(facts, components, arrays["wavelength"])


# --- Quality features: what the error vector says of a spectrum as a whole, for gates whose bins are over ``snr``.
#
# Pixel by pixel the error vector gives labels away (photon noise follows the flux), so nothing but these ten
# aggregates may ever be made of it, and they may route by the signal-to-noise ratio alone.

#: The column that gates on quality features may route by.
QUALITY_COLUMN = "snr"
#: The ten, in order.
QUALITY_NAMES = tuple(
    f"error_{name}" for name in ("mean", "std", "min", "max", "median", "sum", "q25", "q75", "skew", "kurtosis")
)


def quality_features(error: ArrayLike) -> FloatArray:
    """Return ten aggregates of the 1σ errors of spectra (N, P), shape (N, 10), in the order of :data:`QUALITY_NAMES`.

    Moments are those of the population: skew Σ(e−ē)³/(P σ³), kurtosis Σ(e−ē)⁴/(P σ⁴) − 3; both 0 for a constant error.
    """
    given = np.asarray(error, dtype=np.float64)
    mean, std = given.mean(axis=1), given.std(axis=1)
    z = (given - mean[:, None]) / np.where(std > 0, std, 1.0)[:, None]
    lower, median, upper = np.quantile(given, [0.25, 0.5, 0.75], axis=1)
    kurtosis = np.where(std > 0, (z**4).mean(axis=1) - 3, 0.0)
    columns = (
        mean, std, given.min(axis=1), given.max(axis=1), median, given.sum(axis=1), lower, upper,
        (z**3).mean(axis=1), kurtosis,
    )  # fmt: skip
    return np.stack(columns, axis=1)


def require_no_leak(names: Sequence[str], columns: Sequence[str]) -> None:
    """Refuse features of the error vector for bins over anything but the signal-to-noise ratio.

    Parameters
    ----------
    names
        Of the features.
    columns
        Those that the bins are over.

    Raises
    ------
    ConfigError
        If some feature is made of the error vector and the bins are not over ``snr`` alone.
    """
    of_errors = [name for name in names if name.startswith("error")]
    if of_errors and tuple(columns) != (QUALITY_COLUMN,):
        raise ConfigError(
            f"features of the error vector may route by {QUALITY_COLUMN} alone, since errors give labels away; found "
            f"{', '.join(of_errors[:3])} for bins over {', '.join(columns)}; use features of the flux"
        )


# --- Principal components of noisy training spectra, from saved moments: one task for each noise, where these are.


@dataclass(frozen=True)
class ComponentsJob:
    """The first ``n`` components of one noise's spectra, of all folds and cells."""

    moments: MomentsFolder
    n: int

    @property
    def size(self) -> int:
        """Models to solve: it takes about as long as one."""
        return 1


def find_folder_components(
    jobs: Sequence[ComponentsJob], *, client: Client | None = None, progress: Progress | None = None
) -> Iterator[tuple[int, PrincipalComponents]]:
    """Find the components of every job; yield which job, and its components, as they are done."""
    words = ("solve", "components", "finding principal components")
    yield from run_jobs(client, _find, jobs, ["components"] * len(jobs), words, progress or SilentProgress())


def _find(job: ComponentsJob, report: Callable[[int], None]) -> PrincipalComponents:
    """Find the components of one job. The body of a Dask task."""
    folds = [job.moments.open(fold) for fold in range(job.moments.n_folds)]

    def find(n: int, memory: SolveMemory) -> PrincipalComponents:
        total = MomentsSum(memory.total)
        for saved in folds:
            for cell in range(saved.n_cells):
                if saved.counts[cell]:
                    total.add(saved.read(cell, memory.content))
        return find_components(total.moments, n, memory.system)

    with solving_threads(folds[0].tiled_pixels, 1) as run:
        found: list[PrincipalComponents] = run(find, [job.n])
    report(1)
    return found[0]

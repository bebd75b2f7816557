"""The ceiling of one run, as far as it does not depend on models: spectra, their own stars, and the library's sums."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import schema
from pipeline.accumulate import available_threads
from pipeline.base import one_blas_thread, open_npz, write_npz
from pipeline.bins import BinGrid
from pipeline.config import content_hash
from pipeline.noise import Noise, NoiseDraw, test_noises
from pipeline.plan import LibraryPlan, plan_library
from pipeline.questions.ceiling.library import (
    Choice,
    LibraryJob,
    Scale,
    Spectra,
    StarReader,
    accumulate_library,
    choose_stars,
    name_cells,
    read_columns,
    refuse_file,
)
from pipeline.questions.ceiling.likelihood import (
    TOLERANCE,
    Coefficients,
    Observed,
    Origins,
    Projection,
    Star,
    bound_errors,
    describe_stars,
    measure_dense,
    measure_pairs,
    observe,
    weigh_rounding,
)
from pipeline.questions.ceiling.posterior import Sums
from pipeline.questions.question import Facts
from pipeline.store import AnyStore, sample_rows

__all__ = ["Measured", "choose_test_noise", "measure_levels"]

FloatArray = NDArray[np.float64]
#: Share of spectra and own stars that may be in doubt: with more the products are not worth their price.
_DOUBTED = 0.25
#: Spectra and stars of one product, where only its diagonal is looked at.
_PAIRS = 128
#: Standard deviations of ln p that are tried for the directions that are left out, on so many spectra at once.
_TRIED, _TRIED_AT_ONCE = (1e-3, 3e-4), 512
#: Directions are worth their price where they save so much of the product.
_WORTH = 0.7
#: Rows of the sample that follow each other.
_SAMPLE_RUN = 256


@dataclass(frozen=True, eq=False)
class Measured:
    """What the library says at one noise level of N test spectra and of H training stars that it does not hold.

    Attributes
    ----------
    rows
        Rows of the test spectra, shape (N,).
    own
        ln p of every spectrum under its own star, shape (N + H,).
    cells
        Its cell, the outside last, likewise.
    labels
        Its labels, in the unit of ``scale``, shape (N + H, Q); NaN where a test spectrum has none.
    sums
        Of the library, for N + H spectra.
    scale
        Of the labels.
    rank
        Directions in which likelihoods were formed; 0 where all pixels were.
    error
        The largest error of ln p that products have made for a spectrum and its own star, where it was not in doubt.
    """

    rows: NDArray[np.int64]
    own: FloatArray
    cells: NDArray[np.int64]
    labels: FloatArray
    sums: Sums
    scale: Scale
    rank: int
    error: float

    @property
    def n_test(self) -> int:
        """N."""
        return len(self.rows)

    def write(self, path: Path) -> None:
        """Write to one file, atomically."""
        path.parent.mkdir(exist_ok=True)
        plain = {
            one.name: np.asarray(getattr(self, one.name)) for one in fields(self) if one.name not in ("sums", "scale")
        }
        of_sums = {f"sums_{name}": own for name, own in self.sums.to_arrays().items()}
        write_npz(path, plain | of_sums | {"mean": self.scale.mean, "width": self.scale.width})

    @classmethod
    def read(cls, path: Path) -> Measured:
        """Read what :meth:`write` wrote.

        Raises
        ------
        InputError
            If the file is missing or damaged.
        """
        with open_npz(path, refuse_file(path)) as (_, arrays):
            sums = {name.removeprefix("sums_"): own for name, own in arrays.items() if name.startswith("sums_")}
            return cls(
                rows=arrays["rows"],
                own=arrays["own"],
                cells=arrays["cells"],
                labels=arrays["labels"],
                sums=Sums.from_arrays(sums),
                scale=Scale(arrays["mean"], arrays["width"]),
                rank=int(arrays["rank"]),
                error=float(arrays["error"]),
            )


def choose_test_noise(facts: Facts, noise: Noise) -> NoiseDraw | Noise:
    """Return the noise of the test spectra that the ceiling is measured with: the first that models are tested on.

    Test noise that is integrated out has no single spectra; it is drawn from the first seed.
    """
    first = test_noises(facts.settings.noise.test, noise, facts.settings.seeds, facts.test.has_noisy)[0]
    return first if first.is_single else NoiseDraw(noise.level, facts.settings.seeds[0], schema.STREAM_TEST)


def measure_levels(facts: Facts, noises: Mapping[float, Noise]) -> dict[float, str]:
    """Measure the ceiling at the levels that are not there yet; return the product of each.

    Parameters
    ----------
    facts
        Of the run.
    noises
        The training noise that stands for each level.
    """
    settings = facts.settings
    size = plan_library(settings, facts.plan.n_spectra, facts.test.n_spectra, facts.train.n_pixels)
    assert size is not None
    names = {level: f"ceiling/noise-{level!r}.npz" for level in noises}
    items = tuple((column, tuple(map(float, edges))) for column, edges in facts.grid.edges.items())
    of_size = size.stars, size.left_out, size.spectra, size.sample, size.seeks_directions
    shared = schema.CEILING_ALGORITHM, facts.plan.key, facts.test.fingerprint, items, of_size
    keys = {
        level: content_hash(
            [*shared, *(noise.identity for noise in (choose_test_noise(facts, one), one.drawn(settings.seeds[0])))]
        )
        for level, one in noises.items()
    }
    missing = [level for level in noises if not facts.products.is_made(names[level], keys[level])]
    if missing:
        prepared = _Preparation(facts, size)
        folder = facts.folder / "ceiling" / f"parts-{content_hash([keys[level] for level in missing])}"
        for other in folder.parent.glob("parts-*"):
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        measured = [prepared.make(noises[level], folder / f"spectra-{level!r}.npz") for level in missing]
        job = LibraryJob(
            spectra=tuple(str(folder / f"spectra-{level!r}.npz") for level in missing),
            folder=str(folder),
            wanted=size.stars,
            left_out=size.left_out,
            grid=items,
            scale=(tuple(prepared.scale.mean.tolist()), tuple(prepared.scale.width.tolist())),
        )
        found = accumulate_library(facts.plan, job, client=facts.client, progress=facts.progress)
        for level, known, sums in zip(missing, measured, found, strict=True):
            Measured(**known, sums=sums).write(facts.folder / names[level])
            facts.products.record(names[level], keys[level])
        shutil.rmtree(folder, ignore_errors=True)
    return names


class _Preparation:
    """The spectra of every level, with what is known of them: read once, as far as noise plays no part."""

    def __init__(self, facts: Facts, size: LibraryPlan) -> None:
        self._facts, self._seeks_directions = facts, size.seeks_directions
        n, n_chosen = facts.test.n_spectra, size.spectra - size.left_out
        self._rows = np.arange(n_chosen) * n // n_chosen
        choice: Choice = choose_stars(facts.plan.partitions, size.stars, size.left_out)
        self._left_out = choice.left_out
        runs = sample_rows(facts.train, size.sample, _SAMPLE_RUN)
        sampled = np.concatenate([np.arange(*run) for run in runs])
        self._sample = StarReader(facts.train).take_clean(sampled)
        # The own stars: of the test spectra, then of the training stars that are left out.
        self._own = [StarReader(facts.test).take_clean(self._rows), StarReader(facts.train).take_clean(self._left_out)]
        labels = facts.plan.labels
        known = read_columns(facts.train, labels, sampled)
        y = np.column_stack([known[label] for label in labels]).astype(np.float64)
        width = y.std(axis=0)
        self.scale = Scale(y.mean(axis=0), np.where(width > 0, width, 1.0))
        self._cells, self._labels = self._describe(facts.grid, labels)

    def _describe(self, grid: BinGrid, labels: tuple[str, ...]) -> tuple[NDArray[np.int64], FloatArray]:
        names = sorted({*grid.columns, *labels})
        of_test = self._facts.test.columns
        known = [
            {name: np.asarray(of_test[name])[self._rows] for name in names},
            read_columns(self._facts.train, names, self._left_out) if len(self._left_out) else {},
        ]
        cells = [name_cells(grid.assign(one), grid.n_bins) for one in known if one]
        y = [np.column_stack([one[label] for label in labels]).astype(np.float64) for one in known if one]
        return np.concatenate(cells), self.scale.apply(np.concatenate(y))

    def make(self, noise: Noise, path: Path) -> dict[str, Any]:
        """Write the spectra of one level for workers; return what :class:`Measured` holds besides the sums."""
        facts = self._facts
        noises = choose_test_noise(facts, noise), noise.drawn(facts.settings.seeds[0])
        chosen = (facts.test, self._rows), (facts.train, self._left_out)
        spectra = np.concatenate(
            [_add_noise(*one, n, *own) for one, n, own in zip(chosen, noises, self._own, strict=True)]
        )
        origins = Origins.find(noise.level, spectra, *self._sample)
        own = [np.concatenate(one) for one in zip(*self._own, strict=True)]
        observed, stars = observe(spectra, origins), describe_stars(own[0], own[1], origins)
        with one_blas_thread():
            exact = measure_pairs(observed, stars)
            found, precision = None, "float32"
            if self._seeks_directions:
                found = choose_projection(observed, stars, describe_stars(*self._sample, origins), exact)
            projection, coefficients, error = found or (None, None, 0.0)
            if projection is None:
                precision, error = choose_precision(observed, stars, exact)
        Spectra(spectra, self._cells, origins, projection, coefficients, precision).write(path)
        return {
            "rows": self._rows,
            "own": exact,
            "cells": self._cells,
            "labels": self._labels,
            "scale": self.scale,
            "rank": 0 if projection is None else projection.rank,
            "error": error,
        }


def choose_projection(
    observed: Observed, stars: Star, sample: Star, exact: FloatArray
) -> tuple[Projection, Coefficients, float] | None:
    """Return directions that are right to the tolerance, the spectra in them, and the largest error.

    The directions come from a sample of the library. They are tried on spectra and their own stars, which they have not
    seen. Pairs that are in doubt are formed anew from all pixels, so these do not count, but there may be few of them.
    Nothing is returned where pixels are as cheap.
    """
    n_factors = sum(one.shape[1] for one in observed.factors)
    for tolerance in _TRIED:
        projection = Projection.find(observed, sample, tolerance)
        if projection.rank > _WORTH * n_factors:
            break
        seen, own = _project(projection, observed, stars)
        found = seen.multiply_pairs(own) + stars.own
        error = _certify(found, exact, bound_errors(seen.doubt, own.doubt))
        if error is not None:
            return projection, seen, error
    return None


def _project(projection: Projection, observed: Observed, stars: Star) -> tuple[Coefficients, Coefficients]:
    """Return the coefficients of spectra and of as many stars, computed on all cores."""

    def project(start: int) -> tuple[Coefficients, Coefficients]:
        own = slice(start, start + _TRIED_AT_ONCE)
        return projection.project_spectra(observed.rows(own)), projection.project_stars(stars.rows(own))

    with ThreadPoolExecutor(available_threads()) as pool:
        found = pool.map(project, range(0, len(stars.own), _TRIED_AT_ONCE))
        of_spectra, of_stars = map(Coefficients.join, zip(*found, strict=True))
    return of_spectra, of_stars


def choose_precision(observed: Observed, stars: Star, exact: FloatArray) -> tuple[str, float]:
    """Return the precision in which products of all pixels are right to the tolerance, and the largest error.

    Where spectra have little noise their terms are large, and ``float32`` leaves too many pairs in doubt.
    """
    found = np.empty(len(exact))
    for start in range(0, len(exact), _PAIRS):
        own = slice(start, start + _PAIRS)
        found[own] = np.diagonal(measure_dense(observed.rows(own), stars.rows(own)))
    error = _certify(found, exact, bound_errors(weigh_rounding(observed.factors), weigh_rounding(stars.factors)))
    return ("float64", 0.0) if error is None else ("float32", error)


def _certify(found: FloatArray, exact: FloatArray, bounds: FloatArray) -> float | None:
    """Return the largest error of the pairs that are not in doubt; None if it passes the tolerance or many are."""
    sure = bounds <= TOLERANCE
    error = float(np.abs(found - exact)[sure].max(initial=0.0))
    return error if error <= TOLERANCE and sure.mean() >= 1 - _DOUBTED else None


def _add_noise(
    store: AnyStore, rows: NDArray[np.int64], noise: Noise, flux: NDArray[np.float32], error: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return rows, whose clean flux and errors are known, with exactly the noise that models see, shape (N, P)."""
    own = flux if noise.array == "flux" else StarReader(store).take(noise.array, rows)
    found = [noise.apply(own[[k]], error[[k]], int(row)) for k, row in enumerate(rows)]
    return np.asarray(np.maximum(np.concatenate([np.empty((0, store.n_pixels), np.float32), *found]), 0))

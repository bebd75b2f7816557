"""How many training stars the ceiling holds the test spectra against, and what that costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.accumulate import expect_factored
from pipeline.config import ExperimentConfig
from pipeline.noise import training_noises
from pipeline.schema import LABELS

__all__ = ["LibraryPlan", "plan_library", "run_length"]

#: ``ceiling.library: auto`` takes at least so many stars, or all.
_FEWEST_STARS = 20_000
#: Stars that the origins of likelihoods come from, and the directions that these are formed in.
_SAMPLE, _LARGE_SAMPLE = 2048, 8192
#: Fewer pixels or stars are not worth the search for directions.
_MANY_PIXELS, _MANY_STARS = 2000, 50_000
#: Stars of a library that follow each other, at most, and how many such runs it has, at least.
_LONGEST_RUN, _FEWEST_RUNS = 128, 100
#: Stars of one product.
_BLOCK = 1024
#: Most training stars that are left out of the library, to choose its temperature on.
LEFT_OUT = 1000
#: Directions that likelihoods take, and factored moments, about.
_DIRECTIONS, _RANK = 1200, 160
#: What a star costs in directions, for each of its pixels and for each spectrum; by the time that it takes, in float32
#: products (benchmarks/ceiling.py).
_OF_PIXEL, _OF_SPECTRUM = 2900.0, 1800.0
#: What sums over pairs cost beside products of pixels.
_BESIDE_PRODUCTS = 1.5
#: What the search for directions costs, and the preparation of the spectra, for each pixel of each star of the sample.
_OF_SEARCH = 50_000.0


@dataclass(frozen=True)
class LibraryPlan:
    """The size of the ceiling's products.

    Attributes
    ----------
    stars
        Training stars of the library.
    left_out
        Training stars that are left out of it.
    spectra
        Spectra that are held against it: test spectra, and the stars left out.
    sample
        Training stars that origins come from, at most, and directions.
    seeks_directions
        Whether likelihoods may be formed in the directions in which stars differ.
    flops
        Of all products, at one noise level, counted as in float32.
    read
        Stars that are read for it, which its own are among.
    worker_memory, driver_memory
        Bytes that a worker allocates for it, and the process that prepares the spectra.
    """

    stars: int
    left_out: int
    spectra: int
    sample: int
    seeks_directions: bool
    flops: float
    read: int
    worker_memory: int
    driver_memory: int

    def describe(self) -> str:
        """Return the products in words."""
        return f"{self.stars:,} stars × {self.spectra:,} spectra, {self.flops / 1e12:,.2f} Tflop for each noise level"


def plan_library(
    config: ExperimentConfig, n_train: int, n_test: int, n_pixels: int, *, chunk_rows: int = 1024
) -> LibraryPlan | None:
    """Return the library of an experiment; None where it does not ask for its ceiling.

    Parameters
    ----------
    config
        The experiment.
    n_train, n_test
        Spectra.
    n_pixels
        P.
    chunk_rows
        Spectra that the store decodes together.
    """
    if config.ceiling is None:
        return None
    n_bins = math.prod(len(edges) - 1 for edges in config.bins.values())
    left_out = min(LEFT_OUT, n_train // 10)
    spectra = min(config.ceiling.test, n_test) + left_out
    # A star is multiplied with the spectra pixel by pixel, or projected on the directions and multiplied there.
    by_pixels, by_directions = 4.0 * n_pixels * spectra, _OF_PIXEL * n_pixels + _OF_SPECTRUM * spectra
    wanted = config.ceiling.library
    if wanted == "auto":
        wanted = max(_FEWEST_STARS, _afford(config, n_train, n_pixels, by_pixels, by_directions))
    stars = n_train - left_out if wanted == "all" else min(int(wanted), n_train - left_out)
    seeks = _seeks(n_pixels, stars)
    sample = _LARGE_SAMPLE if seeks else _SAMPLE
    flops = _BESIDE_PRODUCTS * stars * by_pixels
    if seeks:
        flops = stars * by_directions + _OF_SEARCH * n_pixels * min(sample, n_train)
    # Each run is read with all that the store decodes together; some lie in two such parts.
    read = min(n_train, stars + -(-stars // run_length(stars)) * chunk_rows)
    # Of a spectrum: its noisy pixels and its factors, twice while they are read, and its sums. Of a star: pixels and
    # factors, of three blocks. Of a direction: its parts of a spectrum and of a star, likewise twice.
    pixels = 4 * n_pixels
    of_sums = 8 * (9 * (4 * (1 + len(LABELS)) + 3) + n_bins + 4)
    of_level = spectra * (4 * pixels + of_sums) + 2 * _BLOCK * pixels + 4 * _DIRECTIONS * pixels * seeks
    worker = len(config.noise.levels) * of_level + (6 * chunk_rows + 6 * _BLOCK) * pixels
    driver = (9 * spectra + 16 * min(sample, n_train)) * pixels + 2 * spectra * of_sums
    return LibraryPlan(stars, left_out, spectra, sample, seeks, flops, read, worker, driver)


def _afford(config: ExperimentConfig, n_train: int, n_pixels: int, by_pixels: float, by_directions: float) -> int:
    """Return how many stars cost as much as the pass, from the price of a star in pixels and in directions."""
    noises = training_noises(config.noise.mode, config.noise.levels, config.seeds)
    factored = len(expect_factored(noises, n_pixels, config.compute))
    of_pass = float(n_train) * n_pixels * ((len(noises) - factored) * n_pixels + factored * 2 * _RANK)
    of_level = of_pass / len(config.noise.levels)
    stars = int(of_level / by_directions)
    if _seeks(n_pixels, stars):
        return stars
    return min(int(of_level / by_pixels), _MANY_STARS - 1 if n_pixels >= _MANY_PIXELS else n_train)


def run_length(stars: int) -> int:
    """Return how many stars of a library follow each other in the training set.

    A store decodes a thousand spectra together, so a library of single stars would cost as much reading as all. With
    few runs, a part of ordered spectra would not be like all of them.
    """
    return min(_LONGEST_RUN, max(1, stars // _FEWEST_RUNS))


def _seeks(n_pixels: int, stars: int) -> bool:
    """Return whether a library is worth the search for directions."""
    return n_pixels >= _MANY_PIXELS and stars >= _MANY_STARS

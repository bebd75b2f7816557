"""How many training stars the ceiling holds the test spectra against, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import ExperimentConfig
from pipeline.noise import training_noises

__all__ = ["LibraryPlan", "plan_library"]

#: ``ceiling.library: auto`` takes at least so many stars, or all.
_FEWEST_STARS = 20_000
#: Most training stars that are left out of the library, to choose its temperature on.
LEFT_OUT = 1000
#: Directions that likelihoods and factored moments take, about; likelihoods, of so many pixels and more.
_DIRECTIONS, _RANK, _MANY_PIXELS = 1000, 160, 2000


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
    flops
        Of all products, at one noise level, counted as in float32.
    """

    stars: int
    left_out: int
    spectra: int
    flops: float


def plan_library(config: ExperimentConfig, n_train: int, n_test: int, n_pixels: int) -> LibraryPlan | None:
    """Return the library of an experiment; None where it does not ask for its ceiling.

    Parameters
    ----------
    config
        The experiment.
    n_train, n_test
        Spectra.
    n_pixels
        P.
    """
    if config.ceiling is None:
        return None
    left_out = min(LEFT_OUT, n_train // 10)
    spectra = min(config.ceiling.test, n_test) + left_out
    of_star = 4.0 * n_pixels * spectra
    if n_pixels >= _MANY_PIXELS:  # a star is projected on the directions, and multiplied with the spectra there
        of_star = 2.0 * _DIRECTIONS * (n_pixels + spectra)
    wanted = config.ceiling.library
    if wanted == "auto":
        noises = training_noises(config.noise.mode, config.noise.levels, config.seeds)
        factored = 0 if config.compute.moments == "dense" else sum(not noise.is_single for noise in noises)
        of_pass = float(n_train) * n_pixels * ((len(noises) - factored) * n_pixels + factored * 2 * _RANK)
        wanted = max(_FEWEST_STARS, int(of_pass / (of_star * len(config.noise.levels))))
    stars = n_train - left_out if wanted == "all" else min(int(wanted), n_train - left_out)
    return LibraryPlan(stars, left_out, spectra, stars * of_star)

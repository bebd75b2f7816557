"""What a sample of simulated shards consists of: its settings, and the files that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.errors import ConfigError, did_you_mean
from pipeline.schema import SAMPLE_ALGORITHM, SHARD_FILE_NAME
from pipeline.simulate.grid import fingerprint_grid
from pipeline.simulate.lines import MODEL_RANGE
from pipeline.simulate.shard import ShardPlan
from pipeline.simulate.spectra import NORMALISATION_RANGE, plan_wavelengths

__all__ = ["SampleSpec", "plan_sample", "select_plans"]

_FEWEST_PIXELS: Final = 16


@dataclass(frozen=True)
class SampleSpec:
    """What to simulate.

    Parameters
    ----------
    train
        Training spectra, spread evenly over ``shards`` files.
    shards
        Number of training shards.
    test
        Test spectra, in one file.
    pixels
        Pixels per spectrum, equally spaced over ``wave_range``.
    seed
        Same seed, same arrays, whatever the number of workers.
    grid
        A grid of model spectra (NPZ or HDF5) to interpolate in instead of the built-in model.
    wave_range
        First and last pixel edge in Å.
    """

    train: int = 20000
    shards: int = 4
    test: int = 5000
    pixels: int = 1024
    seed: int = 0
    grid: Path | None = None
    wave_range: tuple[float, float] = (7100.0, 8850.0)

    def __post_init__(self) -> None:
        for name, least in (("train", 1), ("shards", 1), ("test", 1), ("pixels", _FEWEST_PIXELS), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} must be a whole number of at least {least}, found {value!r}")
        if self.shards > self.train:
            raise ConfigError(
                f"every shard needs a spectrum, found {self.shards} shards for {self.train} training spectra; "
                f"use at most {self.train} shards"
            )
        start, stop = self.wave_range
        if not (np.isfinite([start, stop]).all() and 0 < start < stop):
            raise ConfigError(f"wave_range must be two increasing wavelengths in Å, found {start:g}, {stop:g}")
        if self.grid is None and not (MODEL_RANGE[0] <= start and stop <= MODEL_RANGE[1]):
            raise ConfigError(
                f"wave_range must lie within {MODEL_RANGE[0]:g}–{MODEL_RANGE[1]:g} Å, where the built-in model has "
                f"lines, found {start:g}–{stop:g} Å; narrow it or give a grid of model spectra"
            )
        wave, _ = plan_wavelengths(self.wave_range, self.pixels)
        if not np.any((wave >= NORMALISATION_RANGE[0]) & (wave <= NORMALISATION_RANGE[1])):
            raise ConfigError(
                f"wave_range must overlap {NORMALISATION_RANGE[0]:g}–{NORMALISATION_RANGE[1]:g} Å, where spectra are "
                f"normalised, found {start:g}–{stop:g} Å"
            )


def plan_sample(directory: Path, spec: SampleSpec) -> tuple[ShardPlan, ...]:
    """Return the files of a sample: training shards in order, then the test file. Reads nothing but the grid."""
    fingerprint: dict[str, Any] = {"model": SAMPLE_ALGORITHM, **asdict(spec), "wave_range": list(spec.wave_range)}
    fingerprint["grid"] = None if spec.grid is None else fingerprint_grid(spec.grid)

    def plan(path: Path, part: int, first: int, stop: int) -> ShardPlan:
        return ShardPlan(
            path=path / SHARD_FILE_NAME,
            fingerprint={**fingerprint, "part": part},
            part=part,
            first_id=first,
            rows=stop - first,
            pixels=spec.pixels,
            wave_range=spec.wave_range,
            seed=spec.seed,
            noisy=part == 0,
        )

    bounds = [spec.train * shard // spec.shards for shard in range(spec.shards + 1)]
    train = [
        plan(directory / "train" / f"shard_{shard}", shard + 1, bounds[shard], bounds[shard + 1])
        for shard in range(spec.shards)
    ]
    return (*train, plan(directory / "test", 0, spec.train, spec.train + spec.test))


def select_plans(directory: Path, plans: tuple[ShardPlan, ...], only: Sequence[str]) -> tuple[ShardPlan, ...]:
    """Return the plans of the files that ``only`` names by their folders, in order; all where it names none.

    Raises
    ------
    ConfigError
        If the sample has no such file.
    """
    known = {plan.path.parent.relative_to(directory).as_posix(): plan for plan in plans}
    named = [name.strip("/") for name in only]
    for name in named:
        if name not in known:
            last = len(plans) - 2
            raise ConfigError(
                f"--only must name a file of the sample, 'test' or 'train/shard_0' to 'train/shard_{last}', found "
                f"{name!r}{did_you_mean(name, known)}; correct it, or the number of --shards"
            )
    return tuple(plan for name, plan in known.items() if name in named or not named)

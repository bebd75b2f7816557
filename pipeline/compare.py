"""Finished runs held against each other: settings, R² and ΔR², and differences whose intervals keep the pairing.

Where two runs have scored the same test spectra, both are resampled alike: what a lucky resample gains in one run it
gains in the other, so the interval of the difference is far narrower than those of the runs. Where they have not, both
are resampled on their own, and the comparison says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.results import RunResults, read_results
from pipeline.scores import MERITS, SCOPES, Bootstrap, HeadroomScore, Score, interval_of, score_routed

__all__ = ["Comparison", "Difference", "Shift", "compare_runs"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Shift:
    """How much larger a figure of merit is than in the reference run, with its interval; NaN where it has no value."""

    mean: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Difference:
    """A run minus the reference run on one set of test spectra.

    Attributes
    ----------
    run
        Position of the run; the reference is run 0.
    noise_level, reference_level
        Which noise level of each; they differ only where the reference has but one, and it is another.
    scope
        ``covered`` (paired: by both runs), ``all``, or ``bin K``.
    n_test, reference_n_test
        Test spectra of each; one number where the runs are paired.
    paired
        Whether both are scored on the same spectra and the same resamples.
    merits
        R²_oracle, R²_global and ΔR² by name, run minus reference, means over seeds.
    """

    run: int
    noise_level: float
    reference_level: float
    scope: str
    n_test: int
    reference_n_test: int
    paired: bool
    merits: Mapping[str, Shift]


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare_runs` found.

    Attributes
    ----------
    names
        The runs' folders as they were given; the first is the reference.
    results
        The runs' results, in the same order.
    settings
        Rows ``(setting, value in each run)`` of all settings and facts in which the runs differ.
    differences
        Every later run minus the first, by noise level and scope.
    unpaired
        For each run, why it is not paired with the reference; empty where it is.
    bootstrap
        How differences were resampled: as the reference run's own intervals.
    """

    names: tuple[str, ...]
    results: tuple[RunResults, ...]
    settings: tuple[tuple[str, tuple[Any, ...]], ...]
    differences: tuple[Difference, ...]
    unpaired: tuple[str, ...]
    bootstrap: Bootstrap

    @property
    def target(self) -> str:
        """The label that all runs predict."""
        return str(self.results[0].summary["target"])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        runs = [
            {
                "run": name,
                "config_hash": results.metadata.get("config_hash"),
                "simulated": bool(results.metadata.get("simulated")),
                "unpaired": why or None,
                "levels": [
                    {"noise_level": level["noise_level"], "verdict": level["decision"]["verdict"], **level["scopes"]}
                    for level in results.summary["levels"]
                ],
            }
            for name, results, why in zip(self.names, self.results, self.unpaired, strict=True)
        ]
        return {
            "target": self.target,
            "runs": runs,
            "settings": [{"setting": name, "values": list(values)} for name, values in self.settings],
            "differences": [asdict(one) | {"run": self.names[one.run]} for one in self.differences],
            "bootstrap": asdict(self.bootstrap),
        }


def compare_runs(folders: Sequence[str | Path]) -> Comparison:
    """Hold finished runs against the first of them.

    Parameters
    ----------
    folders
        Two run folders or more. The same folder twice gives differences of exactly 0.

    Returns
    -------
    Comparison
        Settings that differ, and differences of the figures of merit, paired where the test spectra are the same: the
        same stores by their fingerprints, and the same true labels. ``covered`` then means covered by the bins of both
        runs, so that both are scored on the same spectra.

    Raises
    ------
    InputError
        If there are fewer than two runs, one is not finished, or they predict different labels.
    """
    if len(folders) < 2:
        raise InputError(f"at least two run folders are required, found {len(folders)}; give the runs to be compared")
    names = tuple(str(folder) for folder in folders)
    results = tuple(read_results(folder) for folder in folders)
    first = results[0]
    for name, other in zip(names, results, strict=True):
        if other.summary["target"] != first.summary["target"]:
            raise InputError(
                f"runs of one target are required, found {first.summary['target']} in {names[0]} and "
                f"{other.summary['target']} in {name}; R² of different labels cannot be compared: run one of them "
                f"with `target: {first.summary['target']}`"
            )
    settings = first.metadata["config"]["bootstrap"]
    bootstrap = Bootstrap(settings["resamples"], settings["confidence"], settings["seed"])
    unpaired = ("", *(_why_unpaired(first, other) for other in results[1:]))
    differences = [
        one
        for k, other in enumerate(results[1:], 1)
        for level, reference in _pair_levels(first, other)
        for one in _compare(k, (other, level), (first, reference), bootstrap, is_paired=not unpaired[k])
    ]
    return Comparison(names, results, tuple(_list_settings(results)), tuple(differences), unpaired, bootstrap)


@dataclass(frozen=True, eq=False)
class _Predictions:
    """What a run says of its N test spectra at one noise level, for M seeds; variances where these are means."""

    y_true: FloatArray
    bins: NDArray[np.int64]
    of_global: FloatArray
    of_oracle: FloatArray
    variances: tuple[FloatArray, FloatArray] | None

    @classmethod
    def read(cls, results: RunResults, level: float) -> _Predictions:
        frame = results.predictions
        frames = [one for _, one in frame[frame["noise_level"] == level].groupby("seed", sort=False)]
        stack = {name: np.stack([one[name].to_numpy(np.float64) for one in frames]) for name in _columns(frame)}
        variances = None
        if "y_global_std" in stack:
            variances = (stack["y_global_std"] ** 2, stack["y_oracle_std"] ** 2)
        y_true, bins = (frames[0][name].to_numpy() for name in ("y_true", "bin"))
        return cls(y_true, bins, stack["y_global"], stack["y_oracle"], variances)

    def score(self, bins: NDArray[np.int64], n_bins: int, bootstrap: Bootstrap) -> list[HeadroomScore]:
        """Score every seed; ``bins`` say which spectra are resampled together, and which are covered."""
        return score_routed(self.y_true, self.of_global, self.of_oracle, bins, n_bins, bootstrap, self.variances)


def _columns(frame: pd.DataFrame) -> list[str]:
    return [name for name in ("y_global", "y_oracle", "y_global_std", "y_oracle_std") if name in frame]


def _why_unpaired(first: RunResults, other: RunResults) -> str:
    """Return why two runs' test spectra are not the same, or nothing."""
    stores = [one.metadata["stores"]["test"]["fingerprint"] for one in (first, other)]
    if stores[0] != stores[1]:
        return f"other test spectra: fingerprint {stores[1]}, and {stores[0]} in the first run"
    ours, theirs = (_Predictions.read(one, one.summary["levels"][0]["noise_level"]).y_true for one in (first, other))
    return "" if np.array_equal(ours, theirs) else "the test stores are the same, but their true labels are not"


def _pair_levels(first: RunResults, other: RunResults) -> list[tuple[float, float]]:
    """Return which noise levels of a run are held against which of the reference run."""
    ours, theirs = ([level["noise_level"] for level in one.summary["levels"]] for one in (first, other))
    if len(ours) == len(theirs) == 1:
        return [(theirs[0], ours[0])]
    return [(level, level) for level in theirs if level in ours]


def _compare(
    run: int, one: tuple[RunResults, float], other: tuple[RunResults, float], bootstrap: Bootstrap, *, is_paired: bool
) -> Iterable[Difference]:
    """Return a run minus the reference run at one noise level of each."""
    ours, theirs = _Predictions.read(*one), _Predictions.read(*other)
    has_same_bins = _bins_of(one[0]) == _bins_of(other[0])
    if is_paired and not has_same_bins:
        # Covered by both, resampled as one: other bins have no strata in common.
        common = np.where((ours.bins >= 0) & (theirs.bins >= 0), 0, -1)
        if not (common >= 0).any():
            return
        scores = [side.score(common, 1, bootstrap) for side in (ours, theirs)]
    else:
        # On their own, they must not be resampled alike.
        apart = bootstrap if is_paired else replace(bootstrap, seed=bootstrap.seed + 1)
        scores = [
            side.score(side.bins, _count_bins(results), settings)
            for side, results, settings in ((ours, one[0], apart), (theirs, other[0], bootstrap))
        ]
    sets = [(name, [[score.scope(name) for score in side] for side in scores]) for name in SCOPES]
    if has_same_bins:
        numbers = range(_count_bins(one[0]))
        sets += [(f"bin {k}", [[score.bins[k] for score in side] for side in scores]) for k in numbers]
    for scope, (of_run, of_reference) in sets:
        shifts = _subtract(of_run, of_reference, bootstrap.confidence)
        n_test, reference_n_test = of_run[0].n_test, of_reference[0].n_test
        yield Difference(run, one[1], other[1], scope, n_test, reference_n_test, is_paired, shifts)


def _subtract(ours: Sequence[Score], theirs: Sequence[Score], confidence: float) -> dict[str, Shift]:
    """Return the difference of means over seeds, and the interval of the resamples' differences."""
    means = [np.mean([score.merits for score in side], axis=0) for side in (ours, theirs)]
    resampled = [np.mean([score.resampled for score in side], axis=0) for side in (ours, theirs)]
    shift, shifts = means[0] - means[1], resampled[0] - resampled[1]
    return {merit: Shift(float(shift[k]), *interval_of(shifts[:, k], confidence)) for k, merit in enumerate(MERITS)}


def _bins_of(results: RunResults) -> list[tuple[str, tuple[float, ...]]]:
    """Return columns and edges in the order that numbers the bins."""
    bins = results.metadata["config"]["bins"]
    return [(column, tuple(bins[column])) for column in results.metadata["bin_columns"]]


def _count_bins(results: RunResults) -> int:
    return math.prod(len(edges) - 1 for _, edges in _bins_of(results))


def _list_settings(results: Sequence[RunResults]) -> list[tuple[str, tuple[Any, ...]]]:
    """Return the settings and facts in which runs differ."""
    flat = [_flatten(one.metadata["config"]) | _facts(one) for one in results]
    names = list(dict.fromkeys(name for one in flat for name in one))
    rows = [(name, tuple(one.get(name) for one in flat)) for name in names]
    return [(name, values) for name, values in rows if any(value != values[0] for value in values[1:])]


def _facts(results: RunResults) -> dict[str, Any]:
    """Return what a run is made of besides its settings."""
    metadata = results.metadata
    facts = {
        f"{role} spectra ({what})": metadata["stores"][role][key]
        for role in ("train", "test")
        for what, key in (("number", "n_spectra"), ("pixels", "n_pixels"), ("fingerprint", "fingerprint"))
    }
    facts["simulated"] = bool(metadata.get("simulated"))
    facts |= {f"version of {name}": version for name, version in metadata.get("versions", {}).items()}
    return facts | {"git commit": metadata.get("git_commit")}


def _flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Return nested settings by dotted names; lists stay whole."""
    if not isinstance(value, dict) or not value:
        return {name: value}
    return {
        key: item
        for part, inner in value.items()
        for key, item in _flatten(inner, f"{name}.{part}" if name else part).items()
    }

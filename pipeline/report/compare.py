"""Finished runs held against each other: settings, R² and ΔR², and differences whose intervals keep the pairing.

Where two runs have scored the same test spectra, both are resampled alike: what a lucky resample gains in one run it
gains in the other, so the interval of the difference is far narrower than those of the runs. Where they have not, both
are resampled on their own, and the comparison says so.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline import schema
from pipeline.base import PathLike, list_paths, open_regular, replacing
from pipeline.bins import BinGrid
from pipeline.errors import InputError
from pipeline.report.interactive import read_asset
from pipeline.report.page import open_templates
from pipeline.scoring import (
    DELTA_R2,
    MERITS,
    R2_ORACLE,
    SCOPES,
    WITHHELD,
    Bootstrap,
    HeadroomScore,
    RunResults,
    Score,
    interval_of,
    read_results,
    score_routed,
)

__all__ = [
    "Comparison",
    "Difference",
    "Ranking",
    "Shift",
    "compare_runs",
    "describe_difference",
    "describe_ranking",
    "format_setting",
    "list_merits",
    "list_settings",
    "list_withheld",
    "name_scope",
    "write_page",
]

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
class Ranking:
    """Which run's experts are best at one noise level, on covered spectra.

    Attributes
    ----------
    noise_level
        Of the reference run.
    order
        The runs' positions by R²_oracle, the best first. Every run is measured against the reference run on spectra
        that both cover.
    behind
        For every run after the best one its R²_oracle minus the best one's, with its interval; in the same order.
    """

    noise_level: float
    order: tuple[int, ...]
    behind: tuple[Shift, ...]

    @property
    def level_with_the_best(self) -> list[int]:
        """Runs that are not shown to be worse than the best one."""
        return [run for run, shift in zip(self.order[1:], self.behind, strict=True) if not shift.high < 0]


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
    rankings
        Which run is best, for every noise level of the reference that all runs have.
    unpaired
        For each run, why it is not paired with the reference; empty where it is.
    bootstrap
        How differences were resampled: as the reference run's own intervals.
    """

    names: tuple[str, ...]
    results: tuple[RunResults, ...]
    settings: tuple[tuple[str, tuple[Any, ...]], ...]
    differences: tuple[Difference, ...]
    rankings: tuple[Ranking, ...]
    unpaired: tuple[str, ...]
    bootstrap: Bootstrap

    def __repr__(self) -> str:
        return f"Comparison({', '.join(self.names)}; {len(self.differences)} differences to {self.names[0]})"

    @property
    def target(self) -> str:
        """The label that all runs predict."""
        return self.results[0].summary.target

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        runs = [
            {
                "run": name,
                "config_hash": results.metadata.get("config_hash"),
                "simulated": bool(results.metadata.get("simulated")),
                "unpaired": why or None,
                "levels": [
                    {
                        "noise_level": level.noise_level,
                        "verdict": level.decision.verdict,
                        **{name: scope.to_dict() for name, scope in level.scopes.items()},
                    }
                    for level in results.summary.levels
                ],
            }
            for name, results, why in zip(self.names, self.results, self.unpaired, strict=True)
        ]
        return {
            "target": self.target,
            "runs": runs,
            "settings": [{"setting": name, "values": list(values)} for name, values in self.settings],
            "rankings": [asdict(one) | {"order": [self.names[run] for run in one.order]} for one in self.rankings],
            "differences": [asdict(one) | {"run": self.names[one.run]} for one in self.differences],
            "bootstrap": asdict(self.bootstrap),
        }


def compare_runs(folders: PathLike | Sequence[PathLike], names: Sequence[str] = ()) -> Comparison:
    """Hold finished runs against the first of them.

    Parameters
    ----------
    folders
        Two run folders or more. The same folder twice gives differences of exactly 0.
    names
        What to call the runs; their folders by default.

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
    folders = list_paths(folders)
    if len(folders) < 2:
        raise InputError(f"at least two run folders are required, found {len(folders)}; give the runs to be compared")
    names = tuple(names) or tuple(str(folder) for folder in folders)
    if len(names) != len(folders):
        raise InputError(f"names: one for each of the {len(folders)} runs is required, found {len(names)}")
    results = tuple(read_results(folder) for folder in folders)
    first = results[0]
    for name, other in zip(names, results, strict=True):
        if other.summary.target != first.summary.target:
            raise InputError(
                f"runs of one target are required, found {first.summary.target} in {names[0]} and "
                f"{other.summary.target} in {name}; R² of different labels cannot be compared: run one of them "
                f"with `target: {first.summary.target}`"
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
    rankings = tuple(_rank(results, differences, bootstrap))
    return Comparison(names, results, tuple(_list_settings(results)), tuple(differences), rankings, unpaired, bootstrap)


def _rank(results: Sequence[RunResults], differences: Sequence[Difference], bootstrap: Bootstrap) -> Iterator[Ranking]:
    """Order the runs by R²_oracle, and hold the best one against every other."""
    for level in (one.noise_level for one in results[0].summary.levels):
        found = {one.run: one for one in differences if one.scope == SCOPES[0] and one.reference_level == level}
        if len(found) < len(results) - 1:
            continue
        levels = {0: level} | {run: one.noise_level for run, one in found.items()}
        ahead = {0: 0.0} | {run: one.merits[R2_ORACLE.name].mean for run, one in found.items()}
        if not all(math.isfinite(value) for value in ahead.values()):
            continue
        order = sorted(ahead, key=lambda run: (-ahead[run], run))
        best, behind = order[0], []
        for run in order[1:]:
            is_paired = not _why_unpaired(results[best], results[run])
            pair = ((results[run], levels[run]), (results[best], levels[best]))
            one = next(iter(_compare(run, *pair, bootstrap, is_paired=is_paired)), None)
            behind.append(one.merits[R2_ORACLE.name] if one is not None else Shift(math.nan, math.nan, math.nan))
        yield Ranking(level, tuple(order), tuple(behind))


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
    ours, theirs = (_Predictions.read(one, one.summary.levels[0].noise_level).y_true for one in (first, other))
    return "" if np.array_equal(ours, theirs) else "the test stores are the same, but their true labels are not"


def _pair_levels(first: RunResults, other: RunResults) -> list[tuple[float, float]]:
    """Return which noise levels of a run are held against which of the reference run."""
    ours, theirs = ([level.noise_level for level in one.summary.levels] for one in (first, other))
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
    return {
        merit.name: Shift(float(shift[k]), *interval_of(shifts[:, k], confidence)) for k, merit in enumerate(MERITS)
    }


def _bins_of(results: RunResults) -> list[tuple[str, tuple[float, ...]]]:
    """Return columns and edges in the order that numbers the bins."""
    bins = results.metadata["config"]["bins"]
    return [(column, tuple(bins[column])) for column in results.metadata["bin_columns"]]


def _count_bins(results: RunResults) -> int:
    return math.prod(len(edges) - 1 for _, edges in _bins_of(results))


def _list_settings(results: Sequence[RunResults]) -> list[tuple[str, tuple[Any, ...]]]:
    """Return the settings and facts in which runs differ.

    A question that a run does not ask is one row: its settings tell nothing more, unless other runs differ in them.
    """
    flat = [_flatten(one.metadata["config"]) | _facts(one) for one in results]
    names = list(dict.fromkeys(name for one in flat for name in one))
    absent = {name for one in flat for name, value in one.items() if value is None}
    within = {name: section for name in names for section in absent if name.startswith(f"{section}.")}
    rows: dict[str, tuple[Any, ...]] = {}
    for name in names:
        section = within.get(name)
        if section is None:
            rows.setdefault(name, tuple(one.get(name) for one in flat))
            continue
        rows[section] = tuple("asked" if any(key.startswith(f"{section}.") for key in one) else None for one in flat)
        asked = [one.get(name) for one, value in zip(flat, rows[section], strict=True) if value]
        if any(value != asked[0] for value in asked):
            rows[name] = tuple(one.get(name) for one in flat)
    return [(name, values) for name, values in rows.items() if any(value != values[0] for value in values[1:])]


def _facts(results: RunResults) -> dict[str, Any]:
    """Return what a run is made of besides its settings."""
    metadata = results.metadata
    facts = {
        f"{role} spectra ({what})": _short(metadata["stores"][role][key])
        for role in ("train", "test")
        for what, key in (("number", "n_spectra"), ("pixels", "n_pixels"), ("fingerprint", "fingerprint"))
    }
    facts["simulated"] = bool(metadata.get("simulated"))
    facts |= {f"version of {name}": version for name, version in metadata.get("versions", {}).items()}
    return facts | {"git commit": metadata.get("git_commit")}


def _short(value: Any) -> Any:
    """Return enough of a fingerprint to tell stores apart, so that a table has room for it."""
    return value[:12] if isinstance(value, str) else value


def _flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Return nested settings by dotted names; lists stay whole."""
    if not isinstance(value, dict) or not value:
        return {name: value}
    return {
        key: item
        for part, inner in value.items()
        for key, item in _flatten(inner, f"{name}.{part}" if name else part).items()
    }


# --- A comparison of runs in words and as one HTML page that opens anywhere, without scripts and without a network.


_WIDTH, _ROW, _MARGIN = 360, 26, 8
_LONGEST = 200


def format_setting(value: Any) -> str:
    """Return a setting as a cell of a table."""
    if value is None:
        return "–"
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


def list_merits(comparison: Comparison, scope: str = "covered") -> list[tuple[str, ...]]:
    """Return a row per run and noise level: number and name of the run, level, spectra, R², ΔR², interval, verdict.

    The intervals are those of the runs themselves.
    """
    rows: list[tuple[str, ...]] = []
    for number, (name, results) in enumerate(zip(comparison.names, comparison.results, strict=True), 1):
        for level in results.summary.levels:
            one = level.scopes[scope]
            low, high = (DELTA_R2.format(end, digits=3) for end in (one.delta_r2.low, one.delta_r2.high))
            rows.append(
                (
                    f"{number}",
                    name,
                    f"{level.noise_level:g}",
                    f"{one.n_train:,}",
                    f"{one.n_test:,}",
                    *(merit.format(one.merit(merit).mean, digits=3) for merit in MERITS),
                    f"{low} to {high}",
                    level.decision.verdict,
                )
            )
    return rows


def list_withheld(comparison: Comparison) -> list[str]:
    """Return a sentence for each verdict that is withheld: of which run, and why."""
    return [
        f"{name}, noise level {level.noise_level:g}: {level.decision.sentence}"
        for name, results in zip(comparison.names, comparison.results, strict=True)
        for level in results.summary.levels
        if level.decision.verdict == WITHHELD.words
    ]


def describe_ranking(comparison: Comparison, one: Ranking) -> str:
    """Return in a sentence which run is best."""
    names, confidence = comparison.names, f"{comparison.bootstrap.confidence:.0%}"
    best, level = one.order[0], f"At noise level {one.noise_level:g}"
    if len({result.summary.headline.noise_level for result in comparison.results}) > 1:
        level = "Each at its own noise level"
    equal = one.level_with_the_best
    if equal:
        shown = ", ".join(names[run] for run in equal[:_MOST_NAMED])
        more = f" and {len(equal) - _MOST_NAMED} more" if len(equal) > _MOST_NAMED else ""
        worse = len(one.behind) - len(equal)
        rest = f" Shown to be worse: {worse} of {len(names)} runs." if worse else ""
        return (
            f"{level}, {names[best]} has the highest R²_oracle on covered spectra, but no difference to {shown}{more} "
            f"is shown ({confidence} intervals).{rest}"
        )
    nearest = one.behind[0]
    ahead = Shift(-nearest.mean, -nearest.high, -nearest.low)
    return (
        f"{level}, {names[best]} is best: its R²_oracle on covered spectra is higher than that of "
        f"{names[one.order[1]]}, the next one, by {DELTA_R2.format(ahead.mean, digits=3)} ({confidence} interval "
        f"{format_interval(ahead)})."
    )


#: Runs that a sentence names, and runs that a table of settings has columns for, at most.
_MOST_NAMED, _MOST_COLUMNS = 3, 4
#: Letters of a run's name as a heading; a longer one is told by its number.
_LONGEST_HEADING = 24


def list_settings(comparison: Comparison) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return what differs as a table: its header, and its rows.

    A few runs have a column each, under their numbers where their names are long. With more of them, a row is one value
    of a setting, and the runs that have it.
    """
    rows: list[tuple[str, ...]] = []
    if len(comparison.names) <= _MOST_COLUMNS:
        rows += [(name, *map(format_setting, values)) for name, values in comparison.settings]
        names = (name if len(name) <= _LONGEST_HEADING else f"run {k}" for k, name in enumerate(comparison.names, 1))
        return ("setting", *names), rows
    for name, values in comparison.settings:
        shown = [format_setting(value) for value in values]
        for k, value in enumerate(dict.fromkeys(shown)):
            runs = ", ".join(str(number) for number, own in enumerate(shown, 1) if own == value)
            rows.append((name if k == 0 else "", value, runs))
    return ("setting", "value", "runs, by number"), rows


def describe_difference(comparison: Comparison, one: Difference) -> str:
    """Return a difference of headrooms as a sentence."""
    shift, confidence = one.merits["delta_r2"], f"{comparison.bootstrap.confidence:.0%}"
    run, reference = (comparison.names[k] for k in (one.run, 0))
    levels = f" (noise level {one.noise_level:g})"
    if one.noise_level != one.reference_level:
        levels = f" (noise level {one.noise_level:g} against {one.reference_level:g})"
    if not shift.low <= shift.high:
        return f"{run} against {reference}{levels}: ΔR² has no interval, since too few spectra can be scored."
    how = (
        f"paired, on the same {one.n_test:,} test spectra"
        if one.paired
        else f"unpaired, on {one.n_test:,} and {one.reference_n_test:,} test spectra"
    )
    verdict = "the interval leaves zero out" if shift.is_clear else "the interval holds zero: no difference is shown"
    if shift == Shift(0.0, 0.0, 0.0):
        verdict = "the predictions gain the same"
    return (
        f"{run} against {reference}{levels}: ΔR² differs by {DELTA_R2.format(shift.mean, digits=3)} "
        f"({confidence} interval {format_interval(shift)}, {how}); {verdict}."
    )


def name_scope(comparison: Comparison, scope: str) -> str:
    """Return a scope as people read it: a bin with the names of its intervals."""
    if not scope.startswith("bin "):
        return scope
    metadata = comparison.results[0].metadata
    config = metadata["config"]
    edges = {column: config["bins"][column] for column in metadata["bin_columns"]}
    number = int(scope.removeprefix("bin "))
    return f"{number}: {', '.join(BinGrid(edges, config.get('bin_names') or None).bin_names[number])}"


def format_interval(shift: Shift) -> str:
    """Return an interval as words."""
    return f"{DELTA_R2.format(shift.low, digits=3)} to {DELTA_R2.format(shift.high, digits=3)}"


def write_page(comparison: Comparison, path: Path, title: str = "") -> None:
    """Write the comparison as one HTML file; the same comparison gives the same bytes.

    Raises
    ------
    InputError
        If something is at the path that is no such page.
    ResourceError
        If the file cannot be written.
    """
    _require_free(path)
    text = (
        open_templates()
        .get_template("compare.html.j2")
        .render(
            style=read_asset("report.css"),
            title=title,
            target=schema.COLUMN_SYMBOLS.get(comparison.target, comparison.target),
            names=comparison.names,
            confidence=f"{comparison.bootstrap.confidence:.0%}",
            simulated=[
                name
                for name, results in zip(comparison.names, comparison.results, strict=True)
                if results.metadata.get("simulated")
            ],
            best=[describe_ranking(comparison, one) for one in comparison.rankings],
            sentences=[
                describe_difference(comparison, one) for one in comparison.differences if one.scope == "covered"
            ],
            unpaired=[f"{name}: {why}" for name, why in zip(comparison.names, comparison.unpaired, strict=True) if why],
            withheld=list_withheld(comparison),
            merits=[(scope, list_merits(comparison, scope)) for scope in ("covered", "all")],
            blocks=_list_blocks(comparison),
            settings=list_settings(comparison),
        )
    )
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


#: What a page of this module begins with; the template has it.
_MARK = b'<meta name="generator" content="headroom compare">'
_BEGINNING = 1000


def _require_free(path: Path) -> None:
    """Refuse a path where something else lies than an older comparison."""
    if not os.path.lexists(path):
        return
    try:
        with open(path, "rb", opener=open_regular) as stream:
            is_own = _MARK in stream.read(_BEGINNING)
    except OSError:
        is_own = False
    if not is_own:
        raise InputError(
            f"--out {path}: only an older comparison may be replaced, found something else; choose another name"
        )


@dataclass(frozen=True)
class _Bar:
    """An interval as a drawing has it: where its ends and its middle lie, in pixels, and what it is about."""

    label: str
    words: str
    y: int
    low: float
    middle: float
    high: float
    is_clear: bool


@dataclass(frozen=True)
class _Block:
    """The differences of one run at one noise level: a table, and intervals on one axis."""

    title: str
    rows: Sequence[tuple[str, ...]]
    bars: Sequence[_Bar]
    zero: float
    width: int
    height: int
    reach: str


def _list_blocks(comparison: Comparison) -> list[_Block]:
    groups: dict[tuple[int, float, float], list[Difference]] = {}
    for one in comparison.differences:
        groups.setdefault((one.run, one.noise_level, one.reference_level), []).append(one)
    return [_make_block(comparison, key, found) for key, found in groups.items()]


def _make_block(comparison: Comparison, key: tuple[int, float, float], found: Sequence[Difference]) -> _Block:
    run, level, reference = key
    at = f"noise level {level:g}" if level == reference else f"noise level {level:g} against {reference:g}"
    shown = [(name_scope(comparison, one.scope), one, one.merits["delta_r2"]) for one in found]
    ends = [abs(end) for _, _, shift in shown for end in (shift.low, shift.high) if end == end]
    reach = max([*ends, 1e-3])
    middle = _WIDTH / 2

    def place(value: float) -> float:
        return round(middle + value / reach * (middle - _MARGIN), 1)

    bars = [
        _Bar(
            name,
            f"{name}: {DELTA_R2.format(shift.mean, digits=3)}, {format_interval(shift)}",
            _ROW * k + _ROW // 2,
            place(shift.low),
            place(shift.mean),
            place(shift.high),
            shift.is_clear,
        )
        for k, (name, _, shift) in enumerate(shown)
        if shift.low <= shift.high
    ]
    rows = [
        (
            name,
            f"{one.n_test:,}" if one.paired else f"{one.n_test:,} / {one.reference_n_test:,}",
            "paired" if one.paired else "unpaired",
            *(DELTA_R2.format(one.merits[merit.name].mean, digits=3) for merit in MERITS),
            format_interval(shift),
        )
        for name, one, shift in shown
    ]
    title = f"{comparison.names[run]} minus {comparison.names[0]}, {at}"
    return _Block(title, rows, bars, middle, _WIDTH, _ROW * len(shown), f"{reach:.3f}")

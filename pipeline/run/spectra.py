"""The train and test spectra of an experiment: found, checked against each other, converted if needed.

Whatever can be wrong is looked for in headers and labels first, before hours of conversion or accumulation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import schema
from pipeline.base import Progress, SubjectProgress
from pipeline.bins import OUTSIDE, BinGrid, Binning, CellGrid, keep_rows, plan_binnings, quantile_edges
from pipeline.config import DataConfig, ExperimentConfig, Quantiles, content_hash
from pipeline.convert import convert_shards, find_converted, find_sources, read_source_info
from pipeline.errors import InputError, did_you_mean
from pipeline.questions import list_needs
from pipeline.schema import SHARD_FILE_NAME
from pipeline.shards import ShardInfo
from pipeline.store import (
    AnyStore,
    cut_block,
    find_kept,
    find_left_out,
    flux_exponent,
    is_store,
    match_shards,
    open_stores,
    plan_layout,
    require_same_wavelengths,
    select_shards,
)

__all__ = [
    "SetHeader",
    "SpectraSets",
    "check_addition",
    "check_headers",
    "find_stores_of",
    "fix_edges",
    "open_or_convert",
    "open_spectra_sets",
    "read_header",
    "read_headers",
    "require_disjoint",
    "require_new",
    "resolve_binnings",
]


Blocks = Iterator[tuple[int, Mapping[str, NDArray[Any]]]]


@dataclass(frozen=True, eq=False)
class SetHeader:
    """What is known of a set of spectra without its pixels, from a store or from the headers of shards.

    Attributes
    ----------
    role
        ``train`` or ``test``.
    name
        How messages call it.
    shard_lengths
        Spectra in each shard.
    wavelength
        Shape (P,), Å.
    column_names
        Names of the per-spectrum columns.
    iter_columns
        Given names, yields (first row, columns) for one block of rows after the other, so that checks need no memory
        for each spectrum; of shards, only the columns that the checks are about.
    chunk_rows
        Spectra that the store decodes together, or will.
    unconverted_bytes
        Upper bound of the store that is still to be written; 0 if there is one.
    flagged_pixels
        Pixels that a mask flags; 0 before conversion.
    left_out
        Numbers of the shards that ``data.exclude`` leaves out; their rows are counted, their columns not given.
    kept
        The ranges of rows that are used.
    shards
        All that was read of the shards, so that the conversion need not read it again; none of a store.
    sources
        Fingerprint and name of each shard, also of those that a store was converted from.
    """

    role: str
    name: str
    shard_lengths: tuple[int, ...]
    wavelength: NDArray[np.float64]
    column_names: tuple[str, ...]
    iter_columns: Callable[[Sequence[str]], Blocks]
    chunk_rows: int
    unconverted_bytes: int = 0
    flagged_pixels: int = 0
    left_out: tuple[int, ...] = ()
    kept: tuple[tuple[int, int], ...] = ()
    shards: tuple[ShardInfo, ...] = ()
    sources: tuple[tuple[str, str], ...] = ()

    @property
    def n_spectra(self) -> int:
        """Spectra that are used."""
        return sum(stop - start for start, stop in self.kept)

    @classmethod
    def of_store(cls, role: str, store: AnyStore) -> SetHeader:
        """Describe a store, or several as one."""
        return cls(
            role,
            store.name,
            store.shard_lengths,
            store.wavelength,
            tuple(store.columns),
            store.iter_columns,
            store.chunk_rows,
            flagged_pixels=store.flagged_pixels,
            left_out=find_left_out(store),
            kept=find_kept(store),
            sources=tuple((source.fingerprint, source.name) for source in store.sources),
        )

    @classmethod
    def of_shards(cls, role: str, shards: Sequence[Path], config: ExperimentConfig) -> SetHeader:
        """Describe shards that are to become a store; whether they fit together is the conversion's to check."""
        infos = tuple(map(read_source_info, shards))
        first, lengths = infos[0], tuple(info.n_spectra for info in infos)
        names = tuple(name for name in first.columns if all(name in info.columns for info in infos))
        arrays = 3 if any(info.has_noisy for info in infos) else 2
        names_of = ["/".join(info.path.parts[-2:]) for info in infos]  # as a store calls them
        left_out = match_shards(config.data.exclude if role == "train" else (), names_of)
        kept = keep_rows(lengths, left_out, config.data.spectra if role == "train" else None)
        made = is_store(_store_path(role, [info.fingerprint for info in infos], config.data))

        def iter_columns(names: Sequence[str]) -> Blocks:
            start = 0
            for k, info in enumerate(infos):
                if k not in left_out:
                    yield from cut_block(start, {name: info.columns[name] for name in names}, kept)
                start += info.n_spectra

        return cls(
            role,
            _name_source(first.path) if len(infos) == 1 else f"{len(infos)} shards",
            lengths,
            first.wavelength,
            names,
            iter_columns,
            plan_layout(max(sum(lengths), 1), first.n_pixels, None, None).chunk_rows,
            0 if made else sum(lengths) * first.n_pixels * arrays * 4,
            left_out=left_out,
            kept=kept,
            shards=infos,
            sources=tuple((info.fingerprint, name) for info, name in zip(infos, names_of, strict=True)),
        )


@dataclass(frozen=True)
class SpectraSets:
    """The stores of an experiment."""

    train: AnyStore
    test: AnyStore

    def scaled(self, exponent: int) -> SpectraSets:
        """Return the same stores with all flux and errors times 2^exponent of what their files hold."""
        return SpectraSets(self.train.scaled(exponent), self.test.scaled(exponent))

    @property
    def headers(self) -> tuple[SetHeader, SetHeader]:
        """Train and test without their pixels."""
        return SetHeader.of_store("train", self.train), SetHeader.of_store("test", self.test)


def read_headers(config: ExperimentConfig) -> tuple[SetHeader, SetHeader]:
    """Describe train and test from stores, or from the headers of shards; converts nothing.

    Raises
    ------
    InputError
        If a source is missing or broken.
    """
    return read_header("train", config), read_header("test", config)


def read_header(role: str, config: ExperimentConfig) -> SetHeader:
    """Describe the spectra of one role, see :func:`read_headers`."""
    sources = config.data.train if role == "train" else config.data.test
    if stores := find_stores_of(role, sources):
        of_train = (config.data.exclude, config.data.spectra) if role == "train" else ((), None)
        return SetHeader.of_store(role, select_shards(open_stores(stores), *of_train))
    return SetHeader.of_shards(role, find_sources(sources, Path.cwd()), config)


def check_headers(train: SetHeader, test: SetHeader, config: ExperimentConfig) -> list[str]:
    """Check that train and test fit each other and the configuration; return what a reader should know.

    Raises
    ------
    InputError
        If wavelengths differ, test spectra occur in train, a column of the bins is missing, or a bin has too few
        spectra.
    """
    _require_same_wavelengths(train, test)
    grid = BinGrid(config.bins, config.bin_names)
    warnings = _require_scorable(train, test, grid, config)
    for name, cuts in config.further_grids.items():
        for header in (train, test):
            _require_columns(header, name, cuts)
    if not config.data.allow_overlap:
        warnings += require_disjoint(train, test)
    for header in (train, test):
        if header.flagged_pixels:
            warnings.append(
                f"{header.flagged_pixels:,} pixels of {header.name} are flagged by their mask and used all the same"
            )
    if config.precision == "float32" and 0 in config.noise.levels:
        warnings.append(
            "noise level 0 in float32: without noise the pixels are nearly collinear, and predictions may differ by "
            "about 1e-4 from float64; set precision: float64 to be exact"
        )
    return warnings


def check_addition(train: SetHeader, test: SetHeader, new: SetHeader, config: ExperimentConfig) -> None:
    """Check that spectra fit a training set that they are to join, before they are converted.

    Raises
    ------
    InputError
        If wavelengths differ, a column of the bins is missing, or spectra occur in train or test already.
    """
    for header in (train, test):
        _require_same_wavelengths(new, header)
    grids: dict[str, Mapping[str, Any]] = {"bins": config.bins, **config.further_grids}
    for name, cuts in grids.items():
        _require_columns(new, name, cuts)
    if not config.data.allow_overlap:
        require_disjoint(new, test)
        require_new(train, new)


def _require_columns(header: SetHeader, name: str, cuts: Mapping[str, Any]) -> None:
    for column in cuts:
        if column not in header.column_names:
            raise InputError(
                f"{name} uses the column {column!r}, which {header.name} does not have"
                f"{did_you_mean(column, header.column_names)}; present: {', '.join(header.column_names)}"
            )


def open_spectra_sets(
    data: DataConfig, headers: Iterable[SetHeader], progress: Progress, workers: int | None = None
) -> SpectraSets:
    """Open the train and test stores, converting shards that have no store yet; leave out what is excluded.

    Both are read in the flux unit that the training set gives, see :func:`pipeline.store.joined.flux_exponent`.
    ``headers`` are those of :func:`read_headers`; shards are not read again for what these know.
    """
    train, test = (
        open_or_convert(sources, header, data, progress, workers)
        for sources, header in zip((data.train, data.test), headers, strict=True)
    )
    return SpectraSets(select_shards(train, data.exclude, data.spectra), test).scaled(flux_exponent(train))


def find_stores_of(role: str, sources: Sequence[str]) -> tuple[Path, ...]:
    """Return the stores that a configuration names; none if it names shards."""
    try:
        return find_converted(sources)
    except InputError as error:
        raise InputError(f"data.{role}: {error}") from None


def _store_path(role: str, fingerprints: Sequence[str], data: DataConfig) -> Path:
    # Other shards get another store, and experiments on the same shards share one; the fingerprints only sample the
    # pixels, so conversion compares the rest where a shard's time stamp changed.
    return Path(data.stores) / f"{role}-{content_hash([list(fingerprints), data.nonfinite])}.zarr"


def open_or_convert(
    sources: Sequence[str], header: SetHeader, data: DataConfig, progress: Progress, workers: int | None
) -> AnyStore:
    """Open the stores that a header describes, or convert its shards to one below ``data.stores``.

    Raises
    ------
    InputError
        If any of them is missing or broken.
    """
    if not header.shards:
        return open_stores(find_stores_of(header.role, sources))
    path = _store_path(header.role, [info.fingerprint for info in header.shards], data)
    told = SubjectProgress(progress, header.role)
    return convert_shards(header.shards, path, workers=workers, nonfinite=data.nonfinite, progress=told)


def _require_same_wavelengths(train: SetHeader, test: SetHeader) -> None:
    names = f"train ({train.name})", f"{test.role} ({test.name})"
    remedy = "the models need one wavelength grid, so give spectra of one arm and resolution"
    require_same_wavelengths(names[0], train.wavelength, names[1], test.wavelength, remedy)


def _require_scorable(train: SetHeader, test: SetHeader, grid: BinGrid, config: ExperimentConfig) -> list[str]:
    """Check that experts can be trained and headroom scored; warn of bins without enough test spectra."""
    counts, covered = {}, {}
    for header in (train, test):
        counts[header.role], covered[header.role] = _count_bins(header, grid, config.target)
    n_covered, spread = covered["test"]
    if n_covered < 2 or spread == 0:
        raise InputError(
            f"R² needs at least two test spectra in bins with different {config.target}, found {n_covered} in "
            f"{test.name}; give a larger test set"
        )
    starved = np.flatnonzero(counts["train"] < config.ridge.min_spectra)
    if starved.size:
        first = int(starved[0])
        others = f", and {starved.size - 1} more bins likewise" if starved.size > 1 else ""
        raise InputError(
            f"{grid.describe(first)} has {counts['train'][first]} training spectra, at least "
            f"{config.ridge.min_spectra} are required for an expert (ridge.min_spectra){others}; widen the bin or "
            "add spectra"
        )
    few = [grid.describe(int(k)) for k in np.flatnonzero(counts["test"] < 2)]
    return [f"no R² for bins with fewer than 2 test spectra: {', '.join(few)}"] if few else []


def _count_bins(header: SetHeader, grid: BinGrid, target: str) -> tuple[NDArray[np.int64], tuple[int, float]]:
    """Return the spectra in each bin, and of all that lie in one their number and the range of the target."""
    grid.require_columns(header.column_names)
    counts = np.zeros(grid.n_bins, np.int64)
    low, high = np.inf, -np.inf
    lows, highs = np.full(len(grid.columns), np.nan), np.full(len(grid.columns), np.nan)
    for _, columns in header.iter_columns(sorted({*grid.columns, target})):
        bins = grid.assign(columns)
        inside = bins != OUTSIDE
        counts += np.bincount(bins[inside], minlength=grid.n_bins)
        covered = columns[target][inside].astype(np.float64)
        low, high = covered.min(initial=low), covered.max(initial=high)
        values = np.column_stack([columns[column] for column in grid.columns]).astype(np.float64)
        lows, highs = np.fmin(lows, np.fmin.reduce(values)), np.fmax(highs, np.fmax.reduce(values))
    if not counts.any():
        spans = zip(grid.columns, lows, highs, strict=True)
        found = ", ".join(f"{column} {least:g} … {most:g}" for column, least, most in spans)
        raise InputError(
            f"no {header.role} spectrum lies in any bin: the spectra of {header.name} span {found}; "
            "move the edges of `bins` there"
        )
    return counts, (int(counts.sum()), float(high - low))


# --- The cells and binnings of an experiment, resolved on its spectra: quantiles become edges, empty bins are told.


def resolve_binnings(config: ExperimentConfig, sets: SpectraSets) -> tuple[CellGrid, tuple[Binning, ...], list[str]]:
    """Return the cells and binnings of an experiment, quantiles as edges, and what a reader should know of them.

    A binning whose experts cannot be trained, or that covers no test spectra, is left out with a warning: it must not
    stop what the main one has to say.
    """
    needs = list_needs(config)
    others = {name: BinGrid(_resolve_cuts(f"binnings.{name}", cuts, sets)) for name, cuts in needs.binnings.items()}
    fine = next((BinGrid(_resolve_cuts(name, cuts, sets)) for name, cuts in needs.fine.items()), None)
    main = BinGrid(config.bins, config.bin_names)
    cells, binnings = plan_binnings(main, others, ablation=needs.columns_alone, fine=fine)
    crossed = [Binning.cross(binnings[0], binning) for binning in binnings if binning.name in needs.crossed]
    kept, warnings = binnings[:1], []
    for binning in [*binnings[1:], *crossed]:
        problem = _find_problem(binning, config, sets)
        if problem:
            warnings.append(f"the binning {binning.name!r} is left out: {problem}")
        else:
            kept.append(binning)
    return cells, tuple(kept), warnings


def fix_edges(config: ExperimentConfig, sets: SpectraSets) -> ExperimentConfig:
    """Return a configuration that states the edges which quantiles have on these spectra, and so the same cells.

    What is added to the spectra, or taken from them, would move quantiles, and all moments would be of no use.
    """
    edges = {name: _resolve_cuts(name, cuts, sets) for name, cuts in config.further_grids.items()}
    plain = config.to_dict()
    plain["binnings"] = {name: edges[f"binnings.{name}"] for name in config.binnings}
    if config.design is not None:
        plain["design"]["grid"] = edges["design.grid"]
    return ExperimentConfig.model_validate(plain).model_copy(update={"cluster": config.cluster})


def _resolve_cuts(name: str, cuts: Mapping[str, Any], sets: SpectraSets) -> dict[str, tuple[float, ...]]:
    edges = {}
    for column, cut in cuts.items():
        if isinstance(cut, Quantiles):
            train, test = (
                (block[column] for _, block in part.iter_columns([column])) for part in (sets.train, sets.test)
            )
            cut = quantile_edges(train, test, cut.quantiles)
            if len(cut) < 2:
                raise InputError(f"{name}: all spectra have the same {column!r}, so it cannot be cut; leave it out")
        edges[column] = cut
    return edges


def _find_problem(binning: Binning, config: ExperimentConfig, sets: SpectraSets) -> str:
    """Say why a binning cannot be answered, nothing if it can."""
    counts = {}
    for role, part in (("train", sets.train), ("test", sets.test)):
        counts[role] = np.zeros(binning.n_bins, np.int64)
        for _, columns in part.iter_columns(binning.base.columns):
            bins = binning.assign(columns)
            counts[role] += np.bincount(bins[bins != OUTSIDE], minlength=binning.n_bins)
    starved = int(np.argmin(counts["train"]))
    if counts["train"][starved] < config.ridge.min_spectra:
        return (
            f"{binning.describe(starved)} has {counts['train'][starved]} training spectra, at least "
            f"{config.ridge.min_spectra} are required for an expert (ridge.min_spectra); move its edges"
        )
    if counts["test"].sum() < 2:
        return "fewer than two test spectra lie in its bins; move its edges"
    empty = np.flatnonzero(counts["test"] == 0)
    return f"no test spectrum lies in {binning.describe(int(empty[0]))}; move its edges" if empty.size else ""


def _name_source(path: Path) -> str:
    """Return what people call a file: shards all have one name, so that their folders tell them apart."""
    return path.parent.name if path.name == SHARD_FILE_NAME else path.name


# --- Spectra that occur twice: in train and in test, or in train and among those that are to join it.


def require_disjoint(train: SetHeader, test: SetHeader) -> list[str]:
    """Refuse test spectra that the models are trained on; return what a reader should know.

    Raises
    ------
    InputError
        If both have a shard in common, or the same id with the same labels.
    """
    for header in (train, test):
        if not _has_ids(header):
            _require_other_shards(train, test)
            return [
                f"the {header.role} spectra ({header.name}) have no usable ids, so whether test spectra also occur in "
                "train was not checked"
            ]
    shared = _find_shared(train, test)
    if len(shared):
        raise InputError(
            f"{len(shared):,} of {test.n_spectra:,} test spectra also occur in train "
            f"({_example(shared, train, test)}), so scores would be too good; leave them out, or set "
            "data.allow_overlap: true"
        )
    return []


def _require_other_shards(train: SetHeader, test: SetHeader) -> None:
    """Refuse test spectra that come from a shard of the training set, which can be told without ids."""
    trained_on = {source[0] for k, source in enumerate(train.sources) if k not in train.left_out}
    for fingerprint, name in test.sources:
        if fingerprint in trained_on:
            raise InputError(
                f"{name} (fingerprint {fingerprint[:12]}): its test spectra also occur in train, so scores would be "
                "too good; leave them out of one of the two, or set data.allow_overlap: true"
            )


def require_new(train: SetHeader, new: SetHeader) -> None:
    """Refuse spectra that are in train already.

    Raises
    ------
    InputError
        If the same id occurs with the same labels in both.
    """
    if not (_has_ids(train) and _has_ids(new)):
        return
    shared = _find_shared(train, new)
    if len(shared):
        raise InputError(
            f"{len(shared):,} of {new.n_spectra:,} spectra to be added occur in train already "
            f"({_example(shared, train, new)}); every spectrum may count once only, so leave them out, or set "
            "data.allow_overlap: true"
        )


@dataclass(frozen=True, eq=False)
class _Shared:
    """Spectra that occur in two sets, each once: their rows there, and their ids; all of shape (N,)."""

    rows: NDArray[np.int64]
    train_rows: NDArray[np.int64]
    ids: NDArray[Any]

    def __len__(self) -> int:
        return len(self.rows)


def _find_shared(train: SetHeader, other: SetHeader) -> _Shared:
    """Return each spectrum of ``other`` that occurs in ``train``, with the first row where it does."""
    names = ["id", *schema.LABELS]
    starts, blocks = zip(*other.iter_columns(names), strict=True)
    rows = np.concatenate([start + np.arange(len(block["id"])) for start, block in zip(starts, blocks, strict=True)])
    wanted = {name: np.concatenate([block[name] for block in blocks]) for name in names}
    found, numbered = np.full(len(rows), -1), {}
    for start, block in train.iter_columns(names):
        # As double-precision numbers, two large whole ones would be the same.
        is_whole = wanted["id"].dtype.kind in "biu" and block["id"].dtype.kind in "biu"
        kind = np.dtype(np.int64 if is_whole else np.float64)
        if kind not in numbered:
            numbered[kind] = np.unique(wanted["id"].astype(kind), return_inverse=True)
        (ids, number), own = numbered[kind], block["id"].astype(kind)
        at = np.minimum(np.searchsorted(ids, own), len(ids) - 1)
        members = np.flatnonzero(ids[at] == own)
        is_there = np.zeros(len(ids), dtype=bool)
        is_there[at[members]] = True
        asked = np.flatnonzero(is_there[number] & (found < 0))
        labels = [np.concatenate([wanted[name][asked], block[name][members]]) for name in schema.LABELS]
        same = _number_equal([np.concatenate([number[asked], at[members]]), *labels])
        equal, firsts = np.unique(same[len(asked) :], return_index=True)
        row_of = np.full(len(same), -1)
        row_of[equal] = start + members[firsts]
        found[asked] = row_of[same[: len(asked)]]
    shared = np.flatnonzero(found >= 0)
    return _Shared(rows[shared], found[shared], wanted["id"][shared])


def _number_equal(columns: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """Return a number for every row of some columns: the same for rows that are equal, where NaN equals NaN."""
    numbers = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        _, own = np.unique(column, return_inverse=True)
        _, numbers = np.unique(numbers * (own.max(initial=0) + 1) + own, return_inverse=True)
    return numbers


def _example(shared: _Shared, train: SetHeader, other: SetHeader) -> str:
    """Return why spectra count as the same, and the first of those that :func:`_find_shared` found."""
    return (
        f"same id and labels; for example id {shared.ids[0]:g}: row {shared.rows[0]} of {other.name}, "
        f"row {shared.train_rows[0]} of {train.name}"
    )


def _has_ids(header: SetHeader) -> bool:
    return "id" in header.column_names and any(
        np.issubdtype(columns["id"].dtype, np.number) and np.isfinite(columns["id"]).any()
        for _, columns in header.iter_columns(["id"])
    )

"""Spectra of any layout: xarray Datasets, netCDF files, Zarr folders and plain HDF5 files, read as shards are.

Only names, dimensions and units are looked at here. Every check of pixels and labels is that of shards.
"""

from __future__ import annotations

import glob
import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from pipeline import schema
from pipeline.base import DAMAGE, find_json, refuse_environment
from pipeline.errors import ConfigError, InputError, did_you_mean, enumerate_words
from pipeline.shards import (
    TAKEN_NAMES,
    USABLE_NAME,
    RowReader,
    ShardInfo,
    digest_spectra,
    find_shards,
    find_typical_flux,
    is_plain_hdf5,
    match_spectra,
    open_hdf5_arrays,
    read_shard_info,
    require_angstroms,
    require_labels,
    require_usual_unit,
    stamp_files,
)
from pipeline.store import find_stores

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "DatasetReader",
    "describe_dataset",
    "find_converted",
    "find_sources",
    "read_source_info",
    "read_unlabelled_info",
]

#: What a store calls its variables, and the names that they may have elsewhere, the best first. Case, underscores and
#: other signs do not matter.
KNOWN_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "flux": ("flux", "fluxes", "spectra", "spectrum"),
    "error": ("error", "errors", "err", "flux_error", "flux_err", "sigma", "uncertainty", "flux_uncertainty", "std"),
    "wavelength": ("wavelength", "wavelengths", "wave", "lambda", "lam", "wl", "wvl"),
    "T_eff": ("T_eff", "effective_temperature"),
    "log_g": ("log_g", "surface_gravity"),
    "M_H": ("M_H", "metallicity", "Fe_H"),
    "a_M": ("a_M", "alpha_M", "a_Fe", "alpha_Fe"),
    "C_M": ("C_M", "C_Fe"),
    "id": ("id", "spectrum_id", "star_id", "object_id", "source_id"),
    "snr": ("snr", "s_n", "sn", "signal_to_noise"),
    "mag": ("mag", "magnitude"),
    "mask": ("mask",),
    "noisy": ("noisy",),
}
_PIXELS_REQUIRED: Final = ("flux", "error", "wavelength")
_REQUIRED: Final = (*_PIXELS_REQUIRED, "T_eff", "log_g", "M_H")
#: Å of a unit, by its name in small letters.
_ANGSTROMS: Final = {
    **dict.fromkeys(("angstrom", "angstroms", "ångström", "å", "å", "a", "aa", "0.1 nm"), 1.0),
    **dict.fromkeys(("nm", "nanometer", "nanometers", "nanometre", "nanometres"), 10.0),
    **dict.fromkeys(("um", "µm", "μm", "micron", "microns", "micrometer", "micrometers", "micrometre"), 1e4),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1e10),
}
_KELVINS: Final = ("k", "kelvin", "degk", "deg_k", "degrees_kelvin")
_NETCDF3: Final = b"CDF"
_NETCDF_SUFFIXES: Final = (".nc", ".nc4", ".cdf", ".netcdf")
#: Bytes of decoded pixels that a reader keeps of one array, so that a chunk of rows is decoded once.
_SLAB_BYTES: Final = 128 << 20


@dataclass(frozen=True)
class DatasetInfo(ShardInfo):
    """What a Dataset holds, described as a shard is; ``opening`` makes a reader of its rows."""

    opening: Callable[[], RowReader] | None = field(default=None, repr=False)

    @property
    def opener(self) -> Callable[[], RowReader]:
        """What makes a reader of its rows, here or in another process; in this process alone if it lies in memory."""
        assert self.opening is not None
        return self.opening


@dataclass(frozen=True)
class View:
    """Which variables of a Dataset are which, and how its pixels are turned into rows.

    ``variables`` are its own names by those of a store; ``rows`` and ``pixels`` are its dimensions; ``is_reversed``
    says that its wavelengths fall.
    """

    variables: Mapping[str, str]
    rows: str
    pixels: str
    is_reversed: bool


class DatasetReader:
    """Reads rows of a Dataset as :class:`pipeline.shards.ShardReader` reads those of a shard.

    Parameters
    ----------
    name
        How messages call it.
    opening
        Opens the Dataset for as long as the reader is open.
    view
        Which variables are read.
    """

    def __init__(self, name: str, opening: Callable[[], AbstractContextManager[xr.Dataset]], view: View) -> None:
        self.name, self._opening, self._view = name, opening, view
        self._opened: AbstractContextManager[xr.Dataset] | None = None
        self._arrays: dict[str, xr.Variable] = {}
        self._slabs: dict[str, tuple[int, np.ndarray]] = {}

    def __enter__(self) -> Self:
        self._opened = self._opening()
        dataset = self._opened.__enter__()
        self._arrays = {name: dataset[own].variable for name, own in self._view.variables.items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._arrays, self._slabs = {}, {}
        if self._opened is not None:
            self._opened.__exit__(kind, error, trace)

    def read_rows(self, variable: str, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Read spectra ``start`` to ``stop`` (exclusive) of one pixel array.

        Returns
        -------
        numpy.ndarray
            Shape (stop − start, P), float64, in rising order of wavelength; for ``mask`` uint8, 1 = flagged. It is the
            caller's own, or a view of ``out``.

        Raises
        ------
        InputError
            If the rows cannot be read.
        """
        array = self._arrays[variable]
        if out is None:
            out = np.empty((stop - start, array.sizes[self._view.pixels]), np.uint8 if variable == "mask" else float)
        target: np.ndarray = out[: stop - start]
        step = self._slab_rows(array)
        if not step:
            target[:] = self._read(variable, start, stop)
            return target
        for first in range(start - start % step, stop, step):
            kept, slab = self._slabs.get(variable, (-1, np.empty(0)))
            if kept != first:
                slab = self._read(variable, first, min(first + step, array.sizes[self._view.rows]))
                self._slabs[variable] = first, slab
            low, high = max(start, first), min(stop, first + step)
            target[low - start : high - start] = slab[low - first : high - first]
        return target

    def _slab_rows(self, array: xr.Variable) -> int:
        """Return how many rows are decoded together: those of a chunk, if that is not too large; 0 without chunks."""
        chunk = array.encoding.get("preferred_chunks", {}).get(self._view.rows)
        if array.chunks is not None:
            chunk = array.chunks[array.dims.index(self._view.rows)][0]
        return int(min(chunk or 0, max(1, _SLAB_BYTES // (8 * array.sizes[self._view.pixels]))))

    def _read(self, variable: str, first: int, last: int) -> np.ndarray:
        rows = self._arrays[variable].isel({self._view.rows: slice(first, last)})
        with _explained(self.name, f"rows {first} to {last - 1} of {self._view.variables[variable]!r}"):
            values = np.asarray(rows.transpose(self._view.rows, self._view.pixels).values)
        values = values[:, ::-1] if self._view.is_reversed else values
        return (values != 0).astype(np.uint8) if variable == "mask" else values


# --- Which files a user means, and how each is opened.


def find_sources(patterns: Sequence[str | Path], base: Path) -> tuple[Path, ...]:
    """Return the shards, netCDF files, HDF5 files and foreign Zarr folders that patterns name, in the order stated.

    See :func:`pipeline.shards.find_shards`.

    Raises
    ------
    InputError
        If a pattern names nothing, or one file is named twice.
    """
    if isinstance(patterns, str | Path):
        patterns = [patterns]
    folders: dict[str, list[Path]] = {}
    for pattern in map(str, patterns):
        matches = [base / pattern]
        if not matches[0].exists() and glob.has_magic(pattern):
            matches = match_spectra(base / pattern)
        if matches and all(map(is_foreign_zarr, matches)):
            folders[pattern] = matches
    if not folders:
        return find_shards(patterns, base)
    found = [folders.get(pattern) or list(find_shards([pattern], base)) for pattern in map(str, patterns)]
    return tuple(itertools.chain.from_iterable(found))


def find_converted(patterns: Sequence[Path | str]) -> tuple[Path, ...]:
    """Return the stores that patterns name; none if they name what a conversion takes.

    Raises
    ------
    InputError
        See :func:`pipeline.store.find_stores`.
    """
    return () if any(is_foreign_zarr(Path(pattern)) for pattern in patterns) else find_stores(patterns)


def is_foreign_zarr(path: Path) -> bool:
    """Tell whether a path is a Zarr group of another program than this."""
    if (path / ".zgroup").is_file() or (path / ".zmetadata").is_file():
        return True
    found = find_json(path / "zarr.json") if (path / "zarr.json").is_file() else None
    return found is not None and (found.get("attributes") or {}).get("format") != schema.STORE_FORMAT


def read_source_info(
    path: Path | str, *, allow_external: bool = False, names: Mapping[str, str] | None = None
) -> ShardInfo:
    """Describe a shard, or spectra in a netCDF file, a plain HDF5 file or a Zarr folder of another program.

    Raises
    ------
    InputError
        If the file or its layout is not as required.
    """
    path = Path(path)
    opening = _find_opening(path)
    if opening is None:
        if names:
            raise ConfigError(
                f"names are for spectra of other layouts, and {path} is read as a pfsspec shard, whose names are fixed"
            )
        return read_shard_info(path, allow_external=allow_external)
    with opening() as dataset:
        return _describe(dataset, path, _list_files(path), opening, names or {})


def read_unlabelled_info(path: Path) -> DatasetInfo | None:
    """Describe spectra of another layout whose labels may be missing or unknown; None for a shard.

    Raises
    ------
    InputError
        If the file or its layout is not as required.
    """
    opening = _find_opening(path)
    if opening is None:
        return None
    with opening() as dataset:
        return _describe(dataset, path, _list_files(path), opening, {}, needs_labels=False)


def _list_files(path: Path) -> tuple[Path, ...]:
    return tuple(sorted(one for one in path.rglob("*") if one.is_file())) if path.is_dir() else ()


def describe_dataset(dataset: xr.Dataset, names: Mapping[str, str] | None = None) -> ShardInfo:
    """Describe spectra that lie in memory, or that a lazy Dataset reads.

    Parameters
    ----------
    dataset
        With flux and error over two dimensions, wavelengths along one of them, and labels along the other.
    names
        Its own names of variables, by those of a store, where :data:`KNOWN_NAMES` does not have them.

    Raises
    ------
    InputError
        If anything is missing or wrong.
    """
    return _describe(dataset, None, (), lambda: nullcontext(dataset), names or {})


def _find_opening(path: Path) -> Callable[[], AbstractContextManager[xr.Dataset]] | None:
    """Return what opens a file that is no shard; None for a shard, and for whatever cannot be read."""
    if path.is_dir():
        return partial(_open_zarr, path) if is_foreign_zarr(path) else None
    if not path.is_file():
        return None
    with suppress(OSError), path.open("rb") as stream:  # who reads it as a shard says why it cannot be read
        if stream.read(3) == _NETCDF3:
            return partial(_open_netcdf3, path)
    if is_plain_hdf5(path) or path.suffix.lower() in _NETCDF_SUFFIXES:
        return partial(open_hdf5_arrays, path)
    return None


@contextmanager
def _open_zarr(path: Path) -> Iterator[xr.Dataset]:
    import xarray as xr

    with _explained(f"Zarr folder {path}", "its metadata"):
        consolidated = (path / ".zmetadata").is_file()
        dataset = xr.open_zarr(path, consolidated=consolidated, chunks=None, decode_times=False)
    with dataset:
        yield dataset


@contextmanager
def _open_netcdf3(path: Path) -> Iterator[xr.Dataset]:
    import xarray as xr

    with _explained(f"netCDF file {path}", "its header"):
        dataset = xr.open_dataset(path, engine="scipy", decode_times=False)
    with dataset:
        yield dataset


@contextmanager
def _explained(name: str, what: str) -> Iterator[None]:
    """Turn what a library raises on a damaged file into an error that names the file."""
    try:
        yield
    except DAMAGE as error:
        refuse_environment(Path(name.rpartition(" ")[2]), error)
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(f"{name}: {what} cannot be read ({reason}); write or copy it again") from error


# --- What a Dataset holds.


def _describe(
    dataset: xr.Dataset,
    path: Path | None,
    files: tuple[Path, ...],
    opening: Callable[[], AbstractContextManager[xr.Dataset]],
    names: Mapping[str, str],
    *,
    needs_labels: bool = True,
) -> DatasetInfo:
    """Check everything of a Dataset that can be checked without reading all pixels."""
    name = f"file {path}" if path is not None and path.is_file() else f"folder {path}" if path else "the Dataset"
    # Before anything is read: a later change shows.
    stamp = (0, time.time_ns()) if path is None else stamp_files([path, *files])
    found, remarks = _match_names(dataset, names, name, _REQUIRED if needs_labels else _PIXELS_REQUIRED)
    dimensions = _find_dimensions(dataset, found, name)
    wavelength, is_reversed, remark = _read_wavelength(dataset[found["wavelength"]], name)
    view = View({k: v for k, v in found.items() if k in schema.PIXEL_VARIABLES}, *dimensions, is_reversed)
    columns, left_out = _read_columns(dataset, found, view.rows, name)
    if needs_labels:
        _require_label_columns(dataset, found, columns, view.rows, name)
        require_labels(columns, name, "its labels", "correct them")
    n_spectra = dataset.sizes[view.rows]
    reader = partial(DatasetReader, name, opening, view)
    with reader() as rows:
        typical = find_typical_flux(rows.read_rows, n_spectra)
        require_usual_unit(typical, name)
        dtypes = {v: str(dataset[view.variables[v]].dtype) for v in schema.PIXEL_VARIABLES if v in view.variables}
        fingerprint = digest_spectra(rows.read_rows, n_spectra, wavelength, columns, dtypes)
    return DatasetInfo(
        path=path or Path("Dataset"),
        n_spectra=n_spectra,
        n_pixels=wavelength.size,
        wavelength=wavelength,
        dtypes=dtypes,
        chunks=dict.fromkeys(dtypes),
        has_mask="mask" in view.variables,
        has_noisy="noisy" in view.variables,
        mask_is_boolean=False,
        columns=columns,
        fingerprint=fingerprint,
        size=stamp[0],
        mtime_ns=stamp[1],
        remarks=(*remarks, *([remark] if remark else []), *left_out),
        typical_flux=typical,
        others=files,
        opening=reader,
    )


def _require_label_columns(
    dataset: xr.Dataset, found: Mapping[str, str], columns: Mapping[str, np.ndarray], rows: str, where: str
) -> None:
    for label in schema.LABELS:
        if label not in columns:
            own = dataset[found[label]]
            raise InputError(
                f"{where}: {found[label]!r} ({label}) must hold one number for each spectrum, along {rows!r}; found "
                f"{own.dtype} along {', '.join(map(str, own.dims)) or 'no dimension'}"
            )


def _bare(name: object) -> str:
    return re.sub(r"[\W_]", "", str(name)).lower()


def _say_name(role: str, own: str) -> str:
    """Return how a name is stated, in Python and on the command line; only conversions take it."""
    return f"names={{{role!r}: {own!r}}} in Python, or headroom convert SPECTRA STORE.zarr --name {role}={own}"


def _match_names(
    dataset: xr.Dataset, names: Mapping[str, str], where: str, required: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """Return the Dataset's names by those of a store, and a remark on every one that was guessed."""
    present = [str(name) for name in dataset.variables]
    for role, own in names.items():
        if role not in KNOWN_NAMES:
            raise ConfigError(
                f"names: {role!r} is none of {', '.join(KNOWN_NAMES)}{did_you_mean(role, KNOWN_NAMES)}; for example "
                "names={'T_eff': 'temperature'}"
            )
        if own not in present:
            raise InputError(
                f"{where}: there is no {own!r} to take {role} from{did_you_mean(own, present)}; it has "
                f"{', '.join(present) or 'nothing'}"
            )
    found: dict[str, str] = dict(names)
    remarks = []
    for role, known in KNOWN_NAMES.items():
        if role in found:
            continue
        candidates = [role] if role in present else []
        for spelled in known if not candidates else ():
            candidates = [own for own in present if _bare(own) == _bare(spelled) and own not in found.values()]
            if candidates:
                break
        if len(candidates) > 1:
            raise InputError(
                f"{where}: {role} may be {' or '.join(map(repr, candidates))}; say which: "
                f"{_say_name(role, candidates[0])}"
            )
        if candidates:
            found[role] = candidates[0]
    missing = [role for role in required if role not in found]
    if missing:
        role = missing[0]
        inverse = next((own for own in present if _bare(own) in ("ivar", "invvar", "inversevariance")), None)
        hint = (
            f"; if {inverse!r} is the inverse variance, error = 1 / √{inverse}" if inverse and role == "error" else ""
        )
        raise InputError(
            f"{where}: {enumerate_words(missing)} {'is' if len(missing) == 1 else 'are'} missing; it has "
            f"{', '.join(present) or 'nothing'}; rename, or say which variable it is: {_say_name(role, 'NAME')}{hint}"
        )
    remarks = [f"{role} is read from {own!r}" for role, own in found.items() if role != own]
    return found, remarks


def _find_dimensions(dataset: xr.Dataset, found: Mapping[str, str], where: str) -> tuple[str, str]:
    """Return the names of the dimensions along spectra and along pixels."""
    flux, wave = (dataset[found[role]] for role in ("flux", "wavelength"))
    if flux.ndim != 2 or wave.ndim != 1 or wave.dims[0] not in flux.dims:
        raise InputError(
            f"{where}: flux must have two dimensions, and the wavelengths one of them; found {found['flux']!r} "
            f"{_shape(flux)} and {found['wavelength']!r} {_shape(wave)}; give one grid of wavelengths for all spectra"
        )
    pixels = str(wave.dims[0])
    rows = str(next((dim for dim in flux.dims if dim != pixels), pixels))
    label = found.get("T_eff", found["flux"])  # of spectra without labels nothing but the flux can be shown
    if rows == pixels or ("T_eff" in found and dataset[label].dims != (rows,)):
        raise InputError(
            f"{where}: labels must have one value for each spectrum, along {rows!r}; found {label!r} "
            f"{_shape(dataset[label])} and {found['flux']!r} {_shape(flux)}; name the dimensions spectrum and "
            "wavelength"
        )
    for role in (role for role in schema.PIXEL_VARIABLES if role in found):
        array = dataset[found[role]]
        kinds = "iu" if role == "mask" else "fiu"
        if set(array.dims) != {rows, pixels} or array.ndim != 2 or array.dtype.kind not in kinds or not array.size:
            wanted = "whole numbers, 0 = good" if role == "mask" else "numbers"
            raise InputError(
                f"{where}: {role} must hold {wanted} along {rows!r} and {pixels!r}, found {found[role]!r} "
                f"{array.dtype} {_shape(array)}; give it the shape of the flux"
            )
    if flux.sizes[pixels] < 2:
        raise InputError(f"{where}: spectra must have at least two pixels, found {_shape(flux)}")
    return rows, pixels


def _shape(array: xr.DataArray) -> str:
    return "(" + ", ".join(f"{dim}: {size}" for dim, size in array.sizes.items()) + ")"


def _read_wavelength(array: xr.DataArray, where: str) -> tuple[np.ndarray, bool, str]:
    """Return the wavelengths in Å in rising order, whether they were falling, and a remark."""
    unit = str(array.attrs.get("units", array.attrs.get("unit", ""))).strip()
    factor = _ANGSTROMS.get(unit.lower()) if unit else 1.0
    if factor is None:
        raise InputError(
            f"{where}: the unit of {array.name!r} must be one of Å (Angstrom), nm, µm (um) and m, found {unit!r}; "
            "convert the wavelengths, and set the attribute 'units'"
        )
    with _explained(where, f"{array.name!r}"):
        values = np.asarray(array.values, dtype=np.float64) * factor
    # 710.1 nm times ten is 7101.000000000001: the last digit is rounding, and means nothing.
    values = np.round(values, 9) if factor != 1.0 else values
    is_reversed = bool(values.size > 1 and (np.diff(values) < 0).all())
    values = np.ascontiguousarray(values[::-1]) if is_reversed else values
    require_angstroms(values, f"{where}: {array.name!r}", "set its attribute 'units', if it is not Å")
    words = []
    if factor != 1.0:
        words.append(f"wavelengths in {unit} were turned into Å")
    elif not unit:
        words.append("wavelengths have no unit and were taken for Å")
    return values, is_reversed, "; ".join([*words, *(["pixels were put in rising order"] if is_reversed else [])])


def _read_columns(
    dataset: xr.Dataset, found: Mapping[str, str], rows: str, where: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return every column of numbers along the spectra, under the names of a store, and what was left out."""
    roles = {own: role for role, own in found.items()}
    columns: dict[str, np.ndarray] = {}
    remarks = []
    for own in map(str, dataset.variables):
        array, name = dataset[own], roles.get(own, own)
        if array.dims != (rows,) or array.dtype.kind not in "fiub" or own == rows or name in ("flux", "error"):
            continue
        if not USABLE_NAME.fullmatch(name) or (name in TAKEN_NAMES and f"params_{name}" in dataset.variables):
            remarks.append(f"column {own!r} is left out: names must be ASCII letters, digits and underscores")
            continue
        if name in columns or (own not in roles and name in found):
            remarks.append(f"column {own!r} is left out: {name} is read from {found.get(name)!r}")
            continue
        unit = str(array.attrs.get("units", "K")).strip().lower()
        if name == "T_eff" and unit not in _KELVINS:
            raise InputError(f"{where}: {own!r} must be in K, found the unit {array.attrs['units']!r}; convert it")
        with _explained(where, f"column {own!r}"):
            values = np.asarray(array.values)
        columns[name] = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="), copy=False))
    ordered = [name for name in KNOWN_NAMES if name in columns]
    return {name: columns[name] for name in (*ordered, *(n for n in columns if n not in ordered))}, remarks

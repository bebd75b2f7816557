"""pfsspec HDF5 shards: which files a user means, what one holds, and reading its rows (h5py only, read-only).

Layouts differ between files (chunks, compression, dtypes, masks that mean the opposite), so everything is
probed and nothing assumed. What would otherwise end as silent zeros or shifted rows is refused here, once.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

import h5py
import numpy as np

from pipeline import schema
from pipeline.base import DAMAGE, refuse_environment
from pipeline.errors import HeadroomError, InputError, ResourceError
from pipeline.schema import SHARD_FILE_NAME, SHARD_INDEX_NAME
from pipeline.shards.layout import (
    PIXEL_PATHS,
    READ_PATHS,
    find_pixel_arrays,
    list_remarks,
    read_columns,
    read_wavelength,
    require_columns,
    require_inside,
    require_written,
)

__all__ = [
    "HDF5_SUFFIXES",
    "RowReader",
    "ShardInfo",
    "ShardReader",
    "digest_spectra",
    "find_shards",
    "find_typical_flux",
    "match_spectra",
    "natural_key",
    "read_shard_info",
    "require_outside_data",
    "require_usual_unit",
    "stamp_files",
]

# --- Which HDF5 files a user means: files, folders, globs and ``shard_index.txt``, in the order stated.
#
# No file is opened here; only names and folders are looked at.

HDF5_SUFFIXES = (".h5", ".hdf5", ".nc", ".nc4")
#: Letters of a line that is no path, in a message.
_SHOWN_LETTERS: Final = 60
#: Files that lie beside spectra and hold none; a glob passes them over.
_COMPANION_SUFFIXES: Final = (".txt", ".md", ".json", ".yaml", ".yml", ".csv", ".log", ".md5", ".sha256")


def find_shards(patterns: Sequence[str | Path] | str | Path, base: Path | str = "") -> tuple[Path, ...]:
    """Return the shard files that the patterns name, in the order stated.

    A pattern is a file, a folder, a glob, or an index file that lists shard folders one per line (``#``
    starts a comment). Of a folder, the first of these that it holds counts: ``shard_index.txt``,
    ``dataset.h5``, sub-folders with a ``dataset.h5``, other ``*.h5`` files. A glob passes over texts that
    lie beside shards; an index counts if the glob matches nothing else. Patterns keep their order; what
    one folder or glob holds is sorted naturally (``train_2`` before ``train_10``). Entries of an index are
    relative to the index's own folder.

    Parameters
    ----------
    patterns
        At least one, or a single one by itself; relative ones start at ``base``.
    base
        Folder of relative patterns, e.g. that of the configuration file; by default the current one.

    Raises
    ------
    InputError
        If a pattern names nothing or one file is named twice; the message names the pattern.
    """
    if isinstance(patterns, str | Path):
        patterns = [patterns]
    if not patterns:
        raise InputError("at least one shard is required, found none; name files, folders or globs of HDF5 shards")
    found: list[Path] = []
    named_by: dict[str, str] = {}
    for pattern in patterns:
        for shard in _expand(str(pattern), Path(base)):
            identity = str(shard.resolve())
            if identity in named_by:
                raise InputError(
                    f"shard {shard} is named twice, by {named_by[identity]!r} and by {str(pattern)!r}; every "
                    "spectrum may count once only, so remove one of the two"
                )
            named_by[identity] = str(pattern)
            found.append(shard)
    return tuple(found)


def require_outside_data(path: Path, sources: Mapping[str, Sequence[str]], what: str, example: str) -> None:
    """Refuse a path within folders that hold nothing but spectra.

    Parameters
    ----------
    path
        Where something shall be written.
    sources
        Absolute paths and patterns of shards, stores and their folders, by the setting that names them.
    what, example
        How the message begins and ends.

    Raises
    ------
    InputError
        If the path is such a folder or lies in one.
    """
    resolved = path.resolve()
    for setting, patterns in sources.items():
        for place in _list_folders(patterns):
            if place in (resolved, *resolved.parents):
                raise InputError(
                    f"{what} may not be written among the data, and {place} belongs to {setting}; choose a folder of "
                    f"its own, {example}"
                )


def _list_folders(patterns: Iterable[str]) -> Iterator[Path]:
    for pattern in patterns:
        if not glob.has_magic(pattern) and not Path(pattern).is_file():
            yield Path(pattern).resolve()  # it may be made later
        for match in map(Path, glob.glob(pattern, recursive=True)):
            if match.is_dir():
                yield match.resolve()
            elif match.name in (SHARD_FILE_NAME, SHARD_INDEX_NAME):
                yield match.resolve().parent


def match_spectra(pattern: Path | str) -> list[Path]:
    """Return what a glob matches, sorted naturally, without texts that lie beside spectra.

    Where nothing else matches, these are the indices among the texts.
    """
    matches = sorted(map(Path, glob.glob(str(pattern), recursive=True)), key=natural_key)
    texts = [match for match in matches if match.suffix.lower() in _COMPANION_SUFFIXES and match.is_file()]
    spectra = [match for match in matches if match not in texts]
    return spectra or [text for text in texts if text.name == SHARD_INDEX_NAME]


def natural_key(path: Path | str) -> list[tuple[int, int, str]]:
    """Sort key under which numbers inside names compare as numbers."""
    parts = re.split(r"(\d+)", str(path))
    return [(1, int(part), part) if part.isdigit() else (0, 0, part) for part in parts]


def _expand(pattern: str, base: Path) -> list[Path]:
    path = base / pattern
    if path.is_dir():
        return _expand_folder(path, pattern)
    if path.is_file():
        return _read_index(path) if path.suffix == ".txt" else [path]
    if glob.has_magic(pattern):
        shards = [shard for match in match_spectra(path) for shard in _expand_match(match, pattern)]
        if shards:
            return list(dict.fromkeys(shards))  # ``**`` matches folders, and what is in them
    raise InputError(
        f"no shard matches {pattern!r} (looked in {path.parent}); name HDF5 files, folders that hold a "
        f"{SHARD_FILE_NAME}, globs, or a {SHARD_INDEX_NAME}"
    )


def _expand_match(match: Path, pattern: str) -> list[Path]:
    if match.is_dir():
        return _expand_folder(match, pattern)
    return _read_index(match) if match.name == SHARD_INDEX_NAME else [match]


def _expand_folder(folder: Path, pattern: str) -> list[Path]:
    if (folder / SHARD_INDEX_NAME).is_file():
        return _read_index(folder / SHARD_INDEX_NAME)
    if (folder / SHARD_FILE_NAME).is_file():
        return [folder / SHARD_FILE_NAME]
    # Hidden entries are no shards: macOS leaves a ``._x.h5`` beside an ``x.h5`` on a foreign disk.
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    shards = _sorted(entry / SHARD_FILE_NAME for entry in entries if (entry / SHARD_FILE_NAME).is_file())
    shards = shards or _sorted(entry for entry in entries if entry.suffix.lower() in HDF5_SUFFIXES)
    if not shards:
        raise InputError(
            f"folder {folder} (named by {pattern!r}) holds no shard: a {SHARD_FILE_NAME}, folders with one, *.h5 "
            f"files or a {SHARD_INDEX_NAME} is required; name the folder of the shards"
        )
    return shards


def _sorted(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=natural_key)


def _read_index(index: Path) -> list[Path]:
    shards: list[Path] = []
    try:
        lines = index.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{index} must be UTF-8 text with one shard folder per line, found byte "
            f"{error.object[error.start]:#04x} at position {error.start}; name an HDF5 file, or write it as UTF-8"
        ) from error
    except OSError as error:
        raise InputError(f"{index} cannot be read ({error.strerror}); correct its permissions") from error
    entries = {number: line.split("#", 1)[0].strip() for number, line in enumerate(lines, start=1)}
    entries = {number: entry for number, entry in entries.items() if entry}
    is_prose = any(" " in one for one in entries.values()) and index.name != SHARD_INDEX_NAME
    if is_prose and not any(_exists(index.parent / one) for one in entries.values()):
        number, entry = next(iter(entries.items()))
        shown = entry if len(entry) <= _SHOWN_LETTERS else f"{entry[:_SHOWN_LETTERS]}…"
        raise InputError(
            f"{index} is neither HDF5, Zarr, netCDF nor a list of paths: line {number}, {shown!r}, names no file and "
            "no folder; name files of spectra, or a text with one path per line"
        )
    for number, entry in entries.items():
        shard = index.parent / entry
        if _exists(shard) and shard.is_dir():
            shard = shard / SHARD_FILE_NAME
        if not (_exists(shard) and shard.is_file()):
            raise InputError(
                f"{index}, line {number}: {entry!r} must be a folder with a {SHARD_FILE_NAME} or an HDF5 file, but "
                f"{shard} does not exist; correct the line or remove it"
            )
        shards.append(shard)
    if not shards:
        raise InputError(f"{index} lists no shard; write one shard folder per line")
    return shards


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a line of a text may be too long for a path, or hold what no path may
        return False


#: HDF5 allows no larger chunk; a damaged file may state one.
_LARGEST_CACHE: Final = 1 << 32
#: What h5py raises on damaged metadata, depending on which byte is wrong.
_DAMAGE: Final = (*DAMAGE, SystemError)
#: A fingerprint reads the table, the wavelengths and this many whole spectra, not the whole file.
_FINGERPRINT_ROWS: Final = 5
#: With flux smaller than this, errors of a thousandth of it would lose digits in float32.
_LEAST_FLUX: Final = 1e-32


@dataclass(frozen=True)
class ShardInfo:
    """What one checked shard holds; see :func:`read_shard_info`.

    ``dtypes`` and ``chunks`` are by variable (chunks None where contiguous); ``wavelength`` is (P,) float64
    in Å; ``columns`` are (N,) arrays. ``fingerprint`` digests wavelengths, columns and five spectra: the same
    wherever the file lies, other for other shards, but blind to a change in the remaining spectra; ``size`` (bytes)
    and ``mtime_ns`` (time of the last change, ns) tell of that. ``remarks`` are oddities that were put right.
    ``typical_flux`` is that of :func:`find_typical_flux`; ``fills`` are, by variable, what storage reads as that was
    never written.
    ``others`` are other files that it refers to, where these were asked for; ``size`` and ``mtime_ns`` count them, too.
    """

    path: Path
    n_spectra: int
    n_pixels: int
    wavelength: np.ndarray
    dtypes: Mapping[str, str]
    chunks: Mapping[str, tuple[int, ...] | None]
    has_mask: bool
    has_noisy: bool
    mask_is_boolean: bool
    columns: Mapping[str, np.ndarray]
    fingerprint: str
    size: int
    mtime_ns: int
    remarks: tuple[str, ...] = ()
    typical_flux: float = math.nan
    fills: Mapping[str, float] = field(default_factory=dict)
    others: tuple[Path, ...] = ()

    @property
    def stamp(self) -> tuple[int, int]:
        """Size and time of the last change: equal while nobody writes to the file."""
        return self.size, self.mtime_ns

    @property
    def variables(self) -> tuple[str, ...]:
        """The pixel arrays present, in the order of :data:`pipeline.schema.PIXEL_VARIABLES`."""
        return tuple(name for name in schema.PIXEL_VARIABLES if name in self.dtypes)

    @property
    def opener(self) -> Callable[[], RowReader]:
        """What makes a reader of its rows, here or in another process."""
        return partial(ShardReader, self.path.absolute(), allow_external=bool(self.others))


class RowReader(Protocol):
    """Reads rows of spectra; a context manager. See :class:`ShardReader`."""

    name: str

    def __enter__(self) -> Self:
        """Open it."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""

    def read_rows(self, variable: str, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Read spectra ``start`` to ``stop`` (exclusive) of one pixel array, see :meth:`ShardReader.read_rows`."""


class ShardReader:
    """Reads rows of one shard; a context manager.

    HDF5 holds one lock per interpreter, so readers in threads wait for each other: use processes.

    Parameters
    ----------
    path
        The file.
    allow_external
        Read what the file has in other files, too; see :func:`pipeline.shards.layout.require_inside`.

    Raises
    ------
    InputError
        On entering, if the file is missing, empty, truncated or not HDF5, or refers to other files.
    ResourceError
        On entering, if the system cannot open it.
    """

    def __init__(self, path: Path | str, *, allow_external: bool = False) -> None:
        self.path = Path(path)
        self.others: tuple[Path, ...] = ()
        self._allow_external = allow_external
        self.name = _short_name(self.path)
        self._file: h5py.File | None = None
        self._mask = np.empty((0, 0), np.uint8)

    def __enter__(self) -> Self:
        self._file, self.others = _open_file(self.path, allow_external=self._allow_external)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def stamp(self) -> tuple[int, int]:
        """Size and time of the last change, as of :attr:`ShardInfo.stamp`."""
        return stamp_files([self.path, *self.others])

    @property
    def file(self) -> h5py.File:
        """The open file."""
        if self._file is None:
            raise RuntimeError("ShardReader is used outside its 'with' block")
        return self._file

    @contextmanager
    def explained(self, what: str = "its HDF5 structure") -> Iterator[None]:
        """Turn what h5py raises in this block into an error that says what is wrong with the file.

        Raises
        ------
        InputError
            If the file is damaged, or a filter that it is compressed with is not installed.
        ResourceError
            If the system is at fault, and not the file.
        """
        try:
            yield
        except _DAMAGE as error:
            refuse_environment(self.path, error)
            missing = _find_missing_filter(self.file)
            if missing is not None:
                path, number, called = missing
                raise InputError(
                    f"{self.name}: {path!r} is compressed with the HDF5 filter {number}{called}, which is not "
                    "installed here; install it and name its folder in HDF5_PLUGIN_PATH, or rewrite the file where the "
                    "filter is installed: `h5repack -f GZIP=4 OLD NEW`"
                ) from error
            raise _damaged(self.name, what, error) from error

    def read_rows(self, variable: str, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Read spectra ``start`` to ``stop`` (exclusive) of one pixel array.

        Parameters
        ----------
        variable
            ``flux``, ``error``, ``noisy`` (float64) or ``mask`` (uint8, 1 = flagged whichever way the file
            has it).
        start, stop
            Rows, ``0 <= start <= stop <= N``.
        out
            C-ordered buffer of at least ``stop - start`` rows to read into, dtype float64 (or, for the mask,
            that of the file); spares the page faults of fresh memory. Ignored for masks.

        Returns
        -------
        numpy.ndarray
            Shape (stop − start, P); a view of ``out`` where given.

        Raises
        ------
        InputError
            If the rows cannot be read (damaged file, compression filter that is not installed).
        ResourceError
            If the system cannot read them.
        """
        file = self.file
        with self.explained():
            dataset = file[PIXEL_PATHS[variable]]
            n_spectra = dataset.shape[0]
        if not 0 <= start <= stop <= n_spectra:
            raise IndexError(f"rows {start}:{stop} of {n_spectra}")
        with self.explained(f"rows {start} to {stop - 1} of {PIXEL_PATHS[variable]!r}"):
            if variable == "mask":
                values = self._read_mask(dataset, start, stop)
                flagged = ~values if values.dtype == bool else values != 0
                result: np.ndarray = flagged.view(np.uint8)
                return result
            rows = np.empty((stop - start, dataset.shape[1])) if out is None else out[: stop - start]
            if stop > start:
                dataset.read_direct(rows, np.s_[start:stop], np.s_[0 : stop - start])
        return rows

    def _read_mask(self, dataset: h5py.Dataset, start: int, stop: int) -> np.ndarray:
        """Read raw mask values into a buffer that the reader keeps: int64 masks are as large as the flux."""
        if len(self._mask) < stop - start or self._mask.dtype != dataset.dtype:
            self._mask = np.empty((stop - start, dataset.shape[1]), dataset.dtype)
        if stop > start:
            dataset.read_direct(self._mask, np.s_[start:stop], np.s_[0 : stop - start])
        return self._mask[: stop - start]


def stamp_files(paths: Iterable[Path]) -> tuple[int, int]:
    """Return the size of files in bytes, and when the last of them was changed, in ns."""
    found = [path.stat() for path in paths]
    return sum(one.st_size for one in found), max(one.st_mtime_ns for one in found)


def read_shard_info(path: Path | str, *, allow_external: bool = False) -> ShardInfo:
    """Open a shard, check everything that can be checked without reading all pixels, and describe it.

    Parameters
    ----------
    path
        The file.
    allow_external
        See :class:`ShardReader`.

    Raises
    ------
    InputError
        If the file or its layout is not as required; the message names the file, what was found and the
        remedy.
    """
    with ShardReader(path, allow_external=allow_external) as reader, reader.explained():
        return _describe_shard(reader)


def _describe_shard(reader: ShardReader) -> ShardInfo:
    file, name = reader.file, reader.name
    size, mtime_ns = reader.stamp  # before anything is read: a later change shows
    columns, remarks = read_columns(file, name)
    datasets = find_pixel_arrays(file, name)
    n_spectra, n_pixels = datasets["flux"].shape
    require_columns(columns, name, n_spectra)
    wavelength = read_wavelength(file, name, n_pixels)
    for variable, dataset in datasets.items():
        require_written(dataset, variable, name)
    typical = find_typical_flux(reader.read_rows, n_spectra)
    require_usual_unit(typical, name)
    dtypes = {variable: str(dataset.dtype) for variable, dataset in datasets.items()}
    return ShardInfo(
        path=reader.path,
        n_spectra=n_spectra,
        n_pixels=n_pixels,
        wavelength=wavelength,
        dtypes=dtypes,
        chunks={variable: dataset.chunks for variable, dataset in datasets.items()},
        has_mask="mask" in datasets,
        has_noisy="noisy" in datasets,
        mask_is_boolean="mask" in datasets and datasets["mask"].dtype == bool,
        columns=columns,
        fingerprint=digest_spectra(reader.read_rows, n_spectra, wavelength, columns, dtypes),
        size=size,
        mtime_ns=mtime_ns,
        remarks=(*list_remarks(file, n_pixels), *remarks),
        typical_flux=typical,
        fills={variable: float(dataset.fillvalue) for variable, dataset in datasets.items()},
        others=reader.others,
    )


def find_typical_flux(read_rows: Callable[[str, int, int], np.ndarray], n_spectra: int) -> float:
    """Return the median over a few spread spectra of each one's median flux without its sign.

    Spectra whose pixels are all equal were never written and do not count; NaN if no others are among them.
    """
    medians = []
    for row in _spread_rows(n_spectra):
        flux = read_rows("flux", row, row + 1)[0]
        found = np.abs(flux[np.isfinite(flux)], dtype=np.float64)
        if found.size and (found.size == 1 or found.min() < found.max()):
            medians.append(np.median(found))
    return float(np.median(medians)) if medians else math.nan


def require_usual_unit(typical: float, name: str) -> None:
    """Refuse flux that single precision, in which stores keep pixels, cannot hold with room to spare."""
    if typical < _LEAST_FLUX or typical > 1 / _LEAST_FLUX:
        raise InputError(
            f"{name}: the typical flux must lie between {_LEAST_FLUX:g} and {1 / _LEAST_FLUX:g}, found {typical:.3g} "
            "(median of some spread spectra), and stores keep pixels in single precision; give flux and errors another "
            "unit, such as that in which the median flux is 1"
        )


def _spread_rows(n_spectra: int) -> list[int]:
    """Return a few evenly spread rows, the first and the last among them."""
    return sorted({(n_spectra - 1) * k // (_FINGERPRINT_ROWS - 1) for k in range(_FINGERPRINT_ROWS)})


def _damaged(name: str, what: str, error: BaseException) -> InputError:
    return InputError(
        f"{name}: damaged, {what} cannot be read ({_reason(error)}); copy it again or re-run the simulation"
    )


def _find_missing_filter(file: h5py.File) -> tuple[str, int, str] | None:
    """Return the first array whose compression filter is not installed, the filter's number, and its name in words."""
    try:
        for path in READ_PATHS:
            dataset = file.get(path)
            if not isinstance(dataset, h5py.Dataset):
                continue
            stored = dataset.id.get_create_plist()
            for k in range(stored.get_nfilters()):
                number, _, _, called = stored.get_filter(k)
                if not h5py.h5z.filter_avail(number):
                    return path, number, f" ({called.decode(errors='replace')})" if called else ""
    except _DAMAGE:
        pass  # the file is damaged besides
    return None


def _reason(error: BaseException) -> str:
    """One line of what HDF5 said."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


def _short_name(path: Path) -> str:
    return f"shard {Path(*path.parts[-2:])}" if len(path.parts) > 1 else f"shard {path}"


def _open_file(path: Path, *, allow_external: bool) -> tuple[h5py.File, tuple[Path, ...]]:
    """Return the open file, and the other files that it refers to."""
    if not path.exists():
        raise InputError(f"shard {path} does not exist; correct the path")
    if path.is_dir():
        raise InputError(f"shard {path} is a folder, an HDF5 file is required; name the file in it")
    if not path.is_file():
        raise InputError(f"shard {path} must be a regular file, found a pipe or a device; name an HDF5 file")
    try:
        if path.stat().st_size == 0:
            raise InputError(f"shard {path} is empty (0 bytes); copy or simulate it again")
        with _open_unlocked(path) as file:
            others = require_inside(file, _short_name(path), allow_external=allow_external)
            cache = _cache_bytes(file)
        return _open_unlocked(path, rdcc_nbytes=cache), others
    except _DAMAGE as error:
        if isinstance(error, PermissionError) or "Permission denied" in str(error):
            raise InputError(f"shard {path} may not be read (permission denied); change its permissions") from error
        if not (isinstance(error, OSError) and _is_about_locks(error)):
            refuse_environment(path, error)
        raise _explain_opening(path, error) from error


def _open_unlocked(path: Path, **options: Any) -> h5py.File:
    """Open a file for reading, without HDF5's lock on a file system that has none, such as some of NFS and Lustre.

    The lock only tells of a writer that is at work. What a conversion reads is compared with the file's size and time
    of change besides.
    """
    try:
        return h5py.File(path, "r", **options)
    except OSError as error:
        if not _is_about_locks(error) or error.errno in _HELD:
            raise
    return h5py.File(path, "r", locking=False, **options)


#: What the system says of a lock that another process holds.
_HELD: Final = (errno.EAGAIN, errno.EACCES)


def _is_about_locks(error: OSError) -> bool:
    return "unable to lock file" in str(error)


def _explain_opening(path: Path, error: BaseException) -> HeadroomError:
    """Return the error that says why a file cannot be opened."""
    text = " ".join(str(error).split())
    if not isinstance(error, OSError):
        return _damaged(_short_name(path), "its HDF5 structure", error)
    if _is_about_locks(error) and error.errno not in _HELD:
        asked = os.environ.get("HDF5_USE_FILE_LOCKING")
        return ResourceError(
            f"cannot read shard {path}: its file system has no locks, and HDF5_USE_FILE_LOCKING={asked} asks for one "
            f"({text}); unset that variable"
        )
    if _is_about_locks(error):
        remedy = "is open for writing elsewhere; wait until its writer has finished"
    elif "already open for write" in text:
        remedy = (
            "is flagged as open for writing, so its writer is still at work or was killed; wait for it, or if nobody "
            f"writes any more, clear the flag with `h5clear -s {path}`, and check what it holds with `headroom inspect`"
        )
    elif "truncated file" in text:
        reason = text[text.index("truncated file") :].rstrip(")")
        remedy = f"is cut off ({reason}), so a copy or a simulation did not finish; copy or simulate it again"
    elif "signature" in text:
        remedy = "is not an HDF5 file; name a pfsspec dataset.h5, or spectra in netCDF, Zarr or plain HDF5"
    else:
        remedy = f"cannot be opened ({text}); copy or simulate it again"
    return InputError(f"shard {path} {remedy}")


def _cache_bytes(file: h5py.File) -> int | None:
    """Chunk cache: the default, or one decoded chunk where chunks are compressed and larger than that.

    A compressed chunk has to be decoded whole; without room to keep it, every block of rows would decode it
    again. Uncompressed chunks are read row by row from the file, and a large cache would read them whole for
    nothing.
    """
    needed = 0
    for name in PIXEL_PATHS.values():
        dataset = file.get(name)
        if isinstance(dataset, h5py.Dataset) and dataset.chunks and dataset.id.get_create_plist().get_nfilters():
            needed = max(needed, math.prod(dataset.chunks) * dataset.dtype.itemsize)
    needed = min(needed, _LARGEST_CACHE)
    return needed + (1 << 20) if needed > (1 << 20) else None


def digest_spectra(
    read_rows: Callable[[str, int, int], np.ndarray],
    n_spectra: int,
    wavelength: np.ndarray,
    columns: Mapping[str, np.ndarray],
    dtypes: Mapping[str, str],
) -> str:
    """Digest wavelengths, columns and a few spread spectra; see :class:`ShardInfo`.

    Parameters
    ----------
    read_rows
        Takes a variable, the first row and one past the last.
    n_spectra
        N.
    wavelength
        Shape (P,), Å.
    columns
        By name, each (N,).
    dtypes
        Of the pixel arrays, by variable.
    """
    digest = hashlib.sha256(wavelength.tobytes())
    for column, values in sorted(columns.items()):
        digest.update(f"{column} {values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    for variable, dtype in dtypes.items():
        digest.update(f"{variable} {dtype} {(n_spectra, len(wavelength))}".encode())
        for row in _spread_rows(n_spectra):
            digest.update(read_rows(variable, row, row + 1).tobytes())
    return digest.hexdigest()

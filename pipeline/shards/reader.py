"""pfsspec HDF5 shards: which files a user means, what one holds, and reading its rows (h5py only, read-only).

Layouts differ between files (chunks, compression, dtypes, masks that mean the opposite), so everything is
probed and nothing assumed. What would otherwise end as silent zeros or shifted rows is refused here, once.
"""

from __future__ import annotations

import glob
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import h5py
import numpy as np

from pipeline import schema
from pipeline.errors import InputError
from pipeline.schema import SHARD_FILE_NAME, SHARD_INDEX_NAME
from pipeline.shards.layout import (
    PIXEL_PATHS,
    find_pixel_arrays,
    list_remarks,
    read_columns,
    read_wavelength,
    require_columns,
    require_written,
)

__all__ = ["HDF5_SUFFIXES", "ShardInfo", "ShardReader", "find_shards", "natural_key", "read_shard_info"]

# --- Which HDF5 files a user means: files, folders, globs and ``shard_index.txt``, in the order stated.
#
# No file is opened here; only names and folders are looked at.

HDF5_SUFFIXES = (".h5", ".hdf5")


def find_shards(patterns: Sequence[str | Path], base: Path) -> tuple[Path, ...]:
    """Return the shard files that the patterns name, in the order stated.

    A pattern is a file, a folder, a glob, or an index file that lists shard folders one per line (``#``
    starts a comment). Of a folder, the first of these that it holds counts: ``shard_index.txt``,
    ``dataset.h5``, sub-folders with a ``dataset.h5``, other ``*.h5`` files. Patterns keep their order; what
    one folder or glob holds is sorted naturally (``train_2`` before ``train_10``). Entries of an index are
    relative to the index's own folder.

    Parameters
    ----------
    patterns
        At least one; relative ones start at ``base``.
    base
        Folder of relative patterns, e.g. that of the configuration file.

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
        matches = sorted(glob.glob(str(path), recursive=True), key=natural_key)
        shards = [shard for match in matches for shard in _expand_match(Path(match), pattern)]
        if shards:
            return shards
    raise InputError(
        f"no shard matches {pattern!r} (looked in {path.parent}); name HDF5 files, folders that hold a "
        f"{SHARD_FILE_NAME}, globs, or a {SHARD_INDEX_NAME}"
    )


def _expand_match(match: Path, pattern: str) -> list[Path]:
    return _expand_folder(match, pattern) if match.is_dir() else [match]


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
    for number, line in enumerate(lines, start=1):
        entry = line.split("#", 1)[0].strip()
        if not entry:
            continue
        shard = index.parent / entry
        if shard.is_dir():
            shard = shard / SHARD_FILE_NAME
        if not shard.is_file():
            raise InputError(
                f"{index}, line {number}: {entry!r} must be a folder with a {SHARD_FILE_NAME} or an HDF5 file, but "
                f"{shard} does not exist; correct the line or remove it"
            )
        shards.append(shard)
    if not shards:
        raise InputError(f"{index} lists no shard; write one shard folder per line")
    return shards


#: HDF5 allows no larger chunk; a damaged file may state one.
_LARGEST_CACHE: Final = 1 << 32
#: What h5py raises on damaged metadata, depending on which byte is wrong.
_DAMAGE: Final = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    MemoryError,
    SystemError,
)
#: A fingerprint reads the table, the wavelengths and this many whole spectra, not the whole file.
_FINGERPRINT_ROWS: Final = 5


@dataclass(frozen=True)
class ShardInfo:
    """What one checked shard holds; see :func:`read_shard_info`.

    ``dtypes`` and ``chunks`` are by variable (chunks None where contiguous); ``wavelength`` is (P,) float64
    in Å; ``columns`` are (N,) arrays. ``fingerprint`` digests wavelengths, columns and five spectra: the same
    wherever the file lies, other for other shards, but blind to a change in the remaining spectra; ``size`` (bytes)
    and ``mtime_ns`` (time of the last change, ns) tell of that. ``remarks`` are oddities that were put right.
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

    @property
    def stamp(self) -> tuple[int, int]:
        """Size and time of the last change: equal while nobody writes to the file."""
        return self.size, self.mtime_ns

    @property
    def variables(self) -> tuple[str, ...]:
        """The pixel arrays present, in the order of :data:`pipeline.schema.PIXEL_VARIABLES`."""
        return tuple(name for name in schema.PIXEL_VARIABLES if name in self.dtypes)


class ShardReader:
    """Reads rows of one shard; a context manager.

    HDF5 holds one lock per interpreter, so readers in threads wait for each other: use processes.

    Raises
    ------
    InputError
        On entering, if the file is missing, empty, truncated or not HDF5.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.name = _short_name(self.path)
        self._file: h5py.File | None = None
        self._mask = np.empty((0, 0), np.uint8)

    def __enter__(self) -> Self:
        self._file = _open_file(self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def file(self) -> h5py.File:
        """The open file."""
        if self._file is None:
            raise RuntimeError("ShardReader is used outside its 'with' block")
        return self._file

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
        """
        file = self.file
        try:
            dataset = file[PIXEL_PATHS[variable]]
            n_spectra = dataset.shape[0]
        except _DAMAGE as error:
            raise _damaged(self.name, error) from error
        if not 0 <= start <= stop <= n_spectra:
            raise IndexError(f"rows {start}:{stop} of {n_spectra}")
        try:
            if variable == "mask":
                values = self._read_mask(dataset, start, stop)
                flagged = ~values if values.dtype == bool else values != 0
                result: np.ndarray = flagged.view(np.uint8)
                return result
            rows = np.empty((stop - start, dataset.shape[1])) if out is None else out[: stop - start]
            if stop > start:
                dataset.read_direct(rows, np.s_[start:stop], np.s_[0 : stop - start])
        except _DAMAGE as error:
            raise InputError(
                f"{self.name}: rows {start} to {stop - 1} of {PIXEL_PATHS[variable]!r} cannot be read "
                f"({_reason(error)}); the file is damaged or needs a compression filter that is missing, copy it again"
            ) from error
        return rows

    def _read_mask(self, dataset: h5py.Dataset, start: int, stop: int) -> np.ndarray:
        """Read raw mask values into a buffer that the reader keeps: int64 masks are as large as the flux."""
        if len(self._mask) < stop - start or self._mask.dtype != dataset.dtype:
            self._mask = np.empty((stop - start, dataset.shape[1]), dataset.dtype)
        if stop > start:
            dataset.read_direct(self._mask, np.s_[start:stop], np.s_[0 : stop - start])
        return self._mask[: stop - start]


def read_shard_info(path: Path | str) -> ShardInfo:
    """Open a shard, check everything that can be checked without reading all pixels, and describe it.

    Raises
    ------
    InputError
        If the file or its layout is not as required; the message names the file, what was found and the
        remedy.
    """
    path = Path(path)
    with ShardReader(path) as reader:
        try:
            return _describe_shard(reader)
        except _DAMAGE as error:
            raise _damaged(reader.name, error) from error


def _describe_shard(reader: ShardReader) -> ShardInfo:
    file, name = reader.file, reader.name
    status = reader.path.stat()  # before anything is read: a later change shows
    columns, remarks = read_columns(file, name)
    datasets = find_pixel_arrays(file, name)
    n_spectra, n_pixels = datasets["flux"].shape
    require_columns(columns, name, n_spectra)
    wavelength = read_wavelength(file, name, n_pixels)
    for variable, dataset in datasets.items():
        require_written(dataset, variable, name)
    return ShardInfo(
        path=reader.path,
        n_spectra=n_spectra,
        n_pixels=n_pixels,
        wavelength=wavelength,
        dtypes={variable: str(dataset.dtype) for variable, dataset in datasets.items()},
        chunks={variable: dataset.chunks for variable, dataset in datasets.items()},
        has_mask="mask" in datasets,
        has_noisy="noisy" in datasets,
        mask_is_boolean="mask" in datasets and datasets["mask"].dtype == bool,
        columns=columns,
        fingerprint=_fingerprint(reader, wavelength, columns, datasets),
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        remarks=(*list_remarks(file, n_pixels), *remarks),
    )


def _damaged(name: str, error: BaseException) -> InputError:
    return InputError(
        f"{name}: damaged, its HDF5 structure cannot be read ({_reason(error)}); copy it again or re-run the simulation"
    )


def _reason(error: BaseException) -> str:
    """One line of what HDF5 said."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


def _short_name(path: Path) -> str:
    return f"shard {Path(*path.parts[-2:])}" if len(path.parts) > 1 else f"shard {path}"


def _open_file(path: Path) -> h5py.File:
    if not path.exists():
        raise InputError(f"shard {path} does not exist; correct the path")
    if path.is_dir():
        raise InputError(f"shard {path} is a folder, an HDF5 file is required; name the file in it")
    try:
        if path.stat().st_size == 0:
            raise InputError(f"shard {path} is empty (0 bytes); copy or simulate it again")
        return h5py.File(path, "r", rdcc_nbytes=_cache_bytes(path))
    except _DAMAGE as error:
        text = " ".join(str(error).split())
        if not isinstance(error, OSError):
            raise _damaged(_short_name(path), error) from error
        if isinstance(error, PermissionError) or "Permission denied" in text:
            raise InputError(f"shard {path} may not be read (permission denied); change its permissions") from error
        if "truncated file" in text:
            reason = text[text.index("truncated file") :].rstrip(")")
            remedy = f"is cut off ({reason}), so a copy or a simulation did not finish; copy or simulate it again"
        elif "lock" in text:
            remedy = f"is open for writing elsewhere ({text}); wait until its writer has finished"
        elif "signature" in text:
            remedy = "is not an HDF5 file; name a pfsspec dataset.h5"
        else:
            remedy = f"cannot be opened ({text}); copy or simulate it again"
        raise InputError(f"shard {path} {remedy}") from error


def _cache_bytes(path: Path) -> int | None:
    """Chunk cache: the default, or one decoded chunk where chunks are compressed and larger than that.

    A compressed chunk has to be decoded whole; without room to keep it, every block of rows would decode it
    again. Uncompressed chunks are read row by row from the file, and a large cache would read them whole for
    nothing.
    """
    needed = 0
    with h5py.File(path, "r") as file:
        for name in PIXEL_PATHS.values():
            dataset = file.get(name)
            if isinstance(dataset, h5py.Dataset) and dataset.chunks and dataset.id.get_create_plist().get_nfilters():
                needed = max(needed, math.prod(dataset.chunks) * dataset.dtype.itemsize)
    needed = min(needed, _LARGEST_CACHE)
    return needed + (1 << 20) if needed > (1 << 20) else None


def _fingerprint(
    reader: ShardReader,
    wavelength: np.ndarray,
    columns: Mapping[str, np.ndarray],
    datasets: Mapping[str, h5py.Dataset],
) -> str:
    digest = hashlib.sha256(wavelength.tobytes())
    for column, values in sorted(columns.items()):
        digest.update(f"{column} {values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    for variable, dataset in datasets.items():
        digest.update(f"{variable} {dataset.dtype} {dataset.shape}".encode())
        last = dataset.shape[0] - 1
        for row in sorted({last * k // (_FINGERPRINT_ROWS - 1) for k in range(_FINGERPRINT_ROWS)}):
            digest.update(reader.read_rows(variable, row, row + 1).tobytes())
    return digest.hexdigest()

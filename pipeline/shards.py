"""pfsspec HDF5 shards: every check of the layout, and reading rows (h5py only, read-only).

Layouts differ between files (chunks, compression, dtypes, masks that mean the opposite), so everything is
probed and nothing assumed. What would otherwise end as silent zeros or shifted rows is refused here, once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import h5py
import numpy as np

from pipeline import schema
from pipeline.errors import InputError
from pipeline.shard_files import find_shards
from pipeline.shard_table import read_columns, require_columns

__all__ = ["ShardInfo", "ShardReader", "find_shards", "read_shard_info"]

_PATHS: Final[Mapping[str, str]] = {
    "flux": schema.SHARD_FLUX,
    "error": schema.SHARD_ERROR,
    "mask": schema.SHARD_MASK,
    "noisy": schema.SHARD_NOISY,
}
#: A fingerprint reads the table, the wavelengths and this many whole spectra, not the whole file.
_FINGERPRINT_ROWS: Final = 5


@dataclass(frozen=True)
class ShardInfo:
    """What one checked shard holds; see :func:`read_shard_info`.

    ``dtypes`` and ``chunks`` are by variable (chunks None where contiguous); ``wavelength`` is (P,) float64
    in Å; ``columns`` are (N,) arrays; ``fingerprint`` depends on the content only, never on where the file
    lies; ``remarks`` are oddities that were put right.
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
    remarks: tuple[str, ...] = ()

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
        dataset = self.file[_PATHS[variable]]
        if not 0 <= start <= stop <= dataset.shape[0]:
            raise IndexError(f"rows {start}:{stop} of {dataset.shape[0]}")
        try:
            if variable == "mask":
                values = self._read_mask(dataset, start, stop)
                flagged = ~values if values.dtype == bool else values != 0
                result: np.ndarray = flagged.view(np.uint8)
                return result
            rows = np.empty((stop - start, dataset.shape[1])) if out is None else out[: stop - start]
            if stop > start:
                dataset.read_direct(rows, np.s_[start:stop], np.s_[0 : stop - start])
        except OSError as error:
            raise InputError(
                f"{self.name}: rows {start} to {stop - 1} of {_PATHS[variable]!r} cannot be read ({error}); the "
                "file is damaged or needs a compression filter that is not installed, copy it again"
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
        file, name = reader.file, reader.name
        columns = read_columns(file, name)
        datasets = _find_pixel_arrays(file, name)
        n_spectra, n_pixels = datasets["flux"].shape
        require_columns(columns, name, n_spectra)
        wavelength = _read_wavelength(file, name, n_pixels)
        for variable, dataset in datasets.items():
            _require_written(dataset, variable, name)
        mask_is_boolean = "mask" in datasets and datasets["mask"].dtype == bool
        return ShardInfo(
            path=path,
            n_spectra=n_spectra,
            n_pixels=n_pixels,
            wavelength=wavelength,
            dtypes={variable: str(dataset.dtype) for variable, dataset in datasets.items()},
            chunks={variable: dataset.chunks for variable, dataset in datasets.items()},
            has_mask="mask" in datasets,
            has_noisy="noisy" in datasets,
            mask_is_boolean=mask_is_boolean,
            columns=columns,
            fingerprint=_fingerprint(reader, wavelength, columns, datasets),
            size=path.stat().st_size,
            remarks=_remarks(file, n_pixels),
        )


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
    except OSError as error:
        text = str(error)
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
        for name in _PATHS.values():
            dataset = file.get(name)
            if isinstance(dataset, h5py.Dataset) and dataset.chunks and dataset.id.get_create_plist().get_nfilters():
                needed = max(needed, math.prod(dataset.chunks) * dataset.dtype.itemsize)
    return needed + (1 << 20) if needed > (1 << 20) else None


def _find_pixel_arrays(file: h5py.File, name: str) -> dict[str, h5py.Dataset]:
    datasets: dict[str, h5py.Dataset] = {}
    for variable, dataset_path in _PATHS.items():
        dataset = file.get(dataset_path)
        if dataset is None and variable in ("mask", "noisy"):
            continue
        if not isinstance(dataset, h5py.Dataset):
            raise InputError(
                f"{name}: {dataset_path!r} is missing, so this is no pfsspec shard or its writer did not finish; "
                "re-run the simulation or leave this shard out"
            )
        allowed = "biu" if variable == "mask" else "f"
        if dataset.ndim != 2 or dataset.dtype.kind not in allowed or 0 in dataset.shape:
            wanted = "integers or booleans" if variable == "mask" else "floats"
            raise InputError(
                f"{name}: {dataset_path!r} must hold {wanted} of shape (spectra, pixels), found {dataset.dtype} "
                f"{dataset.shape}; re-run the simulation or leave this shard out"
            )
        datasets[variable] = dataset
    shape = datasets["flux"].shape
    for variable, dataset in datasets.items():
        if dataset.shape != shape:
            raise InputError(
                f"{name}: all pixel arrays must have one shape, but flux has {shape} and {variable} has "
                f"{dataset.shape}; re-run the simulation or leave this shard out"
            )
    return datasets


def _read_wavelength(file: h5py.File, name: str, n_pixels: int) -> np.ndarray:
    dataset = file.get(schema.SHARD_WAVE)
    if not isinstance(dataset, h5py.Dataset) or dataset.shape != (n_pixels,) or dataset.dtype.kind not in "fiu":
        found = f"{dataset.dtype} {dataset.shape}" if isinstance(dataset, h5py.Dataset) else "nothing"
        raise InputError(
            f"{name}: {schema.SHARD_WAVE!r} must hold {n_pixels} wavelengths, one per pixel of the flux, found "
            f"{found}; re-run the simulation or leave this shard out"
        )
    wavelength: np.ndarray = dataset[()].astype(np.float64)
    wrong = np.flatnonzero(~np.isfinite(wavelength))
    if not wrong.size:
        wrong = np.flatnonzero(np.diff(wavelength) <= 0) + 1
    if wrong.size:
        raise InputError(
            f"{name}: {schema.SHARD_WAVE!r} must be finite and strictly increasing, found {wavelength[wrong[0]]} at "
            f"pixel {wrong[0]}; sort the pixels or re-run the simulation"
        )
    return wavelength


def _require_written(dataset: h5py.Dataset, variable: str, name: str) -> None:
    """Refuse storage that was never written: HDF5 reads it as zeros without a word."""
    if dataset.is_virtual:
        return
    if dataset.chunks is None:
        missing = [] if dataset.id.get_storage_size() else [(0, 0)]
    else:
        steps = dataset.chunks
        expected = math.prod(-(-size // step) for size, step in zip(dataset.shape, steps, strict=True))
        written = dataset.id.get_num_chunks()
        if written == expected or (written == 0 and variable == "mask" and dataset.dtype != bool):
            return  # an integer mask that was never written says: nothing is flagged
        offsets = {dataset.id.get_chunk_info(i).chunk_offset for i in range(written)}
        grid = ((r, p) for r in range(0, dataset.shape[0], steps[0]) for p in range(0, dataset.shape[1], steps[1]))
        missing = [offset for offset in grid if offset not in offsets]
    if missing:
        row, pixel = missing[0]
        raise InputError(
            f"{name}: {_PATHS[variable]!r} has {len(missing)} unwritten chunk(s), the first at row {row}, pixel "
            f"{pixel}; they would read as zeros, so the simulation did not finish: re-run it or leave this shard out"
        )


def _remarks(file: h5py.File, n_pixels: int) -> tuple[str, ...]:
    """Return what a reader should know of a shard that is otherwise right."""
    remarks = [schema.SIMULATED_REMARK] if schema.SHARD_SIMULATED in file.attrs else []
    edges = file.get(schema.SHARD_WAVE_EDGES)
    if isinstance(edges, h5py.Dataset) and edges.shape != (n_pixels + 1,):
        remarks.append(
            f"{schema.SHARD_WAVE_EDGES!r} has shape {edges.shape} where ({n_pixels + 1},) is right; it is ignored, "
            "edges follow from the wavelengths"
        )
    return tuple(remarks)


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

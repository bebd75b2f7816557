"""Moments on disk. The cells of a partition or fold are one folder, which is written completely or not at all.

=================  =====================================================================================
``moments.json``   facts, the spectra of every cell, the checksums of the other files, and one of all these facts
``sums.npz``       what is small, for all K cells: x_sum, x_squares (K, P), y_sum, cross, y_gram, origins
``gram-000.npy``   the tiles of one cell's Gram matrix, and so on for every cell that has spectra
=================  =====================================================================================

Factored moments have no tiles. Their ``sums.npz`` holds what they are made of (:class:`pipeline.moments.Factors`), for
every class of spectra, with the lower triangles of symmetric matrices row by row, and
``basis.npz`` beside all folders of one noise holds the basis, whose digest the facts state.

Nothing is pickled. Every Gram matrix has a file of its own, so that several can be written at once and each can be read
by itself. Files are not flushed to the disk immediately. If the machine loses power, the checksums show what is
damaged.
"""

from __future__ import annotations

import io
import json
import os
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial, reduce
from io import BufferedReader
from operator import add
from pathlib import Path
from tokenize import TokenError
from typing import Any

import google_crc32c
import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pipeline.base import (
    BLOCK,
    HEADER_LOCK,
    disk_errors_told,
    hash_file,
    is_sealed,
    open_npz,
    open_regular,
    parse_object,
    read_file,
    refuse_environment,
    replacing_folder,
    save_npz,
    seal,
    write_file,
    write_npz,
)
from pipeline.errors import InputError
from pipeline.moments.basis import Basis
from pipeline.moments.factored import WORST, FactoredMoments, Factors
from pipeline.moments.moments import Moments, PixelSums
from pipeline.moments.tiles import TileLayout
from pipeline.schema import BASIS_VERSION, MOMENTS_VERSION

__all__ = [
    "BASIS_FILE",
    "KEY_FILE",
    "MomentsWriter",
    "SavedMoments",
    "find_basis",
    "read_basis",
    "write_basis",
    "write_moments",
]

FORMAT = "headroom-moments"
BASIS_FORMAT = "headroom-basis"
#: The file beside the folders of one noise draw that says how they were computed.
KEY_FILE = "key.json"
_FACTS_FILE, _SUMS_FILE = "moments.json", "sums.npz"
_SUMS = ("x_sum", "y_sum", "cross", "y_gram")
#: The same of factored moments.
_FACTORS = ("inner", "noise", "residual", "n_check", "worst")
#: Beside the folders of one noise: the basis of their moments.
BASIS_FILE = "basis.npz"


class MomentsWriter:
    """Writes the moments of all cells to one folder, cell by cell in any order. The folder appears when it is complete.

    Several threads may write at once.

    Parameters
    ----------
    folder
        The folder. If it exists, it is replaced unless it holds complete moments with the same ``header["key"]``.
    n_cells
        Number of cells, which have common origins.
    header
        Facts to write beside the moments as JSON, such as the key of the computation.

    Raises
    ------
    ResourceError
        If the disk is full or not writable. Any call may raise this. :meth:`discard` then removes all files.
    """

    def __init__(self, folder: Path, n_cells: int, header: dict[str, Any]) -> None:
        self._folder, self._header = folder, header
        self._cells: list[_WrittenCell | None] = [None] * n_cells
        self._lock = threading.Lock()
        self._is_closed = False
        self._replacing = replacing_folder(folder, partial(SavedMoments.holds, key=header.get("key")))
        self._temporary = self._replacing.__enter__()

    def write(self, cell: int, moments: Moments) -> None:
        """Write one cell. The last cell completes the folder. The moments are not needed after the call."""
        checksum = None
        if moments.count and moments.is_tiled:  # cells without spectra are many where binnings are
            with disk_errors_told(self._folder):
                checksum = _write_gram(_gram_file(self._temporary, cell), moments.gram)
        small = replace(moments, gram=moments.gram[:0]) if moments.is_tiled else moments
        x_squares = moments.pixel_sums.x_squares if moments.is_tiled else np.empty(0)
        written = _WrittenCell(small, x_squares, checksum)
        with self._lock:
            self._cells[cell] = written
            cells = [one for one in self._cells if one is not None]
            if len(cells) == len(self._cells):
                self.finish(cells)

    def discard(self) -> None:
        """Delete the files of an incomplete folder."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._replacing.__exit__(GeneratorExit, GeneratorExit(), None)

    def finish(self, cells: list[_WrittenCell]) -> None:
        """Write what is small and let the folder appear; the last cell's :meth:`write` calls it."""
        some = cells[0].moments
        with disk_errors_told(self._folder):
            if isinstance(some, FactoredMoments):
                packed = [_pack(cell.moments.factors) for cell in cells if isinstance(cell.moments, FactoredMoments)]
                sums = {name: np.stack([one[name] for one in packed]) for name in _FACTORS}
            else:
                sums = {name: np.stack([getattr(cell.moments, name) for cell in cells]) for name in _SUMS}
            if some.is_tiled:
                sums["x_squares"] = np.stack([cell.x_squares for cell in cells])
                sums["x_origin"] = some.x_origin
            with open(self._temporary / _SUMS_FILE, "wb") as stream:
                save_npz(stream, sums | {"y_origin": some.y_origin})
            facts = {
                **self._header,
                "format": FORMAT,
                "version": MOMENTS_VERSION,
                "labels": list(some.labels),
                "counts": [cell.moments.count for cell in cells],
                "epsilon": max(cell.moments.epsilon for cell in cells),
                "gram_dtype": some.gram.dtype.str,
                "gram_crc32c": [cell.checksum for cell in cells],
                "sums_sha256": hash_file(self._temporary / _SUMS_FILE),
                **({"basis": some.basis.digest} if isinstance(some, FactoredMoments) else {}),
            }
            (self._temporary / _FACTS_FILE).write_text(json.dumps(seal(facts)), encoding="utf-8")
        self._is_closed = True
        self._replacing.__exit__(None, None, None)


@dataclass(frozen=True)
class _WrittenCell:
    """The small sums of a cell whose Gram matrix is already on disk."""

    moments: Moments
    x_squares: NDArray[np.float64]
    checksum: int | None


def write_moments(folder: Path, cells: Iterable[Moments], n_cells: int, header: dict[str, Any]) -> None:
    """Write the moments of all cells to one folder, atomically.

    Cells are written one after the other, so they may share memory. :class:`MomentsWriter` explains parameters and
    errors. After an error no files are left.
    """
    writer = MomentsWriter(folder, n_cells, header)
    try:
        for cell, moments in enumerate(cells):
            writer.write(cell, moments)
    finally:
        writer.discard()


@dataclass(frozen=True, eq=False)
class SavedMoments:
    """The saved moments of a partition or fold. Gram matrices stay on disk until they are read.

    Attributes
    ----------
    folder
        Their folder.
    header
        The facts in ``moments.json``.
    """

    folder: Path
    header: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> SavedMoments:
        """Read the facts beside the moments, check them, and check that all files exist.

        Raises
        ------
        InputError
            If the folder is missing, incomplete or of another version, or its facts are not what was written.
        """
        try:
            facts = parse_object(read_file(folder / _FACTS_FILE))
        except FileNotFoundError:
            raise InputError(f"moments {folder}: no such folder; run the accumulation again") from None
        except (OSError, ValueError) as error:
            refuse_environment(folder, error)
            raise _damaged(folder, error) from None
        if (facts.get("format"), facts.get("version")) != (FORMAT, MOMENTS_VERSION):
            found = f"{facts.get('format')} version {facts.get('version')}"
            raise InputError(
                f"moments {folder}: {FORMAT} version {MOMENTS_VERSION} is required, found {found}; accumulate again"
            )
        try:
            if not is_sealed(facts):
                raise ValueError("it has no checksum")
        except ValueError as error:
            raise _damaged(folder, f"{_FACTS_FILE}: {error}") from None
        saved = cls(folder, facts)
        grams = (_gram_file(folder, cell) for cell, count in enumerate(saved.counts) if count and saved.is_tiled)
        for file in [folder / _SUMS_FILE, *grams]:
            if not file.is_file():
                raise _damaged(folder, f"{file.name} is missing")
        return saved

    @classmethod
    def holds(cls, folder: Path, key: str | None) -> bool:
        """Whether a folder holds complete moments with this key."""
        try:
            return bool(cls.open(folder).header.get("key") == key)
        except InputError:
            return False

    @property
    def counts(self) -> list[int]:
        """Spectra of each cell."""
        return [int(count) for count in self.header["counts"]]

    @property
    def exponent(self) -> int:
        """See :class:`pipeline.moments.moments.Moments`; 0 in moments of old."""
        return int(self.header.get("flux_exponent", 0))

    @property
    def is_tiled(self) -> bool:
        """Whether the moments are dense; else they are factored."""
        return "basis" not in self.header

    @property
    def n_classes(self) -> int:
        """Classes of like noise that a cell's factored moments are divided into; 1 where they are not."""
        return 1 if self.is_tiled else int(self._sums["noise"].shape[1])

    @property
    def n_cells(self) -> int:
        """K + 1: the bins and the outside."""
        return len(self.header["counts"])

    @property
    def n_pixels(self) -> int:
        """P."""
        return int((self._sums["x_origin"] if self.is_tiled else self._sums["residual"][0]).size)

    @property
    def tiled_pixels(self) -> int:
        """The pixels that memory for tiles must have room for: none where moments are factored."""
        return self.n_pixels if self.is_tiled else 0

    def pixel_sums(self) -> list[PixelSums]:
        """Return the sums for each cell's single pixels. No Gram matrix is read."""
        if not self.is_tiled:
            return [self.read(cell).pixel_sums for cell in range(self.n_cells)]
        sums = self._sums
        x_sums, x_squares, x_origin = sums["x_sum"], sums["x_squares"], sums["x_origin"]
        epsilon = float(self.header["epsilon"])
        return [
            PixelSums(count, x_sums[k], x_squares[k], x_origin, epsilon, self.exponent)
            for k, count in enumerate(self.counts)
        ]

    def sum_pixels(self, cells: Sequence[int]) -> PixelSums:
        """Return the sums for single pixels of some cells, at least one, together. No Gram matrix is read."""
        if not self.is_tiled:
            return self._read_factored(*cells).pixel_sums
        sums = self.pixel_sums()
        return PixelSums.merge([sums[k] for k in cells])

    def label_sums(self) -> tuple[list[int], NDArray[np.float64], NDArray[np.float64]]:
        """Return each cell's n, Σ(y − c) and Σ(y − c)², shapes (K,), (K, Q), (K, Q). No Gram matrix is read."""
        return self.counts, *self._label_sums

    @cached_property
    def _label_sums(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if not self.is_tiled:  # every cell is unpacked for it, so this is done once
            cells = [self.read(cell) for cell in range(self.n_cells)]
            return np.stack([one.y_sum for one in cells]), np.stack([np.diag(one.y_gram) for one in cells])
        return self._sums["y_sum"], np.diagonal(self._sums["y_gram"], axis1=1, axis2=2)

    def check_sizes(self) -> None:
        """Check that every Gram matrix has its header and its length. Its numbers are not read.

        Raises
        ------
        InputError
            If one has not; the message names it.
        """
        for cell, count in enumerate(self.counts if self.is_tiled else ()):
            if count:
                with self._open_gram(cell):
                    pass

    def read(self, cell: int, out: NDArray[np.uint8] | None = None) -> Moments:
        """Return the moments of one cell, in the precision they were saved in.

        Parameters
        ----------
        cell
            The outside is the last one.
        out
            Memory for the Gram matrix. The default is fresh memory, which takes more time than reading the file.

        Raises
        ------
        InputError
            If a file is missing or damaged: every byte is checked.
        """
        if not self.is_tiled:
            return self._read_factored(cell)
        gram = self._read_gram(cell, out)
        sums = self._sums
        arrays = {name: sums[name][cell] for name in _SUMS}
        x_origin, y_origin = sums["x_origin"], sums["y_origin"]
        return Moments(
            count=self.counts[cell],
            gram=gram,
            **arrays,
            x_origin=x_origin,
            y_origin=y_origin,
            labels=tuple(self.header["labels"]),
            epsilon=float(self.header["epsilon"]),
            exponent=self.exponent,
        )

    def read_divided(self, cell: int, out: NDArray[np.uint8] | None = None) -> Moments:
        """Return the moments of one cell as :meth:`read` does, with the classes of factored ones kept apart.

        They take as much memory for every class as :meth:`read` takes for all.
        """
        return self.read(cell, out) if self.is_tiled else self._read_factored(cell, is_divided=True)

    def _read_factored(self, *cells: int, is_divided: bool = False) -> FactoredMoments:
        """Return the sum of some cells, unpacked anew: all of them unpacked would take several times their packed size.

        Cells are added before they are unpacked.
        """
        basis = read_basis(self.folder.parent)
        if basis.digest != self.header["basis"]:
            raise InputError(
                f"moments {self.folder}: they have another basis than {self.folder.parent / BASIS_FILE}; run again"
            )
        sums = self._sums
        packed = [Factors(**{name: sums[name][cell] for name in _FACTORS}) for cell in cells]
        try:
            factors = _unpack(packed, basis, len(sums["y_origin"]), is_divided=is_divided)
        except ValueError as error:
            raise _damaged(self.folder, f"{_SUMS_FILE}: {error}") from None
        if int(factors.inner[:, basis.rank, basis.rank].sum()) != sum(self.counts[cell] for cell in cells):
            words = f"cell {cells[0]} holds" if len(cells) == 1 else f"cells {list(cells)} hold"
            raise _damaged(self.folder, f"{words} another number of spectra than {_FACTS_FILE} states")
        labels, epsilon = self.header["labels"], float(self.header["epsilon"])
        basis = basis if is_divided else basis.undivided
        return FactoredMoments(basis, factors, sums["y_origin"], labels, epsilon, self.exponent)

    @cached_property
    def _sums(self) -> dict[str, NDArray[np.float64]]:
        """The small sums, which are read once."""

        def refuse(reason: object) -> InputError:
            return _damaged(self.folder, f"{_SUMS_FILE}: {reason}")

        try:
            if hash_file(self.folder / _SUMS_FILE) != self.header["sums_sha256"]:
                raise refuse(f"it is not what {_FACTS_FILE} states")
        except OSError as error:
            raise refuse(error) from None
        with open_npz(self.folder / _SUMS_FILE, refuse) as (_, arrays):
            names = (*_SUMS, "x_squares", "x_origin") if self.is_tiled else _FACTORS
            return {name: arrays[name] for name in (*names, "y_origin")}

    def _read_gram(self, cell: int, out: NDArray[np.uint8] | None) -> NDArray[Any]:
        if not self.counts[cell]:
            return self._empty_gram(out)
        with self._open_gram(cell) as (stream, layout, dtype):
            size = layout.nbytes(dtype)
            content = np.empty(size, np.uint8) if out is None else out[:size]
            # Through the page cache: folds and gates read the same file again.
            if stream.readinto(content.data) != size:
                raise ValueError("it ends early")
            if google_crc32c.value(content) != self.header["gram_crc32c"][cell]:
                raise ValueError("it does not match its checksum")
        gram: NDArray[Any] = content.view(dtype).reshape(layout.shape)
        return gram

    @contextmanager
    def _open_gram(self, cell: int) -> Iterator[tuple[BufferedReader, TileLayout, np.dtype[Any]]]:
        """Open the file of a cell's tiles at the first of its numbers, if its header and length are as they should be.

        OSError and ValueError of the block are told as damage of this file.
        """
        path = _gram_file(self.folder, cell)
        layout, dtype = TileLayout(self._sums["x_origin"].size), np.dtype(self.header["gram_dtype"])
        try:
            with open(path, "rb", opener=open_regular) as stream:
                _require_npy_header(stream, layout.shape, dtype)
                size = layout.nbytes(dtype)
                if os.fstat(stream.fileno()).st_size != stream.tell() + size:
                    raise ValueError(f"it should hold {size} bytes of numbers")
                yield stream, layout, dtype
        except (OSError, ValueError) as error:
            refuse_environment(path, error)
            raise _damaged(self.folder, f"{path.name}: {error}") from None

    def _empty_gram(self, out: NDArray[np.uint8] | None) -> NDArray[Any]:
        """Return the tiles of a cell without spectra, which has no file."""
        layout = TileLayout(self._sums["x_origin"].size)
        dtype = np.dtype(self.header["gram_dtype"])
        size = layout.nbytes(dtype)
        gram: NDArray[Any] = (np.empty(size, np.uint8) if out is None else out[:size]).view(dtype).reshape(layout.shape)
        gram[:] = 0
        return gram


#: Rows and columns of a lower triangle, row by row: found once for all cells of a run.
_lower_triangle = lru_cache(2)(np.tril_indices)


def _pack(factors: Factors) -> dict[str, Any]:
    """Return the arrays of factors, of symmetric matrices the lower triangles."""
    rows, columns = _lower_triangle(factors.inner.shape[1])
    return vars(factors) | {"inner": factors.inner[:, rows, columns]}


def _unpack(parts: Sequence[Factors], basis: Basis, n_labels: int, *, is_divided: bool) -> Factors:
    """Return the sum of factors that :func:`_pack` packed, of every class or of all together.

    They are added before they are unpacked. ValueError if arrays have other shapes than the basis says.
    """
    size, n_pixels, n_classes = basis.rank + 1 + n_labels, len(basis.variance), basis.n_classes
    rows, columns = _lower_triangle(size)
    shapes = [(n_classes, len(rows)), (n_classes, n_pixels), (n_pixels,), (), (WORST, 2)]
    for part in parts:
        for (name, array), shape in zip(vars(part).items(), shapes, strict=True):
            if array.shape != shape:
                raise ValueError(f"{name} should have the shape {shape}, found {array.shape}")
    total = reduce(add, parts if is_divided else map(Factors.undivided, parts))
    inner = np.empty((len(total.inner), size, size))
    inner[:, rows, columns] = total.inner
    inner[:, columns, rows] = total.inner
    return Factors(inner, total.noise, total.residual, int(total.n_check), total.worst)


def write_basis(folder: Path, basis: Basis, facts: dict[str, Any]) -> None:
    """Write the basis of one noise's moments beside their folders, atomically."""
    arrays = {
        "x_origin": basis.x_origin,
        "variance": basis.variance,
        "directions": basis.directions,
        "edges": basis.edges,
    }
    head = {"format": BASIS_FORMAT, "version": BASIS_VERSION, "digest": basis.digest}
    write_npz(folder / BASIS_FILE, arrays, facts | head)


def read_basis(folder: Path) -> Basis:
    """Read the basis of one noise's moments; see :func:`find_basis`.

    Raises
    ------
    InputError
        If it is missing, damaged or of another version.
    """
    return _read_stated_basis(folder)[0]


def _read_stated_basis(folder: Path) -> tuple[Basis, dict[str, Any]]:
    stamp = (folder / BASIS_FILE).stat() if (folder / BASIS_FILE).is_file() else None
    return _read_basis(folder, None if stamp is None else (stamp.st_mtime_ns, stamp.st_size, stamp.st_ino))


@lru_cache(maxsize=8)
def _read_basis(folder: Path, _: tuple[int, int, int] | None) -> tuple[Basis, dict[str, Any]]:
    """Read a basis, once for as long as its file is the same."""
    path = folder / BASIS_FILE

    def refuse(reason: object) -> InputError:
        return InputError(f"basis {path}: cannot be read ({reason}); delete the folder {folder} and run again")

    with open_npz(path, refuse, (BASIS_FORMAT, BASIS_VERSION)) as (facts, arrays):
        basis = Basis(arrays["x_origin"], arrays["variance"], arrays["directions"], arrays["edges"])
        if basis.digest != facts.get("digest"):
            raise ValueError("it does not match its digest")
        return basis, facts


def find_basis(folder: Path) -> tuple[Basis, dict[str, Any]] | None:
    """Return a basis with the facts beside it; None where there is none that can be used."""
    try:
        return _read_stated_basis(folder)
    except InputError:
        return None


def _require_npy_header(stream: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if npy.read_magic(stream) != (1, 0):
        raise ValueError("it is no .npy file of version 1.0")
    try:
        with HEADER_LOCK:
            found = npy.read_array_header_1_0(stream)
    except (SyntaxError, TokenError) as error:  # NumPy reads it as if it were Python
        raise ValueError(f"its header is damaged ({error})") from None
    if found != (shape, False, dtype):
        raise ValueError(f"row-major {dtype} of shape {shape} is required, found {found}")


def _gram_file(folder: Path, cell: int) -> Path:
    return folder / f"gram-{cell:03d}.npy"


def _write_gram(path: Path, gram: NDArray[Any]) -> int:
    """Write the tiles of one cell; return their crc32c."""
    head = io.BytesIO()
    npy.write_array_header_1_0(head, npy.header_data_from_array_1_0(gram))
    content = gram.reshape(-1).view(np.uint8)
    write_file(path, _pad_header(head.getvalue()), content)
    return int(google_crc32c.value(content))


def _pad_header(header: bytes) -> bytes:
    """Pad a .npy header of version 1.0 with blanks, as the format allows, so that the numbers begin at a block."""
    size = -(-len(header) // BLOCK) * BLOCK
    text = header[10:].rstrip()
    return header[:8] + struct.pack("<H", size - 10) + text.ljust(size - 11) + b"\n"


def _damaged(folder: Path, what: object) -> InputError:
    return InputError(f"moments {folder}: damaged ({what}); delete that folder and run again to recompute it")

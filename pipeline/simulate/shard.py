"""One simulated shard: an HDF5 file in the exact layout of pfsspec, whole or absent.

Arrays are written block by block under a temporary name and ``params`` last, so a file that carries the final name is
complete; the root attribute ``headroom_sample`` tells which specification it belongs to.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import h5py
import numpy as np
import numpy.typing as npt

from pipeline.base import hold_file, parse_object
from pipeline.errors import ResourceError
from pipeline.schema import (
    SHARD_ERROR,
    SHARD_FLUX,
    SHARD_MASK,
    SHARD_NOISY,
    SHARD_PARAMS,
    SHARD_PARAMS_TABLE,
    SHARD_SIMULATED,
    SHARD_WAVE,
    SHARD_WAVE_EDGES,
)
from pipeline.simulate.spectra import Labels, plan_wavelengths
from pipeline.simulate.stars import (
    BLOCK_ROWS,
    NoiseModel,
    block_generator,
    draw_conditions,
    draw_labels,
    draw_noisy,
    fill_edges,
    measure_snr,
)

__all__ = [
    "TABLE_CHUNK_ROWS",
    "ShardPlan",
    "ShardRecord",
    "SpectrumSource",
    "read_record",
    "read_snr",
    "write_params_table",
    "write_shard",
]

FloatArray = npt.NDArray[np.float64]

RECORD_ATTRIBUTE: Final = SHARD_SIMULATED
#: Rows of a chunk, as in the users' files.
CHUNK_ROWS: Final = 4096
FLOAT_COLUMNS: Final = (
    "T_eff",
    "log_g",
    "M_H",
    "a_M",
    "C_M",
    "mag",
    "snr",
    "redshift",
    "seeing",
    "ext",
    "target_zenith_angle",
)
_NOT_SUPPORTED: Final = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_FILE_OVERHEAD: Final = 256 * 1024
# pfsspec fills these only when its simulation uses them.
_EMPTY_COLUMNS: Final = ("ext", "target_zenith_angle")


class SpectrumSource(Protocol):
    """What turns labels into spectra: the built-in model or a user's grid."""

    @property
    def name(self) -> str:
        """What the column ``interp_param`` says."""

    def render(self, labels: Labels) -> FloatArray:
        """Return median-normalised flux (n, P)."""

    def clip_labels(self, labels: Labels) -> tuple[Labels, int]:
        """Return the labels that the source can render and how many of them had to move."""


@dataclass(frozen=True)
class ShardPlan:
    """Everything that fixes one file's content: ``part`` is 0 for the test file, 1 + i for training shard i."""

    path: Path
    fingerprint: dict[str, Any]
    part: int
    first_id: int
    rows: int
    pixels: int
    wave_range: tuple[float, float]
    seed: int
    noisy: bool

    @property
    def bytes(self) -> int:
        """Size of the file, rounded up: arrays, wavelengths, table and HDF5's own structures."""
        arrays = 4 if self.noisy else 3
        padded = -(-self.rows // min(CHUNK_ROWS, self.rows)) * min(CHUNK_ROWS, self.rows)
        table = self.rows * 8 * (len(FLOAT_COLUMNS) + 6)
        return padded * self.pixels * 8 * arrays + 16 * self.pixels + table + _FILE_OVERHEAD


@dataclass(frozen=True)
class ShardRecord:
    """What a finished file says about itself: the specification's fingerprint and the number of clipped labels."""

    fingerprint: dict[str, Any]
    clipped: int


def read_record(path: Path) -> ShardRecord | None:
    """Return the record of a file that this module wrote, or ``None`` for any other file."""
    try:
        with h5py.File(path, "r") as file:
            if RECORD_ATTRIBUTE not in file.attrs or SHARD_PARAMS_TABLE not in file:
                return None
            record = parse_object(bytes(file.attrs[RECORD_ATTRIBUTE]))
        return ShardRecord(fingerprint=dict(record["fingerprint"]), clipped=int(record["clipped"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_snr(path: Path) -> FloatArray:
    """Return the column ``snr`` (N,) of a finished shard, whose blocks are whole numbers, floats, strings."""
    with h5py.File(path, "r") as file:
        floats = file[SHARD_PARAMS_TABLE].fields("values_block_1")[:]
    return np.asarray(floats[:, FLOAT_COLUMNS.index("snr")], dtype=np.float64)


def write_shard(plan: ShardPlan, source: SpectrumSource, advance: Callable[[int], None]) -> None:
    """Write one shard; afterwards the file is complete, or absent and nothing is left of the attempt.

    Raises
    ------
    ResourceError
        If the file cannot be written, for want of space or permission.
    """
    with _create_whole(plan.path, plan.bytes) as file:
        arrays = _create_arrays(file, plan)
        noise = NoiseModel(file[SHARD_WAVE][:])
        columns: list[dict[str, npt.NDArray[Any]]] = []
        clipped = 0
        for block, start in enumerate(range(0, plan.rows, BLOCK_ROWS)):
            rows = min(BLOCK_ROWS, plan.rows - start)
            generator = block_generator(plan.seed, plan.part, block)
            values, block_columns, moved = _draw_block(plan, source, noise, generator, rows)
            write_block(arrays, start, values)
            block_columns["id"] = np.arange(plan.first_id + start, plan.first_id + start + rows)
            columns.append(block_columns)
            clipped += moved
            advance(rows)
        record = {"fingerprint": plan.fingerprint, "clipped": clipped}
        file.attrs[RECORD_ATTRIBUTE] = np.bytes_(json.dumps(record).encode())
        # params come last, as in pfsspec: a file without them is one whose simulation did not finish.
        merged = {name: np.concatenate([part[name] for part in columns]) for name in ("id", *columns[0])}
        write_params_table(file, SHARD_PARAMS, merged)


@contextmanager
def _create_whole(path: Path, size: int) -> Iterator[h5py.File]:
    """Yield a new file of at most ``size`` bytes under a temporary name; rename it on success, else remove it."""
    partial = path.with_name(path.name + ".partial")
    with _explain_failure(path), _claim_file(partial) as descriptor:
        try:
            # HDF5 does not survive a failed write: closing the file fails too and the interpreter may crash at exit.
            # So plain system calls claim the space, before HDF5 starts and again after it truncated the file.
            _reserve_space(descriptor, size)
            with h5py.File(partial, "w", locking=False) as file:
                _reserve_space(descriptor, size)
                yield file
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def _claim_file(partial: Path) -> Iterator[int]:
    """Create a file that no other process may write meanwhile, and yield its descriptor.

    HDF5's own lock comes too late: it empties the file first.
    """
    try:
        stream = hold_file(partial, make_folder=True)
    except BlockingIOError:
        raise ResourceError(f"{partial}: another process is writing this shard; wait for it to finish") from None
    with stream:
        yield stream.fileno()


def _reserve_space(descriptor: int, size: int) -> None:
    """Allocate ``size`` bytes for an open file where the system can; HDF5 cuts off what is left on closing."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise


@contextmanager
def _explain_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        # A write that fails while HDF5 closes a file is a RuntimeError with the errno in its text.
        if isinstance(error, RuntimeError) and "errno" not in str(error):
            raise
        raise ResourceError(
            f"cannot write {path}: {error}; nothing was kept of it; make room or choose another folder, then "
            "run the same command again: finished shards are skipped"
        ) from error


def _create_arrays(file: h5py.File, plan: ShardPlan) -> dict[str, h5py.Dataset]:
    """Create the wavelengths and the empty pixel arrays: (N, P), uncompressed, chunks (min(4096, N), P)."""
    wave, edges = plan_wavelengths(plan.wave_range, plan.pixels)
    file[SHARD_WAVE], file[SHARD_WAVE_EDGES] = wave, edges
    layout = {SHARD_FLUX: "f8", SHARD_ERROR: "f8", SHARD_MASK: "i8"}
    if plan.noisy:
        layout[SHARD_NOISY] = "f8"
    shape = (plan.rows, plan.pixels)
    chunks = (min(CHUNK_ROWS, plan.rows), plan.pixels)
    # Every chunk is written in full, so filling it with zeros first would double the writing.
    return {
        name: file.create_dataset(name, shape, dtype, chunks=chunks, fill_time="never")
        for name, dtype in layout.items()
    }


def _draw_block(
    plan: ShardPlan, source: SpectrumSource, noise: NoiseModel, generator: np.random.Generator, rows: int
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]], int]:
    """Return the pixel arrays and params columns of one block, and the number of its clipped labels."""
    labels, moved = source.clip_labels(draw_labels(generator, rows))
    mag, seeing = draw_conditions(generator, rows)
    flux = source.render(labels)
    error = noise.estimate_errors(flux, mag, seeing)
    columns: dict[str, npt.NDArray[Any]] = {name: np.asarray(values) for name, values in vars(labels).items()}
    columns |= {"mag": mag, "snr": measure_snr(flux, error), "redshift": np.zeros(rows), "seeing": seeing}
    columns |= {name: np.full(rows, np.nan) for name in _EMPTY_COLUMNS}
    columns["random_seed"] = generator.integers(0, 2**31, rows, dtype=np.int64)
    columns["interp_param"] = np.full(rows, source.name.encode())
    error[:, [0, -1]] = np.nan
    values = {SHARD_FLUX: flux, SHARD_ERROR: error, SHARD_MASK: np.zeros(flux.shape, np.int64)}
    if plan.noisy:
        values[SHARD_NOISY] = draw_noisy(flux, fill_edges(error), generator)
    return values, columns, moved


def write_block(arrays: dict[str, h5py.Dataset], start: int, values: dict[str, npt.NDArray[Any]]) -> None:
    for name, block in values.items():
        arrays[name][start : start + len(block)] = block


# --- The table of labels, in the PyTables format that pandas reads, written with h5py alone.
#
# pandas keeps a frame as one compound dataset: ``index``, then one ``values_block_k`` for each dtype. The column names
# sit in attributes, as protocol-0 pickles: text in a small stack language, spelled out here. Nothing is ever unpickled.
# The attributes are those that pandas writes for ``to_hdf(..., format="table", index=False)`` and object strings.

Column = npt.NDArray[Any]

TABLE_CHUNK_ROWS: Final = 1024
# The order in which blocks are stored: whole numbers, floats, strings.
_KINDS: Final = "ifS"


def write_params_table(file: h5py.File, path: str, columns: Mapping[str, Column]) -> None:
    """Write ``columns`` as a frame at ``path`` of an open file.

    Parameters
    ----------
    file
        File open for writing; its root becomes a PyTables root.
    path
        Group of the frame, such as ``dataset/params``; the table itself becomes ``path/table``.
    columns
        Name to values of shape (N,): int64, float64 or ASCII bytes (``S<n>``). Names are plain ASCII words.
    """
    blocks = _group_blocks(columns)
    names = [f"values_block_{k}" for k in range(len(blocks))]
    rows = _fill_rows(blocks, names, columns)
    _set_text(file, CLASS="GROUP", PYTABLES_FORMAT_VERSION="2.1", TITLE="", VERSION="1.0")
    frame = file.require_group(path)
    for depth in range(1, path.count("/") + 2):
        group = file["/".join(path.split("/")[:depth])]
        _set_text(group, CLASS="GROUP", TITLE="", VERSION="1.0")
    _describe_frame(frame, list(columns), names)
    chunk = (min(max(len(rows), 1), TABLE_CHUNK_ROWS),)
    table = frame.create_dataset("table", data=rows, chunks=chunk, maxshape=(None,))
    _describe_table(table, blocks, names, rows.dtype)


def _group_blocks(columns: Mapping[str, Column]) -> list[list[str]]:
    """Group column names by dtype, whole numbers first, strings last; each string is a block of its own."""
    blocks: dict[tuple[int, str], list[str]] = {}
    for name, values in columns.items():
        kind = values.dtype.kind
        blocks.setdefault((_KINDS.index(kind), name if kind == "S" else kind), []).append(name)
    return [blocks[key] for key in sorted(blocks, key=lambda key: key[0])]


def _fill_rows(blocks: Sequence[Sequence[str]], names: Sequence[str], columns: Mapping[str, Column]) -> Column:
    """Return the compound rows (N,)."""
    fields: list[Any] = [("index", "<i8")]
    for name, block in zip(names, blocks, strict=True):
        fields.append((name, columns[block[0]].dtype, (len(block),)))
    rows = np.zeros(len(next(iter(columns.values()))), dtype=fields)
    rows["index"] = np.arange(len(rows))
    for name, block in zip(names, blocks, strict=True):
        for position, column in enumerate(block):
            rows[name][:, position] = columns[column]
    return rows


def _describe_frame(frame: h5py.Group, columns: list[str], names: list[str]) -> None:
    """Write the frame's attributes: which column is the index, which blocks hold values, the columns' order."""
    # pandas 2 wrote the version of this layout, and reads a frame without one as if it were from before 0.10.1.
    _set_text(frame, pandas_type="frame_table", pandas_version="0.15.2")
    _set_text(frame, table_type="appendable_frame", encoding="UTF-8", errors="strict")
    frame.attrs["levels"] = np.int64(1)
    # "nan_rep" is the pickle of None; info maps axis 1 and every block to what pandas keeps about it.
    info: dict[Any, Any] = {1: {"names": [None], "type": "Index"}, "index": {}, **{name: {} for name in names}}
    _set_pickle(frame, "index_cols", [(0, "index")])
    _set_pickle(frame, "values_cols", names)
    _set_pickle(frame, "non_index_axes", [(1, columns)])
    _set_pickle(frame, "data_columns", [])
    _set_pickle(frame, "nan_rep", None)
    _set_pickle(frame, "info", info)


def _describe_table(
    table: h5py.Dataset, blocks: Sequence[Sequence[str]], names: Sequence[str], dtype: np.dtype[Any]
) -> None:
    """Write the table's attributes: PyTables' fields and, per block, dtype, column names and metadata."""
    _set_text(table, CLASS="TABLE", TITLE="", VERSION="2.7", index_kind="integer")
    table.attrs["NROWS"] = np.int64(table.shape[0])
    for position, name in enumerate(("index", *names)):
        base = dtype[name].base
        _set_text(table, **{f"FIELD_{position}_NAME": name})
        table.attrs[f"FIELD_{position}_FILL"] = np.bytes_(b"") if base.kind == "S" else base.type(0)
    for name, block in zip(names, blocks, strict=True):
        base = dtype[name].base
        _set_text(table, **{f"{name}_dtype": base.name})
        _set_pickle(table, f"{name}_kind", list(block))
        _set_pickle(table, f"{name}_meta", None)


def _set_text(node: h5py.Group | h5py.Dataset, **values: str) -> None:
    """Set text attributes the way PyTables stores them: null-terminated UTF-8 of fixed length, empty as null."""
    for name, text in values.items():
        if not text:
            node.attrs[name] = h5py.Empty(h5py.string_dtype("utf-8", 1))
            continue
        node.attrs.create(name, text, dtype=h5py.string_dtype("utf-8", len(text.encode())))


def _set_pickle(node: h5py.Group | h5py.Dataset, name: str, value: Any) -> None:
    """Set an attribute to the protocol-0 pickle of plain Python values, as ASCII bytes."""
    node.attrs[name] = np.bytes_(pickle.dumps(value, 0))

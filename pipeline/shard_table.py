"""The labels of a shard: a pandas ``format='table'`` read with h5py alone, without running what it contains.

PyTables stores a frame as a compound dataset: an ``index`` field, one ``values_block_k`` field per dtype, and
one field per *data column*. The names of a block's columns are a pickled list in the attribute
``values_block_k_kind``. A pickle can run code when it is loaded, and shards come from other people, so the
list is never loaded: its opcodes are read with :func:`pickletools.genops`, and anything but a list of strings
is refused.
"""

from __future__ import annotations

import pickletools
import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import InputError, did_you_mean
from pipeline.schema import LABELS, REQUIRED_COLUMNS, SHARD_PARAMS, SHARD_PARAMS_TABLE

if TYPE_CHECKING:
    import h5py

__all__ = ["parse_pickled_names", "read_columns", "require_columns"]

_STRING_OPCODES: Final = frozenset(
    {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"}
)
#: Opcodes with no effect on a list of strings: framing, and memo entries that nothing may read back.
_INERT_OPCODES: Final = frozenset({"PROTO", "FRAME", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_LETTERS: Final = {"MARK": "m", "LIST": "l", "EMPTY_LIST": "e", "APPEND": "a", "APPENDS": "x", "STOP": "."}
#: One list, filled with strings one by one or in batches, and nothing after it.
_LIST_OF_STRINGS: Final = re.compile(r"(?:ms*l|e)(?:sa|ms*x)*\.")

#: Attributes longer than this cannot be column names (HDF5 itself stops compact attributes at 64 KiB).
_LONGEST_PICKLE: Final = 1 << 20


def parse_pickled_names(pickled: bytes, where: str) -> list[str]:
    """Return the strings of a pickled list of strings, without unpickling it.

    Parameters
    ----------
    pickled
        The attribute's bytes, any pickle protocol.
    where
        File and attribute, for the message.

    Raises
    ------
    InputError
        If the bytes are anything but one list of strings: a damaged file, or a pickle meant to run code.
    """
    letters: list[str] = []
    names: list[str] = []
    try:
        if len(pickled) > _LONGEST_PICKLE:
            raise ValueError(f"{len(pickled)} bytes are too many for column names")
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name in _STRING_OPCODES:
                letters.append("s")
                names.append(str(argument))
            elif opcode.name in _LETTERS:
                letters.append(_LETTERS[opcode.name])
            elif opcode.name not in _INERT_OPCODES:
                raise ValueError(f"opcode {opcode.name} is not allowed")
        if not _LIST_OF_STRINGS.fullmatch("".join(letters)):
            raise ValueError("its opcodes do not build one list")
    except ValueError as error:
        raise InputError(
            f"{where}: a pickled list of column names is required, but {error}; nothing in it was run. Write the "
            "table again with pandas, DataFrame.to_hdf(..., format='table')"
        ) from error
    return names


def read_columns(file: h5py.File, name: str) -> dict[str, np.ndarray]:
    """Read all columns of ``dataset/params/table``.

    Parameters
    ----------
    file
        The open shard.
    name
        How messages call the shard.

    Returns
    -------
    dict
        Column name to array (N,), native byte order; strings stay ``S<n>``, booleans are bool. Blocks come
        first to last, then data columns; the frame's index is left out.

    Raises
    ------
    InputError
        If the table is missing, is not a pandas table, or its names cannot be read.
    """
    table = _find_table(file, name)
    records = table[()]
    columns: dict[str, np.ndarray] = {}
    for field in records.dtype.names:
        if field == "index":
            continue
        block = records[field]
        if field.startswith("values_block_"):
            names = _read_block_names(table, field, name)
            block = block.reshape(len(records), -1)
            if len(names) != block.shape[1]:
                raise InputError(
                    f"{name}: {SHARD_PARAMS_TABLE} has {block.shape[1]} columns in {field!r} but {len(names)} names "
                    f"in its attribute '{field}_kind'; the table is damaged, write it again"
                )
            for position, column in enumerate(names):
                columns[column] = _normalise(table, field, block[:, position])
        elif block.ndim == 1:
            columns[field] = _normalise(table, field, block)
    return columns


def require_columns(columns: dict[str, np.ndarray], name: str, n_spectra: int) -> None:
    """Refuse columns of the wrong length, missing required columns, and labels that are not finite numbers.

    Parameters
    ----------
    columns
        As returned by :func:`read_columns`.
    name
        How messages call the shard.
    n_spectra
        Rows of the pixel arrays.

    Raises
    ------
    InputError
        Naming the shard, the column, and the first bad row.
    """
    for column, values in columns.items():
        if len(values) != n_spectra:
            raise InputError(
                f"{name}: the pixel arrays have {n_spectra} spectra but column {column!r} of {SHARD_PARAMS_TABLE} "
                f"has {len(values)} rows; the simulation that wrote it did not finish, re-run it or leave this "
                "shard out"
            )
    for column in REQUIRED_COLUMNS:
        if column not in columns:
            raise InputError(
                f"{name}: column {column!r} is required in {SHARD_PARAMS_TABLE}, found "
                f"{', '.join(columns) or 'none'}{did_you_mean(column, columns)}; rename it or re-run the simulation"
            )
    for column in LABELS:
        values = columns[column]
        if values.dtype.kind not in "fiu":
            raise InputError(
                f"{name}: label {column!r} must be a number, found {values.dtype}; write it as a float column"
            )
        wrong = np.flatnonzero(~np.isfinite(values))
        if wrong.size:
            raise InputError(
                f"{name}: label {column!r} must be finite, found {values[wrong[0]]} at row {wrong[0]} ({wrong.size} "
                f"of {n_spectra} rows); remove those spectra from the shard"
            )


def _find_table(file: h5py.File, name: str) -> h5py.Dataset:
    import h5py

    if SHARD_PARAMS not in file:
        raise InputError(
            f"{name}: {SHARD_PARAMS!r} is missing, so the simulation that wrote it did not finish; re-run it or "
            "leave this shard out"
        )
    table = file.get(SHARD_PARAMS_TABLE) if isinstance(file[SHARD_PARAMS], h5py.Group) else None
    if not isinstance(table, h5py.Dataset) or not table.dtype.names or table.ndim != 1:
        raise InputError(
            f"{name}: {SHARD_PARAMS_TABLE!r} must be a pandas table, found none; write the labels with "
            "DataFrame.to_hdf(..., format='table')"
        )
    return table


def _read_block_names(table: h5py.Dataset, field: str, name: str) -> list[str]:
    attribute = f"{field}_kind"
    where = f"{name}: attribute {attribute!r} of {SHARD_PARAMS_TABLE}"
    pickled: Any = table.attrs.get(attribute)
    if not isinstance(pickled, bytes | np.bytes_):
        found = "nothing" if pickled is None else type(pickled).__name__
        raise InputError(
            f"{where}: a pickled list of column names is required, found {found}; write the table again with "
            "DataFrame.to_hdf(..., format='table')"
        )
    return parse_pickled_names(bytes(pickled), where)


def _normalise(table: h5py.Dataset, field: str, values: np.ndarray) -> np.ndarray:
    """Native byte order, contiguous, and booleans back from the u1 that PyTables may store."""
    kind = table.attrs.get(f"{field}_dtype", b"")
    native = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("="), copy=False)
    return native.astype(bool) if kind in (b"bool", "bool") and native.dtype.kind in "ui" else native

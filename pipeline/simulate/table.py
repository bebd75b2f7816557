"""The ``params`` table of a shard in the PyTables format that pandas reads, written with h5py alone.

pandas keeps a frame as one compound dataset: ``index``, then one ``values_block_k`` per dtype. The column names sit in
attributes, as protocol-0 pickles: text in a small stack language, spelled out here. Nothing is ever unpickled.
The attributes are those that pandas writes for ``to_hdf(..., format="table", index=False)`` and object strings.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt

__all__ = ["TABLE_CHUNK_ROWS", "write_params_table"]

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
    _set_text(frame, pandas_type="frame_table", table_type="appendable_frame", encoding="UTF-8", errors="strict")
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

"""Where a shard keeps its arrays and labels, and every check of them that needs no pixels.

What would otherwise end as silent zeros or shifted rows is refused here; messages name the shard and the remedy.
"""

from __future__ import annotations

import math
import os
import pickletools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import h5py
import numpy as np

from pipeline import schema
from pipeline.errors import InputError, did_you_mean
from pipeline.schema import (
    DIM_SPECTRUM,
    DIM_WAVELENGTH,
    LABELS,
    PIXEL_VARIABLES,
    REQUIRED_COLUMNS,
    SHARD_PARAMS,
    SHARD_PARAMS_TABLE,
    STORE_ORIGIN,
)

if TYPE_CHECKING:
    import h5py

__all__ = [
    "PIXEL_PATHS",
    "READ_PATHS",
    "TAKEN_NAMES",
    "USABLE_NAME",
    "find_pixel_arrays",
    "list_remarks",
    "parse_pickled_names",
    "read_columns",
    "read_wavelength",
    "require_angstroms",
    "require_columns",
    "require_inside",
    "require_labels",
    "require_written",
]

PIXEL_PATHS: Final[Mapping[str, str]] = {
    "flux": schema.SHARD_FLUX,
    "error": schema.SHARD_ERROR,
    "mask": schema.SHARD_MASK,
    "noisy": schema.SHARD_NOISY,
}


#: Ranges of a grid's last wavelength that no spectrum in Å has, what it is then likely to be in, and what to do.
_OTHER_UNITS: Final = (
    ((-np.inf, 1e-4), "metres", "multiply them by 1e10"),
    ((1e-4, 2.9), "micrometres", "multiply them by 10,000"),
    ((2.9, 5.0), "log10 of Å, or micrometres", "write 10**w, or multiply them by 10,000"),
    ((5.0, 90.0), "micrometres, or natural logarithms of Å", "multiply them by 10,000, or write exp(w)"),
    ((90.0, 1000.0), "nanometres", "multiply them by 10"),
)
#: A grid that ends below this is in the ultraviolet, or it is in the near infrared and in nanometres.
_LAST_DOUBTFUL: Final = 3000.0

#: Everything that is read of a shard.
READ_PATHS: Final = (*PIXEL_PATHS.values(), schema.SHARD_WAVE, schema.SHARD_WAVE_EDGES, SHARD_PARAMS_TABLE)
#: More soft links than this, one to the next, lead in a circle.
_MOST_LINKS: Final = 16


def require_inside(
    file: h5py.File, name: str, paths: Sequence[str] = READ_PATHS, *, allow_external: bool
) -> tuple[Path, ...]:
    """Refuse arrays that lie in other files than the one that was given; nothing else is opened to find out.

    HDF5 follows links into other files, and reads external storage and the parts of virtual datasets from whatever
    file they name, without a word.

    Parameters
    ----------
    file
        The open file.
    name
        How messages call it.
    paths
        What is going to be read of it.
    allow_external
        Take other files, too, provided that they are there and are regular files.

    Returns
    -------
    tuple
        The other files.

    Raises
    ------
    InputError
        Naming the array and the other file; or if a link points to nothing.
    """
    others: dict[Path, h5py.File | None] = {}  # open as long as their nodes are looked at
    for path in paths:
        node = _follow(file, path, name, others, allow_external=allow_external)
        if not isinstance(node, h5py.h5d.DatasetID):
            continue
        stored = node.get_create_plist()
        parts = [("external storage in", *stored.get_external(k)) for k in range(stored.get_external_count())]
        if stored.get_layout() == h5py.h5d.VIRTUAL:
            sources = {stored.get_virtual_filename(k) for k in range(stored.get_virtual_count())} - {"."}
            parts += [("a virtual dataset with parts in", source, 0, 0) for source in sorted(sources)]
        left = math.prod(node.shape) * h5py.Dataset(node).dtype.itemsize
        for how, part, offset, size in parts:
            target = os.fsdecode(part)
            # Links start at the folder of their file, storage at the working folder.
            folders = [Path()] if size else [Path(), _folder_of(node)]
            found = _require_target(f"{name}: {path!r} is {how}", target, folders, allow_external=allow_external)
            others.setdefault(found, None)
            # What the other file lacks would read as zeros.
            taken = min(size, left)
            left -= taken
            if size and found.stat().st_size < offset + taken:
                raise InputError(
                    f"{name}: {path!r} needs {offset + taken} bytes of {found}, which has {found.stat().st_size}; put "
                    "the whole file back"
                )
    return tuple(others)


def _follow(
    file: h5py.File, path: str, name: str, others: dict[Path, h5py.File | None], *, allow_external: bool
) -> Any:
    """Return the identifier of what a path leads to, None if it ends on the way; add the files that it leads through.

    Links are followed one by one, because HDF5 would open what they lead to.
    """
    here: Any = h5py.h5g.open(file.id, b"/")
    todo, links, after_link = path.split("/"), 0, sys.maxsize
    while todo:
        step = todo.pop(0).encode()
        if step in (b"", b"."):
            continue
        if not isinstance(here, h5py.h5g.GroupID):
            return None
        if not here.links.exists(step):
            if len(todo) >= after_link:
                raise InputError(f"{name}: {path!r} is a link to something that is not there; put it back")
            return None
        kind = here.links.get_info(step).type
        if kind == h5py.h5l.TYPE_HARD:
            here = h5py.h5o.open(here, step)
            continue
        links += 1
        if links > _MOST_LINKS:
            raise InputError(f"{name}: {path!r} is a link that leads in a circle; write the file again without it")
        if kind == h5py.h5l.TYPE_SOFT:
            target, after_link = os.fsdecode(here.links.get_val(step)), len(todo)
            todo = [*target.split("/"), *todo]
            if target.startswith("/"):
                here = h5py.h5g.open(h5py.h5i.get_file_id(here), b"/")
            continue
        target, inside = map(os.fsdecode, here.links.get_val(step)) if kind == h5py.h5l.TYPE_EXTERNAL else ("?", "")
        folders = [_folder_of(here), Path(), *map(Path, os.environ.get("HDF5_EXT_PREFIX", "").split(os.pathsep))]
        what = f"{name}: {path!r} is an external link to"
        other = _require_target(what, target, folders, allow_external=allow_external)
        try:
            opened = others.get(other) or h5py.File(other, "r", locking=False)
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(f"{what} {target!r}, which cannot be opened ({error}); put that file back") from error
        others[other] = opened
        here, after_link = h5py.h5g.open(opened.id, b"/"), len(todo)
        todo = [*inside.split("/"), *todo]
    return here


def _folder_of(node: Any) -> Path:
    return Path(os.fsdecode(h5py.h5f.get_name(node))).parent


def _require_target(what: str, target: str, folders: Sequence[Path], *, allow_external: bool) -> Path:
    """Return the other file that an array lies in, if it may be read."""
    if not allow_external:
        raise InputError(
            f"{what} {target!r}, another file than the one given; copy it into this file, or read a shard that you "
            "trust with --allow-external (headroom inspect, convert, predict; a run takes the converted store)"
        )
    found = [one for folder in folders if (one := folder / target).exists()]
    if not found:
        raise InputError(f"{what} {target!r}, which is not there; put that file back")
    irregular = [one for one in found if not one.is_file()]
    if irregular:
        raise InputError(f"{what} {irregular[0]}, which must be a regular file and is none; write the shard again")
    return found[0]


def find_pixel_arrays(file: h5py.File, name: str) -> dict[str, h5py.Dataset]:
    """Return the pixel arrays by variable, all of one shape; mask and noisy where there are any."""
    datasets: dict[str, h5py.Dataset] = {}
    for variable, dataset_path in PIXEL_PATHS.items():
        dataset = file.get(dataset_path)
        if dataset is None and variable in ("mask", "noisy"):
            continue
        if not isinstance(dataset, h5py.Dataset):
            raise InputError(
                f"{name}: {dataset_path!r} is missing, so this is no pfsspec shard or its writer did not finish; "
                "re-run the simulation or leave this shard out; of spectra in another layout make a store first: "
                "headroom convert FILE STORE"
            )
        allowed = "biu" if variable == "mask" else "f"
        if dataset.ndim != 2 or dataset.dtype.kind not in allowed or 0 in dataset.shape:
            wanted = "integers or booleans" if variable == "mask" else "floats"
            raise InputError(
                f"{name}: {dataset_path!r} must hold {wanted} of shape (spectra, pixels), found {dataset.dtype} "
                f"{dataset.shape}; re-run the simulation or leave this shard out"
            )
        if dataset.shape[1] < 2:
            raise InputError(
                f"{name}: {dataset_path!r} must hold spectra of at least two pixels, found shape {dataset.shape}; one "
                "number is no spectrum, so write the pixels of each spectrum as a row"
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


def read_wavelength(file: h5py.File, name: str, n_pixels: int) -> np.ndarray:
    """Return the wavelengths (n_pixels,) in Å, float64, finite and strictly increasing."""
    dataset = file.get(schema.SHARD_WAVE)
    if not isinstance(dataset, h5py.Dataset) or dataset.shape != (n_pixels,) or dataset.dtype.kind not in "fiu":
        found = f"{dataset.dtype} {dataset.shape}" if isinstance(dataset, h5py.Dataset) else "nothing"
        raise InputError(
            f"{name}: {schema.SHARD_WAVE!r} must hold {n_pixels} wavelengths, one per pixel of the flux, found "
            f"{found}; re-run the simulation or leave this shard out"
        )
    wavelength: np.ndarray = dataset[()].astype(np.float64)
    require_angstroms(wavelength, f"{name}: {schema.SHARD_WAVE!r}", "re-run the simulation")
    return wavelength


def require_angstroms(wavelength: np.ndarray, what: str, remedy: str) -> None:
    """Refuse wavelengths that are not finite and strictly increasing, or that look like another unit than Å.

    Parameters
    ----------
    wavelength
        Shape (P,), float64.
    what
        How the message calls them.
    remedy
        What to do besides sorting the pixels.

    Raises
    ------
    InputError
        Naming the first pixel that is wrong, or the unit that is likely.
    """
    wrong = np.flatnonzero(~np.isfinite(wavelength))
    if not wrong.size:
        wrong = np.flatnonzero(np.diff(wavelength) <= 0) + 1
    if wrong.size:
        raise InputError(
            f"{what} must be finite and strictly increasing, found {wavelength[wrong[0]]} at pixel {wrong[0]}; sort "
            f"the pixels or {remedy}"
        )
    first, last = wavelength[0], wavelength[-1]
    for (low, high), likely, cure in _OTHER_UNITS:
        if low <= last < high:
            found = f"{first:.6g} to {last:.6g}, which look like {likely}"
            raise InputError(f"{what} must be in Å, found {found}; {cure}")


def require_written(dataset: h5py.Dataset, variable: str, name: str) -> None:
    """Refuse storage that was never written: HDF5 reads it as zeros without a word."""
    if dataset.is_virtual:
        raise InputError(
            f"{name}: {PIXEL_PATHS[variable]!r} must be stored in the file itself, found a virtual dataset, whose "
            "missing parts read as zeros without a word; name the files that it is made of"
        )
    if dataset.chunks is None:
        n_missing, first = (0 if dataset.id.get_storage_size() else 1), (0, 0)
    else:
        steps = dataset.chunks
        expected = math.prod(-(-size // step) for size, step in zip(dataset.shape, steps, strict=True))
        written = dataset.id.get_num_chunks()
        if written == expected or (written == 0 and variable == "mask" and dataset.dtype != bool):
            return  # an integer mask that was never written says: nothing is flagged
        offsets = {dataset.id.get_chunk_info(i).chunk_offset for i in range(written)}
        grid = ((r, p) for r in range(0, dataset.shape[0], steps[0]) for p in range(0, dataset.shape[1], steps[1]))
        n_missing, first = (
            max(1, expected - written),
            next((offset for offset in grid if offset not in offsets), (0, 0)),
        )
    if n_missing:
        row, pixel = first
        raise InputError(
            f"{name}: {PIXEL_PATHS[variable]!r} has {n_missing} unwritten chunk(s), the first at row {row}, pixel "
            f"{pixel}; they would read as zeros, so the simulation did not finish: re-run it or leave this shard out"
        )


def list_remarks(file: h5py.File, n_pixels: int) -> tuple[str, ...]:
    """Return what a reader should know of a shard that is otherwise right."""
    remarks = [schema.SIMULATED_REMARK] if schema.SHARD_SIMULATED in file.attrs else []
    last = file[schema.SHARD_WAVE][-1]
    if last < _LAST_DOUBTFUL:
        remarks.append(f"the wavelengths end at {last:.6g} Å; if these are nanometres, multiply them by 10")
    edges = file.get(schema.SHARD_WAVE_EDGES)
    if isinstance(edges, h5py.Dataset) and edges.shape != (n_pixels + 1,):
        remarks.append(
            f"{schema.SHARD_WAVE_EDGES!r} has shape {edges.shape} where ({n_pixels + 1},) is right; it is ignored, "
            "edges follow from the wavelengths"
        )
    return tuple(remarks)


# --- The labels of a shard: a pandas ``format='table'`` read with h5py alone, without running what it contains.
#
# PyTables stores a frame as a compound dataset: an ``index`` field, one ``values_block_k`` field per dtype, and
# one field per *data column*. The names of a block's columns are a pickled list in the attribute
# ``values_block_k_kind``. A pickle can run code when it is loaded, and shards come from other people, so the
# list is never loaded: its opcodes are read with :func:`pickletools.genops`, and anything but a list of strings
# is refused.

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
#: A column's name becomes the name of a folder in a store, and a word in the attributes of its arrays.
USABLE_NAME: Final = re.compile(r"[A-Za-z_]\w*", re.ASCII)
#: Names that a store uses itself: a column so called is kept there as ``params_<name>``.
TAKEN_NAMES: Final = frozenset(
    {*PIXEL_VARIABLES, STORE_ORIGIN, DIM_SPECTRUM, DIM_WAVELENGTH, "shard", "row", "manifest"}
)
#: Compressed tables do not expand more than about this; beyond it a damaged size asks for absurd memory.
_LARGEST_EXPANSION: Final = 2000


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


def read_columns(file: h5py.File, name: str) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Read all usable columns of ``dataset/params/table``.

    Parameters
    ----------
    file
        The open shard.
    name
        How messages call the shard.

    Returns
    -------
    columns
        Column name to array (N,), native byte order; strings stay ``S<n>``, booleans are bool. Blocks come
        first to last, then data columns; the frame's index is left out.
    remarks
        One line for every column that is left out because a store cannot hold its name.

    Raises
    ------
    InputError
        If the table is missing, is not a pandas table, its names cannot be read, or one occurs twice.
    """
    table = _find_table(file, name)
    _require_plausible_size(table, name)
    _require_written_table(table, name)
    named = list(_iter_columns(table, table[()], name))
    columns = dict(named)
    if len(columns) < len(named):
        names = [column for column, _ in named]
        twice = next(column for column in names if names.count(column) > 1)
        raise InputError(
            f"{name}: column names of {SHARD_PARAMS_TABLE} must differ, found {twice!r} {names.count(twice)} times; "
            "which of them is meant cannot be known: rename or remove one and write the table again"
        )
    remarks = []
    for column in list(columns):
        reason = ""
        if not USABLE_NAME.fullmatch(column):
            reason = "names must be ASCII letters, digits and underscores"
        elif column in TAKEN_NAMES and f"params_{column}" in columns:
            reason = f"a store would keep it as 'params_{column}', which exists too"
        if reason:
            del columns[column]
            remarks.append(f"column {column!r} of {SHARD_PARAMS_TABLE} is left out: {reason}")
    return columns, tuple(remarks)


def _require_plausible_size(table: h5py.Dataset, name: str) -> None:
    """Refuse a table whose stated size its stored bytes cannot have: a damaged number, and too much memory."""
    stored, stated = table.id.get_storage_size(), table.shape[0] * table.dtype.itemsize
    if stated > (1 << 24) and stated > _LARGEST_EXPANSION * stored:
        raise InputError(
            f"{name}: {SHARD_PARAMS_TABLE} must hold what it states, found {stored} bytes stored for "
            f"{table.shape[0]} rows; the file is damaged, copy it again"
        )


def _iter_columns(table: h5py.Dataset, records: np.ndarray, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the (name, values) of every column, as often as the table has them."""
    for field in records.dtype.names or ():
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
                yield column, _normalise(table, field, block[:, position], name)
        elif block.ndim == 1:
            yield field, _normalise(table, field, block, name)


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
    require_labels(columns, name, SHARD_PARAMS_TABLE, "re-run the simulation")


def require_labels(columns: Mapping[str, np.ndarray], name: str, table: str, remedy: str) -> None:
    """Refuse labels that are not finite numbers, and rows whose labels are all 0.

    Parameters
    ----------
    columns
        All of :data:`pipeline.schema.LABELS`, each (N,).
    name, table
        How messages call the file, and where in it the labels are.
    remedy
        What to do besides leaving such spectra out.

    Raises
    ------
    InputError
        Naming the label and the first bad row.
    """
    n_spectra = len(columns[LABELS[0]])
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
    unwritten = np.flatnonzero(~np.column_stack([columns[column] for column in LABELS]).any(axis=1))
    if unwritten.size:
        raise InputError(
            f"{name}: {table} must hold labels, but all of {', '.join(LABELS)} are 0 at row "
            f"{unwritten[0]} ({unwritten.size} of {n_spectra} rows), as storage reads that was never written; {remedy} "
            "or remove those spectra from the shard"
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


def _require_written_table(table: h5py.Dataset, name: str) -> None:
    """Refuse labels whose storage was never written, or lies elsewhere: HDF5 reads them as zeros without a word."""
    if table.is_virtual:
        raise InputError(
            f"{name}: {SHARD_PARAMS_TABLE!r} must be stored in the file itself, found a virtual dataset, whose missing "
            "parts read as zeros without a word; write the labels with DataFrame.to_hdf(..., format='table')"
        )
    if table.chunks is None:
        written, expected = int(table.id.get_storage_size() > 0), int(len(table) > 0)
    else:
        written, expected = table.id.get_num_chunks(), -(-len(table) // table.chunks[0])
    if written < expected:
        raise InputError(
            f"{name}: {SHARD_PARAMS_TABLE!r} has {expected - written} of {expected} chunks that were never written; "
            "their labels would read as zeros, so the simulation did not finish: re-run it or leave this shard out"
        )


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


def _normalise(table: h5py.Dataset, field: str, values: np.ndarray, name: str) -> np.ndarray:
    """Native byte order, contiguous, booleans back from the u1 that PyTables may store, categories as their values."""
    kind = table.attrs.get(f"{field}_dtype", b"")
    native = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("="), copy=False)
    if table.attrs.get(f"{field}_meta") in (b"category", "category"):
        return _look_up_categories(table, field, native, name)
    return native.astype(bool) if kind in (b"bool", "bool") and native.dtype.kind in "ui" else native


def _look_up_categories(table: h5py.Dataset, field: str, codes: np.ndarray, name: str) -> np.ndarray:
    """Return the values that the codes of a categorical column stand for; codes of two shards have nothing in common.

    A missing value is NaN; among texts, which no store keeps, it is empty.
    """
    place = f"meta/{field}/meta/table"
    listed = table.parent.get(place)
    if not isinstance(listed, h5py.Dataset) or listed.ndim != 1 or "values" not in (listed.dtype.names or ()):
        found = "nothing"
    elif codes.dtype.kind in "iu" and (not codes.size or (codes.min() >= -1 and codes.max() < len(listed))):
        values = listed["values"]
        values = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("="), copy=False)
        if not (codes < 0).any():
            return np.asarray(values[codes])
        if values.dtype.kind in "biu":
            values = values.astype(np.float64)
        none = np.array([b"" if values.dtype.kind == "S" else np.nan], values.dtype)
        return np.asarray(np.append(values, none)[codes])  # a missing value has the code -1
    else:
        found = f"{len(listed)} values for codes of type {codes.dtype}"
    raise InputError(
        f"{name}: {SHARD_PARAMS_TABLE} has the categorical column {field!r}, whose values must be listed in "
        f"{SHARD_PARAMS}/{place}, found {found}; write the table again, with plain columns"
    )

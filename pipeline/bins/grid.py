"""Bins of the label plane: they say which expert a spectrum belongs to, and which spectra lie outside."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import ConfigError, InputError, did_you_mean, require_kind

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["OUTSIDE", "BinGrid", "NamedBins", "assign_bins"]

#: The bin number of spectra that lie in no bin. As a cell, this outside comes last.
OUTSIDE = -1

_USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "T_eff": ("Cool", "Mid", "Hot"),
    "M_H": ("Poor", "Solar", "Rich"),
}


class NamedBins(Protocol):
    """Numbered bins that can be described in words."""

    @property
    def n_bins(self) -> int:
        """Number of bins; the outside is not counted."""

    def describe(self, bin_number: int, /) -> str:
        """Return a bin in words, for example ``bin 3 (Mid, Poor)``."""


@dataclass(frozen=True)
class BinGrid:
    """A rectangular grid of bins over per-spectrum columns.

    Bins are half-open ``[a, b)`` with the last edge closed, numbered with the last column running fastest:
    for the reference grid ``bin = 3 · i_T_eff + i_M_H``. A spectrum outside any edge, or with NaN in a
    column, is in no bin.

    Parameters
    ----------
    edges
        Increasing edges for each column, in the columns' units; the order of the columns sets the numbering.
    names
        Optional names of each column's intervals. Three intervals of T_eff are called Cool, Mid, Hot by default, and
        three of M_H are called Poor, Solar, Rich if the Sun's 0 dex lies in the second one or at its edge. Other
        intervals are named by their edges.

    Raises
    ------
    ConfigError
        If edges are fewer than two, not finite or not increasing.
    """

    edges: Mapping[str, Sequence[float]]
    names: Mapping[str, Sequence[str]] | None = None

    def __post_init__(self) -> None:
        if not self.edges:
            raise ConfigError("a grid of bins needs at least one column, for example {T_eff: [3750, 4500, 6000]}")
        for column, edges in self.edges.items():
            try:
                values = np.asarray(edges, dtype=np.float64)
                is_good = values.size >= 2 and np.isfinite(values).all() and (np.diff(values) > 0).all()
            except (ValueError, TypeError):
                is_good = False
            if not is_good:
                found = list(edges) if isinstance(edges, Iterable) else edges
                raise ConfigError(f"edges of {column!r} must be at least two increasing numbers, found {found}")

    @classmethod
    def of(cls, bins: BinGrid | Mapping[str, Sequence[float]]) -> BinGrid:
        """Return a grid, which may be given as its edges by column."""
        if isinstance(bins, BinGrid):
            return bins
        example = "such as {'T_eff': [3750, 4500, 6000]},"
        require_kind("bins", bins, Mapping, f"a dictionary of edges by column, {example}")
        for name, edges in bins.items():
            require_kind(f"bins, {name}", edges, Iterable, f"a list of edges, {example}")
        return cls({name: tuple(edges) for name, edges in bins.items()})

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns the grid is defined on."""
        return tuple(self.edges)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of intervals of each column."""
        return tuple(len(edges) - 1 for edges in self.edges.values())

    @property
    def n_bins(self) -> int:
        """Number of bins; the outside is not counted."""
        return int(np.prod(self.shape))

    @property
    def n_cells(self) -> int:
        """Number of cells: the bins and, last, the outside."""
        return self.n_bins + 1

    @cached_property
    def interval_names(self) -> dict[str, tuple[str, ...]]:
        """Names of each column's intervals."""
        named = {}
        for column, edges in self.edges.items():
            usual = _USUAL_NAMES.get(column, ())
            if self.names and column in self.names:
                named[column] = tuple(self.names[column])
            elif len(usual) == len(edges) - 1 and (column != "M_H" or edges[1] <= 0 <= edges[2]):
                named[column] = usual
            else:
                # A dash beside a minus sign would be hard to read.
                dash = " to " if min(edges) < 0 else "–"
                named[column] = tuple(f"{a:g}{dash}{b:g}".replace("-", "−") for a, b in pairwise(edges))
        return named

    @cached_property
    def bin_names(self) -> tuple[tuple[str, ...], ...]:
        """For each bin, its interval's name in every column."""
        return tuple(product(*(self.interval_names[column] for column in self.columns)))

    def describe(self, bin_number: int) -> str:
        """Return a bin in words, for example ``bin 3 (Mid, Poor)``."""
        return f"bin {bin_number} ({', '.join(self.bin_names[bin_number])})"

    def require_columns(self, present: Collection[str]) -> None:
        """Check that the grid's columns are among those present.

        Raises
        ------
        InputError
            If one is missing; the message names the nearest one.
        """
        for column in self.columns:
            if column not in present:
                raise InputError(
                    f"bins use the column {column!r}, which these spectra do not have"
                    f"{did_you_mean(column, present)}; present: {', '.join(present)}"
                )

    def assign(self, columns: Mapping[str, ArrayLike]) -> NDArray[np.int64]:
        """Assign every spectrum to its bin.

        Parameters
        ----------
        columns
            Per-spectrum values, each of shape (N,); at least the grid's columns.

        Returns
        -------
        NDArray[np.int64]
            Bin numbers, shape (N,); :data:`OUTSIDE` for spectra in no bin.

        Raises
        ------
        InputError
            If a column of the grid is missing; the message names the nearest one.
        """
        self.require_columns(columns)
        number: NDArray[np.int64] | None = None
        inside: NDArray[np.bool_] | None = None
        for column, edges in self.edges.items():
            limits = np.asarray(edges, dtype=np.float64)
            values = _put_on_edges(columns[column], limits)
            index = np.searchsorted(limits, values, side="right") - 1
            index = np.where(values == limits[-1], len(limits) - 2, index)
            within = (values >= limits[0]) & (values <= limits[-1])
            number = index if number is None else number * (len(edges) - 1) + index
            inside = within if inside is None else inside & within
        assert number is not None
        assert inside is not None
        return np.where(inside, number, OUTSIDE).astype(np.int64)

    def cells(self, columns: Mapping[str, ArrayLike]) -> NDArray[np.int64]:
        """Assign every spectrum to its cell: its bin, or ``n_bins`` for the outside. Shape (N,)."""
        bins = self.assign(columns)
        return np.where(bins == OUTSIDE, self.n_bins, bins)


def _put_on_edges(values: ArrayLike, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values in double precision, (N,); what is an edge but for single precision becomes this edge.

    A label −0.1 that was ever in single precision is 1.5e-9 below the edge −0.1, and means the edge. The value decides
    and not its type, since a label that was widened is the same label.
    """
    found = np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore"):
        rounded = edges.astype(np.float32).astype(np.float64)
    if not (np.isfinite(rounded).all() and (np.diff(rounded) > 0).all()):
        return found  # edges that single precision cannot tell apart
    for edge, single in zip(edges, rounded, strict=True):
        if single != edge:
            found = np.where(found == single, edge, found)
    return found


def assign_bins(dataset: xr.Dataset, grid: BinGrid | Mapping[str, Sequence[float]]) -> xr.Dataset:
    """Return a Dataset of spectra with the coordinate ``bin`` along ``spectrum``, for ``groupby("bin")``.

    Parameters
    ----------
    dataset
        From :func:`pipeline.open_spectra`. Its pixels are not read.
    grid
        The bins, or their edges by column: ``{"T_eff": [3750, 4500, 5250, 6000]}``.

    Returns
    -------
    xarray.Dataset
        With ``bin`` as integers, −1 outside the grid.

    Raises
    ------
    InputError, ConfigError
        If a column is missing or edges are not increasing.
    """
    import xarray as xr

    require_kind("dataset", dataset, xr.Dataset, "an xarray.Dataset, such as open_spectra returns,")
    bins = grid if isinstance(grid, BinGrid) else BinGrid(grid)
    # Of a Dataset from elsewhere the columns may be variables, along a dimension of another name.
    columns = {str(name): dataset[name].values for name in dataset.variables if dataset[name].ndim == 1}
    rows = next((dataset[name].dims[0] for name in bins.columns if name in dataset.variables), "spectrum")
    meaning = "; ".join(f"{k}: {', '.join(names)}" for k, names in enumerate(bins.bin_names))
    attributes = {"long_name": f"bin over {', '.join(bins.columns)}, {OUTSIDE} outside", "meaning": meaning}
    return dataset.assign_coords(bin=(rows, bins.assign(columns), attributes))

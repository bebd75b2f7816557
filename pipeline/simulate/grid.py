"""A user's own grid of model spectra, interpolated in place of the built-in model.

The grid's spectra are brought to the wanted pixels, normalised and reduced to principal components; a radial-basis
interpolant over the scaled labels then gives the components of any star inside the grid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt
from scipy.interpolate import RBFInterpolator
from scipy.linalg import eigh
from scipy.spatial import ConvexHull, QhullError

from pipeline.base import open_regular
from pipeline.errors import InputError, did_you_mean
from pipeline.shards import require_inside
from pipeline.simulate.bosz import find_bosz, read_bosz
from pipeline.simulate.spectra import Labels, normalise_spectra

__all__ = ["SpectrumGrid", "average_over_pixels", "fingerprint_grid", "open_grid"]

FloatArray = npt.NDArray[np.float64]

_KEYS: Final = ("wave", "flux", "teff", "logg", "mh")
#: Fewest spectra that span three labels with room for a linear trend.
_FEWEST_SPECTRA: Final = 8
_MOST_COMPONENTS: Final = 100
_NEIGHBOURS: Final = 64


@dataclass(frozen=True)
class SpectrumGrid:
    """An interpolant over (T_eff, log g, [M/H]); a plain value, so that every process gets the same numbers.

    ``nodes`` (n, 3) are labels scaled by ``centre`` and ``spread`` (3,); ``scores`` (n, K) and ``components`` (K, P)
    rebuild the spectra around ``mean`` (P,); ``facets`` (F, 4) are the convex hull's half-spaces ``a·x + b <= 0``.
    ``notes`` say what was chosen of a library, and what is missing.
    """

    wave: FloatArray
    centre: FloatArray
    spread: FloatArray
    nodes: FloatArray
    facets: FloatArray
    mean: FloatArray
    components: FloatArray
    scores: FloatArray
    name: str = "rbf"
    notes: tuple[str, ...] = ()

    def clip_labels(self, labels: Labels) -> tuple[Labels, int]:
        """Move labels outside the grid's convex hull onto it and say how many moved.

        Each step projects a point onto the facet that it violates most, which for a box is the nearest point of the
        box; what is still outside after that is drawn towards the grid's centre until it is inside.
        """
        wanted = (np.column_stack([labels.T_eff, labels.log_g, labels.M_H]) - self.centre) / self.spread
        inside = _project_into_hull(wanted, self.facets, self.nodes.mean(axis=0))
        moved = np.any(inside != wanted, axis=1)
        physical = np.where(moved[:, None], inside * self.spread + self.centre, 0.0)
        clipped = replace(
            labels,
            T_eff=np.where(moved, physical[:, 0], labels.T_eff),
            log_g=np.where(moved, physical[:, 1], labels.log_g),
            M_H=np.where(moved, physical[:, 2], labels.M_H),
            a_M=np.zeros_like(labels.a_M),
            C_M=np.zeros_like(labels.C_M),
        )
        return clipped, int(moved.sum())

    def render(self, labels: Labels) -> FloatArray:
        """Return median-normalised flux (n, P); a grid knows nothing of [α/M] and [C/M]."""
        points = (np.column_stack([labels.T_eff, labels.log_g, labels.M_H]) - self.centre) / self.spread
        neighbours = min(_NEIGHBOURS, len(self.nodes))
        interpolate = RBFInterpolator(self.nodes, self.scores, neighbors=neighbours, kernel="cubic", degree=1)
        flux = self.mean + interpolate(points) @ self.components
        return normalise_spectra(np.maximum(flux, 0.0), self.wave)


def open_grid(path: Path, edges: FloatArray) -> SpectrumGrid:
    """Read and check a grid and prepare its interpolant for the pixels between ``edges`` (P+1,), in Å.

    Parameters
    ----------
    path
        NPZ or HDF5 file with ``wave`` (W,) in Å, ``flux`` (n, W), ``teff`` in K, ``logg`` and ``mh`` in dex, each (n,).
        Nodes may be regular or scattered. Or a folder of BOSZ files, see :mod:`pipeline.simulate.bosz`.
    edges
        Wanted pixel edges, within the grid's wavelengths.

    Raises
    ------
    InputError
        If the file is not such a grid; the message names the file and what to change.
    """
    library = find_bosz(path) if path.is_dir() else None
    arrays = _read_arrays(path) if library is None else read_bosz(library, edges)
    _check_arrays(path, arrays, edges)
    wave = 0.5 * (edges[1:] + edges[:-1])
    flux = average_over_pixels(arrays["wave"], arrays["flux"], edges)
    if np.any(np.median(flux, axis=1) <= 0):
        bad = int(np.flatnonzero(np.median(flux, axis=1) <= 0)[0])
        raise InputError(f"{path}: spectrum {bad} has a median flux of zero or less; leave it out of the grid")
    labels = np.column_stack([arrays["teff"], arrays["logg"], arrays["mh"]])
    centre, spread = labels.mean(axis=0), labels.std(axis=0)
    nodes = _check_nodes(path, labels, centre, spread)
    mean, components, scores = _reduce_spectra(normalise_spectra(flux, wave))
    facets = np.asarray(_span_hull(path, nodes).equations, dtype=np.float64)
    notes = () if library is None else library.notes
    return SpectrumGrid(wave, centre, spread, nodes, facets, mean, components, scores, notes=notes)


def fingerprint_grid(path: Path) -> str:
    """Return the SHA-256 of a grid's files, so that a sample remembers which grid made it, wherever that lies."""
    if path.is_dir():
        return find_bosz(path).fingerprint()
    try:
        with open(path, "rb", opener=open_regular) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"grid {path}: cannot be read ({error.strerror}); check the path") from error


def average_over_pixels(wave: FloatArray, flux: FloatArray, edges: FloatArray) -> FloatArray:
    """Resample spectra (n, W) onto pixels (n, P), conserving flux.

    A pixel gets the exact mean, between its edges, of the piecewise linear function through the grid's samples.
    """
    steps = np.diff(wave)
    integral = np.zeros_like(flux)
    np.cumsum(0.5 * (flux[:, 1:] + flux[:, :-1]) * steps, axis=1, out=integral[:, 1:])
    left = np.clip(np.searchsorted(wave, edges, side="right") - 1, 0, len(wave) - 2)
    distance = edges - wave[left]
    slope = (flux[:, left + 1] - flux[:, left]) / steps[left]
    at_edges = integral[:, left] + distance * (flux[:, left] + 0.5 * slope * distance)
    return np.diff(at_edges, axis=1) / np.diff(edges)


def _read_arrays(path: Path) -> dict[str, FloatArray]:
    """Read the five arrays as float64; a pickled object inside an NPZ is refused, never loaded."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return _take_keys(path, archive)
        with h5py.File(path, "r") as file:
            require_inside(file, f"grid {path}", _KEYS, allow_external=False)
            return _take_keys(path, file)
    except InputError:
        raise
    except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
        raise InputError(f"grid {path}: cannot be read as NPZ or HDF5 ({error}); name another file") from error


def _take_keys(path: Path, arrays: Mapping[str, Any]) -> dict[str, FloatArray]:
    for key in _KEYS:
        if key not in arrays:
            near = did_you_mean(key, arrays.keys())
            raise InputError(
                f"grid {path}: array {key!r} is missing{near}; a grid needs {', '.join(_KEYS)}, "
                f"found {', '.join(sorted(arrays.keys())) or 'nothing'}"
            )
    return {key: np.asarray(arrays[key][()], dtype=np.float64) for key in _KEYS}


def _check_arrays(path: Path, arrays: Mapping[str, FloatArray], edges: FloatArray) -> None:
    """Refuse arrays whose shapes disagree, values that are not finite and wavelengths that do not serve."""
    wave, flux = arrays["wave"], arrays["flux"]
    count = len(flux) if flux.ndim == 2 else 0
    shapes = {key: arrays[key].shape for key in _KEYS}
    expected = {"wave": (wave.size,), "flux": (count, wave.size)} | dict.fromkeys(_KEYS[2:], (count,))
    for key in _KEYS:
        if shapes[key] != expected[key] or count == 0:
            found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise InputError(
                f"grid {path}: shapes disagree; wave (W,), flux (n, W), teff, logg and mh (n,) are "
                f"required, found {found}"
            )
    if count < _FEWEST_SPECTRA:
        raise InputError(f"grid {path}: at least {_FEWEST_SPECTRA} spectra are required, found {count}")
    for key in _KEYS:
        if not np.all(np.isfinite(arrays[key])):
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(arrays[key]))[0])
            raise InputError(f"grid {path}: {key!r} must be finite, found {arrays[key][where]} at {where}; repair it")
    if wave.size < 2 or np.any(np.diff(wave) <= 0):
        raise InputError(f"grid {path}: 'wave' must increase strictly; sort it and drop repeated wavelengths")
    if wave[0] > edges[0] or wave[-1] < edges[-1]:
        raise InputError(
            f"grid {path}: 'wave' must cover {edges[0]:g}–{edges[-1]:g} Å, found {wave[0]:g}–{wave[-1]:g} Å; narrow "
            "the wavelength range of the sample or extend the grid"
        )


def _check_nodes(path: Path, labels: FloatArray, centre: FloatArray, spread: FloatArray) -> FloatArray:
    """Return the scaled nodes (n, 3), refusing a label that never varies and nodes that occur twice."""
    for name, width in zip(_KEYS[2:], spread, strict=True):
        if width == 0:
            raise InputError(
                f"grid {path}: {name!r} has one value only, and teff, logg and mh must all vary; give a grid, or a "
                "folder of files, with several of its values"
            )
    unique, counts = np.unique(labels, axis=0, return_counts=True)
    if len(unique) < len(labels):
        teff, logg, mh = unique[int(np.argmax(counts))]
        raise InputError(
            f"grid {path}: each (teff, logg, mh) may occur once, found ({teff:g}, {logg:g}, {mh:g}) "
            f"{counts.max()} times; keep one"
        )
    return np.asarray((labels - centre) / spread)


def _span_hull(path: Path, nodes: FloatArray) -> ConvexHull:
    try:
        return ConvexHull(nodes)
    except QhullError as error:
        raise InputError(f"grid {path}: teff, logg and mh lie in one plane; they must span a volume") from error


def _reduce_spectra(flux: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return mean (P,), components (K, P) and scores (n, K) from the smaller of the two Gram matrices."""
    mean = flux.mean(axis=0)
    centred = flux - mean
    wide = len(centred) < centred.shape[1]
    gram = centred @ centred.T if wide else centred.T @ centred
    keep = min(_MOST_COMPONENTS, len(gram))
    values, vectors = eigh(gram, subset_by_index=[len(gram) - keep, len(gram) - 1])
    vectors = vectors[:, values > 1e-12 * values[-1]]
    components = np.linalg.qr(centred.T @ vectors)[0].T if wide else vectors.T
    return mean, np.ascontiguousarray(components), centred @ components.T


def _project_into_hull(points: FloatArray, facets: FloatArray, centre: FloatArray) -> FloatArray:
    """Return ``points`` (n, 3) with those outside the hull moved inside; points inside are returned unchanged."""
    normals, offsets = facets[:, :3], facets[:, 3]
    result = points.copy()
    for _ in range(50):
        violation = result @ normals.T + offsets
        worst = np.argmax(violation, axis=1)
        excess = violation[np.arange(len(result)), worst]
        outside = excess > 1e-9
        if not outside.any():
            return result
        result[outside] -= excess[outside, None] * normals[worst[outside]]
    # Shrink towards the centre: along the segment each facet's violation is linear.
    violation = result @ normals.T + offsets
    margin = -(centre @ normals.T + offsets)
    share = np.min(np.where(violation > 0, margin / (margin + np.maximum(violation, 0.0)), 1.0), axis=1)
    return np.where(share[:, None] < 1.0, centre + share[:, None] * (result - centre), result)

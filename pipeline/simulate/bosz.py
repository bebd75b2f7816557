"""The BOSZ library of model spectra (Mészáros et al. 2024, A&A 688, A197) as a folder of the files that MAST serves.

A spectrum is a file such as ``bosz2024_mp_t5000_g+4.5_m+0.00_a+0.00_c+0.00_v2_r2000_resam.txt.gz``. Its name tells the
labels. Its lines hold the flux H and the continuum, and only H is read. The wavelengths, in Å, are those of one shared
file, ``bosz2024_wave_r2000.txt``; they are taken as they are. Sub-folders are looked into, because MAST has one for
every metallicity.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.errors import InputError, enumerate_words

__all__ = ["BoszFolder", "find_bosz", "read_bosz"]

FloatArray = npt.NDArray[np.float64]

EXAMPLE: Final = "bosz2024_mp_t5000_g+4.5_m+0.00_a+0.00_c+0.00_v2_r2000_resam.txt.gz"
_NUMBER: Final = r"([+-]\d+\.\d+)"
_NAME: Final = re.compile(
    rf"bosz2024_(ms|mp|ap)_t(\d+)_g{_NUMBER}_m{_NUMBER}_a{_NUMBER}_c{_NUMBER}_v(\d+)_r(\d+)_resam\.txt(\.gz)?"
)
_WAVE: Final = re.compile(r"bosz2024_wave_r(\d+)\.txt(\.gz)?")
#: Model atmospheres of one star, the best first: MARCS spherical, MARCS plane-parallel, ATLAS9.
_ATMOSPHERES: Final = ("ms", "mp", "ap")
#: Microturbulence in km/s that is taken where there is a choice.
_USUAL_TURBULENCE: Final = 2
#: No line of such a file is longer; a file that is has been changed.
_LONGEST_LINE: Final = 120
_MOST_NAMED: Final = 5


@dataclass(frozen=True)
class BoszFolder:
    """Which files of a folder are read.

    Attributes
    ----------
    folder
        Where.
    wave
        The file of the wavelengths.
    files
        One for each node, in order of the labels.
    labels
        T_eff (K), log g (dex) and [M/H] (dex) of each, shape (n, 3).
    notes
        What is left out, and what is missing.
    """

    folder: Path
    wave: Path
    files: tuple[Path, ...]
    labels: FloatArray
    notes: tuple[str, ...]

    def fingerprint(self) -> str:
        """Return a SHA-256 of names and content of all files that are read, wherever they lie."""
        digest = hashlib.sha256()
        for path in (self.wave, *self.files):
            digest.update(path.name.encode())
            with _told(path), path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()


def find_bosz(folder: Path) -> BoszFolder:
    """Choose the files of a folder and its sub-folders that make up one grid over (T_eff, log g, [M/H]).

    Of several compositions [α/M] and [C/M] and microturbulences, those with the most spectra are taken: solar ones and
    2 km/s where several have as many. Of several model atmospheres of one star, MARCS is taken.

    Raises
    ------
    InputError
        If the folder holds no such files, files of several resolutions, or not the wavelengths.
    """
    found = [(match, path) for path in sorted(folder.rglob("bosz2024_*")) if (match := _NAME.fullmatch(path.name))]
    if not found:
        raise InputError(
            f"grid {folder}: no spectra of BOSZ 2024 in it; files such as {EXAMPLE} are required, as MAST serves them "
            "(the resampled product), or give an NPZ or HDF5 file with wave, flux, teff, logg and mh"
        )
    resolutions = sorted({int(match[8]) for match, _ in found})
    if len(resolutions) > 1:
        names = enumerate_words([f"r{one}" for one in resolutions])
        raise InputError(f"grid {folder}: one resolution is required, found {names}; give the folder of one of them")
    nodes: dict[tuple[float, ...], dict[tuple[float, float, float], dict[str, Path]]] = {}
    for match, path in found:
        labels = (float(match[2]), float(match[3]), float(match[4]))
        kind = (float(match[5]), float(match[6]), float(match[7]))
        nodes.setdefault(kind, {}).setdefault(labels, {}).setdefault(match[1], path)
    chosen = min(
        nodes, key=lambda kind: (-len(nodes[kind]), abs(kind[0]) + abs(kind[1]), abs(kind[2] - _USUAL_TURBULENCE))
    )
    grid = dict(sorted(nodes[chosen].items()))
    files = tuple(next(of[name] for name in _ATMOSPHERES if name in of) for of in grid.values())
    notes = _describe_choice(chosen, len(found) - len(files), list(grid))
    return BoszFolder(folder, _find_wave(folder, resolutions[0]), files, np.array(list(grid)), notes)


def _find_wave(folder: Path, resolution: int) -> Path:
    names = {path.name: path for path in [*folder.parent.glob("bosz2024_wave_*"), *folder.rglob("bosz2024_wave_*")]}
    for name, path in names.items():
        if (match := _WAVE.fullmatch(name)) and int(match[1]) == resolution:
            return path
    found = f", found {', '.join(sorted(names))}" if names else ""
    raise InputError(
        f"grid {folder}: the file of wavelengths bosz2024_wave_r{resolution}.txt is missing{found}; put it into the "
        "folder, MAST serves it beside the spectra"
    )


def _describe_choice(
    kind: tuple[float, ...], n_left_out: int, labels: Sequence[tuple[float, float, float]]
) -> tuple[str, ...]:
    """Return what was chosen and what is missing, in sentences."""
    alpha, carbon, turbulence = kind
    axes = [sorted(set(values)) for values in zip(*labels, strict=True)]
    spans = [
        f"{name} {axis[0]:g} to {axis[-1]:g} ({len(axis)} values)"
        for name, axis in zip(("T_eff", "log g", "[M/H]"), axes, strict=True)
    ]
    notes = [
        f"BOSZ grid: {len(labels)} spectra, {', '.join(spans)}, at [α/M] {alpha:+g}, [C/M] {carbon:+g}, "
        f"microturbulence {turbulence:g} km/s" + (f"; {n_left_out} other files are not used" if n_left_out else "")
    ]
    there = Counter(labels)
    missing = [node for node in product(*axes) if node not in there]
    if missing:
        named = [f"t{t:.0f}_g{g:+.1f}_m{m:+.2f}" for t, g, m in missing[:_MOST_NAMED]]
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        notes.append(
            f"BOSZ grid: {len(missing)} of the {len(missing) + len(labels)} combinations of these values "
            f"{'has' if len(missing) == 1 else 'have'} no spectrum: {', '.join(named)}{more}; stars there are "
            "interpolated from the spectra around them"
        )
    return tuple(notes)


def read_bosz(grid: BoszFolder, edges: FloatArray) -> dict[str, FloatArray]:
    """Read the spectra between some wavelengths, and one sample beyond on either side.

    Parameters
    ----------
    grid
        From :func:`find_bosz`.
    edges
        Wanted pixel edges, Å, rising.

    Returns
    -------
    dict
        ``wave`` (W,) in Å, ``flux`` (n, W) as the files have it, ``teff`` in K, ``logg`` and ``mh`` in dex, each (n,).

    Raises
    ------
    InputError
        If a file is damaged; the message names it.
    """
    wave = _read_lines(grid.wave, None, slice(None))
    low = max(0, int(np.searchsorted(wave, edges[0], side="right")) - 1)
    high = min(wave.size, int(np.searchsorted(wave, edges[-1], side="left")) + 1)
    flux = np.empty((len(grid.files), max(0, high - low)))
    for row, path in enumerate(grid.files):
        flux[row] = _read_lines(path, wave.size, slice(low, high))
    teff, logg, mh = grid.labels.T
    return {"wave": wave[low:high], "flux": flux, "teff": teff, "logg": logg, "mh": mh}


def _read_lines(path: Path, n_lines: int | None, kept: slice) -> FloatArray:
    """Return the first column of some lines of a file that must have ``n_lines``."""
    with _told(path), path.open("rb") as raw, gzip.open(raw) if path.suffix == ".gz" else raw as stream:
        text = stream.read() if n_lines is None else stream.read(n_lines * _LONGEST_LINE + 1)
        lines = text.splitlines()
        if n_lines is not None and len(lines) != n_lines:
            raise InputError(
                f"grid file {path}: one line for each of the {n_lines} wavelengths is required, found {len(lines)}; "
                "download it again"
            )
        wanted = lines[kept]
        return np.loadtxt(wanted, usecols=0, ndmin=1) if wanted else np.empty(0)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn what is raised on a file that cannot be read into an error that names it."""
    try:
        yield
    except (OSError, ValueError, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"grid file {path}: cannot be read ({reason}); download it again") from error

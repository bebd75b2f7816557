"""What one store and several joined ones have in common: what they know of their source shards and wavelengths."""

from __future__ import annotations

from typing import Final

import numpy as np

from pipeline.store_manifest import SourceRecord

__all__ = ["StoredSpectra", "find_other_wavelengths"]

#: Relative difference of wavelengths that is rounding, not another grid.
_SAME_WAVELENGTH: Final = 1e-9


class StoredSpectra:
    """Base of what spectra are read from; tells what follows from the arrays present and the source shards."""

    @property
    def variables(self) -> tuple[str, ...]:
        """Pixel arrays present: flux, error, and mask and noisy where there are any."""
        raise NotImplementedError

    @property
    def sources(self) -> tuple[SourceRecord, ...]:
        """What is known of the source shards, in the order of their rows."""
        raise NotImplementedError

    @property
    def has_noisy(self) -> bool:
        """Whether noise drawn by the simulation is there for every spectrum."""
        return "noisy" in self.variables

    @property
    def shard_lengths(self) -> tuple[int, ...]:
        """Spectra from each source shard, in order; they add up to ``n_spectra``."""
        return tuple(source.n_kept for source in self.sources)

    @property
    def source_lengths(self) -> tuple[int, ...]:
        """Spectra in each source shard, those that were dropped included."""
        return tuple(source.n_spectra for source in self.sources)

    @property
    def shard_names(self) -> tuple[str, ...]:
        """Names of the source shards, in order."""
        return tuple(source.name for source in self.sources)


def find_other_wavelengths(first: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the pixels whose wavelengths differ by more than rounding between two grids of shape (P,)."""
    return np.flatnonzero(np.abs(first - other) > _SAME_WAVELENGTH * np.abs(first))

"""What other ways to divide the spectra say in the summary of a run."""

from __future__ import annotations

from pipeline.scoring import Estimate, Plain, Scope

__all__ = ["AblationAnswer", "AblationLevel", "BinningDraw", "BinningScope"]


class BinningDraw(Plain):
    """What one binning gains under one noise draw."""

    seed: int
    scope: Scope


class BinningScope(Scope):
    """What one binning gains on the spectra that it covers, a share ``coverage`` of all test spectra, over seeds.

    ``share`` is ΔR² in units of the main binning's, which comes first. It has an interval only where both cover the
    same spectra.
    """

    name: str
    columns: tuple[str, ...]
    n_bins: int
    coverage: float
    share: Estimate
    draws: tuple[BinningDraw, ...]


class AblationLevel(Plain):
    """All binnings at one noise level, the main one first."""

    noise_level: float
    binnings: tuple[BinningScope, ...]


class AblationAnswer(Plain):
    """All binnings at every noise level."""

    levels: tuple[AblationLevel, ...]

    def at(self, noise_level: float) -> tuple[BinningScope, ...]:
        """Return the binnings at one noise level."""
        return next((level.binnings for level in self.levels if level.noise_level == noise_level), ())

"""Noise that the simulation drew: test files may come with noisy spectra beside the clean ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.noise.draws import NoiseDraw
from pipeline.noise.model import NO_SEED, Kernel, Noise, SpectraRows
from pipeline.schema import STREAM_TRAIN

__all__ = ["STORED_LEVEL", "StoredNoise"]

#: The noise level at which the ``noisy`` arrays of test files were drawn.
STORED_LEVEL = 1.0


@dataclass(frozen=True)
class StoredNoise(Noise):
    """The store's own ``noisy`` array, drawn by the simulation: the same for every seed, at one level."""

    kind: ClassVar[str] = "stored"
    is_single: ClassVar[bool] = True
    words: ClassVar[str] = (
        "the noisy spectra that came with the test files were used (pre-drawn), the same for every seed."
    )
    array: ClassVar[str] = "noisy"
    needs_error = False
    seed = NO_SEED

    level: float = STORED_LEVEL

    @property
    def name(self) -> str:
        """A short name that is safe in paths."""
        return f"stored_noise-{self.level!r}"

    @property
    def identity(self) -> str:
        """What identifies the noise in files and keys."""
        return self.kind

    def apply(self, flux: NDArray[Any], error: NDArray[Any], start: int) -> NDArray[Any]:
        """Return the spectra, which have their noise."""
        return flux

    def read(
        self, store: SpectraRows, start: int, stop: int, precision: str = "float32"
    ) -> tuple[NDArray[np.floating], None]:
        """Read the noisy spectra, clipped at zero; see :meth:`Noise.read`."""
        if not store.has_noisy:
            paths = ", ".join(map(str, store.paths))
            raise InputError(f"store {paths} holds no pre-drawn 'noisy' array; give a noise draw")
        return np.asarray(np.maximum(store.read_rows("noisy", start, stop), 0), dtype=precision), None

    def kernel(self, dtype: np.dtype[Any]) -> Kernel:
        """Raise: training spectra come without noise of their own."""
        raise NotImplementedError(f"no models are trained on {self.kind} noise")

    def drawn(self, seed: int) -> NoiseDraw:
        """Return a draw of training spectra at this level."""
        return NoiseDraw(self.level, seed, STREAM_TRAIN)

    @classmethod
    def for_tests(cls, training: Noise, seeds: Sequence[int], has_noisy: bool) -> list[Noise]:
        """Return this noise where the test spectra have it at the level of training; draws elsewhere."""
        if has_noisy and training.level == STORED_LEVEL:
            return [cls()]
        return NoiseDraw.for_tests(training, seeds, has_noisy)

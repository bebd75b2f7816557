"""What every noise model offers: its name, its words, its spectra as a store's reader sees them, its kernel."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError

__all__ = ["NO_SEED", "FaintPixels", "Kernel", "Noise", "Scatter", "SpectraRows", "require_level"]

#: The seed of noise that was not drawn from one.
NO_SEED = -1


class SpectraRows(Protocol):
    """What noise needs of a store, or of several as one."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where the spectra come from."""

    @property
    def has_noisy(self) -> bool:
        """Whether every spectrum has noise that the simulation drew."""

    def read_rows(self, variable: str, start: int, stop: int) -> NDArray[Any]:
        """Read ``flux``, ``error`` or ``noisy``, shape (stop − start, P)."""


@dataclass(frozen=True, eq=False)
class Scatter:
    """Consecutive spectra, and the buffers of the hot loop that they go to.

    Attributes
    ----------
    flux, error
        Rows of pixels, (N, P), float32.
    first
        Absolute row of the first spectrum.
    origin
        What is subtracted, (P,), in the precision of the pool.
    targets, slots
        Buffer and row in it, of each spectrum, (N,).
    pool
        The buffers, (buffers, rows, >= P).
    variances
        Sums of the pixels' variances, (groups, P), float64; only some kernels add to them.
    groups
        Which of these sums each spectrum belongs to, (N,); its buffer's by default.
    """

    flux: NDArray[Any]
    error: NDArray[Any]
    first: int
    origin: NDArray[Any]
    targets: NDArray[np.int64]
    slots: NDArray[np.int64]
    pool: NDArray[Any]
    variances: NDArray[np.float64]
    groups: NDArray[np.int64] | None = None


@dataclass(frozen=True, eq=False)
class FaintPixels:
    """Pixels whose flux is so near 0 that clipping noise there changes their mean: a sparse matrix, row after row.

    Attributes
    ----------
    starts
        Where the pixels of each spectrum begin in the other arrays, and where the last one's end, (N + 1,).
    pixels
        Their numbers, which ascend within a spectrum, (M,).
    mean
        What clipping adds to their means, flux units, (M,).
    variance
        What clipping adds to their variances, flux², never positive, (M,).
    """

    starts: NDArray[np.int64]
    pixels: NDArray[np.int32]
    mean: NDArray[Any]
    variance: NDArray[Any]


class Kernel(Protocol):
    """How the hot loop writes the rows of one noise, in one precision."""

    @property
    def has_variances(self) -> bool:
        """Whether rows are means, and the sums of their variances belong to the Gram matrix' diagonal."""

    def split(self, scatter: Scatter, n_parts: int) -> Sequence[Callable[[], None]]:
        """Return at most ``n_parts`` calls that together write all rows; threads may make them side by side."""

    def find_faint(self, flux: NDArray[Any], error: NDArray[Any], found: FaintPixels, most: int) -> bool:
        """List the faint pixels of rows (N, P) in the memory of ``found``, unless there are more than ``most``.

        Returns whether they are listed, which only noise that is integrated out can do. If so, all other pixels have
        the flux as their mean, or 0 where it is negative, and (level · error)² as their variance.
        """
        return False


def require_level(level: object) -> None:
    """Refuse what is no noise level.

    Raises
    ------
    ConfigError
        If it is no number, negative, or not finite.
    """
    if isinstance(level, bool) or not isinstance(level, Real) or not 0 <= float(level) < math.inf:
        raise ConfigError(f"level: a number of 0 or more, in units of the 1σ error, is required, found {level!r}")


class Noise(ABC):
    """What can be done with the noise of a store's spectra, at one level.

    The models are frozen dataclasses. Their fields are recorded with everything that is computed from the noise, and
    enter its keys, so a new field makes all of it again. What else the package must know of a noise model stands
    here; :data:`pipeline.noise.kinds.NOISE_KINDS` lists the models.
    """

    #: How files and settings call the model.
    kind: ClassVar[str]
    #: Whether there are single noisy spectra; else there are means over all draws, with variances.
    is_single: ClassVar[bool]
    #: What a report says where test spectra have this noise.
    words: ClassVar[str]
    #: What a model card says where training spectra had this noise; ``{seed}`` is filled in.
    training_words: ClassVar[str]
    #: The array of a store that the spectra are made from.
    array: ClassVar[str] = "flux"

    if TYPE_CHECKING:  # subclasses have fields of these names, which properties here would be in the way of

        @property
        def level(self) -> float:
            """The noise in units of each pixel's 1σ error."""

        @property
        def seed(self) -> int:
            """What the noise is drawn from; :data:`NO_SEED` if it is not."""

    @property
    @abstractmethod
    def name(self) -> str:
        """A short name that is safe in paths."""

    @property
    def has_seed(self) -> bool:
        """Whether the noise is drawn from a seed."""
        return self.seed != NO_SEED

    @property
    def needs_error(self) -> bool:
        """Whether the errors must be read to make the spectra."""
        return self.level != 0

    @property
    def identity(self) -> Any:
        """What identifies the noise in files and keys."""
        return vars(self)

    def record(self) -> dict[str, Any]:
        """Return kind, level and seed as they are recorded for people, with None for no seed."""
        return {"mode": self.kind, "level": self.level, "seed": self.seed if self.has_seed else None}

    @abstractmethod
    def apply(self, flux: NDArray[Any], error: NDArray[Any], start: int) -> NDArray[Any]:
        """Return spectra with noise, or their means, (N, P).

        ``flux`` comes from :attr:`array`, ``error`` is the 1σ error, and ``start`` is the absolute row of the first.
        """

    @abstractmethod
    def read(
        self, store: SpectraRows, start: int, stop: int, precision: str = "float32"
    ) -> tuple[NDArray[np.floating], NDArray[np.float64] | None]:
        """Read spectra with this noise.

        Parameters
        ----------
        store
            The store, or several as one.
        start, stop
            Absolute rows, which count through all stores.
        precision
            ``float32`` or ``float64``, of single spectra; means and variances always come in float64.

        Returns
        -------
        rows
            Noisy flux or its means, shape (stop − start, P), never negative, origin not subtracted.
        variances
            Variances of the pixels where rows are means, same shape, flux²; None for single spectra.

        Raises
        ------
        InputError
            If the store lacks what the noise is made from.
        """

    @abstractmethod
    def kernel(self, dtype: np.dtype[Any]) -> Kernel:
        """Return how the hot loop writes rows with this noise, for products of ``float32`` or ``float64``."""

    @abstractmethod
    def drawn(self, seed: int) -> Noise:
        """Return the draw that stands for this noise where single training spectra are needed.

        It is drawn from ``seed`` unless the noise has a seed of its own.
        """

    @classmethod
    def for_training(cls, level: float, seeds: Sequence[int]) -> list[Noise]:
        """Return the noises of this kind that models of one level are trained on."""
        raise NotImplementedError(f"no models are trained on {cls.kind} noise")

    @classmethod
    @abstractmethod
    def for_tests(cls, training: Noise, seeds: Sequence[int], has_noisy: bool) -> list[Noise]:
        """Return the noises of this kind that models of a training noise are tested on.

        ``has_noisy`` says whether the test spectra came with noise of their own.
        """

"""Noise draws that depend on nothing but the seed, the stream and the row.

    noisy = max(max(flux, 0) + level · error · ε, 0),   ε ~ N(0, 1) independent per pixel

ε comes from a counter-based generator (:func:`normals_of_row`), so any rows can be drawn by any worker in any
order. The same ε serve every noise level of a seed.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, cast

import numba
import numpy as np
from numba.core.caching import FunctionCache
from numpy.typing import NDArray

from pipeline.errors import ConfigError, InputError
from pipeline.noise.model import NO_SEED, Kernel, Noise, Scatter, SpectraRows, require_level
from pipeline.schema import STREAM_TEST, STREAM_TRAIN

__all__ = [
    "NOISE_ALGORITHM",
    "STORED_LEVEL",
    "NoiseDraw",
    "StoredNoise",
    "add_noise",
    "compiled",
    "draw_noise",
    "fill_normals",
    "normals_of_row",
    "stream_key",
]

# --- Compilation: the machine code is kept where that is possible, and nothing depends on it.


class _Cache(FunctionCache):
    """Keeps machine code; what cannot be read is compiled again, and what cannot be written is not kept."""

    def load_overload(self, signature: Any, context: Any) -> Any:
        """Return kept code or None, see :class:`numba.core.caching.Cache`."""
        try:
            return super().load_overload(signature, context)  # type: ignore[no-untyped-call]
        except Exception:  # a file that a full disk cut short: pickle raises anything
            with suppress(Exception):
                self.flush()  # type: ignore[no-untyped-call]
            return None

    def save_overload(self, signature: Any, code: Any) -> None:
        """Keep code, see :class:`numba.core.caching.Cache`."""
        with suppress(Exception):
            super().save_overload(signature, code)  # type: ignore[no-untyped-call]


def compiled(**options: Any) -> Callable[[Any], Any]:
    """Return a decorator that compiles a function, and keeps the machine code for the next process.

    numba keeps it beside the source or below HOME. Where neither can be written, as in a read-only installation and a
    batch job without a home, it is kept in a folder of the user's own in the temporary folder, or not at all.

    Parameters
    ----------
    options
        Of :func:`numba.njit`.
    """

    def decorate(function: Any) -> Any:
        dispatcher = numba.njit(nogil=True, **options)(function)
        settings, keep = cast(Any, numba.config), cast(Any, _Cache)
        try:
            dispatcher._cache = keep(function)
        except RuntimeError:  # nowhere to write
            settings.CACHE_DIR = _own_folder()
            with suppress(RuntimeError):
                dispatcher._cache = keep(function)
        return dispatcher

    return decorate


def _own_folder() -> str:
    """Return a folder of the temporary folder that nobody else can write: what is kept there is trusted."""
    with suppress(OSError):
        folder = Path(tempfile.gettempdir()) / f"headroom-numba-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077:
            return str(folder)
    return ""


# --- Standard normals by counter: any row of any stream, anywhere, without the ones before it.
#
# Philox 4×32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") turns the counter (pixel group,
# row) and a key into four independent 32-bit words; two Box–Muller transforms turn those into four normals. Every
# step is integer arithmetic or a correctly rounded float32 operation (+, −, ×, √), so the numbers are the same bits on
# every processor; the loops are written so that the compiler runs them on vector registers, at 1 to 2 ns a normal.
#
# Resolution: radii come from 31-bit uniforms, so |ε| ≤ 6.6, and angles from 32-bit ones.

_F = np.float32
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_EIGHTH_TURN, _QUARTER_TURN = np.uint32(0x20000000), np.uint32(0x3FFFFFFF)


@numba.njit(inline="always")
def philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> Any:
    """Return four uniform 32-bit words for a counter of four and a key of two."""
    for _ in range(10):
        p0 = _MULTIPLIER_0 * np.uint64(c0)
        p1 = _MULTIPLIER_1 * np.uint64(c2)
        c0 = np.uint32(np.uint32(p1 >> _HALF) ^ c1 ^ k0)
        c1 = np.uint32(p1 & _LOW)
        c2 = np.uint32(np.uint32(p0 >> _HALF) ^ c3 ^ k1)
        c3 = np.uint32(p0 & _LOW)
        k0 = np.uint32(k0 + _WEYL_0)
        k1 = np.uint32(k1 + _WEYL_1)
    return c0, c1, c2, c3


@numba.njit(inline="always")
def radius(word: Any) -> Any:
    """Return √(−2 ln u) for the uniform u = (word/2 + ½) / 2³¹ in (0, 1].

    The logarithm is the single-precision polynomial of Cephes (Moshier 1992), relative error below 1e-7.
    """
    u = (_F(np.int32(word >> np.uint32(1))) + _F(0.5)) * _F(2.0**-31)
    bits = _F(u).view(np.int32)
    exponent = np.int32((bits - np.int32(0x3F3504F3)) >> np.int32(23))
    x = np.int32(bits - np.int32(exponent << np.int32(23))).view(np.float32) - _F(1)
    z = x * x
    y = _F(7.0376836292e-2)
    y = y * x + _F(-1.1514610310e-1)
    y = y * x + _F(1.1676998740e-1)
    y = y * x + _F(-1.2420140846e-1)
    y = y * x + _F(1.4249322787e-1)
    y = y * x + _F(-1.6668057665e-1)
    y = y * x + _F(2.0000714765e-1)
    y = y * x + _F(-2.4999993993e-1)
    y = y * x + _F(3.3333331174e-1)
    y = y * x * z
    e = _F(exponent)
    logarithm = x + (y + e * _F(-2.12194440e-4) - _F(0.5) * z) + e * _F(0.693359375)
    squared = _F(-2) * logarithm
    return np.sqrt(squared if squared > _F(0) else _F(0))


@numba.njit(inline="always")
def direction(word: Any) -> Any:
    """Return cosine and sine of 2π · word / 2³², by Cephes' single-precision polynomials in an eighth of a turn."""
    shifted = np.uint32(word + _EIGHTH_TURN)
    quarter = np.int32(shifted >> np.uint32(30))
    part = np.int32(np.int32(shifted & _QUARTER_TURN) - np.int32(0x20000000))
    x = _F(part) * _F(2 * np.pi / 2**32)
    z = x * x
    sine = ((_F(-1.9515295891e-4) * z + _F(8.3321608736e-3)) * z + _F(-1.6666654611e-1)) * z * x + x
    cosine = (_F(2.443315711809948e-5) * z + _F(-1.388731625493765e-3)) * z + _F(4.166664568298827e-2)
    cosine = cosine * z * z - _F(0.5) * z + _F(1)
    swapped = (quarter & np.int32(1)) != 0
    c = sine if swapped else cosine
    s = cosine if swapped else sine
    c = -c if (quarter == np.int32(1) or quarter == np.int32(2)) else c
    s = -s if quarter >= np.int32(2) else s
    return c, s


@numba.njit(inline="always")
def normals_of_row(row: Any, key: Any, words: Any, normals: Any) -> None:
    """Fill ``normals`` (4·q,) for one row; ``words`` (4, q) is scratch, ``key`` two 32-bit words."""
    low, high = np.uint32(np.uint64(row) & _LOW), np.uint32(np.uint64(row) >> _HALF)
    q = words.shape[1]
    k0, k1 = key[0], key[1]
    for j in range(q):
        words[0, j], words[1, j], words[2, j], words[3, j] = philox(np.uint32(j), low, high, np.uint32(0), k0, k1)
    for half in range(2):
        lengths, angles = words[2 * half], words[2 * half + 1]
        first, second = normals[2 * half * q : (2 * half + 1) * q], normals[(2 * half + 1) * q : (2 * half + 2) * q]
        for j in range(q):
            r = radius(lengths[j])
            c, s = direction(angles[j])
            first[j] = r * c
            second[j] = r * s


@compiled()
def fill_normals(start: Any, key: Any, out: Any) -> None:
    """Fill ``out`` (N, P), float32, with the normals of rows ``start`` to ``start + N``."""
    q = (out.shape[1] + 3) // 4
    words = np.empty((4, q), np.uint32)
    normals = np.empty(4 * q, np.float32)
    for r in range(out.shape[0]):
        normals_of_row(start + r, key, words, normals)
        for p in range(out.shape[1]):  # a slice would take two seconds more to compile
            out[r, p] = normals[p]


#: Recorded with every result; changes whenever the same seed would give other numbers.
NOISE_ALGORITHM = "philox4x32-10/box-muller-float32"


@dataclass(frozen=True)
class NoiseDraw(Noise):
    """One draw of noise over a whole store: ``level`` × 1σ, from ``(seed, stream)``."""

    kind: ClassVar[str] = "drawn"
    is_single: ClassVar[bool] = True
    words: ClassVar[str] = "noise was drawn for the test spectra by this run, anew for every seed."
    training_words: ClassVar[str] = "one draw, seed {seed}"

    level: float
    seed: int
    stream: int

    def __post_init__(self) -> None:
        require_level(self.level)
        for name, value in (("seed", self.seed), ("stream", self.stream)):
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
                raise ConfigError(f"{name}: a whole number of 0 or more is required, found {value!r}")

    @property
    def name(self) -> str:
        """A short name that is safe in paths."""
        return f"seed-{self.seed}_noise-{self.level!r}"

    def apply(self, flux: NDArray[Any], error: NDArray[Any], start: int) -> NDArray[Any]:
        """Return noisy spectra (N, P); see :func:`add_noise`."""
        drawn = draw_noise(self, start, start + len(flux), flux.shape[1])
        return add_noise(flux, error, drawn, self.level)

    def read(
        self, store: SpectraRows, start: int, stop: int, precision: str = "float32"
    ) -> tuple[NDArray[np.floating], None]:
        """Read spectra with this draw; see :meth:`Noise.read`."""
        flux = store.read_rows("flux", start, stop).astype(precision)
        if not self.needs_error:
            return np.asarray(np.maximum(flux, 0)), None
        return self.apply(flux, store.read_rows("error", start, stop).astype(precision), start), None

    def kernel(self, dtype: np.dtype[Any]) -> _DrawnKernel:
        """Return the kernel that draws, adds and clips; the generator's key is computed once."""
        return _DrawnKernel(self, dtype)

    def drawn(self, seed: int) -> NoiseDraw:
        """Return this draw."""
        return self

    @classmethod
    def for_training(cls, level: float, seeds: Sequence[int]) -> list[Noise]:
        """Return a draw for every seed."""
        return [cls(level, seed, STREAM_TRAIN) for seed in seeds]

    @classmethod
    def for_tests(cls, training: Noise, seeds: Sequence[int], has_noisy: bool) -> list[Noise]:
        """Return a draw from the seed of training, or one for every seed if that has none."""
        own = [training.seed] if training.has_seed else seeds
        return [cls(training.level, seed, STREAM_TEST) for seed in own]


def stream_key(draw: NoiseDraw) -> NDArray[np.uint32]:
    """Return the generator's key for a seed and stream, two 32-bit words; seeds of any size are hashed into it."""
    words = np.random.SeedSequence(draw.seed, spawn_key=(draw.stream,)).generate_state(2, np.uint32)
    return words.astype(np.uint32)


def draw_noise(
    draw: NoiseDraw, start: int, stop: int, n_pixels: int, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Draw the standard normals ε of the rows ``start:stop``.

    Parameters
    ----------
    draw
        Seed and stream; the level is not applied here.
    start, stop
        Absolute rows of the store.
    n_pixels
        P, pixels per spectrum.
    out
        Optional C-ordered float32 array of shape (stop − start, P) to fill.

    Returns
    -------
    NDArray[np.float32]
        ε, shape (stop − start, P): bit for bit the same whatever range they are asked for in.
    """
    if out is None:
        out = np.empty((stop - start, n_pixels), dtype=np.float32)
    fill_normals(start, stream_key(draw), out)
    return out


def add_noise(
    flux: NDArray[np.floating], error: NDArray[np.floating], noise: NDArray[np.floating], level: float
) -> NDArray[np.floating]:
    """Return ``max(max(flux, 0) + level · error · ε, 0)``; all arrays (N, P), in the dtype of ``flux``."""
    noisy = noise.astype(flux.dtype)
    noisy *= flux.dtype.type(level)
    noisy *= error
    noisy += np.maximum(flux, 0)
    return np.maximum(noisy, 0, out=noisy)


class _DrawnKernel(Kernel):
    """Draws noise in the hot loop; threads share the spectra of a segment."""

    has_variances = False

    def __init__(self, draw: NoiseDraw, dtype: np.dtype[Any]) -> None:
        self._level, self._key = dtype.type(draw.level), stream_key(draw)

    def split(self, scatter: Scatter, n_parts: int) -> Sequence[Callable[[], None]]:
        size = -(-len(scatter.flux) // n_parts)
        starts = range(0, len(scatter.flux), size)
        return [self._part(scatter, a, a + size) for a in starts]

    def _part(self, scatter: Scatter, a: int, b: int) -> Callable[[], None]:
        return partial(
            _scatter_noisy, scatter.flux[a:b], scatter.error[a:b], self._level, self._key, scatter.first + a,
            scatter.origin, scatter.targets[a:b], scatter.slots[a:b], scatter.pool,
        )  # fmt: skip


@compiled()
def _scatter_noisy(
    flux: Any, error: Any, level: Any, key: Any, start: Any, origin: Any, targets: Any, slots: Any, pool: Any
) -> None:
    """Write ``max(max(f, 0) + level·e·ε, 0) − o`` of every row to its place in its buffer.

    The order of operations is that of :func:`add_noise`, bit for bit; the type of ``level``
    decides the precision.
    """
    zero = level * 0
    n_pixels = flux.shape[1]
    words = np.empty((4, (n_pixels + 3) // 4), np.uint32)
    normals = np.zeros(4 * words.shape[1], np.float32)
    for r in range(flux.shape[0]):
        if level > 0:
            normals_of_row(start + r, key, words, normals)
        f, e, row = flux[r], error[r], pool[targets[r], slots[r]]
        for p in range(n_pixels):
            noise = (normals[p] * level) * e[p]
            clean = f[p] if f[p] > 0 else zero
            value = noise + clean
            value = value if value > zero else zero
            row[p] = value - origin[p]


# --- Noise that the simulation drew: test files may come with noisy spectra beside the clean ones.


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

"""Labels for spectra that nobody has labelled: a model bundle over stores or shards, in memory that does not grow.

Blocks of spectra are read and predicted by several threads; finished parts are kept, so that an interrupted prediction
goes on where it stopped. What is said of a spectrum depends on nothing but the spectrum, the model and the settings:
threads, parts and interruptions change no byte of the file.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline.bundle_model import MixtureModel
from pipeline.config import content_hash
from pipeline.errors import InputError
from pipeline.hotloop import available_threads
from pipeline.locks import exclusive
from pipeline.noise import NoiseDraw, add_noise, draw_noise
from pipeline.predict_parts import PredictionParts, read_facts
from pipeline.predict_scores import PredictSummary, summarise_predictions
from pipeline.predict_sources import SpectraSource, describe_grid, open_spectra_source
from pipeline.progress import Progress, SilentProgress
from pipeline.resample import Resampling
from pipeline.store_rows import find_other_wavelengths

__all__ = ["STORED_NOISE", "PredictOptions", "predict_spectra"]

#: Raised when the same model and spectra would give other predictions.
ALGORITHM_VERSION: Final = 1
#: In place of a draw: the spectra's own ``noisy`` arrays.
STORED_NOISE: Final = "stored"
#: Rows of a part, and of a row group of the file, at least.
_PART_ROWS: Final = 65_536


@dataclass(frozen=True)
class PredictOptions:
    """How spectra are predicted.

    Attributes
    ----------
    route
        One of the model's; its own by default.
    noise
        None for observed spectra, which have their own; :data:`STORED_NOISE`, or a draw for simulated ones.
    resample
        Put spectra of another wavelength grid onto the model's; see :mod:`pipeline.resample`.
    threads
        Blocks predicted side by side; one per core by default.
    overwrite
        Replace predictions that are there.
    """

    route: str | None = None
    noise: NoiseDraw | str | None = None
    resample: bool = False
    threads: int | None = None
    overwrite: bool = False


def predict_spectra(
    model: MixtureModel,
    spectra: SpectraSource | Sequence[str | Path],
    out: str | Path,
    options: PredictOptions | None = None,
    *,
    progress: Progress | None = None,
) -> PredictSummary:
    """Predict the labels of all spectra of stores or shards, and write them as a Parquet file.

    Parameters
    ----------
    model
        From :func:`pipeline.load_model`.
    spectra
        Stores or shards, their folders or globs; read, never written.
    out
        The file. Beside it, unfinished parts wait in a folder of its name and ``.partial``; it appears at once.
    options
        See :class:`PredictOptions`.
    progress
        Told of every block.

    Returns
    -------
    PredictSummary
        How many spectra are out of domain and why, and, where labels are known, R².

    Raises
    ------
    InputError
        If spectra cannot be read, have other wavelengths than the model, or lack what the noise needs; or if
        something is at ``out`` already.
    ResourceError
        If the disk is full or not writable.
    """
    settings, report = options or PredictOptions(), progress or SilentProgress()
    source = open_spectra_source(spectra, Path.cwd()) if isinstance(spectra, Sequence) else spectra
    work = _Work(model, source, settings)
    work.check()
    parts = PredictionParts(Path(out), work.facts)
    found = read_facts(parts.path)
    if found is not None and found.get("key") == work.facts["key"]:
        report.note(f"{parts.path}: these predictions are there already")
        return summarise_predictions(parts.path, model)
    parts.require_writable(overwrite=settings.overwrite)
    parts.make_folder()
    with exclusive(parts.folder, "the predictions"):
        parts.claim()
        _write_parts(work, parts, report)
        parts.finish(len(work.parts))
    return summarise_predictions(parts.path, model)


def _write_parts(work: _Work, parts: PredictionParts, progress: Progress) -> None:
    """Predict and write the parts that are not there yet."""
    missing = [k for k, (start, stop) in enumerate(work.parts) if not parts.find(k, stop - start)]
    todo = sum(work.parts[k][1] - work.parts[k][0] for k in missing)
    if todo < work.source.n_spectra:
        progress.note(f"{work.source.n_spectra - todo:,} of {work.source.n_spectra:,} spectra were predicted before")
    blocks = [(k, block) for k in missing for block in work.blocks(*work.parts[k])]
    predicted = closing(_in_threads(work, [block for _, block in blocks]))
    with progress.step("predict", todo) as advance, threadpool_limits(1, user_api="blas"), predicted as tables:
        for number, group in itertools.groupby(zip(blocks, tables, strict=True), key=lambda pair: pair[0][0]):
            own = []
            for (_, (start, stop)), table in group:
                own.append(table)
                advance(stop - start)
            parts.write(number, work.complete(number, pa.concat_tables(own).combine_chunks()))


def _in_threads(work: _Work, blocks: Sequence[tuple[int, int]]) -> Generator[pa.Table]:
    """Yield the predictions of every block, in order; a few blocks are ahead, so memory stays bounded."""
    threads = work.options.threads or available_threads()
    waiting: deque[Future[pa.Table]] = deque()
    executor = ThreadPoolExecutor(threads, "predict")
    try:
        for block in blocks:
            waiting.append(executor.submit(work.predict, *block))
            if len(waiting) > threads + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


@dataclass(frozen=True, eq=False)
class _Work:
    """What is to be predicted, and how."""

    model: MixtureModel
    source: SpectraSource
    options: PredictOptions
    _kept: threading.local = field(default_factory=threading.local)

    def check(self) -> None:
        """Refuse what cannot be predicted, before anything is written."""
        self.model.require_route(self.options.route)
        present, noise = self.source.variables, self.options.noise
        if noise == STORED_NOISE and "noisy" not in present:
            raise InputError(
                f"{self.source.name}: --noise stored needs a pre-drawn 'noisy' array, found {', '.join(present)}; use "
                "--noise none for observed spectra, or a level for simulated ones"
            )
        ours, theirs = self.model.wavelength, self.source.wavelength
        if not self.is_resampled:
            return
        if not self.options.resample:
            raise InputError(
                f"{self.source.name}: the model needs {describe_grid(ours)}, these spectra have "
                f"{describe_grid(theirs)}{self._first_difference()}; put them on the model's grid with --resample"
            )
        if not self.resampling.covered.any():
            raise InputError(
                f"{self.source.name}: these spectra ({describe_grid(theirs)}) cover no pixel of the model "
                f"({describe_grid(ours)}); they are of another arm"
            )

    @cached_property
    def is_resampled(self) -> bool:
        """Whether the spectra are on another grid than the model's."""
        ours, theirs = self.model.wavelength, self.source.wavelength
        return len(ours) != len(theirs) or find_other_wavelengths(ours, theirs).size > 0

    def _first_difference(self) -> str:
        ours, theirs = self.model.wavelength, self.source.wavelength
        if len(ours) != len(theirs):
            return ""
        pixel = int(find_other_wavelengths(ours, theirs)[0])
        return f", other from pixel {pixel} on ({ours[pixel]:.6f} and {theirs[pixel]:.6f} Å)"

    @cached_property
    def resampling(self) -> Resampling:
        """From the spectra's grid to the model's."""
        return Resampling(self.source.wavelength, self.model.wavelength)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the file says of how it was made."""
        noise = self.options.noise
        stated = {
            "model": self.model.fingerprint,
            "spectra": self.source.fingerprint,
            "route": self.options.route or self.model.route,
            "noise": vars(noise) if isinstance(noise, NoiseDraw) else noise,
            "resampled": self.is_resampled,
            "version": ALGORITHM_VERSION,
        }
        return {**stated, "key": content_hash([stated, self.part_rows])}

    @property
    def part_rows(self) -> int:
        """Rows of a part: whole blocks."""
        return self.source.block_rows * max(1, _PART_ROWS // self.source.block_rows)

    @cached_property
    def parts(self) -> list[tuple[int, int]]:
        """Rows of every part."""
        return list(_cut(0, self.source.n_spectra, self.part_rows))

    def blocks(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the rows of every block of a part."""
        return _cut(start, stop, self.source.block_rows)

    def predict(self, start: int, stop: int) -> pa.Table:
        """Read and predict one block; return its rows of the file, without what is known of the spectra."""
        flux, bad = self._read(start, stop)
        # Noise is clipped at zero, so that zeros are no sign of bad pixels where it was added.
        found = self.model.predict_block(flux, bad, self.options.route, zeros_are_bad=self.options.noise is None)
        # Experts are told where there is no gate to choose among them.
        experts = self.model.target if self.model.gate is None else None
        return pa.table(found.columns(experts=experts))

    def complete(self, number: int, predicted: pa.Table) -> pa.Table:
        """Return the rows of a part, with what is known of its spectra: which they are, and their labels."""
        start, stop = self.parts[number]
        truth = self.source.read_columns(self.source.labels, start, stop)
        known = pa.table(self.source.identify(start, stop))
        for name in predicted.column_names:
            known = known.append_column(name, predicted.column(name))
        for label, values in truth.items():
            known = known.append_column(f"{label}_true", pa.array(np.asarray(values, np.float64)))
        return known

    def _read(self, start: int, stop: int) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Return the flux on the model's grid, with noise where asked for, and which pixels are bad."""
        source, noise = self.source, self.options.noise
        flux = self._read_pixels("noisy" if noise == STORED_NOISE else "flux", start, stop)
        bad = source.read_rows("mask", start, stop) != 0 if "mask" in source.variables else None
        if self.is_resampled:
            values, bad = self.resampling.flux(flux, bad)
            flux = values.astype(np.float32)
        if not isinstance(noise, NoiseDraw) or noise.level == 0:
            return flux, bad
        error = self._read_pixels("error", start, stop)
        if self.is_resampled:
            error = self.resampling.error(error).astype(np.float32)
        drawn = draw_noise(noise, start, stop, len(self.model.wavelength))
        return add_noise(flux, error, drawn, noise.level), bad

    def _read_pixels(self, variable: str, start: int, stop: int) -> NDArray[Any]:
        """Read into memory that the thread keeps: fresh memory costs more than reading. Valid until the next block."""
        buffers: dict[str, NDArray[np.float32]] = self._kept.__dict__
        if variable not in buffers:
            buffers[variable] = np.empty((self.source.block_rows, len(self.source.wavelength)), np.float32)
        return self.source.read_rows(variable, start, stop, buffers[variable])


def _cut(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    for first in range(start, stop, step):
        yield first, min(first + step, stop)

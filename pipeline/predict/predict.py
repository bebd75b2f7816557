"""Labels for spectra that nobody has labelled: a model is applied to stores or shards, in memory that does not grow.

Several threads read and predict blocks of spectra. Finished parts are kept, so an interrupted prediction goes on where
it stopped. What is said of a spectrum depends on the spectrum, the model and the settings alone: threads, parts and
interruptions change no byte of the file.
"""

from __future__ import annotations

import itertools
import json
import shutil
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow.csv import CSVWriter

from pipeline.accumulate import available_threads
from pipeline.base import (
    Progress,
    SilentProgress,
    compute_ahead,
    disk_errors_told,
    exclusive,
    list_paths,
    one_blas_thread,
    parse_object,
    remove_leftovers,
    replacing,
)
from pipeline.bins import OUTSIDE
from pipeline.config import content_hash
from pipeline.errors import ConfigError, InputError, require_kind
from pipeline.noise import Noise, NoiseDraw, StoredNoise
from pipeline.predict.model import MixtureModel
from pipeline.predict.sources import Resampling, SpectraSource, describe_grid, open_spectra_source
from pipeline.schema import PREDICTION_ALGORITHM
from pipeline.store import find_other_wavelengths

__all__ = [
    "PARTIAL_SUFFIX",
    "PART_ROWS",
    "STORED_NOISE",
    "LabelScore",
    "PredictOptions",
    "PredictSummary",
    "PredictionParts",
    "predict_spectra",
    "read_facts",
    "summarise_predictions",
]

#: Given as noise in place of a draw, it means the spectra's own ``noisy`` arrays.
STORED_NOISE: Final = StoredNoise.kind
#: Rows of a part, and of a row group of the file, at least.
PART_ROWS: Final = 65_536
#: The folder of unfinished predictions has the name of their file and this suffix.
PARTIAL_SUFFIX: Final = ".partial"
#: What the ending of the file's name may be; it chooses the format.
FILE_SUFFIXES: Final = (".parquet", ".csv")
_KEY_FILE: Final = "key.json"
_FACTS: Final = b"headroom_predictions"


@dataclass(frozen=True)
class PredictOptions:
    """How spectra are predicted.

    Attributes
    ----------
    route
        One of the model's routing rules; the model's own by default.
    noise
        None for observed spectra, which have noise of their own. For simulated spectra :data:`STORED_NOISE` or a draw.
    resample
        Put spectra of another wavelength grid onto the model's; see :mod:`pipeline.predict.sources`.
    threads
        Blocks that are predicted side by side; one per core by default.
    overwrite
        Replace predictions that are there.
    allow_external
        Read what shards have in other files, too, by external links or external storage.
    """

    route: str | None = None
    noise: NoiseDraw | str | None = None
    resample: bool = False
    threads: int | None = None
    overwrite: bool = False
    allow_external: bool = False


def predict_spectra(
    model: MixtureModel,
    spectra: SpectraSource | Path | str | Sequence[Path | str],
    out: str | Path,
    options: PredictOptions | None = None,
    *,
    progress: Progress | None = None,
) -> PredictSummary:
    """Predict the labels of all spectra of stores or shards, and write them to a Parquet or CSV file, by its ending.

    Parameters
    ----------
    model
        From :func:`pipeline.load_model`.
    spectra
        Stores, or shards and other files that a conversion takes, their folders or globs; read, never written.
    out
        The file. It appears at once. Until then its parts wait in a folder beside it, of its name and ``.partial``.
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
        If spectra cannot be read, have other wavelengths than the model, or lack what the noise needs. Also if
        something is at ``out`` already.
    ResourceError
        If the disk is full or not writable.
    """
    require_kind("model", model, MixtureModel, "what load_model returns")
    require_kind("options", options or PredictOptions(), PredictOptions, "PredictOptions(...)")
    if hasattr(spectra, "data_vars") or hasattr(spectra, "dtype"):
        raise ConfigError(
            f"spectra: stores or shards are required, found {type(spectra).__name__}; model.predict takes arrays"
        )
    settings, report = options or PredictOptions(), progress or SilentProgress()
    source = (
        open_spectra_source(list_paths(spectra), Path.cwd(), allow_external=settings.allow_external)
        if isinstance(spectra, str | Path | Sequence)
        else spectra
    )
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
        summary = _summarise(parts.path, parts.read(len(work.parts)), model)
        parts.discard()
    return summary


def _write_parts(work: _Work, parts: PredictionParts, progress: Progress) -> None:
    """Predict and write the parts that are not there yet."""
    missing = [k for k, (start, stop) in enumerate(work.parts) if not parts.find(k, stop - start)]
    todo = sum(work.parts[k][1] - work.parts[k][0] for k in missing)
    if todo < work.source.n_spectra:
        progress.note(f"{work.source.n_spectra - todo:,} of {work.source.n_spectra:,} spectra were predicted before")
    blocks = [(k, block) for k in missing for block in work.blocks(*work.parts[k])]
    predicted = closing(_in_threads(work, [block for _, block in blocks]))
    with progress.step("predict", todo) as advance, one_blas_thread(), predicted as tables:
        for number, group in itertools.groupby(zip(blocks, tables, strict=True), key=lambda pair: pair[0][0]):
            own = []
            for (_, (start, stop)), table in group:
                own.append(table)
                advance(stop - start)
            parts.write(number, work.complete(number, pa.concat_tables(own).combine_chunks()))


def _in_threads(work: _Work, blocks: Sequence[tuple[int, int]]) -> Generator[pa.Table]:
    """Yield the predictions of every block, in order. Only a few blocks are computed ahead, so memory stays bounded."""
    threads = work.options.threads or available_threads()
    return compute_ahead(lambda block: work.predict(*block), blocks, threads=threads, ahead=threads + 1)


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
        present, noise = self.source.variables, self.noise
        if noise is not None and noise.array not in present:
            raise InputError(
                f"{self.source.name}: --noise {noise.kind} needs a pre-drawn '{noise.array}' array, "
                f"found {', '.join(present)}; use --noise none for observed spectra, or a level for simulated ones"
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
    def noise(self) -> Noise | None:
        """What is added to the spectra or came with them; None for observed ones."""
        return StoredNoise() if isinstance(self.options.noise, str) else self.options.noise

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the file says of how it was made."""
        stated = {
            "model": self.model.fingerprint,
            "spectra": self.source.fingerprint,
            "route": self.options.route or self.model.route,
            "noise": None if self.noise is None else self.noise.identity,
            "resampled": self.is_resampled,
            "version": PREDICTION_ALGORITHM,
        }
        return {**stated, "key": content_hash([stated, self.part_rows])}

    @property
    def part_rows(self) -> int:
        """Rows of a part: whole blocks."""
        return self.source.block_rows * max(1, PART_ROWS // self.source.block_rows)

    @cached_property
    def parts(self) -> list[tuple[int, int]]:
        """Rows of every part."""
        return list(_cut(0, self.source.n_spectra, self.part_rows))

    def blocks(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the rows of every block of a part."""
        return _cut(start, stop, self.source.block_rows)

    def predict(self, start: int, stop: int) -> pa.Table:
        """Read and predict one block. Return its columns of predictions; :meth:`complete` adds what is known."""
        flux, bad = self._read(start, stop)
        # Where noise was added, negative flux was clipped to zero. Zeros are then no sign of bad pixels.
        found = self.model.predict_block(flux, bad, self.options.route, zeros_are_bad=self.options.noise is None)
        # Without a gate nobody chooses among the experts, so the table tells what each of them says.
        experts = self.model.target if self.model.gate is None else None
        return pa.table(found.columns(experts=experts))

    def complete(self, number: int, predicted: pa.Table) -> pa.Table:
        """Add to the predictions of a part what is known of its spectra: which they are, and their true labels."""
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
        source, noise = self.source, self.noise
        flux = self._read_pixels("flux" if noise is None else noise.array, start, stop)
        bad = source.read_rows("mask", start, stop) != 0 if "mask" in source.variables else None
        error = None if noise is None or not noise.needs_error else self._read_pixels("error", start, stop)
        # Before a mean over pixels, or noise that is clipped at 0, makes a plausible flux of them.
        for pixels in (flux, error):
            absurd = None if pixels is None else self.model.find_absurd(pixels)
            if absurd is not None:
                bad = absurd if bad is None else bad | absurd
        if self.is_resampled:
            values, bad = self.resampling.flux(flux, bad)
            flux = values.astype(np.float32)
            error = None if error is None else self.resampling.error(error).astype(np.float32)
        return flux if noise is None or error is None else noise.apply(flux, error, start), bad

    def _read_pixels(self, variable: str, start: int, stop: int) -> NDArray[Any]:
        """Read into memory that the thread keeps, valid until its next block. Fresh memory costs more than reading."""
        buffers: dict[str, NDArray[np.float32]] = self._kept.__dict__
        if variable not in buffers:
            buffers[variable] = np.empty((self.source.block_rows, len(self.source.wavelength)), np.float32)
        return self.source.read_rows(variable, start, stop, buffers[variable])


def _cut(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    for first in range(start, stop, step):
        yield first, min(first + step, stop)


# The file of predictions: finished parts wait beside it, and become its row groups at the end. A part is whole or
# absent, so a run that was killed skips the parts that are there when it is started again.


def read_facts(path: Path) -> dict[str, Any] | None:
    """Return what a file of predictions says of how they were made; None if it is no such file."""
    try:
        if not path.is_file():
            return None  # a pipe would be waited for
        found = (pq.read_schema(path).metadata or {}).get(_FACTS)
        return None if found is None else parse_object(found)
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class PredictionParts:
    """The parts of one file of predictions.

    Attributes
    ----------
    path
        The file that they become.
    facts
        How they are made. The fact ``key`` tells whether parts that are there already belong to the same predictions.
    """

    path: Path
    facts: Mapping[str, Any]

    @property
    def is_csv(self) -> bool:
        """Whether the file is text; a file of text does not say how it was made."""
        return self.path.suffix.lower() == ".csv"

    @property
    def folder(self) -> Path:
        """Where finished parts wait."""
        return self.path.with_name(self.path.name + PARTIAL_SUFFIX)

    def require_writable(self, *, overwrite: bool) -> None:
        """Refuse a path that may not be written.

        Raises
        ------
        InputError
            If anything is there; with ``overwrite``, anything but predictions.
        """
        if self.path.is_dir():
            raise InputError(f"--out {self.path}: a file is required, found a folder; name a file in it")
        if self.path.suffix.lower() not in FILE_SUFFIXES:
            raise InputError(
                f"--out {self.path}: the name's ending chooses the format, {' or '.join(FILE_SUFFIXES)}, found "
                f"{self.path.suffix or 'none'!r}; choose {self.path.with_suffix('.parquet').name}, for example"
            )
        if not self.path.exists():
            return
        if read_facts(self.path) is None and not (self.is_csv and _has_header_of_predictions(self.path)):
            raise InputError(f"--out {self.path}: it is there already and holds no predictions; choose another name")
        if not overwrite:
            raise InputError(
                f"--out {self.path}: it holds predictions"
                + ("" if self.is_csv else " of another model, of other spectra or with other settings")
                + "; choose another name, or replace it with --overwrite"
            )

    def make_folder(self) -> None:
        """Make the folder if it is not there.

        Raises
        ------
        ResourceError
            If it cannot be made.
        """
        with disk_errors_told(self.path):
            self.folder.mkdir(parents=True, exist_ok=True)

    def claim(self) -> None:
        """Take the folder. Parts of other predictions, which nobody will finish, are deleted.

        Raises
        ------
        ResourceError
            If the folder is not writable.
        """
        key_file, text = self.folder / _KEY_FILE, json.dumps({"key": self.facts["key"]})
        with disk_errors_told(self.path):
            remove_leftovers(self.folder)
            if key_file.is_file() and key_file.read_text(encoding="utf-8") == text:
                return
            for part in self.folder.glob("part-*.parquet"):
                part.unlink()
        with replacing(key_file) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def find(self, number: int, n_rows: int) -> bool:
        """Tell whether a part is there, whole, and the one of this number."""
        try:
            if not self._file(number).is_file():
                return False  # a pipe would be waited for
            part = pq.read_table(self._file(number), page_checksum_verification=True)
        except (OSError, ValueError):
            return False  # It is absent or damaged, so it is made again and replaced.
        return bool(part.num_rows == n_rows and part.schema.metadata == self._identify(number))

    def write(self, number: int, table: pa.Table) -> None:
        """Write a part."""
        named = table.replace_schema_metadata(self._identify(number))
        with replacing(self._file(number)) as temporary:
            pq.write_table(named, temporary, row_group_size=max(1, table.num_rows), write_page_checksum=True)

    def _identify(self, number: int) -> dict[bytes, bytes]:
        return {b"key": str(self.facts["key"]).encode(), b"part": str(number).encode()}

    def finish(self, n_parts: int) -> None:
        """Write the file from all parts; in Parquet, each of them is a row group."""
        with replacing(self.path) as temporary:
            first = pq.read_schema(self._file(0))
            schema = first.with_metadata({_FACTS: json.dumps(dict(self.facts)).encode()})
            if self.is_csv:
                with CSVWriter(temporary, first) as text:
                    for table in self.read(n_parts):
                        text.write_table(_disarm(table))
                return
            with pq.ParquetWriter(temporary, schema) as writer:
                for table in self.read(n_parts):
                    writer.write_table(table.cast(schema), row_group_size=max(1, table.num_rows))

    def discard(self) -> None:
        """Delete the parts."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def read(self, n_parts: int) -> Iterator[pa.Table]:
        """Yield the table of every part."""
        for number in range(n_parts):
            yield pq.read_table(self._file(number))

    def _file(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.parquet"


def _has_header_of_predictions(path: Path) -> bool:
    with open(path, encoding="utf-8", errors="replace") as file:
        return {"out_of_domain", "reason"} <= set(file.readline().replace('"', "").rstrip().split(","))


def _disarm(table: pa.Table) -> pa.Table:
    """Put an apostrophe before texts, such as names of shards, that a spreadsheet would run as formulas."""
    for k, column in enumerate(table.columns):
        if pa.types.is_string(column.type):
            text = pc.replace_substring_regex(column, r"^([=+@\t\r-])", r"'\1")
            table = table.set_column(k, table.field(k), text)
    return table


# What a file of predictions holds, in a few numbers.


@dataclass(frozen=True)
class LabelScore:
    """R² of a label on ``covered`` or ``all`` spectra, under the file's route and by the global model.

    It is NaN where the label does not vary.
    """

    label: str
    scope: str
    n_spectra: int
    r2: float
    r2_global: float


@dataclass(frozen=True)
class PredictSummary:
    """What a file of predictions holds, in a few numbers.

    Attributes
    ----------
    path
        The file.
    n_spectra, n_out_of_domain
        How many spectra there are, and how many of them are out of the model's domain.
    reasons
        How many spectra are out of domain for each reason. A spectrum may have several reasons.
    scores
        Of every label whose true values are known, on all spectra and, if the columns of the bins are known, on covered
        ones.
    """

    path: Path
    n_spectra: int
    n_out_of_domain: int
    reasons: Mapping[str, int]
    scores: tuple[LabelScore, ...]


@dataclass
class _Sums:
    """Running sums of one label in one scope. A fixed number is taken from the labels, so squares lose no digits."""

    n: int = 0
    shift: float = 0.0
    y: float = 0.0
    yy: float = 0.0
    errors: float = 0.0
    errors_global: float = 0.0

    def add(self, truth: np.ndarray, routed: np.ndarray, of_global: np.ndarray) -> None:
        if not truth.size:
            return
        if not self.n:
            self.shift = float(truth.mean())
        own = truth - self.shift
        self.n += own.size
        self.y += float(own.sum())
        self.yy += float(own @ own)
        self.errors += float(((truth - routed) ** 2).sum())
        self.errors_global += float(((truth - of_global) ** 2).sum())

    def r2(self, errors: float) -> float:
        scatter = self.yy - self.y**2 / self.n if self.n > 1 else 0.0
        return 1 - errors / scatter if scatter > 0 else float("nan")


def summarise_predictions(path: Path, model: MixtureModel) -> PredictSummary:
    """Read a Parquet file of predictions, a row group at a time, and say what is in it.

    ``R² = 1 − Σ(y − ŷ)² / Σ(y − ȳ)²`` over spectra whose label is finite.
    """
    with pq.ParquetFile(path) as file:
        return _summarise(path, (file.read_row_group(number) for number in range(file.num_row_groups)), model)


def _summarise(path: Path, tables: Iterator[pa.Table], model: MixtureModel) -> PredictSummary:
    sums: dict[tuple[str, str], _Sums] = {}
    reasons: Counter[str] = Counter()
    total = n_out = 0
    known: list[str] = []
    for table in tables:
        present = set(table.column_names)
        known = [label for label in model.labels if f"{label}_true" in present]
        truths = {column: f"{column}_true" for column in model.grid.columns}
        is_binned = set(truths.values()) <= present
        wanted = ["out_of_domain", *(f"{label}{end}" for label in known for end in ("", "_global", "_true"))]
        wanted += [name for name in truths.values() if is_binned and name not in wanted]
        read = {name: table.column(name).to_numpy() for name in wanted}
        total += table.num_rows
        n_out += int(read["out_of_domain"].sum())
        for counted in table.column("reason").value_counts().to_pylist():
            for reason in filter(None, counted["values"].split("; ")):
                reasons[reason] += counted["counts"]
        scopes = {"all": np.ones(table.num_rows, bool)}
        if is_binned:
            scopes["covered"] = model.grid.assign({c: read[name] for c, name in truths.items()}) != OUTSIDE
        for label in known:
            finite = np.isfinite(read[f"{label}_true"])
            for scope, members in scopes.items():
                chosen = [read[f"{label}{end}"][members & finite] for end in ("_true", "", "_global")]
                sums.setdefault((label, scope), _Sums()).add(*chosen)
    scores = [
        LabelScore(label, scope, one.n, one.r2(one.errors), one.r2(one.errors_global))
        for (label, scope), one in sorted(sums.items(), key=lambda item: (known.index(item[0][0]), item[0][1] == "all"))
    ]
    return PredictSummary(path, total, n_out, dict(sorted(reasons.items())), tuple(scores))

"""A sample of simulated shards: its settings, the files that follow from them, and how they are written.

A sample holds training shards, a pre-noised test file, an index and a README. Every file is fixed by the specification
alone. Shards are written by one process each; a shard that is already there and belongs to the same specification is
kept.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline.base import Advance, Progress, SilentProgress, available_cores
from pipeline.errors import ConfigError, InputError, ResourceError, did_you_mean
from pipeline.schema import SAMPLE_ALGORITHM, SHARD_FILE_NAME, SHARD_INDEX_NAME
from pipeline.simulate.grid import SpectrumGrid, fingerprint_grid, open_grid
from pipeline.simulate.lines import MODEL_RANGE
from pipeline.simulate.shard import ShardPlan, SpectrumSource, read_record, read_snr, write_shard
from pipeline.simulate.spectra import NORMALISATION_RANGE, SpectrumModel, plan_wavelengths

__all__ = ["SampleSpec", "SampleSummary", "is_sample", "plan_sample", "select_plans", "write_sample"]

SNR_QUANTILES: Final = (0.0, 0.05, 0.5, 0.95, 1.0)
_DISK_RESERVE: Final = 16 * 2**20
_FEWEST_PIXELS: Final = 16

#: What the README of every sample begins with, also of those that older versions wrote.
_README_MARK: Final = "SIMULATED SPECTRA: a stand-in, not observations"
_README = (
    _README_MARK
    + """{source}.

Written by `headroom sample` to exercise the pipeline on files of the pfsspec layout. Results obtained on
these files say {meaning}.

Spectra    {spectra}
Labels     independent, beta-distributed: T_eff 3750-6000 K, log g 1-5, [M/H] -2.5..+0.75, [a/M] and [C/M]
           +-0.3{clipping}. Redshift is 0 for every star.
Noise      `error` is photon noise of star and sky, OH emission lines and read-out for 12 x 900 s at i-band
           magnitudes 20.5-22.5 and varying seeing. `snr` is the median of flux/error over pixels; the noise is
           set per pixel, so that `snr` does not depend on the number of pixels. The first and last pixel of
           `error` are NaN. `mask` is 0 (good) everywhere.
Test       test/dataset.h5 also holds `noisy` = max(flux + error * normal, 0), drawn once (noise level 1; the
           first and last pixel use their neighbour's error).
Made from  {spec}
{part}"""
)
_MODEL_WORDS = {
    "source": " and not the output of a stellar atmosphere code",
    "meaning": "how the software behaves; they say nothing about real stars",
}
_GRID_WORDS = {
    "source": "; interpolated in a grid of model spectra",
    "meaning": "how the software behaves on spectra like the grid's; stars and noise are made up",
}
_PART_TEXT = """\
Part       a part of that sample, {names}, out of {total} files; each is the same, bit for bit, as in the
           whole sample.
"""
_MODEL_TEXT = """a one-layer model: Planck continuum, H- opacity, lines by Saha and Boltzmann with damping wings,
           an invented forest of weak metal lines, Paschen lines, TiO and CN bands; normalised to a median of 1
           over 6500-9500 A."""
_GRID_TEXT = """interpolated in the user's grid of model spectra (principal components, radial basis functions),
           averaged over pixels (flux-conserving), normalised to a median of 1 over 6500-9500 A."""


@dataclass(frozen=True)
class SampleSpec:
    """What to simulate.

    Parameters
    ----------
    train
        Training spectra, spread evenly over ``shards`` files.
    shards
        Number of training shards.
    test
        Test spectra, in one file.
    pixels
        Pixels per spectrum, equally spaced over ``wave_range``.
    seed
        Same seed, same arrays, whatever the number of workers.
    grid
        A grid of model spectra (NPZ, HDF5, or a folder of BOSZ 2024 files) to interpolate in instead of the built-in
        model.
    wave_range
        First and last pixel edge in Å.
    """

    train: int = 20000
    shards: int = 4
    test: int = 5000
    pixels: int = 1024
    seed: int = 0
    grid: Path | None = None
    wave_range: tuple[float, float] = (7100.0, 8850.0)

    def __post_init__(self) -> None:
        for name, least in (("train", 1), ("shards", 1), ("test", 1), ("pixels", _FEWEST_PIXELS), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} must be a whole number of at least {least}, found {value!r}")
        if self.shards > self.train:
            raise ConfigError(
                f"every shard needs a spectrum, found {self.shards} shards for {self.train} training spectra; "
                f"use at most {self.train} shards"
            )
        start, stop = self.wave_range
        if not (np.isfinite([start, stop]).all() and 0 < start < stop):
            raise ConfigError(f"wave_range must be two increasing wavelengths in Å, found {start:g}, {stop:g}")
        if self.grid is None and not (MODEL_RANGE[0] <= start and stop <= MODEL_RANGE[1]):
            raise ConfigError(
                f"wave_range must lie within {MODEL_RANGE[0]:g}–{MODEL_RANGE[1]:g} Å, where the built-in model has "
                f"lines, found {start:g}–{stop:g} Å; narrow it or give a grid of model spectra"
            )
        wave, _ = plan_wavelengths(self.wave_range, self.pixels)
        if not np.any((wave >= NORMALISATION_RANGE[0]) & (wave <= NORMALISATION_RANGE[1])):
            raise ConfigError(
                f"wave_range must overlap {NORMALISATION_RANGE[0]:g}–{NORMALISATION_RANGE[1]:g} Å, where spectra are "
                f"normalised, found {start:g}–{stop:g} Å"
            )


@dataclass(frozen=True)
class SampleSummary:
    """What :func:`write_sample` left behind; of a part of a sample, the part that was asked for.

    ``snr`` holds the quantiles 0, 5, 50, 95 and 100 % of the signal-to-noise ratio; ``clipped_labels`` the stars that
    a grid's hull moved; ``kept`` the files that were already there.
    """

    directory: Path
    shard_index: Path
    train_files: tuple[Path, ...]
    test_file: Path | None
    train: int
    test: int
    pixels: int
    bytes: int
    snr: tuple[float, float, float, float, float]
    clipped_labels: int
    kept: int


def write_sample(
    directory: Path,
    spec: SampleSpec,
    *,
    only: Sequence[str] = (),
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> SampleSummary:
    """Simulate shards in the pfsspec layout under ``directory``.

    Parameters
    ----------
    directory
        Receives ``train/shard_index.txt``, ``train/shard_k/dataset.h5``, ``test/dataset.h5`` and ``README.txt``.
    spec
        What to simulate.
    only
        Write these files alone, each named by its folder (``train/shard_3``, ``test``) and the same bit for bit as in
        the whole sample, so that a large sample fits on a small disk shard by shard. The index lists the training
        shards that are there. Empty for all.
    workers
        Processes, one per shard at a time; by default as many as there are cores. 1 works in this process.
    overwrite
        Replace simulated files of another specification. Files that this function did not write are never touched.
    progress
        Who hears of finished spectra.

    Raises
    ------
    InputError
        If ``directory`` holds files of another specification, or the grid does not serve; ConfigError if ``only``
        names what the sample does not have.
    ResourceError
        If the disk cannot hold the sample, or writing fails.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers must be at least 1, found {workers}")
    progress = progress or SilentProgress()
    directory = Path(directory)
    plans = plan_sample(directory, spec)
    wanted = select_plans(directory, plans, only)
    missing, stale = _check_directory(directory, plans, wanted, overwrite=overwrite)
    _check_disk(directory, missing)
    if missing:
        source = _open_source(spec)
        for note in source.notes if isinstance(source, SpectrumGrid) else ():
            progress.note(note)
        # The index goes first and comes last: while it is absent the sample is not complete.
        with _writing(directory):
            (directory / "train").mkdir(parents=True, exist_ok=True)
            for path in (directory / "train" / SHARD_INDEX_NAME, *stale):
                path.unlink(missing_ok=True)
        with progress.step("simulate spectra", sum(plan.rows for plan in missing)) as advance:
            _write_shards(missing, source, _count_workers(workers, len(missing)), advance)
    with _writing(directory):
        _write_texts(directory, spec, plans)
    return _summarise(directory, spec, wanted, kept=len(wanted) - len(missing))


def plan_sample(directory: Path, spec: SampleSpec) -> tuple[ShardPlan, ...]:
    """Return the files of a sample: training shards in order, then the test file. Reads nothing but the grid."""
    fingerprint: dict[str, Any] = {"model": SAMPLE_ALGORITHM, **asdict(spec), "wave_range": list(spec.wave_range)}
    fingerprint["grid"] = None if spec.grid is None else fingerprint_grid(spec.grid)

    def plan(path: Path, part: int, first: int, stop: int) -> ShardPlan:
        return ShardPlan(
            path=path / SHARD_FILE_NAME,
            fingerprint={**fingerprint, "part": part},
            part=part,
            first_id=first,
            rows=stop - first,
            pixels=spec.pixels,
            wave_range=spec.wave_range,
            seed=spec.seed,
            noisy=part == 0,
        )

    bounds = [spec.train * shard // spec.shards for shard in range(spec.shards + 1)]
    train = [
        plan(directory / "train" / f"shard_{shard}", shard + 1, bounds[shard], bounds[shard + 1])
        for shard in range(spec.shards)
    ]
    return (*train, plan(directory / "test", 0, spec.train, spec.train + spec.test))


def select_plans(directory: Path, plans: tuple[ShardPlan, ...], only: Sequence[str]) -> tuple[ShardPlan, ...]:
    """Return the plans of the files that ``only`` names by their folders, in order; all where it names none.

    Raises
    ------
    ConfigError
        If the sample has no such file.
    """
    known = {plan.path.parent.relative_to(directory).as_posix(): plan for plan in plans}
    named = [name.strip("/") for name in only]
    for name in named:
        if name not in known:
            last = len(plans) - 2
            raise ConfigError(
                f"--only must name a file of the sample, 'test' or 'train/shard_0' to 'train/shard_{last}', found "
                f"{name!r}{did_you_mean(name, known)}; correct it, or the number of --shards"
            )
    return tuple(plan for name, plan in known.items() if name in named or not named)


def _check_directory(
    directory: Path, plans: tuple[ShardPlan, ...], wanted: tuple[ShardPlan, ...], *, overwrite: bool
) -> tuple[list[ShardPlan], list[Path]]:
    """Return the shards still to write, and the simulated files of other samples that these do not replace."""
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory}: a folder is required, found a file; choose another name")
    if directory.is_dir() and not is_sample(directory):
        # An interrupted sample has shards, and nothing else.
        others = sorted(
            one.name for one in directory.iterdir() if one.name not in ("train", "test") and one.name[0] != "."
        )
        if others or (directory / "train" / SHARD_INDEX_NAME).exists():
            found = others[0] if others else f"train/{SHARD_INDEX_NAME}"
            raise InputError(
                f"{directory}: an empty or a new folder is required, or that of a sample, found {found!r}; choose a "
                "folder of its own, such as spectra"
            )
    expected = {plan.path: plan for plan in plans}
    finished, replaced = set(), []
    for path in sorted(
        [*directory.glob(f"train/shard_*/{SHARD_FILE_NAME}"), *directory.glob(f"test/{SHARD_FILE_NAME}")]
    ):
        record = read_record(path)
        if record is None:
            raise InputError(
                f"{path}: exists and was not written by `headroom sample`, so it is left alone; choose an empty folder"
            )
        if path in expected and record.fingerprint == expected[path].fingerprint:
            finished.add(path)
        elif overwrite:
            replaced.append(path)
        else:
            raise InputError(
                f"{path}: belongs to another sample ({_name_differences(record.fingerprint, expected.get(path))}); "
                "choose another folder or allow overwriting"
            )
    missing = [plan for plan in wanted if plan.path not in finished]
    return missing, [path for path in replaced if path not in {plan.path for plan in missing}]


def _name_differences(found: dict[str, Any], plan: ShardPlan | None) -> str:
    """Return ``seed 1 instead of 0, …`` for the settings that differ."""
    if plan is None:
        return f"{found.get('shards')} shards"
    names = sorted(name for name in {*found, *plan.fingerprint} if found.get(name) != plan.fingerprint.get(name))
    return ", ".join(f"{name} {found.get(name)} instead of {plan.fingerprint.get(name)}" for name in names)


def _check_disk(directory: Path, plans: list[ShardPlan]) -> None:
    """Refuse a sample that the disk cannot hold, before anything is written."""
    if not plans:
        return
    needed = sum(plan.bytes for plan in plans) + _DISK_RESERVE
    existing = next(folder for folder in (directory.absolute(), *directory.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ResourceError(
            f"the sample needs {needed / 2**30:.2f} GiB but {existing} has {free / 2**30:.2f} GiB free; simulate fewer "
            "spectra or pixels, or choose another disk"
        )


def _open_source(spec: SampleSpec) -> SpectrumSource:
    _, edges = plan_wavelengths(spec.wave_range, spec.pixels)
    return SpectrumModel(edges) if spec.grid is None else open_grid(spec.grid, edges)


def _count_workers(workers: int | None, tasks: int) -> int:
    cores = available_cores()
    return min(workers or cores, tasks)


def _write_shards(plans: list[ShardPlan], source: SpectrumSource, workers: int, advance: Advance) -> None:
    """Write the shards here (one worker) or in processes of their own, which share no HDF5 lock."""
    if workers == 1:
        # One BLAS thread, here and in the processes, so that sums are taken in one order everywhere.
        with threadpool_limits(1):
            for plan in plans:
                write_shard(plan, source, advance)
        return
    context = multiprocessing.get_context("spawn")
    finished_rows, stop = context.SimpleQueue(), context.Event()
    try:
        with ProcessPoolExecutor(workers, context, _start_worker, (source, finished_rows, stop)) as pool:
            try:
                futures = [pool.submit(write_in_worker, plan) for plan in plans]
                _follow(futures, finished_rows.empty, finished_rows.get, advance)
            except KeyboardInterrupt:
                stop.set()
                raise
    except BrokenProcessPool as error:
        raise ResourceError(
            "a process that wrote a shard was killed, most likely for want of memory; run the same command again with "
            "fewer workers: finished shards are skipped"
        ) from error


def _follow(
    futures: list[Future[None]], is_empty: Callable[[], bool], take: Callable[[], int], advance: Advance
) -> None:
    """Pass on progress until all shards are written; after the first failure, drop those not yet begun.

    The shards being written are followed to their end even then: a full, unread pipe would block their processes.
    """
    failure: BaseException | None = None
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
        while not is_empty():
            advance(take())
        for future in done:
            failure = failure or future.exception()
        if failure is not None:
            waiting = {future for future in waiting if not future.cancel()}
    if failure is not None:
        raise failure


# What a worker process keeps between shards; set once when it starts.
_worker: dict[str, Any] = {}
_worker_is_writing = threading.Lock()


def _start_worker(source: SpectrumSource, finished_rows: Any, stop: Any) -> None:
    # Ctrl-C reaches every process of a terminal; the parent alone answers it, and asks its workers to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threadpool_limits(1)
    parent = multiprocessing.parent_process()

    def advance(rows: int) -> None:
        if stop.is_set() or (parent is not None and not parent.is_alive()):
            raise KeyboardInterrupt
        finished_rows.put(rows)

    def exit_with_parent() -> None:
        # Without a parent a worker would wait for work for ever; the lock lets it tidy up its shard first.
        if parent is not None:
            parent.join()
            with _worker_is_writing:
                os._exit(1)

    _worker.update(source=source, advance=advance)
    threading.Thread(target=exit_with_parent, daemon=True).start()


def write_in_worker(plan: ShardPlan) -> None:
    with _worker_is_writing:
        write_shard(plan, _worker["source"], _worker["advance"])


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResourceError(f"cannot write below {directory}: {error}; choose another folder") from error


_INDEX_HEADER = "# Simulated spectra (headroom sample): a stand-in for pfsspec shards, see README.txt"


def is_sample(directory: Path) -> bool:
    """Tell whether :func:`write_sample` wrote a folder. It may have written the test file alone, without an index."""
    marks = {Path("train") / SHARD_INDEX_NAME: _INDEX_HEADER, Path("README.txt"): _README_MARK}
    for name, mark in marks.items():
        with suppress(OSError), open(directory / name, encoding="utf-8", errors="replace") as text:
            if text.readline().startswith(mark):
                return True
    return False


def _write_texts(directory: Path, spec: SampleSpec, plans: tuple[ShardPlan, ...]) -> None:
    """Write the README and, last of all, the index of the training shards that are there."""
    made_from = json.dumps({name: value for name, value in plans[0].fingerprint.items() if name != "part"})
    present = [plan for plan in plans if plan.path.exists()]
    names = [str(plan.path.parent.relative_to(directory)) for plan in present]
    readme = _README.format(
        **(_MODEL_WORDS if spec.grid is None else _GRID_WORDS),
        spectra=_MODEL_TEXT if spec.grid is None else _GRID_TEXT,
        clipping="" if spec.grid is None else "\n           (0 in a grid), moved onto the grid's hull where outside it",
        spec=made_from,
        part="" if len(present) == len(plans) else _PART_TEXT.format(names=", ".join(names), total=len(plans)),
    )
    shards = [plan.path.parent.name for plan in present if not plan.noisy]
    _replace_text(directory / "README.txt", readme)
    if shards:  # an index that lists nothing is an error to its readers
        _replace_text(directory / "train" / SHARD_INDEX_NAME, "\n".join([_INDEX_HEADER, *shards]) + "\n")
    else:
        (directory / "train" / SHARD_INDEX_NAME).unlink(missing_ok=True)


def _replace_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _summarise(directory: Path, spec: SampleSpec, plans: tuple[ShardPlan, ...], *, kept: int) -> SampleSummary:
    records = [read_record(plan.path) for plan in plans]
    smallest, low, median, high, largest = np.quantile(
        np.concatenate([read_snr(plan.path) for plan in plans]), SNR_QUANTILES
    )
    return SampleSummary(
        directory=directory,
        shard_index=directory / "train" / SHARD_INDEX_NAME,
        train_files=tuple(plan.path for plan in plans if not plan.noisy),
        test_file=next((plan.path for plan in plans if plan.noisy), None),
        train=sum(plan.rows for plan in plans if not plan.noisy),
        test=sum(plan.rows for plan in plans if plan.noisy),
        pixels=spec.pixels,
        bytes=sum(plan.path.stat().st_size for plan in plans),
        snr=(float(smallest), float(low), float(median), float(high), float(largest)),
        clipped_labels=sum(record.clipped for record in records if record is not None),
        kept=kept,
    )

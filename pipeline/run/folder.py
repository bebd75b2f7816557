"""A run in the making: its folder, what it has made so far, how long its steps took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.base import (
    NumberedProgress,
    Products,
    exclusive,
    is_held,
    is_run_folder,
    remove_leftovers,
    replacing,
)
from pipeline.config import ExperimentConfig, with_absolute_paths, yaml_text
from pipeline.errors import InputError, ResourceError
from pipeline.shards import require_outside_data

__all__ = [
    "CONFIG_FILE",
    "Run",
    "list_parts_at_work",
    "open_run",
    "part_lock",
    "require_own_folder",
    "save_config",
    "whole_run_folder",
    "writable_folder",
]

CONFIG_FILE = "config.yaml"


@dataclass
class Run:
    """A run in the making: where it writes, what it has made, how long its steps took."""

    folder: Path
    config: ExperimentConfig
    progress: NumberedProgress
    products: Products
    steps: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    begun: datetime = field(default_factory=lambda: datetime.now(UTC))
    worker_peak: int = 0
    n_folds: int = 0
    moments_keys: dict[str, str] = field(default_factory=dict)
    factoring: dict[str, Any] = field(default_factory=dict)
    reused_folds: tuple[int, ...] = ()
    _clock: float = field(default_factory=time.perf_counter)
    _made: dict[str, str] = field(default_factory=dict)

    def finish_step(self, name: str, *, skipped: bool | None = None) -> None:
        """Record the time since the last step ended, and whether an earlier run had done it.

        By default that is so where the step has made no product.
        """
        ended, made = time.perf_counter(), self.products.snapshot()
        skipped = made == self._made if skipped is None else skipped
        self.steps.append({"name": name, "seconds": round(ended - self._clock, 3), "skipped": skipped})
        self._clock, self._made = ended, made


def open_run(folder: Path, config: ExperimentConfig, progress: NumberedProgress) -> Run:
    """Read what a run folder holds already; the caller holds its lock."""
    remove_leftovers(folder)
    remove_leftovers(folder / "models")
    products = Products(folder, progress.note)
    return Run(folder, config, progress, products, _made=products.snapshot())


def save_config(config: ExperimentConfig, folder: Path) -> None:
    """Write a run's configuration, with absolute data paths: :func:`pipeline.load_config` reads it from anywhere.

    Raises
    ------
    ResourceError
        If the file cannot be written.
    """
    content = with_absolute_paths(config).to_dict() | ({"cluster": config.cluster} if config.cluster else {})
    with replacing(folder / CONFIG_FILE) as temporary:
        temporary.write_text(yaml_text(content), encoding="utf-8")


def require_own_folder(folder: Path, config: ExperimentConfig) -> None:
    """Refuse a folder that a run may not write to: one of other files, or one within the data.

    A new or empty folder may be used, and so may that of a run. A sample that this package simulated may lie in it.

    Raises
    ------
    InputError
        If it may not be used; nothing is written.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder}: a folder is required, found a file; choose another name")
    # Listed first: another part of the run may be beginning just now.
    found = list(folder.iterdir()) if folder.is_dir() else []
    if is_run_folder(folder):
        return
    require_outside_data(folder, config.data.sources, f"--out {folder}: a run", "such as --out runs/first")
    others = [one for one in found if not one.name.startswith(".")]
    if others:
        from pipeline.simulate import is_sample  # which no other run needs

        others = [one for one in others if not is_sample(one)]
    foreign = sorted(one.name for one in others)
    if foreign:
        raise InputError(
            f"--out {folder}: an empty or a new folder is required, or that of a run, found {foreign[0]!r}"
            + (f" and {len(foreign) - 1} more" if len(foreign) > 1 else "")
            + "; choose a folder of its own, such as --out runs/first"
        )


@contextmanager
def writable_folder(folder: Path) -> Iterator[None]:
    """Make the run folder if needed; leave none behind if nothing was written to it."""
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"cannot write {folder}: {error.strerror}; choose another folder with --out") from error
    try:
        yield
    finally:
        if made:
            with suppress(OSError):
                folder.rmdir()  # fails, as it should, if there is anything in it


# --- The locks of a run folder: that of the whole folder, and one for each part of a pass that several processes share.


def part_lock(part: int, parts: int) -> str:
    """Return the name of the lock that a process holds while it computes a part."""
    return f".part-{part}-of-{parts}.lock"


def list_parts_at_work(folder: Path, but: str = "") -> list[str]:
    """Return the parts that other processes compute at the moment, such as ``part-2-of-8``."""
    locks = sorted(folder.glob(".part-*-of-*.lock"))
    return [lock.stem.lstrip(".") for lock in locks if lock.name != but and is_held(lock)]


@contextmanager
def whole_run_folder(folder: Path) -> Iterator[None]:
    """Hold a run folder for a run, in which no part of its pass may be at work.

    Raises
    ------
    InputError
        If another run, or a part, is at work there.
    """
    with exclusive(folder, "the run folder"):
        if at_work := list_parts_at_work(folder):
            raise InputError(
                f"{folder}: `headroom accumulate` is at work there ({', '.join(at_work)}); wait until all parts are "
                "done, and run again"
            )
        yield

"""A run in the making: its folder, what it has made so far, how long its steps took."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.base import Progress, remove_leftovers, replacing
from pipeline.bins import BinGrid, Binning
from pipeline.config import ExperimentConfig, with_absolute_paths
from pipeline.errors import ResourceError
from pipeline.noise import Noise, compares

__all__ = ["CONFIG_FILE", "Run", "open_run", "save_config", "writable_folder"]

CONFIG_FILE = "config.yaml"
PRODUCTS_FILE = "products.json"


@dataclass
class Run:
    """A run in the making: where it writes, what it has made, how long its steps took."""

    folder: Path
    config: ExperimentConfig
    progress: Progress
    products: dict[str, str] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    worker_peak: int = 0
    binnings: tuple[Binning, ...] = ()
    n_folds: int = 0
    reused_folds: tuple[int, ...] = ()

    @property
    def grid(self) -> BinGrid:
        """The bins that the verdict is about."""
        return BinGrid(self.config.bins, self.config.bin_names)

    def is_compared(self, noise: Noise) -> bool:
        """Whether a training noise is only held against the one that the verdict is about."""
        return compares(self.config.noise.mode, noise)

    def is_made(self, name: str, key: str) -> bool:
        """Whether a product is there, made of this key."""
        return self.products.get(name) == key and (self.folder / name).exists()

    def record(self, name: str, key: str) -> None:
        """Remember that a product is there."""
        self.products[name] = key
        with replacing(self.folder / PRODUCTS_FILE) as temporary:
            temporary.write_text(json.dumps(self.products, indent=1, sort_keys=True), encoding="utf-8")

    def finish_step(self, name: str, started: float, *, skipped: bool = False) -> float:
        """Record a step's time, and whether an earlier run had done it; return when it ended."""
        ended = time.perf_counter()
        self.steps.append({"name": name, "seconds": round(ended - started, 3), "skipped": skipped})
        return ended


def open_run(folder: Path, config: ExperimentConfig, progress: Progress) -> Run:
    """Read what a run folder holds already; the caller holds its lock."""
    remove_leftovers(folder)
    remove_leftovers(folder / "models")
    products: dict[str, str] = {}
    if (folder / PRODUCTS_FILE).exists():
        try:
            products = json.loads((folder / PRODUCTS_FILE).read_text(encoding="utf-8"))
        except ValueError:
            progress.note(f"{folder / PRODUCTS_FILE} is damaged; models and predictions are made again")
    return Run(folder, config, progress, products)


def save_config(config: ExperimentConfig, folder: Path) -> None:
    """Write a run's configuration, with absolute data paths: :func:`pipeline.load_config` reads it from anywhere.

    Raises
    ------
    ResourceError
        If the file cannot be written.
    """
    content = with_absolute_paths(config).to_dict() | ({"cluster": config.cluster} if config.cluster else {})
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    with replacing(folder / CONFIG_FILE) as temporary:
        temporary.write_text(text, encoding="utf-8")


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

"""Whether a finished run stands as it was left, told without reading spectra, and fast.

``finished.json`` in the run folder says of every file that the run was made of, and of every file that it left, how
large it is and when it was last changed. It also has a hash of the configuration and of this package. As long as all of
that is the same, there is nothing to do. This module imports little: what it answers, it answers in a second.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pipeline.base import RUN_LOG, hash_file, is_sealed, json_text, parse_object, read_file, replacing, seal
from pipeline.config import ExperimentConfig, content_hash
from pipeline.errors import HeadroomError
from pipeline.schema import FINISHED_VERSION
from pipeline.shards import find_shards

__all__ = ["find_standing", "forget_standing", "record_standing"]

_FILE = "finished.json"
_METADATA, _SUMMARY = "metadata.json", "summary.json"
#: What changes although nothing is computed: the journal, and Dask's own reports.
_VOLATILE = ("status.json", RUN_LOG, _FILE)
_RECORDINGS = "dask_report"
#: Numba's compiled code, beside the modules of this package.
_COMPILED = (".pyc", ".nbi", ".nbc")


def record_standing(config: ExperimentConfig, folder: Path, printed: str) -> None:
    """Record that a run is finished: its results and its report stand.

    Parameters
    ----------
    config
        The experiment, as it was asked for.
    folder
        The run folder.
    printed
        What the command has printed, to be printed again.
    """
    metadata = parse_object(read_file(folder / _METADATA))
    stores = [Path(path) for role in ("train", "test") for path in metadata["stores"][role]["paths"]]
    made_of = {
        path.absolute() for path in (*_list_sources(config), *(file for store in stores for file in _list_store(store)))
    }
    facts = {
        "version": FINISHED_VERSION,
        "key": _make_key(config),
        "made_of": {str(path): _look(path) for path in sorted(made_of)},
        "left": {path.relative_to(folder).as_posix(): _look(path) for path in _list_left(folder, made_of)},
        "printed": printed,
    }
    with replacing(folder / _FILE) as temporary:
        temporary.write_text(json_text(seal(facts)), encoding="utf-8")


def forget_standing(folder: Path) -> None:
    """Forget that a run is finished, before anything in its folder changes."""
    (folder / _FILE).unlink(missing_ok=True)


def find_standing(config: ExperimentConfig, folder: Path) -> tuple[str, dict[str, Any], dict[str, Any]] | None:
    """Return what a finished run printed, its summary and its metadata, if a run would change nothing.

    Parameters
    ----------
    config
        The experiment that is asked for.
    folder
        The run folder.

    Returns
    -------
    tuple or None
        None if anything differs: a setting, a line of this package, a shard, a store, or a file of the run. The caller
        then runs the experiment, which finds out what has to be done.
    """
    try:
        facts = parse_object(read_file(folder / _FILE))
        if not is_sealed(facts) or facts["version"] != FINISHED_VERSION or facts["key"] != _make_key(config):
            return None
        if not {str(path.absolute()) for path in _list_sources(config)} <= facts["made_of"].keys():
            return None
        places = {Path(name): seen for name, seen in facts["made_of"].items()}
        places |= {folder / name: seen for name, seen in facts["left"].items()}
        if any(_look(path) != seen for path, seen in places.items()):
            return None
        summary, metadata = (parse_object(read_file(folder / name)) for name in (_SUMMARY, _METADATA))
        if not is_sealed(metadata) or any(hash_file(folder / name) != one for name, one in metadata["hashes"].items()):
            return None
        return str(facts["printed"]), summary, metadata
    except (OSError, ValueError, KeyError, TypeError, AttributeError, HeadroomError):
        return None  # whatever is wrong, the run itself tells it


def _make_key(config: ExperimentConfig) -> str:
    """Return a hash of the settings, of the order of the bins, and of every file of this package."""
    package = Path(__file__).parents[1]
    code = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.is_file() and path.suffix not in _COMPILED:
            code.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return content_hash([code.hexdigest(), config.to_dict(), list(config.bins)])


def _look(path: Path) -> list[int]:
    """Return size and time of the last change, as files are compared by."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _list_sources(config: ExperimentConfig) -> Iterator[Path]:
    """Yield the files that tell whether spectra have changed: shards, lists of shards, and the manifests of stores."""
    for pattern in (*config.data.train, *config.data.test):
        places = [*map(Path, sorted(glob.glob(pattern, recursive=True)) or [pattern])]
        inner = [one for place in places if place.is_dir() for one in sorted(place.iterdir())]
        stores = [one for one in (*places, *inner) if (one / "zarr.json").is_file()]
        for store in stores:
            yield from _list_store(store)
        if not stores:
            yield from (place for place in places if place.is_file())
            yield from find_shards([pattern], Path.cwd())


def _list_store(store: Path) -> Iterator[Path]:
    """Yield the files of a store that change with any of its chunks."""
    yield store / "zarr.json"
    yield from (path for path in sorted((store / "manifest").rglob("*")) if path.is_file())


def _list_left(folder: Path, made_of: Collection[Path]) -> Iterator[Path]:
    """Yield the files of a run, without the spectra that may lie in its folder, and without locks."""
    spectra = {parent for path in made_of for parent in path.parents}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith((".", _RECORDINGS)) or entry.name in _VOLATILE or entry.absolute() in spectra:
            continue
        inner = sorted(entry.rglob("*")) if entry.is_dir() else [entry]
        yield from (path for path in inner if path.is_file() and not path.name.startswith("."))

"""Fixtures shared by the tests: one small simulated sample and its stores, made once a session."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import pytest
import yaml
from browsing import open_browser
from distributed import Client
from threadpoolctl import threadpool_limits

from cluster import LocalProfile, connect_local
from pipeline.config import ExperimentConfig
from pipeline.convert import convert_shards
from pipeline.plan import Rates
from pipeline.report import Picture
from pipeline.report.figures import render_figures
from pipeline.run import run_experiment
from pipeline.scoring import RunResults
from pipeline.shards import find_shards
from pipeline.simulate import SampleSpec, write_sample
from pipeline.store import SpectraStore

# Imports and collection make what stays; nobody needs to look for rubbish in it before pytest_collection_finish.
gc.set_threshold(600_000)

# Dask takes the newest cluster for the default. Tests that name none compute on threads, whatever others have left.
dask.config.set(scheduler="threads")

# The workers of xdist share the cores. BLAS' own threads, which wait by running, would take them from each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    threadpool_limits(1, user_api="blas")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # of programs that tests start


#: The files that take longest, the longest first, as measured: whoever gets one late is left alone with it in the end.
LONGEST = (
    "run/test_demo.py",
    "slurm/test_slurm_runs.py",
    "project/test_docs_blocks.py",
    "project/test_benchmarks.py",
    "project/test_readme.py",
    "report/test_figures.py",
    "convert/test_convert.py",
    "run/test_parts.py",
    "run/test_experiment_changes.py",
    "run/test_experiment.py",
    "cluster/test_cluster.py",
    "cluster/test_dashboard.py",
    "questions/test_gate_features_run.py",
    "run/test_factored_run.py",
    "questions/test_registry.py",
    "run/test_units.py",
    "questions/test_search_run.py",
    "questions/test_ceiling_run.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, then with those of the longest timeouts, then with those of the most tests.

    xdist itself would only count (``--no-loadscope-reorder``).
    """
    folder = Path(__file__).parent
    ranks = {folder / name: rank for rank, name in enumerate(LONGEST)}
    counts, waits = Counter(item.path for item in items), dict.fromkeys((item.path for item in items), 0.0)
    for item in items:
        if (timeout := item.get_closest_marker("timeout")) is not None:
            waits[item.path] = max(waits[item.path], timeout.args[0])

    def place(item: pytest.Item) -> tuple[float, float, float, str]:
        return ranks.get(item.path, len(ranks)), -waits[item.path], -counts[item.path], str(item.path)

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Let the garbage collector leave alone what imports and collection have made, and look less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 1,600 training spectra (two shards) and 400 test spectra, 48 pixels."""
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, SampleSpec(train=1600, shards=2, test=400, pixels=48), workers=1)
    return folder


@pytest.fixture(scope="session")
def train_store(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> SpectraStore:
    shards = find_shards([sample / "train"], sample)
    return convert_shards(shards, tmp_path_factory.mktemp("stores") / "train.zarr", workers=1, chunk_rows=128)


@pytest.fixture(scope="session")
def test_store(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> SpectraStore:
    shards = find_shards([sample / "test"], sample)
    return convert_shards(shards, tmp_path_factory.mktemp("stores") / "test.zarr", workers=1)


@pytest.fixture(scope="session")
def small_config(train_store: SpectraStore, test_store: SpectraStore) -> ExperimentConfig:
    """An experiment on the small stores: two seeds, cuts small enough to exercise every boundary."""
    return ExperimentConfig.model_validate(
        {
            "data": {"train": [str(train_store.path)], "test": [str(test_store.path)]},
            "ridge": {"alpha": {"per_spectrum": 0.1}},
            "seeds": [42, 123],
            "compute": {"folds": 3, "partition_rows": 250, "run_rows": 128},
            "bootstrap": {"resamples": 200},
        }
    )


@pytest.fixture(scope="session")
def small_run(small_config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    """The run of that experiment, computed in this process; only read, and copied by whoever changes it."""
    return run_experiment(small_config, tmp_path_factory.mktemp("small") / "run")


@pytest.fixture
def config_file(small_config: ExperimentConfig, tmp_path: Path) -> Path:
    """The small experiment as a user writes it down."""
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small_config.to_dict(), sort_keys=False))
    return path


@pytest.fixture
def known_rates(monkeypatch: pytest.MonkeyPatch) -> Rates:
    """Rates of a machine of today for ``headroom plan``, which measures them for some seconds."""
    rates = Rates(gram=50e9, solve=25e9, noise=400e6, decode=2e9, merge=1e9, store=5e9)
    monkeypatch.setattr("pipeline.plan.measure_rates", lambda *_, store=5e9: replace(rates, store=store))
    return rates


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without figures, for tests of something else: drawing them takes longer than the rest of a small run."""
    monkeypatch.setattr("pipeline.report.figures.render_figures", lambda *_: [])


@pytest.fixture
def one_figure(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Call it with a file's name, and pages have that figure alone, for the same reason."""

    def choose(file: str) -> None:
        def draw(results: RunResults, pictures: Sequence[Picture]) -> list[tuple[Picture, Path]]:
            return render_figures(results, [picture for picture in pictures if picture.file == file])

        monkeypatch.setattr("pipeline.report.figures.render_figures", draw)

    return choose


#: Clocks of Dask's that tick while nothing happens: at their defaults a cluster that waits takes a tenth of a core.
SLOW_CLOCKS = {
    "distributed.admin.system-monitor.interval": "2s",
    "distributed.admin.tick.interval": "1s",
    "distributed.worker.memory.monitor-interval": "1s",
    "distributed.worker.profile.interval": "1s",
}


@contextmanager
def calm_cluster(profile: LocalProfile) -> Iterator[Client]:
    """A cluster for many tests, with slow clocks of its own."""
    with dask.config.set(SLOW_CLOCKS):
        connection = connect_local(profile)
    with connection as client:
        yield client


@pytest.fixture(scope="session")
def one_worker() -> Iterator[Client]:
    """A cluster of one worker, for tests of what workers compute; those that disturb a cluster start their own."""
    with calm_cluster(LocalProfile(workers=1, processes=True, memory_limit=2**30)) as client:
        yield client


@pytest.fixture(scope="session")
def two_workers() -> Iterator[Client]:
    """A cluster of two workers, as :func:`one_worker`."""
    with calm_cluster(LocalProfile(workers=2, memory_limit=2**30)) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, see :mod:`browsing`."""
    with open_browser() as browser:
        yield browser

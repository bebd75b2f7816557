"""A small experiment, what it gives when nothing disturbs it, and deadlines that tests can wait for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dask
import pytest
from disturbances import undisturbed

__all__ = ["short_deadlines", "undisturbed"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.faults)


@pytest.fixture
def short_deadlines() -> Iterator[None]:
    settings = {
        "distributed.scheduler.no-workers-timeout": "5s",
        "distributed.comm.timeouts.connect": "4s",
    }
    with dask.config.set(settings):
        yield

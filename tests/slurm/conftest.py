"""A real SLURM for the session; tests that cannot have one are skipped, or fail where it was promised."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from disturbances import undisturbed
from slurm_site import SiteError, SlurmSite, slurm_site

__all__ = ["slurm", "undisturbed"]

#: Set where SLURM is meant to be, as in .ci/run: then its absence is a failure.
REQUIRED = "HEADROOM_REQUIRE_SLURM"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def site() -> Iterator[SlurmSite]:
    """Three nodes of two cores and 4 GB, for the whole session."""
    try:
        running = slurm_site()
        site = running.__enter__()
    except SiteError as error:
        reason = f"no SLURM here: {error}"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{REQUIRED} is set: {reason}", pytrace=False)
        pytest.skip(reason)
    try:
        yield site
    finally:
        running.__exit__(None, None, None)


@pytest.fixture
def slurm(site: SlurmSite, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmSite]:
    """The site with an empty queue, before and after; commands of this process and its children go there."""
    for name, value in site.environment.items():
        monkeypatch.setenv(name, value)
    site.clear()
    yield site
    site.clear()

"""A cluster for a command that changes a run folder, with the folder's journal told of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.base import Progress, RunJournal

if TYPE_CHECKING:
    from distributed import Client

    from cluster import Profile

__all__ = ["connected"]


@contextmanager
def connected(journal: RunJournal, profile: Profile, folder: Path, progress: Progress) -> Iterator[Client]:
    """Connect as :func:`cluster.connect` does; the journal says what is waited for, and then counts the workers."""
    from cluster import connect
    from cluster.client import silence_dask
    from cluster.dashboard import find_dashboard, tunnel_hint

    silence_dask()
    journal.enter("waiting for workers")
    with connect(profile, run_folder=folder, say=progress.note) as client:
        address = find_dashboard(client)
        with journal.attend(client, address.link if address else None, tunnel_hint(client)):
            yield client

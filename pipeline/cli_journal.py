"""A cluster for a command that changes a run folder, with the folder's journal told of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.journal import RunJournal
from pipeline.progress import Progress

if TYPE_CHECKING:
    from distributed import Client

    from cluster import Profile

__all__ = ["connected", "silence_dask"]


@contextmanager
def connected(journal: RunJournal, profile: Profile, folder: Path, progress: Progress) -> Iterator[Client]:
    """Connect as :func:`cluster.connect` does; the journal says what is waited for, and then counts the workers."""
    from cluster import connect
    from cluster.dashboard import find_dashboard, tunnel_hint

    silence_dask()
    journal.enter("waiting for workers")
    with connect(profile, run_folder=folder, say=progress.note) as client:
        address = find_dashboard(client)
        with journal.attend(client, address.link if address else None, tunnel_hint(client)):
            yield client


def silence_dask() -> None:
    """Let Dask log nothing in this process until it ends: what a user should know is told by errors and notes of ours.

    A cluster silences Dask while it is there, and no longer; the message to a lost worker that cannot be sent is
    logged whenever the event loop comes to it, with a traceback, and that may be when the cluster has been closed.
    """
    import distributed  # noqa: F401  its import adds the handlers

    for name in ("distributed", "bokeh", "tornado"):
        for handler in logging.getLogger(name).handlers:
            handler.setLevel(logging.CRITICAL)

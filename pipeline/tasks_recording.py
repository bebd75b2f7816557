"""What Dask saw of a run, as a page that is kept: its task stream, profiles and memory over time.

The page is Dask's own performance report, made to open without a network: its scripts are in it, and it may fetch
nothing. Everything in it has been sampled anyway, for the live dashboard.
"""

from __future__ import annotations

import html
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ResourceError
from pipeline.files import replacing

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["list_recordings", "recorded"]

_NAME = re.compile(r"dask_report-(\d+)\.html")
#: To collect profiles from all workers; after a failure these may be gone, and the user waits for the message.
_SECONDS, _SECONDS_AFTER_FAILURE = 60.0, 5.0
#: Scripts and styles of the page itself and pictures within it: nothing from elsewhere, whatever Bokeh would load.
_POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    "script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:\">"
)
_ICON = re.compile(r'<link rel="shortcut icon"[^>]*>')


def list_recordings(folder: Path) -> list[Path]:
    """Return the pages that the runs in a folder have left, oldest first."""
    numbers = {int(match[1]): path for path in folder.glob("*.html") if (match := _NAME.fullmatch(path.name))}
    return [numbers[number] for number in sorted(numbers)]


@contextmanager
def recorded(
    client: Client | None, folder: Path, title: str = "", say: Callable[[str], None] = lambda _line: None
) -> Iterator[None]:
    """Save Dask's performance report of the block as the next ``dask_report-N.html`` of a folder.

    A run that is resumed adds a page and replaces none, and one that finds everything done adds none. The page is a
    by-product: whatever goes wrong with it is said, and the run goes on.

    Parameters
    ----------
    client
        None saves nothing, since there is no Dask then.
    folder
        The run folder, which the caller has to itself.
    title
        What was run, for the page.
    say
        Told if there will be no page, and why.
    """
    began = time.time()
    if client is None or not _begin(client, say):
        yield
        return
    # From its first sample on: a scheduler that is older than the run shows its load before, too.
    facts = {"start": began, "last_count": 0, "code": html.escape(title)}
    try:
        yield
    except Exception:
        _save(client, folder, facts, _SECONDS_AFTER_FAILURE, say)
        raise
    _save(client, folder, facts, _SECONDS, say)


def _begin(client: Client, say: Callable[[str], None]) -> bool:
    """Let the scheduler keep its task stream, which it does for the live dashboard once somebody looks at it."""
    try:
        _ask(client, "get_task_stream", _SECONDS, start=0, stop=0)
        return True
    except Exception as error:
        say(_no_page(error))
        return False


def _save(client: Client, folder: Path, facts: dict[str, Any], seconds: float, say: Callable[[str], None]) -> None:
    try:
        if client.status != "running" or not _ask(client, "get_task_stream", seconds, start=facts["start"]):
            return
        page = _ask(client, "performance_report", seconds, **facts, mode="inline")
        number = max((int(path.stem.rpartition("-")[2]) for path in list_recordings(folder)), default=0) + 1
        with replacing(folder / f"dask_report-{number}.html") as temporary:
            temporary.write_text(_keep_offline(page), encoding="utf-8")
    except Exception as error:  # of Dask, Bokeh, the network, the disk: none is worth a run
        say(_no_page(error))


def _ask(client: Client, question: str, seconds: float, **facts: Any) -> Any:
    return client.sync(getattr(client.scheduler, question), **facts, callback_timeout=seconds)


def _keep_offline(page: str) -> str:
    """Return the page without the link to Dask's icon, and with a policy that keeps everything else at home."""
    if "<head>" not in page:
        raise ResourceError("Dask's performance report has another form than this version knows")
    return _ICON.sub('<link rel="icon" href="data:,">', page).replace("<head>", f"<head>\n{_POLICY}", 1)


def _no_page(error: Exception) -> str:
    return f"no Dask performance report of this run: {str(error) or type(error).__name__}"

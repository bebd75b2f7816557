"""A headless Chromium for the tests of what users see, and where its pictures are kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

#: What chromium needs to run as root, without a screen, and to ask nobody for anything.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def open_browser() -> Iterator[Any]:
    """Start Chromium; without one the test is skipped, or fails where HEADROOM_REQUIRE_BROWSER=1."""

    def lacking(what: str) -> None:
        if os.environ.get("HEADROOM_REQUIRE_BROWSER") == "1":
            pytest.fail(f"{what}, and HEADROOM_REQUIRE_BROWSER=1 requires it")
        pytest.skip(what)

    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        lacking("playwright is not installed: pip install 'headroom[dev]'")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        lacking("there is no chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield chromium
        chromium.close()


def keep_picture(page: Any, name: str, folder: Path) -> None:
    """Keep a screenshot where CI collects what tests leave, or with the test's own files."""
    kept = Path(os.environ.get("HEADROOM_ARTEFACTS") or folder)
    kept.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=kept / name)

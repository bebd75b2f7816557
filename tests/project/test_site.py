"""The documentation as a site: no broken link, nothing from other servers, every public name, and search in files."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import click
import pytest
from browsing import keep_picture

import cluster
import pipeline
from pipeline.cli.app import cli

ROOT = Path(__file__).parents[2]
# Building the site takes ten seconds and more.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="pip install 'headroom[docs]'"),
]


class Page(HTMLParser):
    """Anchors, links, and what a page loads by itself."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := known.get(name))}
        target = known.get("href") or known.get("src")
        if target is not None:
            (self.links if tag == "a" else self.loaded).append(target)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                broken.append(f"{path.name}: {link}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                broken.append(f"{path.name}: {link} (no such anchor)")
    assert broken == []
    assert sum(len(page.links) for page in pages.values()) > 500


def test_pages_load_nothing_from_other_servers(pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        assert [one for one in page.loaded if urlsplit(one).netloc] == [], path.name


def test_every_page_is_in_the_navigation(site: Path, pages: dict[Path, Page]) -> None:
    listed = {(site / urlsplit(link).path).resolve() for link in pages[site / "index.html"].links}
    assert set(pages) <= listed | {site / "index.html"}


def test_the_reference_has_every_public_name_and_command(site: Path) -> None:
    names = (site / "reference" / "python.html").read_text(encoding="utf-8")
    for package in (pipeline, cluster):
        for name in package.__all__:
            assert re.search(rf"<h2[^>]*>.*?{package.__name__}\.{name}\b", names, re.DOTALL), name
    for part in names.split("<h2")[1:]:
        words = re.sub(r"<pre.*?</pre>|<[^>]*>", "", part.split("</h2>")[1], flags=re.DOTALL)
        assert re.search(r"\w+ \w+.*\.", words), f"{part[:80]} is described by a sentence, not by its value alone"
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for name, command in cli.commands.items():
        own = command.commands if isinstance(command, click.Group) else {"": command}
        for key in own:
            assert f'id="headroom-{name}{"-" if key else ""}{key}"' in commands


def test_no_role_of_another_tool_is_left(site: Path) -> None:
    text = (site / "reference" / "python.html").read_text(encoding="utf-8")
    assert not re.search(r":(func|class|meth|mod|data|attr):", text)


def test_it_opens_as_a_file_and_finds_words(site: Path, browser: Any, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    for name in ("index", "tutorial", "reference/python"):
        page.goto((site / f"{name}.html").as_uri())
        assert page.locator("h1").count() == 1
        keep_picture(page, f"site_{name.replace('/', '_')}.png", tmp_path)
    page.locator("input.md-search__input").first.press_sequentially("walltime")  # the search listens to keys
    page.locator(".md-search-result__item").first.wait_for(timeout=20_000)
    assert page.locator(".md-search-result__item").count() >= 2
    assert said == []
    page.close()

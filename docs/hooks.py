"""What MkDocs adds to the pages of this folder: pages that live elsewhere, and the reference that the code gives.

``cluster/README.md`` and ``CHANGELOG.md`` become pages of the site. The reference of the commands is what ``--help``
prints, and that of Python is every name that ``pipeline`` and ``cluster`` hand out. Links to files that are no pages
become their names.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
#: Files of the repository that are pages of the site.
ELSEWHERE = {"cluster/README.md": "cluster.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}
#: Roles of Sphinx, which docstrings use for what they name.
_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc):(<code>)~?([\w.]+)(</code>)")
_WIDTH = 78  # what a block of code on the page has room for
_SEARCH = "scripts/search_in_files.js"
_SHIM = re.compile(r'src="https://unpkg.com/iframe-worker[^"]*"')


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in this folder."""
    pages = {
        "cluster.md": (ROOT / "cluster" / "README.md").read_text(encoding="utf-8"),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
    }
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fill in the reference, and lead links to where the site has what they name."""
    markdown = markdown.replace("<!-- commands -->", describe_commands() if "<!-- commands -->" in markdown else "")
    markdown = markdown.replace("<!-- names -->", describe_names() if "<!-- names -->" in markdown else "")
    home = {"cluster.md": "cluster/README.md", "changelog.md": "CHANGELOG.md"}
    own = home.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def lead(match: re.Match[str]) -> str:
        text, target, anchor = match["text"], match["target"], match["anchor"] or ""
        named = os.path.normpath(os.path.join(os.path.dirname(own), target))
        wanted = ELSEWHERE.get(named, named.removeprefix("docs/"))
        if named.startswith("docs/") and not named.endswith((".md", ".png", ".svg", ".json")):
            wanted = ""
        if wanted and files.get_file_from_path(wanted) is not None:
            here = os.path.dirname(page.file.src_uri)
            return f"[{text}]({os.path.relpath(wanted, here or '.')}{anchor})"
        return text if "`" in text or named.split("/")[-1] in text else f"{text} (`{named}`)"

    links = r"(?<!!)\[(?P<text>[^\]]*)\]\((?!\w+:|#)(?P<target>[^)#\s]+)(?P<anchor>#[^)]*)?\)"
    markdown = re.sub(links, lead, markdown)
    # GitHub draws diagrams in this language; here it would need a script of another server.
    return re.sub(r"^```mermaid\n.*?^```$", "![The way of the data](images/flow.svg)", markdown, flags=re.M | re.S)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Leave out the roles of Sphinx."""
    return _ROLE.sub(r"\1\2\3", html)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Take the script for search in files from this folder; the theme would fetch it from another server."""
    return _SHIM.sub(f'src="{os.path.relpath(_SEARCH, os.path.dirname(page.url) or ".")}"', output)


def on_post_template(output: str, template_name: str, config: Any) -> str:
    """Do the same for the page of missing pages."""
    return _SHIM.sub(f'src="/{_SEARCH}"', output)


def list_commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Yield every command with its full name, in the order of the work."""
    yield name, command
    if isinstance(command, click.Group):
        for key, own in command.commands.items():
            yield from list_commands(own, f"{name} {key}")


def describe_commands() -> str:
    """Return the reference of the commands: what ``--help`` prints."""
    from pipeline.cli.app import cli

    lines = []
    for name, command in list_commands(cli, "headroom"):
        context = click.Context(command, info_name=name, terminal_width=_WIDTH, max_content_width=_WIDTH)
        lines += [f"## {name}", "", "```text", command.get_help(context), "```", ""]
    return "\n".join(lines)


def list_names() -> Iterator[tuple[str, str]]:
    """Yield every public name, such as ``pipeline.load_config``, and where it is defined."""
    for package in ("pipeline", "cluster"):
        tree = ast.parse((ROOT / package / "__init__.pyi").read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    yield f"{package}.{alias.name}", find_home(package, node.module or "", alias.name)


def find_home(package: str, module: str, name: str) -> str:
    """Return the full path of a name, through the faces of the rooms."""
    room = f"{package}.{module}"
    face = ROOT / room.replace(".", "/") / "__init__.pyi"
    if face.is_file():
        for node in ast.parse(face.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
                return find_home(room, node.module or "", name)
    return f"{room}.{name}"


def describe_names() -> str:
    """Return the reference of the public Python names, for mkdocstrings to fill in."""
    lines = []
    for name, home in list_names():
        package, own = name.split(".")
        value = getattr(importlib.import_module(package), own)
        if inspect.isfunction(value) and value.__name__ != own:
            # Another function made it: the line at its home says neither what it takes nor what it does.
            given = inspect.signature(value)
            plain = [one.replace(annotation=one.empty) for one in given.parameters.values()]
            call = f"{own}{given.replace(parameters=plain, return_annotation=given.empty)}"
            lines += [f"## {name} {{#{home}}}", "", "```python", call, "```", "", inspect.getdoc(value) or "", ""]
        else:
            lines += [f"::: {home}", "    options:", f"      heading: {name}", f"      toc_label: {name}", ""]
    return "\n".join(lines)

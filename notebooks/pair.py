"""Write each notebook from the script beside it: no outputs, the same bytes for the same script."""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat

FOLDER = Path(__file__).parent


def scripts() -> list[Path]:
    """Return the notebooks' scripts, in order."""
    return sorted(FOLDER.glob("[0-9]*.py"))


def render(script: Path) -> str:
    """Return the notebook of a script as the text of its ``.ipynb``."""
    notebook = jupytext.read(script)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02}"  # random otherwise
    text: str = nbformat.writes(notebook)
    return text + "\n"


def main() -> None:
    for script in scripts():
        script.with_suffix(".ipynb").write_text(render(script), encoding="utf-8")


if __name__ == "__main__":
    main()

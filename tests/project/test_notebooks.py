"""The notebooks: scripts and notebooks agree, nothing private is used, and all run from top to bottom."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from scripts import load_script

import cluster
import pipeline

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
NAMES = [script.stem for script in SCRIPTS]


@pytest.fixture(scope="module")
def pair() -> ModuleType:
    """The script behind `make notebooks`."""
    return load_script(ROOT / "notebooks" / "pair.py")


def cells_of(script: Path) -> list[dict[str, object]]:
    notebook = json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))
    return list(notebook["cells"])


def test_there_are_the_notebooks_that_the_readme_lists() -> None:
    topics = ("explore_spectra", "headroom", "inside_an_expert", "on_your_cluster", "forecast", "ceiling")
    assert [f"{number:02}_{topic}" for number, topic in enumerate(topics, start=1)] == NAMES
    readme = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in readme for name in NAMES)
    assert sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_a_notebook_is_that_of_its_script_without_outputs(script: Path, pair: ModuleType) -> None:
    text = script.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert text == pair.render(script), "run `make notebooks`, which writes the .ipynb from the .py"
    for cell in cells_of(script):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_a_notebook_says_first_what_it_teaches_needs_and_simulates(script: Path) -> None:
    first = "".join(map(str, cells_of(script)[0]["source"]))  # type: ignore[call-overload]
    for words in ("**You will learn**", "**You need**", "**simulated**"):
        assert words in first


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_a_notebook_uses_public_names_alone(script: Path) -> None:
    public = {"pipeline": set(pipeline.__all__), "cluster": set(cluster.__all__)}
    tree = ast.parse(script.read_text(encoding="utf-8"))
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in public, f"line {node.lineno}: import pipeline, cluster"
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith(("pipeline.", "cluster.")) for alias in node.names)
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_"), f"line {node.lineno}: {node.attr}"
            if isinstance(node.value, ast.Name) and node.value.id in public:
                assert node.attr in public[node.value.id], f"line {node.lineno}: {ast.unparse(node)} is not public"
                used.add(node.value.id)
    assert "pipeline" in used


def test_public_names_of_the_cluster_package_are_there() -> None:
    assert all(getattr(cluster, name) is not None for name in cluster.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        cluster.no_such_name  # noqa: B018
    code = "import sys, cluster; print(sorted({'dask_jobqueue', 'distributed'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert shown.strip() == "[]", "short commands do not wait for Dask"

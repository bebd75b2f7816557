"""The notebooks: scripts and notebooks agree, nothing private is used, and all four run from top to bottom."""

from __future__ import annotations

import ast
import base64
import json
import os
import shutil
import subprocess
import sys
import time
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


def test_there_are_the_four_notebooks_that_the_readme_lists() -> None:
    assert NAMES == ["01_explore_spectra", "02_headroom", "03_inside_an_expert", "04_on_your_cluster"]
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


#: Runs a notebook in a kernel, keeps its errors, and prints as JSON what its cells put out.
_EXECUTE = """
import json, sys
import nbclient, nbformat
path = sys.argv[1]
notebook = nbformat.read(path, as_version=4)
nbclient.NotebookClient(notebook, timeout=280, kernel_name="python3", resources={"metadata": {"path": "."}}).execute()
print(json.dumps([output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_notebooks_run_from_top_to_bottom_within_five_minutes(tmp_path: Path) -> None:
    # On the run that HEADROOM_RUN names, as `make notebooks` does; else they simulate one, beside this copy of them.
    folder = tmp_path / "notebooks"
    folder.mkdir()
    started = time.monotonic()
    figures = {}
    for script in SCRIPTS:
        notebook = shutil.copy(script.with_suffix(".ipynb"), folder)
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", _EXECUTE, notebook],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{script.stem}: {done.stderr[-3000:]}"
        outputs = json.loads(done.stdout)
        print(f"{script.stem}: {time.monotonic() - begun:.1f} s, {len(outputs)} outputs")
        said = "".join("".join(output["text"]) for output in outputs if output.get("name") == "stderr")
        assert "Warning" not in said, said
        figures[script.stem] = sum("image/png" in output.get("data", {}) for output in outputs)
        keep_figures(script.stem, outputs)
    assert time.monotonic() - started < 300
    assert figures["04_on_your_cluster"] == 0
    assert min(figures[name] for name in NAMES[:3]) >= 3, figures
    assert sorted(path.name for path in folder.iterdir()) == [f"{name}.ipynb" for name in NAMES], "nothing left beside"


def keep_figures(name: str, outputs: list[dict[str, dict[str, str]]]) -> None:
    """Write a notebook's figures where HEADROOM_ARTEFACTS says, to be looked at."""
    if target := os.environ.get("HEADROOM_ARTEFACTS"):
        Path(target).mkdir(parents=True, exist_ok=True)
        images = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
        for number, image in enumerate(images):
            (Path(target) / f"{name}-{number}.png").write_bytes(base64.b64decode(image))

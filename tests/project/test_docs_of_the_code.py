"""The pages about the code are true to it: the picture of the rooms, the schema of the summary, and every example."""

from __future__ import annotations

import re
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import grimp
import pandas as pd
import pytest
from scripts import load_script

from pipeline.config import schema_file
from pipeline.questions import QUESTIONS
from pipeline.questions.gate import ROUTES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    return load_script(ROOT / "docs" / "generate.py")


def test_the_picture_of_the_rooms_shows_the_imports(generate: ModuleType) -> None:
    assert generate.PICTURE.read_text(encoding="utf-8") == generate.draw_rooms(), "run python docs/generate.py"
    level = {room: floor for floor, rooms in enumerate(generate.list_floors()) for room in rooms}
    assert all(level[a] < level[b] for a, b in generate.list_imports())


def test_the_page_names_every_room(generate: ModuleType) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for room in (room.removeprefix("pipeline.") for floor in generate.list_floors() for room in floor):
        assert re.search(rf"^\|.*`{room}`.*\| \w", page, re.MULTILINE), f"{room} is missing from the table"
    folders = {path.parent.name for path in (ROOT / "pipeline").glob("*/__init__.py")}
    drawn = {room.removeprefix("pipeline.") for floor in generate.list_floors() for room in floor}
    assert folders <= drawn


def test_the_schema_of_the_summary_is_that_of_the_code(generate: ModuleType) -> None:
    assert generate.SCHEMA.read_text(encoding="utf-8") == generate.write_schema(), "run python docs/generate.py"


def test_the_schema_of_a_configuration_is_that_of_the_code(generate: ModuleType) -> None:
    assert schema_file().read_text(encoding="utf-8") == generate.write_config_schema(), "run python docs/generate.py"


@pytest.mark.usefixtures("no_figures")  # the toys have none
def test_the_examples_of_extending_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 7
    questions, routes = list(QUESTIONS), dict(ROUTES)
    known: dict[str, object] = {"folder": tmp_path, "__name__": "extending"}
    try:
        for number, block in enumerate(blocks):
            exec(compile(block, f"extending.md, block {number}", "exec", dont_inherit=True), known)
    finally:
        QUESTIONS[:] = questions
        ROUTES.clear()
        ROUTES.update(routes)
    assert (tmp_path / "run" / "spread.csv").is_file()
    assert "Do the experts agree?" in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    routing = pd.read_csv(tmp_path / "run" / "routing.csv")
    assert "two" in set(routing["route"])
    assert "y_two" in pd.read_parquet(tmp_path / "run" / "predictions.parquet")
    assert capsys.readouterr().out.rstrip().endswith("1200")


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = grimp.build_graph("pipeline", "cluster")
    order = TopologicalSorter({module: graph.find_modules_directly_imported_by(module) for module in graph.modules})
    assert len(list(order.static_order())) == len(graph.modules)

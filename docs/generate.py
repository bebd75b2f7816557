"""Write what the documentation shows of the code itself: ``python docs/generate.py``.

``docs/images/rooms.svg`` shows the rooms and what imports what. The floors are those of the contract "Imports point
down" in ``pyproject.toml``, and the lines are the imports that the code has now. A line is left out where a longer way
says the same already. ``docs/summary.schema.json`` is the JSON schema of ``summary.json``.
``pipeline/configs/experiment.schema.json`` is that of a configuration, for editors; its descriptions are the table of
``docs/configuration.md``. A test compares all of them with the code.
"""

from __future__ import annotations

import json
import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import grimp

from pipeline.config import ExperimentConfig, schema_file
from pipeline.questions import describe_summary

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "rooms.svg"
SCHEMA = ROOT / "docs" / "summary.schema.json"
SETTINGS = ROOT / "docs" / "configuration.md"
WIDTH, FLOOR, BOX, MARGIN = 960, 76, 34, 16


def list_floors() -> list[list[str]]:
    """Return the rooms of every floor, the highest first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(one["layers"] for one in contracts if one["type"] == "layers")
    return [[room.strip() for room in layer.replace(":", "|").split("|")] for layer in layers]


def list_imports() -> set[tuple[str, str]]:
    """Return every pair of rooms of which the first imports the second."""
    graph = grimp.build_graph("pipeline", "cluster")
    rooms = [room for floor in list_floors() for room in floor]

    def room_of(module: str) -> str | None:
        return next((room for room in rooms if module == room or module.startswith(f"{room}.")), None)

    found = set()
    for module in graph.modules:
        importer = room_of(module)
        for imported in map(room_of, graph.find_modules_directly_imported_by(module)):
            if importer and imported and importer != imported:
                found.add((importer, imported))
    return found


def reduce_imports(imports: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Leave out what a longer way says already."""
    below = {room: {b for a, b in imports if a == room} for pair in imports for room in pair}

    def reach(room: str) -> set[str]:
        return below[room].union(*(reach(other) for other in below[room]))

    return {(a, b) for a, b in imports if not any(b in reach(other) for other in below[a] - {b})}


def draw_rooms() -> str:
    """Return the picture as SVG."""
    floors = list_floors()
    width = max(len(room.removeprefix("pipeline.")) for floor in floors for room in floor) * 8 + 28
    places: dict[str, tuple[float, float]] = {}
    for level, floor in enumerate(floors):
        for k, room in enumerate(floor):
            x = WIDTH * (k + 1) / (len(floor) + 1)
            # Rooms that are alone on their floor stand to the left and right in turn, so that lines can pass.
            shift = (-170, 0, 170, 0)[level % 4] if len(floor) == 1 else 0
            places[room] = (x + shift, MARGIN + level * FLOOR)
    height = len(floors) * FLOOR + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="14" role="img" aria-label="The rooms of the code, floor by floor, and what imports what">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for level, _ in enumerate(floors):
        if level % 2:
            lines.append(f'<rect y="{level * FLOOR + 4}" width="{WIDTH}" height="{FLOOR}" fill="#f4f6f8"/>')
    for a, b in sorted(reduce_imports(list_imports())):
        (x, y), (u, v) = places[a], places[b]
        middle = (y + BOX + v) / 2
        lines.append(
            f'<path d="M{x:.0f},{y + BOX:.0f} C{x:.0f},{middle:.0f} {u:.0f},{middle:.0f} {u:.0f},{v:.0f}" fill="none" '
            'stroke="#7a8794" stroke-width="1.2" opacity="0.7"/>'
        )
    for room, (x, y) in places.items():
        name = room.removeprefix("pipeline.")
        lines.append(
            f'<rect x="{x - width / 2:.0f}" y="{y:.0f}" width="{width}" height="{BOX}" rx="6" fill="#e3eef7" '
            'stroke="#0072b2"/>'
        )
        lines.append(f'<text x="{x:.0f}" y="{y + 22:.0f}" text-anchor="middle" fill="#222222">{name}</text>')
    assert all(a[1] <= b[1] for a, b in pairwise(places.values()))
    return "\n".join([*lines, "</svg>", ""])


def write_schema() -> str:
    """Return the JSON schema of ``summary.json``."""
    return json.dumps(describe_summary(), indent=1, ensure_ascii=False) + "\n"


def write_config_schema() -> str:
    """Return the JSON schema of a configuration, described by the table of its page and by the settings themselves."""
    schema = ExperimentConfig.model_json_schema(by_alias=True)
    for part in (schema, *schema["$defs"].values()):
        for one in part.get("properties", {}).values():
            one.pop("title", None)
    for setting, words in list_descriptions().items():
        place = schema
        *sections, last = setting.split(".")
        for section in sections:
            place = schema["$defs"][find_section(place["properties"][section])]
        place["properties"][last]["description"] = words
    # A section is described where it stands, too: by the first sentence of what it says of itself.
    for one in (one for part in (schema, *schema["$defs"].values()) for one in part.get("properties", {}).values()):
        if "description" not in one:
            whole = schema["$defs"][find_section(one)]["description"].replace("\n", " ").replace("``", "")
            one["description"] = whole.split(". ")[0].rstrip(".") + "."
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Configuration of a headroom experiment"
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def list_descriptions() -> dict[str, str]:
    """Return what the page says of every setting, as plain text."""
    found = {}
    for row in re.findall(r"^\| (`.*) \|$", SETTINGS.read_text(encoding="utf-8"), re.MULTILINE):
        names, values, meaning = row.split(" | ", 2)
        words = re.sub(r"\[(.+?)\]\(.+?\)", r"\1", f"{meaning} Values: {values}.").replace("`", "")
        found |= dict.fromkeys(re.findall(r"`([\w.]+)`", names), words)
    return found


def find_section(described: dict[str, Any]) -> str:
    """Return the name of the only section that a setting's schema refers to."""
    [name] = set(re.findall(r"#/\$defs/(\w+)", json.dumps(described)))
    return name


if __name__ == "__main__":
    for path, text in (
        (PICTURE, draw_rooms()),
        (SCHEMA, write_schema()),
        (schema_file(), write_config_schema()),
    ):
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))

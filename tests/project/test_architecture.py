"""The layering, the dependency lists, and other promises about the sources themselves."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

#: Libraries of the extra "ml", which only the rooms that OWNERS names may import.
OPTIONAL = {"sklearn": "scikit-learn"}


def imports_of(path: Path) -> set[str]:
    """Every module imported at run time, at the top or inside functions, but not for type checking only."""
    found: set[str] = set()

    class Visitor(ast.NodeVisitor):
        def visit_If(self, node: ast.If) -> None:
            if "TYPE_CHECKING" not in ast.unparse(node.test):
                self.generic_visit(node)

        def visit_Import(self, node: ast.Import) -> None:
            found.update(alias.name for alias in node.names)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)

    Visitor().visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


SOURCES = sorted((ROOT / "pipeline").rglob("*.py"))
CLUSTER = sorted((ROOT / "cluster").rglob("*.py"))


def test_nothing_is_unpickled_or_evaluated() -> None:
    for path in [*SOURCES, *CLUSTER]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"eval", "exec", "pickle.loads", "pickle.load", "yaml.load", "np.load"} or (
                    called == "np.load" and "allow_pickle=False" in ast.unparse(node)
                ), f"{path.name}:{node.lineno} calls {called}"


def names_of(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~\[ ;]", requirement, maxsplit=1)[0].lower() for requirement in requirements}


def test_environment_yml_agrees_with_pyproject() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    listed = [item for item in environment["dependencies"] if isinstance(item, str)]
    optional = PROJECT["project"]["optional-dependencies"]
    wanted = [
        *PROJECT["project"]["dependencies"],
        *(one for extra in ("cluster", "ml", "notebooks") for one in optional[extra]),
    ]
    python = PROJECT["project"]["requires-python"]
    # conda-forge calls matplotlib without its Qt windows matplotlib-base, and google-crc32c the same.
    renamed = {"matplotlib": "matplotlib-base"}
    expected = {f"python{python}"} | {
        re.sub(r"^[\w-]+", lambda match: renamed.get(match.group(), match.group()), item) for item in wanted
    }
    assert set(listed) - {"pip"} == expected


def pins_of(lock: str) -> dict[str, str]:
    """The version of each package that a lock file pins; the first one where Pythons differ."""
    found = re.findall(r"^([a-z0-9-]+)(?:\[[a-z0-9, ]+\])?==([\w.]+)", lock, flags=re.MULTILINE)
    return dict(reversed(found))


def all_requirements() -> list[str]:
    optional = PROJECT["project"]["optional-dependencies"]
    return [*PROJECT["project"]["dependencies"], *(one for group in optional.values() for one in group)]


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-lowest.lock"])
def test_the_lock_pins_every_dependency_with_hashes(name: str) -> None:
    lock = (ROOT / name).read_text()
    pinned = pins_of(lock)
    assert names_of(all_requirements()) <= pinned.keys()
    assert lock.count("--hash=sha256:") >= len(pinned)
    assert "://" not in lock, "the lock names no server"


def test_the_lowest_lock_holds_the_bounds_of_pyproject() -> None:
    """A bound of ``>=2025.4`` is tested with 2025.4.x; `make lock` writes the file anew after a change."""
    pinned = pins_of((ROOT / "requirements-lowest.lock").read_text())
    for requirement in all_requirements():
        name, bound = requirement.lower().split(",")[0].split(">=")
        assert f"{pinned[name]}.".startswith(f"{bound}."), f"{name} {pinned[name]} is tested, {bound} is allowed"


def test_imports_are_declared() -> None:
    declared = names_of(PROJECT["project"]["dependencies"])
    module_of = {"pyyaml": "yaml", "google-crc32c": "google_crc32c", "lazy-loader": "lazy_loader"}
    modules = {module_of.get(name, name) for name in declared} | OPTIONAL.keys()
    assert set(OPTIONAL.values()) <= names_of(PROJECT["project"]["optional-dependencies"]["ml"])
    # An extra of its own, which one module alone imports, carefully.
    assert names_of(PROJECT["project"]["optional-dependencies"]["cluster"]) == {"dask-jobqueue"}
    for path in [*SOURCES, *CLUSTER]:
        for name in imports_of(path):
            top = name.split(".")[0]
            if top == "dask_jobqueue" and path.relative_to(ROOT) == Path("cluster/slurm/script.py"):
                continue
            if top not in {"pipeline", "cluster", "__future__", *__import__("sys").stdlib_module_names}:
                assert top in modules, f"{path.name} imports {top}, which pyproject.toml does not list"


FACES = sorted([*(ROOT / "pipeline").rglob("__init__.pyi"), *(ROOT / "cluster").rglob("__init__.pyi")])


@pytest.mark.parametrize("face", FACES, ids=lambda face: str(face.parent.relative_to(ROOT)))
def test_a_room_hands_out_what_its_face_says(face: Path) -> None:
    room = ".".join(face.parent.relative_to(ROOT).parts)
    module = importlib.import_module(room)
    stated = [
        (node.module, alias.name)
        for node in ast.parse(face.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert sorted(name for _, name in stated) == sorted(module.__all__)
    for home, name in stated:
        assert getattr(module, name) is getattr(importlib.import_module(f"{room}.{home}"), name)
    assert not {name for _, name in stated} & {path.stem for path in face.parent.iterdir()}, "a name hides a module"
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018


def test_every_room_says_what_it_is_for() -> None:
    rooms = [path for path in SOURCES if path.name == "__init__.py"]
    assert len(rooms) >= 20
    for room in rooms:
        assert len(ast.get_docstring(ast.parse(room.read_text(encoding="utf-8"))) or "") >= 80, room


def test_importing_the_package_imports_no_library() -> None:
    code = "import sys, pipeline; print(sorted({'numpy', 'dask', 'zarr', 'pandas', 'numba'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"

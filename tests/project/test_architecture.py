"""The layering, the dependency lists, and other promises about the sources themselves."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from commands import invoke

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


def test_pixi_toml_agrees_with_environment_yml() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pixi = tomllib.loads((ROOT / "pixi.toml").read_text())
    split = (re.fullmatch(r"([\w-]+)(.*)", item) for item in environment["dependencies"] if isinstance(item, str))
    assert pixi["dependencies"] == {found[1]: found[2] or "*" for found in split if found}
    assert pixi["workspace"]["channels"] == environment["channels"]


def test_the_container_is_built_from_the_lock() -> None:
    """Its Python is one that the lock was made for, and it is given all that a build needs."""
    recipe = (ROOT / "cluster" / "headroom.def").read_text()
    [minor] = re.findall(r"^From: python:3\.(\d+)-slim$", recipe, flags=re.MULTILINE)
    least = re.fullmatch(r">=3\.(\d+)", PROJECT["project"]["requires-python"])
    assert least is not None
    assert int(minor) >= int(least[1])
    assert f"--python-version 3.{least[1]} " in (ROOT / "Makefile").read_text()
    assert "--require-hashes -r requirements.lock" in recipe
    given = dict(re.findall(r"^    (\S+) /opt/headroom/(\S+)$", recipe, flags=re.MULTILINE))
    assert all(source == target and (ROOT / source).exists() for source, target in given.items())
    built = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {*built, "pyproject.toml", "requirements.lock", PROJECT["project"]["readme"]} <= given.keys()
    assert set(PROJECT["project"]["license-files"]) <= given.keys()


def test_one_version_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    """After a change of the version: `make install`, which writes it where `headroom --version` finds it."""
    version = PROJECT["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    first = re.search(r"^## (\S+) — (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert first is not None
    assert (first[1], first[2]) == (version, citation["date-released"]), "the changelog begins with this release"
    assert citation["version"] == version
    assert invoke(capsys, "--version")[1] == f"headroom, version {version}\n"


def test_the_newest_changes_are_read_in_two_minutes() -> None:
    newest = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## ")[1]
    assert len(newest.split()) <= 480, "at 240 words a minute"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dist = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(dist)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return dist


def test_the_wheel_holds_all_files_of_the_packages(built: Path) -> None:
    """Profiles, configurations, templates, faces and scripts too; `make dist` installs and runs it."""
    [wheel] = built.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    files = [path for top in ("pipeline", "cluster") for path in (ROOT / top).rglob("*") if path.is_file()]
    expected = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    assert expected <= held
    assert {name.split("/")[0] for name in held} == {"pipeline", "cluster", wheel.name.split("-py3")[0] + ".dist-info"}


def test_the_sdist_holds_what_a_build_and_the_tests_need(built: Path) -> None:
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        tops = {name.split("/")[1] for name in archive.getnames()}
    assert {"pipeline", "cluster", "tests", "docs", "pyproject.toml", "requirements.lock", "LICENSE"} <= tops
    assert not {"runs", ".venv", ".mypy_cache", ".import_linter_cache", ".hypothesis"} & tops


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


def test_a_run_imports_no_library_of_tables_and_figures_before_it_has_results() -> None:
    code = (
        "import sys, pipeline.run.experiment, pipeline.questions.registry; "
        "print(sorted({'matplotlib', 'pandas', 'pyarrow', 'xarray'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"

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

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

#: Lowest layer first; a module may import from its own layer and from those below.
LAYERS: list[set[str]] = [
    {"errors", "schema"},
    {"config"},
    {"blas", "tiles", "moments", "krylov", "ridge", "scores"},
    {
        "binnings",
        "bins",
        "divisions",
        "lines",
        "folds",
        "partitions",
        "normals",
        "noise",
        "marginal",
        "selection",
        "decision",
        "components",
        "features",
        "gates",
        "routing",
        "resample",
    },
    {"design_grid"},
    # Edges: each owns one foreign library or one kind of file.
    {
        "progress",
        "journal",
        "interrupts",
        "memory",
        "locks",
        "provenance",
        "files",
        "workspace",
        "tasks",
        "moments_files",
        "features_files",
        "results",
        "shards",
        "inspection",
        "store",
        "convert",
        "simulate",
    },
    {"hotloop", "models", "predictions", "checkpoints"},
    {"estimators"},
    {"accumulate", "solve", "design", "plan", "spectra_sets", "summary", "figures", "report", "compare", "doctor"},
    {"moments_contents", "moments_listing"},
    {"experiment", "revisit"},
    {"bundle", "predict"},
    {"cli", "__init__", "__main__"},
]
#: Foreign libraries that one room only may know, at run time.
OWNERS = {
    "h5py": {"shards", "simulate"},
    "distributed": {"tasks"},
    "dask": {"tasks"},
    "zarr": {"store", "convert"},
    "xarray": {"store", "revisit"},
    "matplotlib": {"figures"},
    "jinja2": {"report", "compare"},
    "click": {"cli"},
    "packaging": {"doctor"},
    "rich": {"progress", "cli"},
    "sklearn": {"estimators", "gates"},
    "pickle": {"simulate"},  # writes the column names as pandas does; nothing is ever unpickled
}
#: Libraries of the extra "ml", which only the rooms that OWNERS names may import.
OPTIONAL = {"sklearn": "scikit-learn"}
ARITHMETIC = {"numpy", "scipy", "pipeline", "threadpoolctl"}


def room_of(path: Path) -> str:
    """The noun a module belongs to: ``store_layout`` is part of ``store``, a package is one room."""
    name = path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")
    rooms = set().union(*LAYERS)
    if name in rooms:
        return name
    parts = name.split("_")
    for end in range(len(parts) - 1, 0, -1):
        for candidate in ("_".join(parts[:end]), "_".join(parts[:end]) + "s"):
            if candidate in rooms:
                return candidate
    raise AssertionError(f"{path.name} belongs to no layer; add it to LAYERS")


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
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "pipeline" and len(parts) > 1 and (ROOT / "pipeline" / parts[1]).with_suffix(".py").exists():
            other = room_of(ROOT / "pipeline" / f"{parts[1]}.py")
            assert LEVEL[other] <= LEVEL[room], f"{room} (layer {LEVEL[room]}) imports {other} (layer {LEVEL[other]})"
        if parts[0] == "cluster":
            assert room == "cli", f"{room} imports cluster; the pipeline receives a client"
        assert room in OWNERS.get(parts[0], {room}), f"{room} imports {parts[0]}, which belongs to {OWNERS[parts[0]]}"
        if room in LAYERS[2]:
            assert parts[0] in ARITHMETIC or parts[0] in {"__future__", *_standard_library()}, f"{room} imports {name}"


def _standard_library() -> frozenset[str]:
    import sys

    # The arithmetic knows no files and no processes.
    return sys.stdlib_module_names - {"os", "pathlib", "io", "shutil", "tempfile", "subprocess", "socket"}


def test_nothing_is_unpickled_or_evaluated() -> None:
    for path in [*SOURCES, *CLUSTER]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"eval", "exec", "pickle.loads", "pickle.load", "yaml.load", "np.load"} or (
                    called == "np.load" and "allow_pickle=False" in ast.unparse(node)
                ), f"{path.name}:{node.lineno} calls {called}"


def test_modules_stay_readable() -> None:
    for path in [*SOURCES, *CLUSTER]:
        lines = path.read_text(encoding="utf-8").count("\n")
        assert lines <= 380, f"{path.name} has {lines} lines; give each noun a module of its own"


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


def test_the_lock_pins_every_dependency_with_hashes() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    pinned = set(re.findall(r"^([a-z0-9-]+)==", lock, flags=re.MULTILINE))
    optional = PROJECT["project"]["optional-dependencies"]
    wanted = names_of([*PROJECT["project"]["dependencies"], *(one for group in optional.values() for one in group)])
    assert wanted <= pinned
    assert lock.count("--hash=sha256:") >= len(pinned)
    assert "://" not in lock, "the lock names no server"


def test_imports_are_declared() -> None:
    declared = names_of(PROJECT["project"]["dependencies"])
    module_of = {"pyyaml": "yaml", "google-crc32c": "google_crc32c"}
    modules = {module_of.get(name, name) for name in declared} | OPTIONAL.keys()
    assert OPTIONAL.keys() <= OWNERS.keys()
    assert set(OPTIONAL.values()) <= names_of(PROJECT["project"]["optional-dependencies"]["ml"])
    # An extra of its own, which one module alone imports, carefully.
    assert names_of(PROJECT["project"]["optional-dependencies"]["cluster"]) == {"dask-jobqueue"}
    for path in [*SOURCES, *CLUSTER]:
        for name in imports_of(path):
            top = name.split(".")[0]
            if top == "dask_jobqueue" and path.relative_to(ROOT) == Path("cluster/jobqueue.py"):
                continue
            if top not in {"pipeline", "cluster", "__future__", *__import__("sys").stdlib_module_names}:
                assert top in modules, f"{path.name} imports {top}, which pyproject.toml does not list"


def test_lazy_names_live_where_the_type_checker_sees_them() -> None:
    import pipeline

    tree = ast.parse((ROOT / "pipeline" / "__init__.py").read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    stated = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert stated == pipeline._HOMES
    assert sorted(stated) == sorted(pipeline.__all__)
    for name in pipeline.__all__:
        assert getattr(pipeline, name) is getattr(importlib.import_module(stated[name]), name)
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        pipeline.no_such_name  # noqa: B018


def test_importing_the_package_imports_no_library() -> None:
    code = "import sys, pipeline; print(sorted({'numpy', 'dask', 'zarr', 'pandas', 'numba'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"

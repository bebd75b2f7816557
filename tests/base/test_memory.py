"""A command asks for no large pages; the garbage collector waits for imports, and works as usual afterwards."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import gc
from pipeline.base import end_imports, spare_imports
usual = gc.get_threshold()
spare_imports()
assert gc.get_threshold()[0] > 100 * usual[0]
end_imports()
assert gc.get_threshold() == usual, gc.get_threshold()
frozen = gc.get_freeze_count()
assert frozen > 0
kept = [[] for _ in range(1000)]
end_imports()
assert gc.get_freeze_count() == frozen, "once is enough"
spare_imports()
gc.collect()
assert gc.get_threshold() == usual, "whoever makes more than libraries do is looked after"
"""


def test_garbage_is_looked_for_after_the_imports() -> None:
    subprocess.run([sys.executable, "-c", CODE], check=True)


#: Ends as every command does, and looks at NumPy on the way.
COMMAND = """
import os, sys
end = os._exit
def look(code):
    from numpy._core.multiarray import _get_madvise_hugepage
    print("large pages:", _get_madvise_hugepage())
    sys.stdout.flush()
    end(code)
os._exit = look
sys.argv = ["headroom", "--version"]
from pipeline.__main__ import main
assert "numpy" not in sys.modules
main()
"""


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [({}, False), ({"NUMPY_MADVISE_HUGEPAGE": "1"}, True), ({"NUMPY_MADVISE_HUGEPAGE": ""}, False)],
)
def test_command_takes_small_pages_unless_the_user_says_otherwise(variables: dict[str, str], wanted: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "NUMPY_MADVISE_HUGEPAGE"} | variables
    said = subprocess.run(
        [sys.executable, "-c", COMMAND], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert f"large pages: {wanted}" in said

"""The garbage collector waits while libraries are imported, and works as usual afterwards."""

from __future__ import annotations

import subprocess
import sys

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

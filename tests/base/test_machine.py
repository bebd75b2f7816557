"""What is asked of the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys

_TELL = """
import json, sys
from pipeline.base import one_blas_thread

with one_blas_thread():
    import scipy.linalg, sklearn.linear_model
    from threadpoolctl import threadpool_info
    print(json.dumps([one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]))
"""


def test_blas_has_one_thread_also_in_what_is_imported_later() -> None:
    """SciPy brings a BLAS of its own, which is not there yet when the block begins."""
    done = subprocess.run(
        [sys.executable, "-c", _TELL],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    threads = json.loads(done.stdout)
    assert threads
    assert set(threads) == {1}

"""What is asked of the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest

from pipeline.base import compute_ahead

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


def test_compute_ahead_keeps_the_order_and_a_bound() -> None:
    begun: list[int] = []

    def double(item: int) -> int:
        begun.append(item)
        return 2 * item

    for threads, ahead in ((1, 1), (3, 4)):
        begun.clear()
        for k, found in enumerate(compute_ahead(double, range(20), threads=threads, ahead=ahead)):
            assert found == 2 * k
            assert len(begun) <= k + 1 + ahead
        assert sorted(begun) == list(range(20))
    assert list(compute_ahead(double, [])) == []


def test_compute_ahead_raises_in_its_place_and_leaves_no_thread() -> None:
    found = compute_ahead(lambda item: 6 // item, [3, 2, 0, 1])
    assert [next(found), next(found)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(found)
    closed = compute_ahead(abs, range(9))
    assert next(closed) == 0
    closed.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]

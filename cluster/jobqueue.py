"""dask-jobqueue, imported without what importing it does to this process: it would answer Ctrl-C by a silent exit."""

from __future__ import annotations

import signal
import threading

from pipeline.errors import ResourceError

__all__ = ["SLURMCluster", "SLURMJob"]

_before = signal.getsignal(signal.SIGINT)
try:
    from dask_jobqueue.slurm import SLURMCluster, SLURMJob
except ImportError as error:
    raise ResourceError(
        f"jobs of SLURM need dask-jobqueue, which is not here ({error}); install it: pip install 'headroom[cluster]'"
    ) from error
finally:
    if threading.current_thread() is threading.main_thread() and _before is not None:
        signal.signal(signal.SIGINT, _before)

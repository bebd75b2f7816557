"""The ground floor: what every room needs and no room of science owns.

Files that appear whole or not at all, locks, progress, signals, the journal of a run, tasks on Dask, and what the
machine has.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

"""Reading the HDF5 shards that a simulation leaves: the exact pfsspec layout, and nothing trusted.

``reader`` gives pixels and labels; ``layout`` finds arrays, chunks and the columns of the parameter table.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

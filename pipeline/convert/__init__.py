"""From HDF5 shards, or spectra of another layout, to one checked Zarr store: resumable, and verified on request.

``inspection`` looks at shards or stores without converting anything.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

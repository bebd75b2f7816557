"""Turn a cluster profile into a Dask client. The pipeline receives a client and never imports this package."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

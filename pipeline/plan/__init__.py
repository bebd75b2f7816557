"""What a run costs, before it runs: time, memory and disk, here or on a cluster.

``cost`` plans one run on this machine. ``scaling`` extrapolates to more spectra and more workers.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

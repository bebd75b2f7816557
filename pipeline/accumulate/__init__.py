"""The one pass over the spectra: from a store to the moments of every noise, fold and cell.

``plan`` divides the rows. ``hotloop`` sums products with BLAS. ``checkpoints`` saves finished work.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

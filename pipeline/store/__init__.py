"""The Zarr store of converted spectra, and several stores read as one.

``layout`` says what a store holds and where, ``chunks`` reads pixels, ``store`` opens one store and ``joined`` many.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

"""What each axis of the bins contributes: other binnings of the same spectra, scored alike.

Every binning uses the moments of the same pass and is scored on the same test spectra.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

"""The sufficient statistics of spectra and labels, their algebra and their files.

Moments add and subtract. Every later answer is algebra on them.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

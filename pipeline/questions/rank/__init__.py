"""In how many dimensions the training spectra lie, and what a model of fewer would say.

It is asked of factored moments alone. Their basis is ordered, so its leading directions give every smaller rank.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

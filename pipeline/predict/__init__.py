"""Labels for spectra that have none: the exported model, and its predictions over any store.

A bundle is a folder of plain files, and whatever is read from it is checked.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

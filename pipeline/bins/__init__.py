"""Which cell and which fold a spectrum belongs to.

A grid divides the (T_eff, [M/H]) plane into bins. A binning is any such division. Folds divide the rows.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

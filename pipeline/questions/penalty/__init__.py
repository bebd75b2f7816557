"""Which penalty is best: the search on held-out folds, its table, figure and section.

The search itself is arithmetic on moments and stands in :mod:`pipeline.ridge.penalties`.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

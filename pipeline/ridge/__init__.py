"""Ridge regression from moments: systems, paths of penalties, and the models of a run.

The global model is solved from the sum of all cells, an expert from its own cell.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

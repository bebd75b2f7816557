"""The page and the tables of a run, and the comparison of several runs.

Numbers come from the results of the run; nothing is computed here.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

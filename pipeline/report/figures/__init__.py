"""The figures of a run, as PNG files for slides and for the report.

Every figure is a function that takes results and returns a matplotlib figure; ``canvas`` gives them one look.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

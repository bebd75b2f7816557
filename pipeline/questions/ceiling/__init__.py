"""The ceiling: the best R² that any model could reach, bracketed from both sides by the exact posterior mean.

What is left for a nonlinear model once experts are built, and what a perfect gate would keep.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

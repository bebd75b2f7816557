"""What the noise does to a spectrum: one draw of it, or its exact expectation over all draws.

``draws`` adds reproducible noise to each row; ``marginal`` has the closed form of the mean and the variance.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

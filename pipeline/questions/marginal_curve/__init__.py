"""What one noise draw per spectrum loses against the expectation over all draws.

Learning curves of drawn and of marginal noise, side by side, from one pass.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

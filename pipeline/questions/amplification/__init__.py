"""How the headroom changes with the noise level.

The same experiment at every noise level of the run, side by side.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

"""What experts gain for the labels beside the target, from the same moments and the same read.

The moments hold all labels at once, so this question costs one product.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

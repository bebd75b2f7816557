"""Ridge regression from moments behind the face of scikit-learn's estimators.

``GramRidge`` and ``BinnedRidge`` pass scikit-learn's own checks.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

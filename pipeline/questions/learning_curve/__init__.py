"""What more training spectra would give: the scores of growing prefixes of the folds.

The curve says whether R² and ΔR² still rise with the number of spectra.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

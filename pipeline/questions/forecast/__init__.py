"""What a drawn run of any size would say, from the marginal moments of the spectra that are there.

Drawn noise needs as many spectra as the run that it stands for. Its expected outcome needs the moments of noise that
was integrated out, kept by classes of like noise, and some algebra.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

"""Noise models: what the noise does to a spectrum, and which noises an experiment trains and tests with.

Every model is one object that knows its name, its seed if it has one, its words for people, how spectra are read with
it, and the kernel of the hot loop; ``kinds`` lists them all. ``draws`` adds reproducible noise to each row,
``marginal`` takes the exact expectation over all draws, ``stored`` is the noise that test files come with.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

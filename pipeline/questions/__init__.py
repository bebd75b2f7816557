"""The questions that a run answers, one folder each.

A question takes moments, models and test spectra, and gives its part of the summary; tables, figures and its section of
the page are views of that part. ``question`` says what they have in common, and ``registry`` lists them.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

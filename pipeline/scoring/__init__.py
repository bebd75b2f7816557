"""From predictions to figures of merit: R², ΔR², their intervals, and the decision.

What is scored here is written by ``results`` and read again by every report.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

"""The spine of a run: convert, accumulate, solve, score, ask the questions, report.

A run folder can be resumed, extended by shards, reduced, and looked into again.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

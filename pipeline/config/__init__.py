"""The settings of an experiment: what a YAML file may say, checked before anything runs.

The models of the settings stand in ``settings``; ``files`` reads them from YAML and names every fault.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

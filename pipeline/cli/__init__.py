"""The command line: words in, words out. Only this room prints.

Each module holds one group of commands. The arithmetic and the files belong to the rooms below.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

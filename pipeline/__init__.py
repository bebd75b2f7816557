"""How much would a mixture of experts gain over one global ridge model, on a million spectra?

One pass over the spectra yields moments; everything else is algebra on them::

    config = pipeline.load_config("oracle_noise1.yaml")
    results = pipeline.run_experiment(config, "runs/first")

See the README for the command line, which does the same.

Names are imported when they are first used: worker processes and short commands need a few of them, and all of them
take a second.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

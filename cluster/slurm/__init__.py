"""Workers as batch jobs of SLURM: the script of a job, the jobs of a run, and SLURM's own commands.

``script`` alone knows dask-jobqueue, which may be missing.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

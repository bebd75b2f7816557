"""Turn a cluster profile into a Dask client. The pipeline receives a client and never imports this package."""

from cluster.connect import LocalProfile, connect_local

__all__ = ["LocalProfile", "connect_local"]

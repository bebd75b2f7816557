"""Turn a cluster profile into a Dask client. The pipeline receives a client and never imports this package."""

from cluster.connect import connect, connect_local
from cluster.profiles import AddressProfile, LocalProfile, Profile, SlurmProfile, load_profile, packaged_profiles

__all__ = [
    "AddressProfile",
    "LocalProfile",
    "Profile",
    "SlurmProfile",
    "connect",
    "connect_local",
    "load_profile",
    "packaged_profiles",
]

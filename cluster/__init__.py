"""Turn a cluster profile into a Dask client. The pipeline receives a client and never imports this package."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cluster.connect import connect, connect_local
from cluster.profiles import AddressProfile, LocalProfile, Profile, SlurmProfile, load_profile, packaged_profiles

if TYPE_CHECKING:
    from cluster.certificates import make_certificates
    from cluster.dashboard import DashboardAddress, announce, find_dashboard, tunnel_command
    from cluster.slurm_script import render_job_script
    from cluster.submit import render_driver_script, submit_driver

__all__ = [
    "AddressProfile",
    "DashboardAddress",
    "LocalProfile",
    "Profile",
    "SlurmProfile",
    "announce",
    "connect",
    "connect_local",
    "find_dashboard",
    "load_profile",
    "make_certificates",
    "packaged_profiles",
    "render_driver_script",
    "render_job_script",
    "submit_driver",
    "tunnel_command",
]

#: Where names live that are imported when they are first used: Dask and, for jobs, dask-jobqueue come with them.
_HOMES = {
    "DashboardAddress": "cluster.dashboard",
    "announce": "cluster.dashboard",
    "find_dashboard": "cluster.dashboard",
    "make_certificates": "cluster.certificates",
    "render_driver_script": "cluster.submit",
    "render_job_script": "cluster.slurm_script",
    "submit_driver": "cluster.submit",
    "tunnel_command": "cluster.dashboard",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # asked for once
    return value

"""Dask's dashboard: where it is, how to see it from where the user sits, and a browser opened on it.

A dashboard listens on the loopback of the machine that the scheduler runs on: whoever reaches its port sees the run,
and it knows no passwords. From elsewhere it is reached through ssh, which knows who may.
"""

from __future__ import annotations

import getpass
import os
import shlex
import socket
import sys
import webbrowser
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psutil

from pipeline.base import recorded
from pipeline.errors import ResourceError

if TYPE_CHECKING:
    from distributed import Client

__all__ = [
    "DashboardAddress",
    "announce",
    "find_dashboard",
    "has_screen",
    "recorded",
    "require_free_port",
    "tunnel_command",
    "tunnel_hint",
]


def require_free_port(port: int | None) -> None:
    """Refuse a port of the dashboard that another program has; Dask would take any other one.

    Raises
    ------
    ResourceError
        If it is taken.
    """
    if port is None:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a run that has just ended does not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ResourceError(
                f"the dashboard cannot have port {port} ({error.strerror or error}); choose another --dashboard-port, "
                "or leave it out, also in the profile, and Dask finds a free one"
            ) from None


@dataclass(frozen=True)
class DashboardAddress:
    """Where a dashboard listens: on the loopback of ``host``, or of this machine if that is None."""

    port: int
    host: str | None = None

    @property
    def link(self) -> str:
        """What to open: on the machine itself, or where ssh has brought the port to."""
        return f"http://127.0.0.1:{self.port}/status"


def find_dashboard(client: Client) -> DashboardAddress | None:
    """Return where the dashboard of a client's scheduler is; None if it has none."""
    # Not the client's own link: it names the host that workers know, where no dashboard of ours listens.
    info = client.scheduler_info()
    port = info.get("services", {}).get("dashboard")
    if not port:
        return None
    host = urlsplit(info["address"]).hostname
    return DashboardAddress(int(port), None if host is None or _is_here(host) else host)


def _is_here(host: str) -> bool:
    own = {address.address.partition("%")[0] for card in psutil.net_if_addrs().values() for address in card}
    return host in own or host in ("localhost", socket.gethostname())


def tunnel_command(address: DashboardAddress, environment: Mapping[str, str], *, user: str, machine: str) -> str | None:
    """Return the command that brings a dashboard to the user's own machine; None where the user sits at this one.

    Parameters
    ----------
    address
        Of the dashboard.
    environment
        Variables of this process: whether it is a batch job, or came over ssh, and over which machine.
    user
        The account's name.
    machine
        The name of this machine.

    Examples
    --------
    >>> tunnel_command(DashboardAddress(8787), {"SSH_CONNECTION": "10.0.0.9 5022 10.0.0.2 22"}, user="ada", machine="a")
    'ssh -N -L 8787:127.0.0.1:8787 ada@10.0.0.2'
    """
    target, options = address.host, [f"-L {address.port}:127.0.0.1:{address.port}"]
    if target is None and "SLURMD_NODENAME" in environment:
        # A batch job's node, which is reached from outside by way of the machine that it was submitted on. What this
        # job inherited from the ssh session it was submitted in leads there, not here, and is not looked at.
        target, gate = machine, environment.get("SLURM_SUBMIT_HOST", machine)
        if gate != machine:
            options.append(f"-J {shlex.quote(f'{user}@{gate}')}")
    elif target is None and environment.get("SSH_CONNECTION"):
        # By the address that this very session came to: a name may stand for several login nodes.
        *_, target, port = environment["SSH_CONNECTION"].split()
        if port != "22":
            options.append(f"-p {shlex.quote(port)}")
    if target is None:
        return None
    return f"ssh -N {' '.join(options)} {shlex.quote(f'{user}@{target}')}"


def tunnel_hint(client: Client) -> str | None:
    """Return the ``ssh -L`` line for a client's dashboard; None without one, or where the user sits at this machine."""
    address = find_dashboard(client)
    if address is None:
        return None
    return tunnel_command(address, os.environ, user=getpass.getuser(), machine=socket.gethostname())


def has_screen(environment: Mapping[str, str]) -> bool:
    """Return whether a browser opened here would be seen by the user."""
    if environment.get("SSH_CONNECTION") or "SLURM_JOB_ID" in environment:
        return False  # a screen forwarded by ssh would show a browser of the far machine, slowly
    return sys.platform in ("darwin", "win32") or bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"))


def announce(
    client: Client, say: Callable[[str], None], *, browser: bool = False, environment: Mapping[str, str] = os.environ
) -> None:
    """Say where the dashboard is and how to get there; open it in a browser if wanted and if there is a screen.

    Parameters
    ----------
    client
        Of the run.
    say
        Told a line or two.
    browser
        Open one.
    environment
        Variables of this process.
    """
    address = find_dashboard(client)
    if address is None:
        say("dashboard: none, the scheduler was started without one")
        return
    tunnel = tunnel_command(address, environment, user=getpass.getuser(), machine=socket.gethostname())
    say(f"dashboard: {address.link}")
    if tunnel:
        say(f"to see it from your own machine, run there: {tunnel}")
    elif browser and has_screen(environment) and not _open(address.link):
        say("no browser could be opened; open that link in one")


def _open(link: str) -> bool:
    try:
        return webbrowser.open(link)
    except webbrowser.Error:
        return False

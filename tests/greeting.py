"""Somebody who knocks at a port of Dask's, below any client: with a client's certificates, others, or none."""

from __future__ import annotations

import asyncio
from typing import Any

from distributed.comm import connect
from distributed.security import Security

__all__ = ["ask_for_identity"]


def ask_for_identity(address: str, security: Security | None, seconds: float = 3.0) -> dict[str, Any]:
    """Return what a scheduler or worker says it is; raise what refuses the question."""

    async def ask() -> dict[str, Any]:
        arguments = {} if security is None else security.get_connection_args("client")
        comm = await connect(address, timeout=seconds, **arguments)
        try:
            await comm.write({"op": "identity", "reply": True})
            return dict(await comm.read())
        finally:
            comm.abort()

    return asyncio.run(asyncio.wait_for(ask(), 2 * seconds))

"""Whether workers are what the run needs: the same software, and the same files under the same paths.

A worker of another version would compute other bits or fail in the middle; one that does not see the run folder would
write its moments where nobody finds them.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module, metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base import disk_errors_told
from pipeline.errors import ResourceError

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["describe_worker", "nonce_file", "require_same_workers", "unfit_workers"]

_SECONDS = 60.0
#: What must be the same for a run to be the same bits, and what people call it.
_FACTS = {
    "python": "Python",
    "headroom": "headroom",
    "sources": "headroom's source files",
    "distributed": "distributed",
    "numpy": "NumPy",
    "scipy": "SciPy",
}


@contextmanager
def nonce_file(folder: Path) -> Iterator[Path]:
    """Write a file into a folder that only those who see this very folder can know; gone with the block.

    Raises
    ------
    ResourceError
        If the folder cannot be written.
    """
    path = folder.absolute() / f".seen-{secrets.token_hex(8)}"
    with disk_errors_told(path):
        path.write_text(secrets.token_hex(16), encoding="ascii")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def describe_worker(nonce: str | None) -> dict[str, str]:
    """Return what this process is made of, and what it finds in a file; runs on workers."""
    found = {
        "host": socket.gethostname(),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "headroom": metadata.version("headroom"),
        "sources": _fingerprint_sources(),
        **{name: str(import_module(name).__version__) for name in ("distributed", "numpy", "scipy")},
    }
    if nonce is not None:
        try:
            found["nonce"] = Path(nonce).read_text(encoding="ascii")
            found["writable"] = str(os.access(Path(nonce).parent, os.W_OK))
        except OSError as error:
            found["unseen"] = error.strerror or type(error).__name__
    return found


def _fingerprint_sources() -> str:
    digest = hashlib.sha256()
    for package in ("pipeline", "cluster"):
        root = Path(str(resources.files(package)))
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def unfit_workers(client: Client, nonce: Path | None, workers: Sequence[str] | None = None) -> dict[str, str]:
    """Return what is wrong with workers, by their addresses; all is well if there is nothing.

    Parameters
    ----------
    client
        Whose workers.
    nonce
        From :func:`nonce_file`; None where no folder needs to be seen.
    workers
        Addresses; all of them by default.
    """
    asked = None if nonce is None else str(nonce)
    own = describe_worker(asked)
    # An older worker does not know the function: that is an answer too.
    answers: Mapping[str, Any] = client.run(
        describe_worker, asked, workers=None if workers is None else list(workers), on_error="return",
        callback_timeout=_SECONDS,
    )  # fmt: skip
    told = {address: _compare(own, answer, nonce) for address, answer in answers.items()}
    return {address: words for address, words in told.items() if words}


def require_same_workers(client: Client, nonce: Path | None) -> None:
    """Refuse a cluster with a worker that the run cannot rely on.

    Raises
    ------
    ResourceError
        Saying which worker, on which host, and what about it.
    """
    for address, words in unfit_workers(client, nonce).items():
        raise ResourceError(f"worker {address} {words}")


def _compare(own: Mapping[str, str], answer: Any, nonce: Path | None) -> str:
    """Return what is wrong with a worker, to follow "worker ADDRESS"."""
    if isinstance(answer, BaseException):
        return (
            f"cannot say what it is ({type(answer).__name__}: {answer}); install this version of headroom where "
            "workers run, and see the settings `python` and `setup` of the cluster profile"
        )
    where = f"on {answer['host']}"
    for fact, name in _FACTS.items():
        if answer.get(fact) != own[fact]:
            return (
                f"{where} has {name} {answer.get(fact)}, and this process {own[fact]}; both must be the same: see the "
                "settings `python` and `setup` of the cluster profile"
            )
    if nonce is None or answer.get("nonce") == own["nonce"]:
        return ""
    return (
        f"{where} does not see the folder {nonce.parent} ({answer.get('unseen', 'another folder is there')}); "
        "choose a run folder with --out, and a folder for data.stores, that all nodes share"
    )

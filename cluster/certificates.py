"""Certificates of one run, and the folder in which it and its workers meet.

A run has an authority of its own, so that another run's certificates are refused.

Every connection of a cluster is TLS 1.3 in which both ends show a certificate of the run's authority. The authority's
key signs once and is never written: nobody can make further certificates, not even the owner of the run.
"""

from __future__ import annotations

import secrets
import shutil
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.base import disk_errors_told, open_regular, try_lock
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from distributed.security import Security

__all__ = [
    "VALIDITY",
    "Certificates",
    "SharedFolder",
    "abandoned_tokens",
    "make_certificates",
    "read_certificates",
    "shared_folder",
]

#: How long a run's certificates are accepted: longer than any walltime, short enough that a lost key is soon useless.
VALIDITY = timedelta(days=14)
#: Clocks of nodes differ.
_SKEW = timedelta(hours=1)
_FILES = ("ca.pem", "cert.pem", "key.pem")


@dataclass(frozen=True)
class Certificates:
    """The authority's certificate, a certificate it signed, and the key of that one; PEM texts or paths of files."""

    authority: str
    certificate: str
    key: str

    def security(self) -> Security:
        """Return what Dask needs to show the certificate everywhere, and to accept its authority's alone."""
        from distributed.security import Security

        return Security(
            require_encryption=True,
            tls_min_version=ssl.TLSVersion.TLSv1_3,
            tls_ca_file=self.authority,
            tls_client_cert=self.certificate,
            tls_client_key=self.key,
            tls_scheduler_cert=self.certificate,
            tls_scheduler_key=self.key,
            tls_worker_cert=self.certificate,
            tls_worker_key=self.key,
        )

    def write(self, folder: Path) -> Certificates:
        """Write the texts to a folder, readable by the owner alone, and return the paths of the files."""
        paths = [folder / name for name in _FILES]
        for path, text in zip(paths, (self.authority, self.certificate, self.key), strict=True):
            path.touch(mode=0o600, exist_ok=False)  # before there is anything to read
            path.write_text(text, encoding="ascii")
        return Certificates(*map(str, paths))


def make_certificates() -> Certificates:
    """Make an authority and one certificate it signs, for all members of one cluster; takes milliseconds."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    now = datetime.now(UTC)
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority_name, name = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in ("headroom authority", "headroom run")
    )

    def sign(subject: x509.Name, public: ec.EllipticCurvePublicKey, *, is_authority: bool) -> str:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(now + VALIDITY)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None), True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
            .add_extension(
                x509.KeyUsage(
                    digital_signature=not is_authority,
                    key_cert_sign=is_authority,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    crl_sign=False,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
        )
        return builder.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    return Certificates(
        authority=sign(authority_name, authority_key.public_key(), is_authority=True),
        certificate=sign(name, key.public_key(), is_authority=False),
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
    )


def read_certificates(folder: str | Path) -> Certificates:
    """Find the certificates that somebody put into a folder.

    Raises
    ------
    ConfigError
        If a file is missing, is no PEM file, or other accounts may read the key.
    """
    paths = [Path(folder) / name for name in _FILES]
    for path in paths:
        try:
            is_pem = path.read_bytes().lstrip().startswith(b"-----BEGIN ")
        except OSError as error:
            raise ConfigError(
                f"certificates {folder}: {path.name} cannot be read ({error.strerror}); the folder must hold "
                f"{', '.join(_FILES)}"
            ) from None
        if not is_pem:
            raise ConfigError(f"certificates {folder}: {path.name} is no PEM file")
    if (mode := paths[2].stat().st_mode & 0o077) != 0:
        raise ConfigError(
            f"certificates {folder}: others may read key.pem (mode {mode | 0o600:o}), and with it run code as you; "
            f"make certificates anew, and then `chmod 600 {paths[2]}`"
        )
    return Certificates(*map(str, paths))


# --- Where a run and its workers meet: a folder inside the run folder that only its owner may enter.
#
# It holds the keys of the run's certificates, and is gone with the run. What a killed run left behind, keys and jobs,
# is removed by the next one.


_PREFIX = ".tls-"
_LOCK = "lock"


@dataclass(frozen=True)
class SharedFolder:
    """A folder of one run's cluster.

    Attributes
    ----------
    path
        Absolute, mode 0700.
    token
        The part of its name that no other run's has.
    """

    path: Path
    token: str


@contextmanager
def shared_folder(run_folder: Path) -> Iterator[SharedFolder]:
    """Make a folder of mode 0700 inside the run folder, and remove it at the end.

    The run folder is made where it is missing, and removed again where nothing else came to lie in it.

    Raises
    ------
    ResourceError
        If it cannot be written.
    """
    home = run_folder.absolute()
    made = not home.exists()
    token = secrets.token_hex(4)
    folder = SharedFolder(home / f"{_PREFIX}{token}", token)
    try:
        with disk_errors_told(folder.path):
            home.mkdir(parents=True, exist_ok=True)
            folder.path.mkdir(mode=0o700)
            stream = (folder.path / _LOCK).open("w", encoding="ascii")
        with stream:
            try_lock(stream)
            yield folder
    finally:
        shutil.rmtree(folder.path, ignore_errors=True)
        if made:
            with suppress(OSError):
                home.rmdir()  # fails, as it should, if there is anything in it


def abandoned_tokens(run_folder: Path) -> Iterator[str]:
    """Yield the tokens of runs that were killed, and remove the folder of each once the caller is done with it."""
    for path in sorted(run_folder.glob(f"{_PREFIX}*")):
        if path.is_dir() and _is_abandoned(path):
            yield path.name.removeprefix(_PREFIX)
            shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(path: Path) -> bool:
    """Whether the run that made a folder is dead: its lock went with it, on whichever machine it was."""
    try:
        with open(path / _LOCK, "r+", encoding="ascii", opener=open_regular) as stream:
            locked = try_lock(stream)
    except OSError:
        locked = None
    if locked is not None:
        return locked
    # No locks here, or none yet: a folder is surely of no use once its certificates are not.
    with suppress(OSError):
        return time.time() - path.stat().st_mtime > VALIDITY.total_seconds()
    return False

"""Files and folders that are written whole or not at all, reading of regular files only, locks, values as JSON, arrays
with a header as ``.npz``, and the record of what a run has made.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import shutil
import stat
import struct
import threading
import time
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, Final, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pipeline.errors import InputError, ResourceError, require_kind
from pipeline.schema import PRODUCTS_VERSION

__all__ = [
    "DAMAGE",
    "HEADER_LOCK",
    "TEMPORARY_SUFFIX",
    "PathLike",
    "Products",
    "disk_errors_told",
    "exclusive",
    "find_json",
    "hash_file",
    "hold_file",
    "is_held",
    "is_same_file",
    "is_sealed",
    "json_text",
    "list_paths",
    "open_npz",
    "open_own",
    "open_regular",
    "parse_array",
    "parse_object",
    "read_file",
    "read_json",
    "refuse_environment",
    "remove_leftovers",
    "replacing",
    "replacing_folder",
    "save_npz",
    "seal",
    "try_lock",
    "write_json",
    "write_npz",
]

#: Files and folders of this ending are halves that a killed run left; whoever owns their folder may delete them.
TEMPORARY_SUFFIX = ".tmp"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path`` for a file that replaces it when the block succeeds.

    Raises
    ------
    ResourceError
        If the disk is full or not writable; the message names the path, and nothing is left behind.
    """
    with disk_errors_told(path), _replaced(path) as temporary:
        yield temporary


@contextmanager
def replacing_folder(path: Path, is_good: Callable[[Path], bool]) -> Iterator[Path]:
    """Give a new folder beside ``path`` that takes its place when the block succeeds.

    Parameters
    ----------
    path
        The folder to be made.
    is_good
        Whether a folder that is there already may stay. Several processes may make the same folder at once; the first
        one wins, and what it made is as good as what the others would put there.

    Raises
    ------
    ResourceError
        If the disk is full or not writable; the message names the path, and nothing is left behind.
    """
    temporary = _temporary_name(path)
    with disk_errors_told(path):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            if path.exists() and not is_good(path):
                discarded = _temporary_name(path)
                os.replace(path, discarded)
                shutil.rmtree(discarded, ignore_errors=True)
            try:
                os.replace(temporary, path)
            except OSError:
                # A folder never replaces one that holds files: another process was faster.
                if not (path.is_dir() and is_good(path)):
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Delete the halves that a killed run left in a folder; only its owner may call this.

    Who owns one file or folder in it alone gives its name.
    """
    pattern = ".*" if name is None else f".{glob.escape(name)}.{'[0-9a-f]' * 32}"
    for leftover in folder.glob(f"{pattern}{TEMPORARY_SUFFIX}"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    temporary = _temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")


@contextmanager
def disk_errors_told(path: Path) -> Iterator[None]:
    """Turn an operating-system error while writing below ``path`` into a ResourceError that names it."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full; free space" if full else f"{error.strerror or error}; make it writable"
        raise ResourceError(f"cannot write {path}: {reason}, or write elsewhere") from error


# --- Reading: regular files only, and no blame on a file for what the system refuses.


def open_regular(path: str, flags: int) -> int:
    """Open a regular file, as the ``opener`` of :func:`open`.

    A pipe or a device, also one behind a link, could let the reader wait for ever.

    Raises
    ------
    OSError
        If there is no such file, or it is none of the regular ones.
    """
    handle = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY, 0o666)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return handle
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise OSError(errno.EINVAL, "a regular file is required, and this is a pipe or a device", path)


def read_file(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises
    ------
    OSError
        See :func:`open_regular`.
    """
    with open(path, "rb", opener=open_regular) as stream:
        return stream.read()


#: What libraries raise on damaged files, depending on which byte is wrong; MemoryError where a shape is absurd.
DAMAGE: Final = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    MemoryError,
)
#: What the system says when it cannot read now. It says nothing of what is in a file.
_ENVIRONMENT: Final = {
    errno.EMFILE: "too many open files; allow more with `ulimit -n 4096`",
    errno.ENFILE: "too many open files on this machine; end other programs",
    errno.ENOMEM: "out of memory; free some",
    errno.EACCES: "permission denied; correct its permissions",
    errno.EPERM: "permission denied; correct its permissions",
    errno.EIO: "input/output error; the disk or its connection fails, try again or ask who administers it",
    errno.ESTALE: "stale file handle; the file system was mounted anew, try again",
    errno.ETIMEDOUT: "the file system does not answer; try again or ask who administers it",
    errno.ENOTCONN: "the file system is not connected; ask who administers it",
}


def refuse_environment(path: Path | str, error: BaseException) -> None:
    """Refuse to read on if the system is why a file cannot be read, and not what is in the file.

    Raises
    ------
    ResourceError
        If the error is one of the system's, such as too many open files.
    """
    reason = _ENVIRONMENT.get(error.errno or 0) if isinstance(error, OSError) else None
    if reason is not None:
        raise ResourceError(f"cannot read {path}: {reason}") from error


# --- JSON: no NaN, no infinity, nothing that needs Python.

Built = TypeVar("Built")
_CHECKSUM: Final = "checksum"


def json_text(value: Any) -> str:
    """Return a value as JSON: dataclasses as objects, paths as text, NumPy scalars as numbers, NaN and ±∞ as null."""
    return json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False)


def parse_object(content: bytes | str) -> dict[str, Any]:
    """Return the JSON object that a text holds. All JSON that comes from a file comes through here.

    Raises
    ------
    ValueError
        If it is no JSON, or a value of another kind, or nested more deeply than anything that we write.
    """
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object is required, found {type(value).__name__}")
    return value


def parse_array(facts: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the numbers that facts have under a name.

    Raises
    ------
    ValueError, LookupError, TypeError
        If they are missing, of another shape, or not finite.
    """
    values = np.asarray(facts[name], dtype=np.float64)
    if values.shape != shape or not np.isfinite(values).all():
        raise ValueError(f"finite numbers of shape {shape} as {name!r}, found shape {values.shape}")
    return values


def seal(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts, which must be plain values, with a checksum over all of them."""
    plain = {name: value for name, value in facts.items() if name != _CHECKSUM}
    return {**plain, _CHECKSUM: hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()}


def is_sealed(facts: Mapping[str, Any]) -> bool:
    """Whether facts have a checksum, as those that earlier versions wrote do not.

    Raises
    ------
    ValueError
        If the checksum is that of other facts.
    """
    if _CHECKSUM not in facts:
        return False
    if facts[_CHECKSUM] != seal(facts)[_CHECKSUM]:
        raise ValueError("it does not match its checksum")
    return True


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with open(path, "rb", opener=open_regular) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(path: Path, build: Callable[[dict[str, Any]], Built]) -> Built:
    """Return what ``build`` makes of a JSON object that a run wrote into its folder.

    Raises
    ------
    InputError
        If the file holds something else than ``build`` takes; says to delete it.
    ResourceError
        If the system cannot read it.
    """
    try:
        return build(parse_object(read_file(path)))
    except InputError as error:
        reason = str(error)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        refuse_environment(path, error)
        reason = f"{type(error).__name__}: {error}"
    raise InputError(f"{path} is damaged ({reason}); delete the file, and run again with the same --out")


def find_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, or None where there is none: no such file, or none that can be read as an object."""
    try:
        return parse_object(read_file(path))
    except (OSError, ValueError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Write plain values as a JSON file at once: readers see the old file or the new one, never a part.

    Raises
    ------
    OSError
        If the disk is full or not writable.
    """
    with _replaced(path) as temporary:
        temporary.write_text(json.dumps(value), encoding="utf-8")


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a NumPy scalar; the command line starts without NumPy
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- The lock: one process at a time writes a folder or a file, and a lock ends with its process, however that ends.
#
# A lock is the system's own (``flock``) on a file. Whoever releases it may delete that file, and another process may
# have opened it just before: it would then lock a file that nobody else can find. So a lock counts only if its file
# still has its name once it is locked; otherwise the attempt begins anew.


try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]


#: How often a file is locked again that its last owner deleted just then.
_ATTEMPTS: Final = 100
_SECONDS_BETWEEN_TRIES: Final = 0.2


@contextmanager
def exclusive(
    folder: Path, what: str, name: str = ".lock", *, wait: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold a folder for this process; the lock ends with the process, however it ends.

    On a file system without locks nothing is held, and the user has to know. Locks of other names are other locks.

    Parameters
    ----------
    folder
        The folder.
    what
        What is being written to it, for messages.
    name
        The name of the lock.
    wait
        Told once that another process holds the folder. Then this one waits for its turn, without a limit. By default
        it does not wait.

    Raises
    ------
    InputError
        If another process holds it and this one does not wait, or the name belongs to something else than a lock.
    """
    lock = folder / name
    is_told = False
    while True:
        try:
            stream = hold_file(lock)
            break
        except BlockingIOError:
            if wait is None:
                raise InputError(
                    f"another process is writing {what} {folder}; wait for it, or choose another --out"
                ) from None
        if not is_told:
            wait(f"another process is writing {what} {folder}; this one waits for it")
            is_told = True
        time.sleep(_SECONDS_BETWEEN_TRIES)
    with stream:
        try:
            yield
        finally:
            if is_same_file(stream, lock):
                with suppress(OSError):
                    lock.unlink()


def is_held(path: Path) -> bool:
    """Return whether another process holds a file that is a lock; a lock that nobody holds is deleted."""
    if not path.exists():
        return False
    try:
        with hold_file(path) as stream:
            if is_same_file(stream, path):
                path.unlink(missing_ok=True)
        return False
    except BlockingIOError:
        return True


def hold_file(path: Path, *, make_folder: bool = False) -> IO[bytes]:
    """Open a file for appending and lock it for this process; closing what is returned releases it.

    Parameters
    ----------
    path
        The file; created where it is missing, never emptied, and never one that a link points to.
    make_folder
        Make the folder that it lies in, again if its last owner removes it meanwhile.

    Returns
    -------
    IO
        The open file, locked, and still the one of this name. On a file system without locks it is open and no more.

    Raises
    ------
    BlockingIOError
        If another process holds it, or others delete it again and again.
    InputError
        If a link or anything but a regular file has its name.
    OSError
        If it cannot be opened.
    """
    for _ in range(_ATTEMPTS):
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            stream = open(path, "ab", opener=open_own)  # noqa: SIM115 (the caller closes it)
        except FileNotFoundError:
            if not make_folder:
                raise
            continue  # its last owner has just removed the folder
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise
            raise InputError(
                f"{path} must be a regular file, which this program makes itself, found a link or a pipe; choose "
                "another folder, or move it away"
            ) from error
        locked = try_lock(stream)
        if locked is None or (locked and is_same_file(stream, path)):
            return stream
        stream.close()
        if locked is False:
            break
    raise BlockingIOError(f"{path} is held by another process")


#: What opening a link, a pipe or a device says under :func:`open_own`, depending on the system.
_NOT_OURS: Final = (errno.ELOOP, errno.EMLINK, errno.EINVAL, errno.ENXIO)


def open_own(path: str, flags: int) -> int:
    """Open a regular file that is no link, as the ``opener`` of :func:`open`.

    What a link points to is not this program's to write.

    Raises
    ------
    OSError
        See :func:`open_regular`; ``errno`` is ``ELOOP`` for a link.
    """
    return open_regular(path, flags | os.O_NOFOLLOW)


def try_lock(stream: IO[Any]) -> bool | None:
    """Return whether an open file was locked for this process; None where the file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def is_same_file(opened: IO[Any], path: Path) -> bool:
    """Tell whether an open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(opened.fileno()), path.stat())
    except OSError:
        return False


# --- One ``.npz`` file: arrays, and facts about them as JSON. Nothing is ever pickled.
#
# NumPy writes the same bytes for the same arrays, and anyone's NumPy can read them. The facts are an array of their
# own, ``header``: the bytes of a JSON object.


#: Python 3.11 may parse headers of arrays wrongly where several threads do so at once (CPython issue 106905).
HEADER_LOCK = threading.Lock()
_HEADER: Final = "header"
#: What a damaged archive raises, depending on which byte is wrong.
_NPZ_DAMAGE: Final = (*DAMAGE, EOFError, SyntaxError, TokenError, struct.error, zlib.error, zipfile.BadZipFile)


PathLike: TypeAlias = str | os.PathLike[str]


def list_paths(paths: PathLike | Sequence[PathLike]) -> list[Path]:
    """Return paths as a list. A single one is a list of one, and a text is one path, not a sequence of letters.

    Raises
    ------
    ConfigError
        If anything in it is no path.
    """
    listed = list(paths) if isinstance(paths, Iterable) and not isinstance(paths, str) else [paths]
    for path in listed:
        require_kind("paths", path, (str, os.PathLike), "a path, or a list of paths,")
    return [Path(path) for path in listed]


def write_npz(path: Path, arrays: Mapping[str, Any], header: Mapping[str, Any] | None = None) -> None:
    """Write arrays, with facts about them where there are any, to one file: whole, or not at all.

    Raises
    ------
    ResourceError
        If the disk is full or not writable; nothing is left behind.
    """
    with replacing(path) as temporary, open(temporary, "wb") as stream:
        save_npz(stream, arrays, header)


def save_npz(stream: IO[bytes], arrays: Mapping[str, Any], header: Mapping[str, Any] | None = None) -> None:
    """Write arrays, with facts about them where there are any, to an open file."""
    facts = {} if header is None else {_HEADER: np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)}
    np.savez(stream, allow_pickle=False, **facts, **arrays)


@contextmanager
def open_npz(
    path: Path, refuse: Callable[[object], InputError], form: tuple[str, int] | None = None
) -> Iterator[tuple[dict[str, Any], Mapping[str, Any]]]:
    """Give the facts and the arrays of a file.

    Parameters
    ----------
    path
        What :func:`write_npz` wrote.
    refuse
        Makes the error of a file that cannot be used from the reason. Mistakes of the block's body count, too, such as
        an array that is missing.
    form
        Required ``format`` and ``version`` of the facts; None where the file has no facts.

    Raises
    ------
    InputError
        If the file is missing, damaged or of another form: what ``refuse`` makes of the reason.
    """
    try:
        with (
            HEADER_LOCK,
            open(path, "rb", opener=open_regular) as stream,
            np.load(stream, allow_pickle=False) as archive,
        ):
            arrays = {name: archive[name] for name in archive.files}
        facts: dict[str, Any] = {}
        if form is not None:
            facts = parse_object(arrays[_HEADER].tobytes())
            if (facts.get("format"), facts.get("version")) != form:
                raise ValueError(f"{form[0]} version {form[1]} is required")
        yield facts, arrays
    except _NPZ_DAMAGE as error:
        refuse_environment(path, error)
        raise refuse(error) from None


_FILE = "products.json"


class _Product(BaseModel):
    """A file that a run has made: the key of what it was made of, and the digest of its bytes."""

    model_config = ConfigDict(strict=True)

    key: str
    sha256: str


class _Record(BaseModel):
    """What ``products.json`` holds."""

    model_config = ConfigDict(strict=True)

    version: int
    products: dict[str, _Product]


class Products:
    """The files that a run has made, each with the key of what it was made of and the digest of its bytes.

    Parameters
    ----------
    folder
        The run folder; names of products are relative to it.
    note
        Told of a record that cannot be used, after which everything is made again.
    """

    def __init__(self, folder: Path, note: Callable[[str], None] = lambda _: None) -> None:
        self.folder = folder
        self._made: dict[str, _Product] = {}
        path = folder / _FILE
        if not path.exists():
            return
        try:
            facts = parse_object(read_file(path))
            if is_sealed(facts):
                record = _Record.model_validate(facts)
                if record.version == PRODUCTS_VERSION:
                    self._made = record.products
                    return
            what = "was written by another version"
        except OSError as error:
            raise ResourceError(f"cannot read {path}: {error.strerror}") from error
        except ValueError:
            what = "is damaged"
        note(f"{path} {what}; models and predictions are made again")

    def __getitem__(self, name: str) -> str:
        """Return the key that a product was made of."""
        return self._made[name].key

    def __contains__(self, name: str) -> bool:
        return name in self._made

    def is_made(self, name: str, key: str) -> bool:
        """Whether a product is there, made of this key, and every byte of it is what was written."""
        return name in self and self[name] == key and self._is_whole(name)

    def require(self, name: str) -> Path:
        """Return the file of a product, every byte of which is what was written.

        Raises
        ------
        InputError
            If it is missing, or another file.
        """
        path = self.folder / name
        if name not in self or not self._is_whole(name):
            found = "is missing" if not path.is_file() else "is not the file that the run has made"
            raise InputError(f"{path} {found} ({_FILE} tells); run again with the same --out, which makes it again")
        return path

    def record(self, name: str, key: str) -> None:
        """Remember that a product is there."""
        self._made[name] = _Product(key=key, sha256=hash_file(self.folder / name))
        made = {known: product.model_dump() for known, product in self._made.items()}
        content = seal({"version": PRODUCTS_VERSION, "products": made})
        with replacing(self.folder / _FILE) as temporary:
            temporary.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")

    def keys_of(self, names: Iterable[str]) -> dict[str, str]:
        """Return some products with their keys."""
        return {name: self[name] for name in names}

    def snapshot(self) -> dict[str, str]:
        """Return all products with their keys."""
        return self.keys_of(self._made)

    def _is_whole(self, name: str) -> bool:
        try:
            return hash_file(self.folder / name) == self._made[name].sha256
        except OSError:
            return False

"""Large files past the page cache, where the system can do it.

What is written once gains nothing from the page cache, and neither does reading what is larger than memory. The cache
costs a copy and pushes out what others need, and on virtual machines its fresh pages cost more than the disk: 0.1 to
0.8 s of CPU for writing 512 MiB, against 0.01 s without it. Linux calls it ``O_DIRECT``; addresses, offsets and lengths
must then be multiples of a block. Where that cannot be had (other systems, memory file systems, odd addresses) the same
bytes go the ordinary way. ``benchmarks/NOTES.md`` says where it pays and where not.
"""

from __future__ import annotations

import errno
import os
import stat
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK", "BlockFile", "BlockWriter", "aligned_buffer", "open_direct", "write_file"]

#: A multiple of every disk's block; what the caller wants to be read directly should begin at a multiple of it.
BLOCK = 4096
_MEMORY_ALIGNMENT = 512
_O_DIRECT = getattr(os, "O_DIRECT", 0)
_SMALL = 2**20


def aligned_buffer(size: int) -> NDArray[np.uint8]:
    """Return fresh memory of any content that begins at a multiple of :data:`BLOCK`."""
    raw = np.empty(size + BLOCK, np.uint8)
    first = -raw.ctypes.data % BLOCK
    return raw[first : first + size]


def open_direct(path: Path, flags: int, mode: int = 0o666) -> int:
    """Open a file past the page cache, or in the ordinary way where the file system cannot."""
    try:
        return os.open(path, flags | _O_DIRECT, mode)
    except OSError as error:
        if error.errno != errno.EINVAL or not _O_DIRECT:
            raise
        return os.open(path, flags, mode)


class BlockFile:
    """A file read in whole blocks; a context manager.

    Parameters
    ----------
    path
        The file.
    direct
        Read past the page cache, also what it happens to hold; False reads through it.

    Raises
    ------
    OSError
        If the file cannot be opened.
    """

    def __init__(self, path: Path, *, direct: bool) -> None:
        self.is_direct = direct
        self._handle = (open_direct if direct else os.open)(path, os.O_RDONLY | os.O_NONBLOCK)
        found = os.fstat(self._handle)
        if not stat.S_ISREG(found.st_mode):
            os.close(self._handle)
            raise OSError(errno.EINVAL, "a regular file is required", os.fspath(path))
        self.size = found.st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._handle)

    def read(self, start: int, out: NDArray[np.uint8]) -> int:
        """Fill ``out`` from ``start`` on; return how many bytes there were.

        Parameters
        ----------
        start
            A multiple of :data:`BLOCK`.
        out
            Whole blocks, from :func:`aligned_buffer`; the last one may reach past the end of the file.

        Raises
        ------
        OSError
            If the file cannot be read.
        """
        return _pread(self._handle, start, out)


class BlockWriter:
    """A new file written piece by piece, by a thread of its own; a context manager.

    Parameters
    ----------
    path
        The file; truncated if it exists.
    staging
        Whole blocks, from :func:`aligned_buffer`: pieces are gathered in one half of it while the other is written.

    Raises
    ------
    OSError
        If the disk is full or fails, at whatever call that shows.
    """

    def __init__(self, path: Path, staging: NDArray[np.uint8]) -> None:
        half = staging.size // (2 * BLOCK) * BLOCK
        self._open, self._other, self._filled = staging[:half], staging[half : 2 * half], 0
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self._thread = ThreadPoolExecutor(1, "write")
        self._written: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wait()
            if kind is None:
                whole = self._filled // BLOCK * BLOCK
                self._write_blocks(self._open[:whole])
                _end_direct(self._handle)
                _write_all(self._handle, self._open[whole : self._filled])
        finally:
            self._thread.shutdown()
            os.close(self._handle)

    def write(self, piece: bytes) -> None:
        """Append bytes to the file."""
        content = np.frombuffer(piece, np.uint8)
        while content.size:
            taken = min(content.size, self._open.size - self._filled)
            self._open[self._filled : self._filled + taken] = content[:taken]
            self._filled, content = self._filled + taken, content[taken:]
            if self._filled == self._open.size:
                self._wait()
                self._written = self._thread.submit(self._write_blocks, self._open)
                self._open, self._other, self._filled = self._other, self._open, 0

    def _wait(self) -> None:
        """Wait until the other half is on the disk."""
        written, self._written = self._written, None
        if written is not None:
            written.result()

    def _write_blocks(self, content: NDArray[np.uint8]) -> None:
        if content.size >= _SMALL:
            _begin_direct(self._handle)
        _write_all(self._handle, content)


def write_file(path: Path, head: bytes, content: NDArray[np.uint8]) -> None:
    """Write a new file: ``head``, whose length is a multiple of :data:`BLOCK`, then ``content``.

    Raises
    ------
    OSError
        If the disk is full or fails.
    """
    if len(head) % BLOCK:
        raise ValueError(f"the head must be a multiple of {BLOCK} bytes, is {len(head)}")
    first = aligned_buffer(len(head))
    first[:] = np.frombuffer(head, np.uint8)
    body = content.size // BLOCK * BLOCK if _can_go_direct(content) else 0
    handle = (open_direct if body else os.open)(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        _write_all(handle, first)
        _write_all(handle, content[:body])
        _end_direct(handle)
        _write_all(handle, content[body:])
    finally:
        os.close(handle)


def _can_go_direct(memory: NDArray[np.uint8]) -> bool:
    return bool(_O_DIRECT) and memory.size >= _SMALL and memory.ctypes.data % _MEMORY_ALIGNMENT == 0


def _begin_direct(handle: int) -> None:
    if _O_DIRECT:
        import fcntl

        with suppress(OSError):  # the file system cannot: the ordinary way
            fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) | _O_DIRECT)


def _end_direct(handle: int) -> None:
    """Go on in the ordinary way: what is left is no multiple of a block, or the disk wants larger ones."""
    if _O_DIRECT:
        import fcntl

        fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) & ~_O_DIRECT)


def _write_all(handle: int, content: NDArray[np.uint8]) -> None:
    view = content.data
    while view:
        try:
            view = view[os.write(handle, view) :]
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            _end_direct(handle)  # raises next time if that was not the reason
            view = view[os.write(handle, view) :]


def _pread(handle: int, start: int, out: NDArray[np.uint8]) -> int:
    try:
        return os.preadv(handle, [out.data], start)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _end_direct(handle)
        return os.preadv(handle, [out.data], start)

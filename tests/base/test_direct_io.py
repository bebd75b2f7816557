from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.base import BLOCK, BlockFile, BlockWriter, aligned_buffer, direct_io, write_file

HEAD = b"head".ljust(BLOCK, b".")


def numbers(size: int, offset: int = 0) -> np.ndarray:
    memory = aligned_buffer(size + offset)[offset:]
    memory[:] = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    return memory


@pytest.mark.parametrize("size", [0, 1, BLOCK, 2**20, 2**20 + 1, 3 * 2**20 - 7])
@pytest.mark.parametrize("offset", [0, 1])
def test_write_at_any_size_and_address(tmp_path: Path, size: int, offset: int) -> None:
    content = numbers(size, offset)
    write_file(tmp_path / "f", HEAD, content)
    assert (tmp_path / "f").read_bytes() == HEAD + content.tobytes()


@pytest.mark.parametrize("where", ["open", "write", "preadv"])
def test_file_systems_without_direct_access_work_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """As a memory file system that refuses to open, and a disk that wants larger blocks."""
    original = getattr(os, where)
    direct = {"open": os.O_DIRECT}.get(where, 0)
    refused = []

    def refuse(*arguments: object) -> object:
        if where == "open" and not int(arguments[1]) & direct:  # type: ignore[call-overload]
            return original(*arguments)
        if where != "open":
            import fcntl

            if not fcntl.fcntl(arguments[0], fcntl.F_GETFL) & os.O_DIRECT:  # type: ignore[call-overload]
                return original(*arguments)
        refused.append(where)
        raise OSError(errno.EINVAL, "Invalid argument")

    content = numbers(2**20 + 5)
    monkeypatch.setattr(direct_io.os, where, refuse)
    write_file(tmp_path / "f", HEAD, content)
    with BlockFile(tmp_path / "f", direct=True) as file:
        found = aligned_buffer(file.size + -file.size % BLOCK)
        assert file.read(0, found) == file.size
    assert found[: file.size].tobytes() == HEAD + content.tobytes()
    assert refused


@pytest.mark.parametrize("direct", [False, True])
def test_block_file_gives_the_same_bytes_from_cache_and_disk(tmp_path: Path, direct: bool) -> None:
    content = numbers(5 * BLOCK + 100)
    (tmp_path / "f").write_bytes(content.tobytes())
    with BlockFile(tmp_path / "f", direct=direct) as file:
        assert file.size == content.size
        blocks = aligned_buffer(5 * BLOCK)
        blocks[:] = 0
        assert file.read(BLOCK, blocks) >= 4 * BLOCK + 100
        np.testing.assert_array_equal(blocks[: 4 * BLOCK + 100], content[BLOCK:])
        assert file.read(8 * BLOCK, blocks) == 0


def test_write__raise_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(direct_io.os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path / "f", HEAD, numbers(2**20))


@pytest.mark.parametrize("staging", [2 * BLOCK, 2**21, 2**23])
@pytest.mark.parametrize("sizes", [[], [0], [1], [BLOCK], [5, 2**20, 3 * 2**20 + 1, 7], [2**20] * 9])
def test_written_piece_by_piece(tmp_path: Path, staging: int, sizes: list[int]) -> None:
    pieces = [numbers(size).tobytes() for size in sizes]
    with BlockWriter(tmp_path / "f", aligned_buffer(staging)) as file:
        for piece in pieces:
            file.write(piece)
    assert (tmp_path / "f").read_bytes() == b"".join(pieces)


def test_an_error_of_the_writing_thread_reaches_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(direct_io.os, "write", fail)
    with pytest.raises(OSError, match="No space left"), BlockWriter(tmp_path / "f", aligned_buffer(2**21)) as file:
        file.write(numbers(3 * 2**20).tobytes())

"""One process at a time, also while lock files come and go."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from pipeline.base import exclusive, hold_file, try_lock
from pipeline.errors import InputError

#: Takes the lock so many times; inside it makes a file that nobody else may have made.
CONTENDER = """
    import fcntl, os, random, sys, time
    from pathlib import Path
    from pipeline.base import exclusive
    from pipeline.errors import InputError

    def slowly(call):
        def wrapped(*given, **options):
            time.sleep(random.random() * 0.002)
            return call(*given, **options)
        return wrapped

    # Between any two steps of one process the others take theirs.
    fcntl.flock, os.fstat, Path.unlink = map(slowly, (fcntl.flock, os.fstat, Path.unlink))
    folder, held = Path(sys.argv[1]), 0
    while held < int(sys.argv[2]):
        try:
            with exclusive(folder, "the folder"):
                os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
                time.sleep(0.002)
                held += 1
                os.unlink(folder / "inside")
        except InputError:
            pass
    print(held)
"""


def test_exclusive__one_of_several_processes(tmp_path: Path) -> None:
    """Each holder deletes the lock's file while the others have it open."""
    command = [sys.executable, "-c", textwrap.dedent(CONTENDER), str(tmp_path), "60"]
    contenders = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    found = [contender.communicate(timeout=120)[0] for contender in contenders]
    assert [contender.returncode for contender in contenders] == [0] * 4
    assert list(map(int, found)) == [60] * 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", [True, False])
def test_hold_file__leaves_what_a_link_points_to(tmp_path: Path, there: bool) -> None:
    """Nothing is written to it, emptied or made, whichever command would hold the link."""
    precious = tmp_path / "precious"
    if there:
        precious.write_text("a thesis")
    (tmp_path / ".lock").symlink_to("precious")
    with pytest.raises(InputError, match="found a link"), exclusive(tmp_path, "the folder"):
        pass
    assert not there or precious.read_text() == "a thesis"
    assert precious.exists() == there
    assert (tmp_path / ".lock").is_symlink()


def test_hold_file__never_waits_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(InputError, match="a pipe"), exclusive(tmp_path, "the folder"):
        pass


def test_exclusive__another_holder_is_an_error_and_the_end_releases(tmp_path: Path) -> None:
    with exclusive(tmp_path, "the folder"):
        with pytest.raises(InputError, match="another process"), exclusive(tmp_path, "the folder"):
            pass
        with exclusive(tmp_path, "the folder", ".other"):
            pass
    with exclusive(tmp_path, "the folder"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_exclusive__the_holder_finishes_between_open_and_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was deleted meanwhile can be locked, but nobody else would ever find that lock."""
    first = exclusive(tmp_path, "the folder")
    first.__enter__()
    flock, finished = fcntl.flock, []

    def finish_then_lock(*given: Any) -> None:
        if not finished:
            finished.append(first.__exit__(None, None, None))
        flock(*given)

    monkeypatch.setattr(fcntl, "flock", finish_then_lock)
    with exclusive(tmp_path, "the folder"):
        assert (tmp_path / ".lock").exists()
        with pytest.raises(InputError, match="another process"), exclusive(tmp_path, "the folder"):
            pass


def test_exclusive__the_end_leaves_the_lock_of_another(tmp_path: Path) -> None:
    """Somebody deleted the file of a lock that is held: its owner must not delete the next one's."""
    with exclusive(tmp_path, "the folder"):
        (tmp_path / ".lock").unlink()
        other = hold_file(tmp_path / ".lock")
    with other, pytest.raises(InputError, match="another process"), exclusive(tmp_path, "the folder"):
        pass


def test_exclusive__holds_nothing_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with exclusive(tmp_path, "the folder"), exclusive(tmp_path, "the folder"):
        pass
    with open(tmp_path / "file", "wb") as stream:
        assert try_lock(stream) is None


def test_hold_file__gives_up_where_others_delete_it_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: os.unlink(tmp_path / "file"))
    with pytest.raises(BlockingIOError):
        hold_file(tmp_path / "file")

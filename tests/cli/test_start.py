"""How the command ends where nobody expected it."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import invoke, require_one_line

from pipeline.cli.app import cli


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Exception], None]:
    """Let every command end with an error, and write its crash file into a folder of the test's own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def end_with(error: Exception) -> None:
        def fail(**_: object) -> None:
            raise error

        monkeypatch.setattr(cli, "main", fail)

    return end_with


def test_what_nobody_expected_is_one_line_and_a_file_of_the_users_own(
    broken: Callable[[Exception], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    broken(KeyError("of\nall things"))
    code, _, err = invoke(capsys, "status")
    [crash] = tmp_path.glob("headroom-crash-*")
    assert code == 70
    require_one_line(err)
    assert str(crash) in err
    assert stat.S_IMODE(crash.stat().st_mode) == 0o600
    assert all(word in crash.read_text() for word in ("Traceback", "KeyError", "command: ", "'numpy'"))


def test_a_crash_is_told_where_no_file_can_be_written(
    broken: Callable[[Exception], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    broken(KeyError("of all things"))
    code, _, err = invoke(capsys, "status")
    assert code == 70
    assert "TMPDIR" in err
    require_one_line(err)


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (MemoryError(), "out of memory"),
        (ImportError("x.so: failed to map segment from shared object"), "out of memory"),
    ],
    ids=["thread", "memory", "library"],
)
def test_what_the_machine_lacks_is_no_fault(
    broken: Callable[[Exception], None], capsys: pytest.CaptureFixture[str], error: Exception, word: str
) -> None:
    broken(error)
    code, _, err = invoke(capsys, "status")
    assert code == 3
    assert word in err
    require_one_line(err)

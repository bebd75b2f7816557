"""Only regular files are opened, and the system's refusals are not blamed on a file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from cluster import load_profile
from pipeline.base import BlockFile, find_json, hash_file, open_npz, read_file, read_json
from pipeline.base.journal import write_anyway
from pipeline.base.status import read_status, read_submission
from pipeline.config import load_config
from pipeline.errors import ConfigError, InputError, ResourceError
from pipeline.moments import SavedMoments
from pipeline.predict.files import read_bundle
from pipeline.predict.predict import read_facts


@pytest.fixture(params=["pipe", "link", "device"])
def irregular(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "irregular"
    if request.param == "device":
        path.symlink_to("/dev/zero")
        return path
    os.mkfifo(tmp_path / "pipe")
    path.symlink_to("pipe") if request.param == "link" else os.rename(tmp_path / "pipe", path)
    return path


def test_reading__never_waits_for_a_pipe(irregular: Path) -> None:
    for read in (read_file, hash_file, lambda path: BlockFile(path, direct=False)):
        with pytest.raises(OSError, match="regular file"):
            read(irregular)
    with pytest.raises(InputError, match="regular file"):
        read_json(irregular, dict)
    assert find_json(irregular) is None
    assert read_facts(irregular) is None
    with pytest.raises(InputError), open_npz(irregular, lambda reason: InputError(str(reason))):
        pass
    for load in (load_config, load_profile):
        with pytest.raises(ConfigError, match="regular file"):
            load(irregular)
    folder = irregular.parent
    for name, read_folder in (
        ("status.json", read_status),
        ("submission.json", read_submission),
        ("moments.json", SavedMoments.open),
    ):
        (folder / name).symlink_to(irregular)
        with pytest.raises(InputError, match="regular file") as refused:
            read_folder(folder)
        assert name not in ("status.json", "submission.json") or "delete" not in str(refused.value)


def test_bundle__never_waits_for_a_pipe(irregular: Path) -> None:
    folder = irregular.parent
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  model.json\n")
    (folder / "model.json").symlink_to(irregular)
    with pytest.raises(InputError, match=r"model\.json"):
        read_bundle(folder)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO, errno.ENOMEM])
def test_reading__what_the_system_refuses_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "facts.json"
    path.write_text("{}")
    np.savez(tmp_path / "arrays.npz", x=np.zeros(1))

    def fail(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(ResourceError):
        read_json(path, dict)
    with pytest.raises(ResourceError), open_npz(tmp_path / "arrays.npz", lambda reason: InputError(str(reason))):
        pass


def test_writing_over__leaves_what_a_link_points_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise ResourceError("the disk is full")

    (tmp_path / "precious").write_text("a thesis")
    (tmp_path / "status.json").symlink_to("precious")
    monkeypatch.setattr("pipeline.base.journal.replacing", full)
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        write_anyway(tmp_path / "status.json", "{}")
    assert (tmp_path / "precious").read_text() == "a thesis"

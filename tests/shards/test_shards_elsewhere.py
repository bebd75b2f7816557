"""Shards that refer to other files, and shards whose file system or machine is at fault, not their content."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from shard_factory import make_pixels, write_shard

from pipeline.convert import convert_shards, inspect_path, verify_store
from pipeline.errors import InputError, ResourceError
from pipeline.predict.sources import open_spectra_source
from pipeline.shards import ShardReader, read_shard_info

ERROR = "dataset/arrays/error/value"
MASK = "dataset/arrays/mask/value"
PARAMS = "dataset/params"
WAVE = "spectrumdataset/wave"


def move_out(shard: Path, name: str, other: Path) -> Path:
    """Put a node of a shard into another file, and an external link in its place."""
    with h5py.File(shard, "a") as file, h5py.File(other, "a") as target:
        file.copy(name, target, name)
        del file[name]
        file[name] = h5py.ExternalLink(other.name, f"/{name}")
    return shard


def store_outside(shard: Path, raw: Path, size: int | None = None) -> Path:
    """Replace the mask by one whose bytes are those of another file, such as ``/etc/passwd``."""
    with h5py.File(shard, "a") as file:
        del file[MASK]
        extent = h5py.h5f.UNLIMITED if size is None else size
        file.create_dataset(MASK, (40, 16), "i1", external=[(str(raw), 0, extent)])
    return shard


@pytest.mark.parametrize("name", [ERROR, "dataset/arrays/error", PARAMS, WAVE, "dataset"])
def test_external_links__are_followed_only_when_asked_for(tmp_path: Path, name: str) -> None:
    whole = read_shard_info(write_shard(tmp_path / "whole.h5"))
    shard = move_out(write_shard(tmp_path / "dataset.h5"), name, tmp_path / "other.h5")
    for read in (read_shard_info, lambda path: open_spectra_source([path], tmp_path)):
        with pytest.raises(InputError, match=r"external link to 'other\.h5'.*--allow-external"):
            read(shard)
    info = read_shard_info(shard, allow_external=True)
    assert (info.fingerprint, info.others) == (whole.fingerprint, (tmp_path / "other.h5",))
    before = info.stamp
    os.utime(tmp_path / "other.h5", ns=(1, before[1] + 1))
    assert read_shard_info(shard, allow_external=True).stamp != before
    (tmp_path / "other.h5").unlink()
    with pytest.raises(InputError, match=r"other\.h5', which is not there"):
        read_shard_info(shard, allow_external=True)


def test_external_links__behind_a_soft_link_and_in_the_other_file(tmp_path: Path) -> None:
    shard = move_out(write_shard(tmp_path / "dataset.h5"), ERROR, tmp_path / "other.h5")
    move_out(tmp_path / "other.h5", ERROR, tmp_path / "third.h5")
    with h5py.File(shard, "a") as file:
        file.move(ERROR, "aside")
        file[ERROR] = h5py.SoftLink("/aside")
    with pytest.raises(InputError, match="external link"):
        read_shard_info(shard)
    assert [one.name for one in read_shard_info(shard, allow_external=True).others] == ["other.h5", "third.h5"]


def test_soft_links__to_nothing_and_in_circles(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "dataset.h5")
    with h5py.File(shard, "a") as file:
        file.move(PARAMS, "kept")
        file[PARAMS] = h5py.SoftLink("/kept")
    assert read_shard_info(shard).n_spectra == 40
    for target in ("/gone", f"/{PARAMS}"):
        with h5py.File(shard, "a") as file:
            del file[PARAMS]
            file[PARAMS] = h5py.SoftLink(target)
        with pytest.raises(InputError, match=r"is a link (to something that is not|that leads in a circle)"):
            read_shard_info(shard)


def test_external_storage__is_read_only_when_asked_for_and_whole(tmp_path: Path) -> None:
    raw = tmp_path / "raw.bin"
    raw.write_bytes(bytes(640))
    shard = store_outside(write_shard(tmp_path / "dataset.h5"), raw)
    with pytest.raises(InputError, match=r"external storage in '.*raw\.bin'.*--allow-external"):
        read_shard_info(shard)
    assert read_shard_info(shard, allow_external=True).others == (raw,)
    raw.write_bytes(bytes(639))
    with pytest.raises(InputError, match=r"needs 640 bytes.*639"):
        read_shard_info(shard, allow_external=True)
    raw.unlink()
    with pytest.raises(InputError, match="is not there"):
        read_shard_info(shard, allow_external=True)


def test_virtual_wavelengths__of_another_file(tmp_path: Path) -> None:
    shard, other = write_shard(tmp_path / "dataset.h5"), write_shard(tmp_path / "other.h5")
    layout = h5py.VirtualLayout((16,), "f8")
    layout[:] = h5py.VirtualSource(other, WAVE, (16,))
    with h5py.File(shard, "a") as file:
        del file[WAVE]
        file.create_virtual_dataset(WAVE, layout)
    with pytest.raises(InputError, match=r"virtual dataset with parts in .*other\.h5"):
        read_shard_info(shard)


def test_external_links__converted_verified_inspected(tmp_path: Path) -> None:
    shard = move_out(write_shard(tmp_path / "dataset.h5"), ERROR, tmp_path / "other.h5")
    (inspection,) = inspect_path(shard)
    assert "external link" in (inspection.problem or "")
    (inspection,) = inspect_path(shard, allow_external=True)
    assert inspection.problem is None
    with pytest.raises(InputError, match="external link"):
        convert_shards([shard], tmp_path / "store", workers=1)
    store = convert_shards([shard], tmp_path / "store", workers=1, allow_external=True)
    verify_store(store, [shard], workers=1, allow_external=True)
    np.testing.assert_array_equal(store.read_rows("error", 0, 40), make_pixels(40, 16)[1].astype("f4"))
    source = open_spectra_source([shard], tmp_path, allow_external=True)
    np.testing.assert_array_equal(source.read_rows("error", 0, 40), store.read_rows("error", 0, 40))


def test_pipes__are_not_opened(tmp_path: Path) -> None:
    """As a shard, behind a link, and behind an external link that may be followed; each of them would wait for ever."""
    os.mkfifo(tmp_path / "pipe.h5")
    (tmp_path / "link.h5").symlink_to("pipe.h5")
    for name in ("pipe.h5", "link.h5"):
        with pytest.raises(InputError, match="regular file"):
            read_shard_info(tmp_path / name)
    shard = move_out(write_shard(tmp_path / "dataset.h5"), ERROR, tmp_path / "other.h5")
    (tmp_path / "other.h5").unlink()
    os.mkfifo(tmp_path / "other.h5")
    for allowed in (False, True):
        with pytest.raises(InputError, match="external link"):
            read_shard_info(shard, allow_external=allowed)


# --- What the system refuses, and what a file needs.

NO_LOCKS = """
#include <errno.h>
#include <stdlib.h>
int flock(int descriptor, int operation) { errno = atoi(getenv("NO_LOCKS")); return -1; }
"""
READ = "import sys; from pipeline.shards import read_shard_info; print(read_shard_info(sys.argv[1]).n_spectra)"


@pytest.fixture(scope="module")
def no_locks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that lets every ``flock`` fail, as a file system without locks does."""
    compiler = shutil.which("cc") or pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("preload") / "no_locks.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", library], input=NO_LOCKS, text=True, check=True)
    return library


@pytest.mark.parametrize("number", ["ENOLCK", "EIO", "EOPNOTSUPP", "EAGAIN"])
def test_read__file_systems_without_locks(tmp_path: Path, no_locks: Path, number: str) -> None:
    shard = write_shard(tmp_path / "dataset.h5")
    environment = {**os.environ, "LD_PRELOAD": str(no_locks), "NO_LOCKS": str(getattr(errno, number))}
    run = subprocess.run([sys.executable, "-c", READ, shard], env=environment, capture_output=True, text=True)
    assert run.stdout == ("" if number == "EAGAIN" else "40\n"), run.stderr
    assert ("open for writing elsewhere" in run.stderr) == (number == "EAGAIN")


@pytest.mark.parametrize("swmr", [True, False])
def test_read__raise_on_the_flag_of_a_killed_writer(tmp_path: Path, swmr: bool) -> None:
    shard = tmp_path / "dataset.h5"
    kill = (
        "import h5py, os, sys; f = h5py.File(sys.argv[1], 'w', libver='latest'); f['x'] = [1.0];"
        f"{'f.swmr_mode = True; ' if swmr else ''}f.flush(); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", kill, shard], check=True)
    with pytest.raises(InputError, match="h5clear -s"):
        read_shard_info(shard)


@pytest.mark.parametrize("name", [f"{PARAMS}/table", ERROR])
def test_read__raise_on_a_filter_that_is_not_installed(tmp_path: Path, name: str) -> None:
    """The filter of the file is renamed to one that no machine has."""
    shard = write_shard(tmp_path / "dataset.h5")
    with h5py.File(shard, "a") as file:
        values, attributes = file[name][()], dict(file[name].attrs)
        del file[name]
        shape = (40, 16) if name == ERROR else True
        file.create_dataset(name, data=values, chunks=shape, compression="lzf").attrs.update(attributes)
        file[name].id.write_direct_chunk((0,) * values.ndim, bytes(64))  # whether or not it had been compressed
    # A filter's number stands before the lengths of its name and values; headers that were moved have copies.
    renamed = re.sub(
        rb"\x00\x7d(.{6}lzf\x00)", lambda found: (32123).to_bytes(2, "little") + found[1], shard.read_bytes()
    )
    shard.write_bytes(renamed)
    with pytest.raises(InputError, match=r"filter 32123 \(lzf\)"):
        read_shard_info(shard)


def test_read__too_many_open_files_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write_shard(tmp_path / "dataset.h5")
    limits = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) - 1,) * 2)"
    code = f"import os, sys; from pipeline.shards import read_shard_info; {limits}; read_shard_info(sys.argv[1])"
    run = subprocess.run([sys.executable, "-c", code, shard], capture_output=True, text=True)
    assert "ResourceError" in run.stderr
    assert "too many open files" in run.stderr

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(h5py.Dataset, "read_direct", fail)
    with ShardReader(shard) as reader, pytest.raises(ResourceError, match="input/output"):
        reader.read_rows("flux", 0, 2)

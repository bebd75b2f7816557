from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask.config
import distributed
import numpy as np
import psutil
import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from distributed import Client, Worker
from distributed.security import Security
from greeting import ask_for_identity
from packaging.version import Version

from cluster import AddressProfile, LocalProfile, SlurmProfile, connect, connect_local
from cluster.certificates import (
    VALIDITY,
    Certificates,
    abandoned_tokens,
    make_certificates,
    read_certificates,
    shared_folder,
)
from cluster.checks import nonce_file, require_same_workers, unfit_workers
from cluster.dashboard import find_dashboard
from pipeline.config import ExperimentConfig
from pipeline.errors import ConfigError, InputError, ResourceError
from pipeline.run import run_experiment

SMALL = LocalProfile(workers=1, processes=True, memory_limit=2**30)


def test_everything_listens_on_loopback_and_speaks_tls() -> None:
    with connect_local(SMALL) as client:
        assert client.scheduler.address.startswith("tls://127.0.0.1:")
        assert client.dashboard_link.startswith("http://127.0.0.1:")
        assert {address for address, _ in listening_here()} == {"127.0.0.1"}


def listening_here() -> set[tuple[str, int]]:
    """Addresses that this process and its children listen on."""
    here = psutil.Process()
    return {
        (connection.laddr.ip, connection.laddr.port)
        for process in (here, *here.children(recursive=True))
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }


def test_a_single_worker_is_a_thread_here_and_only_dashboards_listen() -> None:
    before, children = listening_here(), len(psutil.Process().children())
    with connect_local(LocalProfile(threads=3, memory_limit=2**30)) as client:
        assert list(client.run(os.getpid).values()) == [os.getpid()]
        assert len(psutil.Process().children()) == children
        address = find_dashboard(client)
        assert address is not None
        new = listening_here() - before
        assert ("127.0.0.1", address.port) in new
        assert {host for host, _ in new} == {"127.0.0.1"}
        assert list(client.run(lambda: os.environ["HEADROOM_THREADS"]).values()) == ["3"]
    assert "HEADROOM_THREADS" not in os.environ
    assert listening_here() == before


@pytest.mark.parametrize("has_processes", [False, True])
def test_workers_sample_their_threads_only_where_python_may(has_processes: bool) -> None:
    def samples(dask_worker: Worker) -> bool:
        return "profile" in dask_worker.periodic_callbacks

    with connect(LocalProfile(workers=1, processes=has_processes, memory_limit=2**30)) as client:
        assert list(client.run(samples).values()) == [sys.version_info >= (3, 11, 12)]


def test_dask_is_left_as_it_was() -> None:
    before = dict(dask.config.config)
    with connect():
        assert dask.config.get("scheduler") == "dask.distributed"
    assert dask.config.config == before


def test_threads_and_memory_are_shared_out() -> None:
    one, four = LocalProfile(workers=1), LocalProfile(workers=4)
    assert one.resolved_threads() >= four.resolved_threads() >= 1
    assert one.resolved_memory() > 3 * four.resolved_memory()
    assert LocalProfile(threads=3).resolved_threads() == 3
    with connect(LocalProfile(workers=1, processes=True, threads=3, memory_limit=2**30)) as client:
        assert list(client.run(lambda: os.environ["HEADROOM_THREADS"]).values()) == ["3"]
        assert list(client.run(asks_for_large_pages).values()) == [False]


def asks_for_large_pages() -> bool:
    """Whether NumPy does in this process; it decides when it is imported."""
    from numpy._core.multiarray import _get_madvise_hugepage

    return bool(_get_madvise_hugepage())


@pytest.mark.slow  # a program whose workers start programs
@pytest.mark.skipif(
    Version(distributed.__version__) < Version("2026.8"), reason="Dask before 2026.8 starts such workers for ever"
)
def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(
        "from cluster import LocalProfile, connect_local\n"
        "with connect_local(LocalProfile(workers=1, processes=True)) as client:\n    print(client)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert 'if __name__ == "__main__":' in done.stderr.splitlines()[-1]


def test_slurm_needs_a_folder_that_nodes_share() -> None:
    profile = SlurmProfile(jobs=1, cores=1, memory=2**30, walltime="00:10:00")
    with pytest.raises(InputError, match="run_folder"), connect(profile):
        pass


def test_importing_dask_jobqueue_leaves_ctrl_c_as_it_was() -> None:
    code = (
        "import signal; b = signal.getsignal(2); import cluster.slurm.script; "
        "assert signal.getsignal(2) is b is not None"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# Who gets in


@pytest.fixture(scope="module")
def guarded() -> Iterator[Client]:
    with connect_local(SMALL) as client:
        yield client


def foreign(kind: str) -> Security | None:
    """What somebody without this run's certificates may come with."""
    return {
        "no certificate": None,
        "certificates of another run": make_certificates().security(),
        "a certificate that signed itself": Security.temporary(),
    }[kind]


@pytest.mark.parametrize("kind", ["no certificate", "certificates of another run", "a certificate that signed itself"])
@pytest.mark.parametrize("protocol", ["tls://", "tcp://"])
def test_a_client_without_the_runs_certificates_is_refused(kind: str, protocol: str, guarded: Client) -> None:
    address = guarded.scheduler.address.replace("tls://", protocol)
    with pytest.raises((OSError, TypeError, ValueError, RuntimeError)):
        ask_for_identity(address, foreign(kind))
    assert ask_for_identity(guarded.scheduler.address, guarded.security)["type"] == "Scheduler"


def start_worker(kind: str, scheduler: str, folder: Path) -> subprocess.Popen[str]:
    """Start a worker that lacks the run's certificates, and gives up after some seconds."""
    folder.mkdir()
    options: list[str] = []
    if kind == "certificates of another run":
        files = make_certificates().write(folder)
        options = ["--tls-ca-file", files.authority, "--tls-cert", files.certificate, "--tls-key", files.key]
    elif kind == "plain TCP":
        scheduler = scheduler.replace("tls://", "tcp://")
    command = [sys.executable, "-m", "distributed.cli.dask_worker", scheduler, "--no-nanny", "--host", "127.0.0.1"]
    command += ["--death-timeout", "4", "--dashboard-address", "127.0.0.1:0", "--local-directory", str(folder)]
    return subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.mark.faults
def test_a_worker_without_the_runs_certificates_is_refused(guarded: Client, tmp_path: Path) -> None:
    """Of every kind one, all at once: most of their time they wait to be let in."""
    before = set(guarded.scheduler_info(n_workers=-1)["workers"])
    kinds = ["no certificate", "certificates of another run", "plain TCP"]
    started = {kind: start_worker(kind, guarded.scheduler.address, tmp_path / kind) for kind in kinds}
    try:
        for kind, worker in started.items():
            _, err = worker.communicate(timeout=90)
            assert worker.returncode != 0, kind
            assert "Registered to" not in err, kind
    finally:
        for worker in started.values():
            worker.kill()
            worker.communicate()
    assert set(guarded.scheduler_info(n_workers=-1)["workers"]) == before


@pytest.mark.parametrize("listener", ["scheduler", "worker"])
@pytest.mark.parametrize("kind", ["no certificate", "another run's", "old TLS", "own"])
def test_every_port_asks_for_a_certificate_of_the_run(
    kind: str, listener: str, guarded: Client, tmp_path: Path
) -> None:
    """Below Dask: the handshake itself, with the run's own certificate as the control."""
    own: Security = guarded.security
    certificates = Certificates(own.tls_ca_file, own.tls_worker_cert, own.tls_worker_key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if kind != "no certificate":
        files = (make_certificates() if kind == "another run's" else certificates).write(tmp_path)
        context.load_cert_chain(files.certificate, files.key)
    if kind == "old TLS":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    [worker] = guarded.scheduler_info(n_workers=-1)["workers"]
    address = guarded.scheduler.address if listener == "scheduler" else worker
    host, port = address.removeprefix("tls://").split(":")
    answer = b""
    try:
        with socket.create_connection((host, int(port)), timeout=10) as plain, context.wrap_socket(plain) as encrypted:
            # In TLS 1.3 the server's refusal comes with the first read.
            answer = encrypted.recv(8)
    except (ssl.SSLError, ConnectionError):
        answer = b""
    assert bool(answer) == (kind == "own")


def test_code_does_not_run_over_a_connection_without_certificates(guarded: Client, tmp_path: Path) -> None:
    """What plain TCP would let anybody do who reaches the port."""
    code = (
        "import sys\nfrom distributed import Client\n"
        f"Client({guarded.scheduler.address.replace('tls://', 'tcp://')!r}, timeout=3)"
        f".run_on_scheduler(open, {str(tmp_path / 'broken in')!r}, 'w')\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode != 0
    assert not (tmp_path / "broken in").exists()


# Certificates and their folder


def test_certificates_are_short_lived_and_signed_by_an_authority_of_their_own() -> None:
    first, second = make_certificates(), make_certificates()
    authority, certificate = (
        x509.load_pem_x509_certificate(text.encode()) for text in (first.authority, first.certificate)
    )
    certificate.verify_directly_issued_by(authority)
    other = x509.load_pem_x509_certificate(second.authority.encode())
    with pytest.raises(InvalidSignature):
        certificate.verify_directly_issued_by(other)
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc <= VALIDITY * 1.01
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_keys_are_their_owners_alone_and_gone_with_the_run(tmp_path: Path) -> None:
    previous = os.umask(0)  # the most careless there is
    try:
        with shared_folder(tmp_path / "run") as shared:
            files = make_certificates().write(shared.path)
            assert shared.path.stat().st_mode & 0o777 == 0o700
            for path in (files.authority, files.certificate, files.key):
                assert Path(path).stat().st_mode & 0o777 == 0o600
            assert read_certificates(shared.path) == files
    finally:
        os.umask(previous)
    assert not (tmp_path / "run").exists(), "nothing else came to lie in it"


def test_files_of_certificates_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("somebody else's")
    with pytest.raises(FileExistsError):
        make_certificates().write(tmp_path)
    assert (tmp_path / "key.pem").read_text() == "somebody else's"


def test_keys_of_a_killed_run_are_removed_by_the_next_one_and_those_of_a_live_one_are_not(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom cluster.certificates import make_certificates\n"
        "from cluster.certificates import shared_folder\n"
        "with shared_folder(Path(sys.argv[1])) as shared:\n"
        "    make_certificates().write(shared.path)\n    print(shared.token, flush=True)\n    time.sleep(60)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    token = run.stdout.readline().strip()
    try:
        assert list(abandoned_tokens(tmp_path)) == []
        assert len(list(tmp_path.rglob("*.pem"))) == 3
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
        run.stdout.close()
    assert list(abandoned_tokens(tmp_path)) == [token]
    assert list(tmp_path.iterdir()) == []


def test_without_locks_only_what_has_expired_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems of clusters have no locks."""

    def no_locks(*_: Any) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for name, age in ((".tls-young", 60.0), (".tls-old", VALIDITY.total_seconds() + 60)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock").touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    assert list(abandoned_tokens(tmp_path)) == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == [".tls-young"]


def test_certificates__raise_if_others_may_read_the_key_or_a_file_is_wrong(tmp_path: Path) -> None:
    make_certificates().write(tmp_path)
    (tmp_path / "key.pem").chmod(0o640)
    with pytest.raises(ConfigError, match=r"key\.pem \(mode 640\)"):
        read_certificates(tmp_path)
    (tmp_path / "key.pem").chmod(0o600)
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match=r"ca\.pem .*PEM"):
        read_certificates(tmp_path)
    (tmp_path / "ca.pem").unlink()
    with pytest.raises(ConfigError, match=r"ca\.pem cannot be read .*cert\.pem, key\.pem"):
        read_certificates(tmp_path)


# A scheduler that runs already


@contextmanager
def running_scheduler(folder: Path, *, secure: bool = True, workers: int = 1) -> Iterator[Path]:
    """A scheduler and its workers, each a process of its own, as people start them; gives the scheduler file."""
    files: list[str] = []
    if secure:
        (folder / "keys").mkdir(mode=0o700)
        made = make_certificates().write(folder / "keys")
        files = ["--tls-ca-file", made.authority, "--tls-cert", made.certificate, "--tls-key", made.key]
    protocol = "tls://" if secure else "tcp://"
    python, log = [sys.executable, "-m"], open(folder / "log", "wb")  # noqa: SIM115
    shared = ["--scheduler-file", str(folder / "scheduler.json"), "--protocol", protocol, "--host", "127.0.0.1", *files]
    started = [
        subprocess.Popen(
            [*python, "distributed.cli.dask_scheduler", *shared, "--port", "0", "--dashboard-address", "127.0.0.1:0"],
            stdout=log, stderr=log, cwd=folder,
        )
    ]  # fmt: skip
    options = ["--no-nanny", "--dashboard-address", "127.0.0.1:0", "--local-directory", str(folder), "--nthreads", "1"]
    started += [
        subprocess.Popen([*python, "distributed.cli.dask_worker", *shared, *options], stdout=log, stderr=log)
        for _ in range(workers)
    ]
    try:
        deadline = time.monotonic() + 30
        while not (folder / "scheduler.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        yield folder / "scheduler.json"
    finally:
        for one in reversed(started):  # workers first: without a scheduler they take their time
            one.kill()
            one.wait(20)
        log.close()


@pytest.mark.slow  # a scheduler and a worker as programs
def test_a_scheduler_that_runs_already_is_used_and_stays(tmp_path: Path) -> None:
    with running_scheduler(tmp_path) as file:
        profile = AddressProfile(scheduler_file=str(file), certificates=str(tmp_path / "keys"), startup_timeout=30)
        for _ in range(2):
            with connect(profile, run_folder=tmp_path / "run") as client:
                assert client.submit(sum, (1, 2)).result(30) == 3
        assert not (tmp_path / "run").exists()
        (tmp_path / "others").mkdir(mode=0o700)
        make_certificates().write(tmp_path / "others")
        stranger = profile.model_copy(update={"certificates": str(tmp_path / "others"), "startup_timeout": 2})
        with pytest.raises(ResourceError, match="authority"), connect(stranger):
            pass
        plain = AddressProfile(scheduler_file=str(file), insecure=True)
        with pytest.raises(ConfigError, match="tcp://"), connect(plain):
            pass


@pytest.mark.slow  # a scheduler and a worker as programs
def test_plain_tcp_is_used_on_request_and_says_what_it_means(tmp_path: Path) -> None:
    said: list[str] = []
    with running_scheduler(tmp_path, secure=False) as file:
        profile = AddressProfile(scheduler_file=str(file), insecure=True, startup_timeout=30)
        with connect(profile, say=said.append) as client:
            assert client.scheduler.address.startswith("tcp://127.0.0.1:")
    assert len(said) == 1
    assert "can run code as you" in said[0]


@pytest.mark.faults
def test_a_scheduler_without_workers_or_none_at_all_is_not_waited_for(tmp_path: Path) -> None:
    with running_scheduler(tmp_path, workers=0) as file:
        profile = AddressProfile(scheduler_file=str(file), certificates=str(tmp_path / "keys"), startup_timeout=3)
        with pytest.raises(ResourceError, match="no worker for 3 s"), connect(profile):
            pass
        stated = file.read_text()
    file.write_text(stated)
    with pytest.raises(ResourceError, match="no scheduler at tls://"), connect(profile):
        pass
    file.unlink()
    with pytest.raises(ConfigError, match=r"scheduler\.json"), connect(profile):
        pass


# Whether workers are what the run needs


def test_a_worker_that_sees_another_folder_under_the_path_is_refused(guarded: Client, tmp_path: Path) -> None:
    with nonce_file(tmp_path) as nonce:
        require_same_workers(guarded, nonce)
    assert list(tmp_path.iterdir()) == []
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    before = os.getcwd()
    guarded.run(os.chdir, str(elsewhere))
    try:
        # The same path, and another folder for every process.
        with nonce_file(Path("/proc/self/cwd")) as nonce:
            with pytest.raises(ResourceError, match=r"/proc/self/cwd \(No such file"):
                require_same_workers(guarded, nonce)
            (elsewhere / nonce.name).write_text("not the same file")
            with pytest.raises(ResourceError, match="another folder"):
                require_same_workers(guarded, nonce)
    finally:
        guarded.run(os.chdir, before)


def test_a_worker_of_another_version_is_refused(guarded: Client) -> None:
    def pretend(version: str) -> None:
        np.__version__ = version

    try:
        guarded.run(pretend, "1.0")
        [words] = unfit_workers(guarded, None).values()
        assert f"has NumPy 1.0, and this process {np.__version__}; both must be the same" in words
    finally:
        guarded.run(pretend, np.__version__)
    assert unfit_workers(guarded, None) == {}


def test_a_connection_lasts_across_cells(small_config: ExperimentConfig, tmp_path: Path) -> None:
    before = {name: os.environ.get(name) for name in ("HEADROOM_THREADS",)}
    connection = connect(
        LocalProfile(threads=1, memory_limit=2**34)
    )  # a first cell  # this process holds what earlier tests left
    assert repr(connection).startswith("Connection(<Client")
    assert connection.submit(sum, [1, 2]).result() == 3
    results = run_experiment(small_config, tmp_path / "run", client=connection)  # another one
    assert results.summary.levels
    client = connection.client
    connection.close()
    connection.close()
    assert client.status == "closed"
    assert repr(connection) == "Connection(closed)"
    assert {name: os.environ.get(name) for name in before} == before


def test_connections_that_end_in_the_order_of_their_cells_log_nothing() -> None:
    """A cell that is run twice has two clusters at once; Dask's own silence ends with the first."""

    def levels() -> list[int]:
        return [handler.level for handler in logging.getLogger("distributed").handlers]

    before, profile = levels(), LocalProfile(threads=1, memory_limit=2**34)
    first, second = connect(profile), connect(profile)
    assert second.submit(sum, [1, 2]).result() == 3
    first.close()
    assert min(levels()) >= logging.CRITICAL
    assert second.submit(sum, [1, 2]).result() == 3
    second.close()
    assert levels() == before


@pytest.mark.slow  # a program with a cluster of its own
def test_a_connection_ends_with_python(tmp_path: Path) -> None:
    code = "import cluster; connection = cluster.connect(); print(connection.submit(sum, [1, 2]).result())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert (found.stdout, found.stderr) == ("3\n", "")

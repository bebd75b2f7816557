from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask.config
import pytest
import yaml
from pydantic import ValidationError

from cluster import AddressProfile, LocalProfile, SlurmProfile, load_profile, packaged_profiles
from cluster.certificates import Certificates, make_certificates
from cluster.profiles import format_walltime, parse_bytes, parse_seconds
from cluster.slurm import JobPaths, job_options, own_settings_only, render_job_script, run_slurm
from pipeline.cli import main
from pipeline.cli.cluster import ClusterChoice
from pipeline.config import ExperimentConfig, load_config
from pipeline.errors import ConfigError, ResourceError
from pipeline.run import CONFIG_FILE, plan_experiment, run_experiment
from pipeline.run.folder import save_config
from pipeline.scoring import RunResults


def write(path: Path, **settings: Any) -> Path:
    path.write_text(yaml.safe_dump({"kind": "slurm", "jobs": 2, "cores": 4, "memory": "16GB"} | settings))
    return path


def slurm(**settings: Any) -> SlurmProfile:
    return SlurmProfile.model_validate({"jobs": 2, "cores": 4, "memory": "16GB", "walltime": "04:00:00"} | settings)


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def test_packaged_profiles_are_valid_and_of_every_kind() -> None:
    profiles = [load_profile(name) for name in packaged_profiles()]
    assert {type(profile) for profile in profiles} == {LocalProfile, SlurmProfile, AddressProfile}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16GB", 16 * 10**9),
        ("16G", 2**34),
        ("16 GiB", 2**34),
        ("1.5g", 3 * 2**29),
        ("500MB", 5 * 10**8),
        (2**30, 2**30),
    ],
)
def test_sizes_are_read_as_slurm_and_people_mean_them(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("wrong", ["16", "16XB", "", "-1GB", True, None, "1e9", [16]])
def test_sizes__raise_on_what_is_none(wrong: object) -> None:
    with pytest.raises(ValueError, match="16GB"):
        parse_bytes(wrong)


@pytest.mark.parametrize(
    ("text", "seconds"), [("04:00:00", 14400), ("1-12:30:05", 131405), (43200, 43200), ("00:01:00", 60)]
)
def test_times_are_read_whether_yaml_took_them_for_numbers_or_not(text: str | int, seconds: int) -> None:
    assert parse_seconds(text) == seconds
    assert parse_seconds(format_walltime(seconds)) == seconds


@pytest.mark.parametrize("wrong", ["4h", "04:00", "00:61:00", 0, -5, True, None])
def test_times__raise_on_what_is_none(wrong: object) -> None:
    with pytest.raises(ValueError, match="04:00:00"):
        parse_seconds(wrong)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"walltme": "04:00:00"}, r"unknown setting 'walltme' \(did you mean 'walltime'\?\)"),
        ({"walltime": "04:00:00", "driver": {"core": 1}}, r"'driver.core' \(did you mean 'cores'\?\)"),
        ({}, "'walltime' is required"),
        ({"walltime": "00:00:30"}, "less than SLURM's minute"),
        ({"walltime": 90}, 'no unit.*"04:00:00"'),
        ({"walltime": "90"}, 'no unit.*"04:00:00"'),
        ({"walltime": "90:00"}, "a time is required"),
        ({"walltime": "04:00:00", "driver": {"walltime": 24}}, 'driver.walltime.*no unit.*"04:00:00"'),
        ({"walltime": "04:00:00", "directives": ["--mem-per-cpu=4G"]}, r"--mem-per-cpu=4G.*skip_directives: \[--mem\]"),
        ({"walltime": "04:00:00", "directives": ["--array=1-3"]}, "--array=1-3.*jobs: 4"),
        ({"walltime": "04:00:00", "directives": ["-a 1-3"]}, "several times"),
        ({"walltime": "04:00:00", "directives": ["-t 60"]}, "change `walltime`"),
        ({"walltime": "04:00:00", "memory": 16}, "write a unit"),
        ({"walltime": "04:00:00", "partition": "a\n#SBATCH --uid=0"}, "partition"),
        ({"walltime": "04:00:00", "directives": ["exclusive"]}, "an option of sbatch is required"),
        ({"walltime": "04:00:00", "directives": ["--x\n--y"]}, "an option of sbatch is required"),
        ({"walltime": "04:00:00", "skip_directives": ["--men"]}, r"did you mean '--mem'\?"),
        ({"walltime": "04:00:00", "jobs": None}, "either `jobs: 4`, or both"),
        ({"walltime": "04:00:00", "minimum": 1, "maximum": 2}, "either `jobs: 4`, or both"),
        ({"walltime": "04:00:00", "jobs": None, "minimum": 3, "maximum": 2}, "must not exceed"),
        ({"kind": "slrum"}, "kind must be one of local, slurm, address, found 'slrum'"),
    ],
)
def test_load__raise_on_wrong_settings_in_one_line(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        load_profile(write(tmp_path / "site.yaml", **settings))
    assert "\n" not in str(raised.value)
    assert str(tmp_path / "site.yaml") in str(raised.value)


def test_load__raise_on_unknown_names_and_files_that_are_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'slrm'.*'slurm'"):
        load_profile("slrm")
    for content in (b"- a list", b"\xff\xfe", b"{: ]", b"[" * 5000):
        (tmp_path / "bad.yaml").write_bytes(content)
        with pytest.raises(ConfigError, match=r"bad\.yaml"):
            load_profile(tmp_path / "bad.yaml")


def test_the_home_folder_is_meant_by_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    profile = load_profile(write(tmp_path / "site.yaml", walltime="04:00:00", scratch="~/s", python="~/env/bin/python"))
    assert isinstance(profile, SlurmProfile)
    assert (profile.scratch, profile.python) == ("/home/me/s", "/home/me/env/bin/python")


def test_a_folder_does_not_hide_a_packaged_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slurm").mkdir()
    monkeypatch.chdir(tmp_path)
    assert isinstance(load_profile("slurm"), SlurmProfile)


def test_paths_of_a_profile_are_relative_to_its_file(tmp_path: Path) -> None:
    path = tmp_path / "there.yaml"
    path.write_text("{kind: address, scheduler_file: scheduler.json, certificates: keys}")
    profile = load_profile(path)
    assert isinstance(profile, AddressProfile)
    assert (profile.scheduler_file, profile.certificates) == (str(tmp_path / "scheduler.json"), str(tmp_path / "keys"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"address": "tcp://host:1"}, "insecure: true"),
        ({"address": "tcp://host:1", "certificates": "keys"}, "tls:// goes with certificates"),
        ({"address": "tls://host:1", "insecure": True}, "tls:// goes with certificates"),
        ({"address": "tls://host:1", "insecure": True, "certificates": "keys"}, "certificates"),
        ({"address": "http://host:1", "insecure": True}, "pattern"),
        ({"certificates": "keys"}, "scheduler_file"),
    ],
)
def test_an_address_is_encrypted_unless_plain_tcp_is_asked_for(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        AddressProfile.model_validate(settings)


def test_workers_are_known_before_any_is_queued() -> None:
    assert slurm().worker_limits() == [16 * 10**9] * 2
    assert slurm().with_workers(5).worker_limits() == [16 * 10**9] * 5
    adaptive = slurm().with_bounds(2, 7)
    assert (adaptive.fewest_workers, adaptive.most_workers) == (2, 7)
    assert LocalProfile(workers=3, memory_limit=2**30).worker_limits() == [2**30] * 3
    assert [LocalProfile(workers=n, processes=p).has_processes for n, p in ((1, None), (1, True), (2, None))] == [
        False,
        True,
        True,
    ]
    with pytest.raises(ValueError, match="processes: false"):
        LocalProfile(workers=2, processes=False)
    with pytest.raises(ConfigError, match="--min 3 --max 2"):
        slurm().with_bounds(3, 2)


# The job script


def test_a_job_script_states_all_that_the_profile_does() -> None:
    script = render_job_script(
        slurm(
            partition="compute",
            account="stars",
            qos="long",
            interface="ib0",
            scratch="$SLURM_TMPDIR/x y",
            setup=["module load python", "source env/bin/activate"],
            directives=["--constraint=avx2"],
            python="/opt/my env/bin/python",
        )
    )
    assert directives(script) == [
        "-J headroom-RUN",
        "-p compute",
        "-A stars",
        "-n 1",
        "--cpus-per-task=4",
        "--mem=15259M",
        "-t 04:00:00",
        '--output="RUN/logs/worker-%j.log"',
        "--no-requeue",
        "--qos=long",
        "--constraint=avx2",
    ]
    lines = script.splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines.index("module load python") < lines.index("source env/bin/activate") < len(lines) - 1
    assert "export HEADROOM_THREADS=4" in lines
    assert "export NUMPY_MADVISE_HUGEPAGE=${NUMPY_MADVISE_HUGEPAGE:-0}" in lines
    assert f"export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED={sys.version_info >= (3, 11, 12)}" in lines
    [cleared] = [line for line in lines if line.startswith("unset ")]
    environment = {"OMP_NUM_THREADS": "4,2", "ZARR_ARRAY__ORDER": "x", "PATH": os.environ["PATH"]}
    left = subprocess.run(
        ["bash", "-c", f"{cleared}; env"], env=environment, capture_output=True, text=True, check=True
    )
    assert "PATH=" in left.stdout
    assert not re.search("OMP|ZARR", left.stdout)
    assert "export DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=True" in lines
    assert 'mkdir -p "$SLURM_TMPDIR/x y"' in lines
    worker = lines[-1]
    assert worker.startswith('"/opt/my env/bin/python" -P -m distributed.cli.dask_worker tls://SCHEDULER:PORT ')
    for argument in (
        "--nthreads 1 ",
        "--memory-limit 16000000000 ",
        "--dashboard-address 127.0.0.1:0",
        '--local-directory "$scratch"',
        "--lifetime 13800s --lifetime-stagger 300s",
        "--tls-ca-file RUN/.tls-RUN/ca.pem --tls-cert RUN/.tls-RUN/cert.pem --tls-key RUN/.tls-RUN/key.pem",
        "--interface ib0",
        "--protocol tls://",
    ):
        assert argument in worker


def test_what_a_site_refuses_is_left_out_and_nothing_else() -> None:
    plain = directives(render_job_script(slurm()))
    skipped = directives(
        render_job_script(slurm(skip_directives=["--mem", "-t"], directives=["--mem-per-cpu=4G", "--time=60"]))
    )
    assert set(plain) - set(skipped) == {"--mem=15259M", "-t 04:00:00"}
    assert set(skipped) - set(plain) == {"--mem-per-cpu=4G", "--time=60"}


def test_a_worker_ends_before_its_job_does_whatever_the_stagger() -> None:
    for walltime in ("00:01:00", "00:10:00", "04:00:00", "7-00:00:00"):
        words = render_job_script(slurm(walltime=walltime)).split()
        lifetime, stagger = (
            int(words[words.index(option) + 1][:-1]) for option in ("--lifetime", "--lifetime-stagger")
        )
        assert 0.75 * parse_seconds(walltime) < lifetime + stagger < parse_seconds(walltime)
        assert stagger > 0


@pytest.mark.parametrize(
    "name", ["plain", "two words", "it's", 'a"b', "$HOME", "$(id)", "`id`", "back\\slash", "100%j"]
)
def test_paths_may_hold_any_sign(name: str, tmp_path: Path) -> None:
    folder = f"/shared/{name}"
    files = Certificates(f"{folder}/ca.pem", f"{folder}/cert.pem", f"{folder}/key.pem")
    script = render_job_script(slurm(), JobPaths("headroom-1", folder, files))
    worker = script.splitlines()[-1]
    # What the shell makes of the line, without running it.
    words = subprocess.run(
        ["bash", "-c", f'set -- {worker}; printf "%s\\n" "$@"'], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert words[words.index("--tls-key") + 1] == files.key
    [output] = [line for line in directives(script) if line.startswith("--output=")]
    quoted = output.removeprefix('--output="').removesuffix('/worker-%j.log"')
    assert quoted.replace("%%", "%").replace('\\"', '"').replace("\\\\", "\\") == folder


def test_folders_may_hold_variables_of_the_job_but_no_commands() -> None:
    script = render_job_script(slurm(scratch="${TMPDIR:-/tmp}/$(touch gone)/`id`"))
    [line] = [line for line in script.splitlines() if line.startswith("mkdir")]
    shown = subprocess.run(
        ["bash", "-c", line.replace("mkdir -p", "printf %s")],
        capture_output=True, text=True, check=True, env={"TMPDIR": "/scratch of job 7", "PATH": "/usr/bin:/bin"},
    ).stdout  # fmt: skip
    assert shown == "/scratch of job 7/$(touch gone)/`id`"


def test_the_configuration_of_the_site_says_nothing() -> None:
    expected = render_job_script(slurm())
    surprise = {"queue": "debug", "memory": "1MB", "walltime": "00:01:00", "job-extra": ["--oops"], "extra": ["--oops"]}
    with dask.config.set({"jobqueue.slurm": surprise | {"log-directory": "/oops", "shebang": "#!/oops"}}):
        assert render_job_script(slurm()) == expected


def test_what_is_shown_is_what_dask_jobqueue_submits(tmp_path: Path) -> None:
    from cluster.slurm import JobCluster

    certificates = make_certificates()
    paths = JobPaths("headroom-1", str(tmp_path), certificates.write(tmp_path))
    profile = slurm(interface="lo")
    with (
        own_settings_only(),
        JobCluster(
            security=certificates.security(),
            scheduler_options={"dashboard_address": "127.0.0.1:0"},
            silence_logs=50,
            **job_options(profile, paths),
        ) as cluster,
    ):
        submitted = cluster.job_script()
        address = cluster.scheduler_address
    assert address.startswith("tls://127.0.0.1:")
    assert submitted == render_job_script(profile, paths, scheduler=address, name="dummy-name")


def test_an_insecure_profile_has_no_certificates_and_plain_addresses() -> None:
    script = render_job_script(slurm(insecure=True))
    assert "tls" not in script.lower()
    assert "tcp://SCHEDULER:PORT" in script


def test_the_commands_show_profiles_and_scripts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["cluster", "list"])
    listed = capsys.readouterr().out
    assert all(name in listed and str(path) in listed for name, path in packaged_profiles().items())
    path = write(tmp_path / "site.yaml", walltime="04:00:00")
    main(["cluster", "show", str(path), "--workers", "7"])
    shown = capsys.readouterr().out
    assert "7 jobs of SLURM, each 4 cores, 14.9 GiB, 04:00:00" in shown
    assert shown.endswith(render_job_script(slurm()))


# Profiles and experiments


def test_options_change_the_profile_or_are_refused(tmp_path: Path) -> None:
    site = str(write(tmp_path / "site.yaml", walltime="04:00:00"))
    assert ClusterChoice().profile() == LocalProfile()
    assert ClusterChoice(workers=2).profile() == LocalProfile(workers=2)
    assert ClusterChoice(workers=9).profile(site).worker_limits() == [16 * 10**9] * 9
    assert ClusterChoice("local").profile(site) == LocalProfile(), "the command line goes before the configuration"
    both = ClusterChoice(minimum=3, maximum=8).profile(site)
    assert isinstance(both, SlurmProfile)
    assert (both.jobs, both.minimum, both.maximum) == (None, 3, 8)
    for choice in (
        ClusterChoice(workers=2, maximum=3),
        ClusterChoice("local", maximum=3),
        ClusterChoice("address", workers=2),
        ClusterChoice(site, minimum=5, maximum=2),
    ):
        with pytest.raises(ConfigError, match="--"):
            choice.profile()
    assert ClusterChoice(site, 2).words() == f" --cluster {site} --workers 2"


def test_a_plan_that_no_job_can_hold_is_refused_before_anything_is_queued(
    small_config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # no sbatch anywhere
    path = write(tmp_path / "small.yaml", walltime="04:00:00", memory="200MiB")
    with pytest.raises(ResourceError, match=r"small\.yaml .*200\.0 MiB.*`memory: \d+G`") as raised:
        ClusterChoice(str(path)).checked_profile(small_config, tmp_path / "run")
    needed = str(raised.value).partition("set `memory: ")[2].partition("`")[0]
    enough = ClusterChoice(str(write(path, walltime="04:00:00", memory=needed)))
    profile = enough.checked_profile(small_config, tmp_path / "run")
    plan_experiment(small_config, profile.worker_limits()).require_fit(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_machine_without_slurm_is_told_so(
    small_config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(small_config.to_dict() | {"cluster": "site.yaml"}))
    write(tmp_path / "site.yaml", walltime="04:00:00")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit) as ended:
        main(["run", str(config), "--out", str(tmp_path / "run"), "--quiet"])
    assert ended.value.code == 3
    assert "sbatch is not there" in capsys.readouterr().err
    with pytest.raises(ResourceError, match="squeue"):
        run_slurm(["squeue"])


def test_slurm_commands_have_a_deadline_and_their_own_words() -> None:
    with pytest.raises(ResourceError, match=r"sleep .* 0 s"):
        run_slurm(["sleep", "20"], seconds=0.3)
    with pytest.raises(ResourceError, match="no-such-file"):
        run_slurm(["ls", "/no-such-file"])


def test_the_cluster_of_a_configuration_changes_no_key_and_is_kept(
    small_config: ExperimentConfig, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "elsewhere" / "experiment.yaml"
    path.write_text(yaml.safe_dump(small_config.to_dict() | {"cluster": "../site.yaml"}))
    config = load_config(path)
    assert config.cluster is not None
    assert Path(config.cluster).resolve() == tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(small_config.to_dict()))
    assert config.to_dict() == load_config(path).to_dict()
    save_config(config, tmp_path)
    assert load_config(tmp_path / CONFIG_FILE).cluster == config.cluster
    path.write_text(yaml.safe_dump(small_config.to_dict() | {"cluster": "slurm"}))
    assert load_config(path).cluster == "slurm", "a word is a packaged profile"


def test_a_finished_run_is_not_done_again_on_another_cluster(
    small_config: ExperimentConfig, small_run: RunResults, tmp_path: Path
) -> None:
    run = shutil.copytree(small_run.folder, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    run_experiment(small_config.model_copy(update={"cluster": "slurm"}), run)
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert after == before


def test_a_profile_reads_back_what_it_gives_as_json() -> None:
    profile = SlurmProfile.model_validate(
        {"kind": "slurm", "jobs": 2, "cores": 4, "memory": "16GB", "walltime": "1-02:30:00"}
    )
    assert profile.walltime == 95_400
    assert SlurmProfile.model_validate_json(profile.model_dump_json()) == profile

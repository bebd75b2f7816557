# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4 · On your cluster
#
# **You will learn** how a profile becomes batch jobs of SLURM, what is encrypted, how to see the dashboard through ssh,
# and how to submit a run and follow it.
#
# **You need** a finished run for its spectra, as in the other notebooks. You do not need SLURM: job scripts are shown
# but not submitted, and the live part uses this machine. On a login node the same lines work with your own profile.
#
# The spectra of `make demo`, and those made here, are **simulated**.

# %%
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

import cluster
import pipeline

RUN = Path(os.environ.get("HEADROOM_RUN", "../runs/demo"))
if not (RUN / "summary.json").exists():
    RUN = Path("../runs/small")
    pipeline.run_demo(RUN, progress=pipeline.choose_progress())
earlier = pipeline.read_results(RUN)
print(RUN, "holds", "simulated spectra" if earlier.metadata["simulated"] else "the spectra of your shards")

# %% [markdown]
# ## A profile
#
# A profile is a YAML file that describes a cluster. Copy the packaged profile, change it for your site, and give its
# path. Here we write the file from Python. `sinfo` lists your partitions. One job is one worker, which uses all cores
# of the job.

# %%
scratch = tempfile.TemporaryDirectory(prefix="headroom_")  # deleted at the end of this notebook
folder = Path(scratch.name)
settings = {
    "kind": "slurm",
    "minimum": 1,
    "maximum": 40,  # as many jobs as there is work
    "cores": 8,
    "memory": "32G",
    "walltime": "04:00:00",
    "partition": "compute",
    "account": "my_project",
    "scratch": "$SLURM_TMPDIR",
    "setup": ["source ~/miniforge3/bin/activate headroom"],
}
(folder / "my_site.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
profile = cluster.load_profile(folder / "my_site.yaml")
profile

# %% [markdown]
# ## What a worker's job is
#
# You can read the job script before anything is submitted. `headroom cluster show my_site.yaml` prints the same text.
# The scheduler's address and the folder of certificates exist only during a run. The script shows them as words in
# capitals.

# %%
print(cluster.render_job_script(profile))

# %% [markdown]
# ## Does the run fit these jobs?
#
# The plan reads only headers and labels. It refuses a run that cannot fit, before anything waits in a queue.

# %%
known = pipeline.load_config(RUN / "config.yaml")
experiment = {
    "data": {"train": earlier.store_paths("train"), "test": earlier.store_paths("test")},
    "ridge": {"alpha": {"per_spectrum": 0.1}},
    "target": known.target,
    "bins": {column: list(edges) for column, edges in known.bins.items()},
    "seeds": [42],
}
(folder / "my.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
config = pipeline.load_config(folder / "my.yaml")
plan = pipeline.plan_experiment(config, profile.worker_limits(), profile.cores)
plan.require_fit(folder)
print(f"a worker needs {plan.worker_memory / 2**30:.1f} of its {profile.memory / 2**30:.0f} GiB")
print(f"{plan.n_pieces} pieces of work for at most {profile.most_workers} workers")

# %% [markdown]
# ## TLS
#
# Whoever can talk to a Dask scheduler can run code as you, and login nodes are shared. So every run makes certificates
# for itself alone. Both ends of every connection must show one, and all other connections are refused. You do not have
# to set up anything. On SLURM the key files lie in the run folder. Only you can read them, and they are deleted with
# the end of the run.
#
# Here is a cluster on this machine whose worker is a separate process. The second client shows a certificate of another
# run, so it is refused.

# %%
from distributed import Client

with cluster.connect(cluster.LocalProfile(processes=True)) as client:
    address = client.scheduler_info()["address"]
    print("scheduler:", address)
    cluster.announce(client, print)
    try:
        Client(address, security=cluster.make_certificates().security(), timeout=2)
    except OSError as error:
        print("with the certificate of another run:", error)

# %% [markdown]
# ## The dashboard, through ssh
#
# A dashboard has no passwords. Therefore it listens only on 127.0.0.1 of the scheduler's machine, and you reach it
# through ssh. `headroom run` and `headroom status` print the command to run on your own machine. Here are two examples:

# %%
me = {"user": "ada", "machine": "node017"}
session = {"SSH_CONNECTION": "10.0.0.9 5022 10.0.0.2 22"}  # you came to a login node by ssh, the run is there
job = {"SLURMD_NODENAME": "node017", "SLURM_SUBMIT_HOST": "login1"}  # the run is a batch job, by way of the login node
for environment in (session, job):
    print(cluster.tunnel_command(cluster.DashboardAddress(8787), environment, **me))

# %% [markdown]
# ## Submit
#
# `headroom submit my.yaml --profile my_site.yaml --out runs/my` queues a small job, the driver. It runs the experiment
# and queues the workers, so nothing stays on the login node. Before its walltime ends, it queues a successor, which
# continues the work. The next cell shows the driver's script; `--dry-run` on the command line prints the same.

# %%
arguments = ["run", "my.yaml", "--out", "runs/my", "--cluster", "my_site.yaml"]
print(cluster.render_driver_script(profile, arguments, Path("runs/my")))

# %% [markdown]
# ## Run and follow it, here
#
# The same commands work with the profile `local`. `headroom status` reads only the run folder. So it works on any
# machine that can see this folder, during the run and afterwards.


# %%
def headroom(*arguments):
    """Run a command of the command line and print what it says."""
    done = subprocess.run([sys.executable, "-m", "pipeline", *map(str, arguments)], capture_output=True, text=True)
    print("$ headroom", *arguments, f"\n{done.stdout}{done.stderr if done.returncode else ''}")


headroom("run", folder / "my.yaml", "--out", folder / "my", "--cluster", "local", "--quiet")

# %%
headroom("status", folder / "my")

# %% [markdown]
# The bits of the results do not depend on the cluster. A run that was begun here may be finished on SLURM, and the
# other way round. `cluster/README.md` says what to do when jobs stay pending, nodes are lost or a disk is full.

# %%
scratch.cleanup()

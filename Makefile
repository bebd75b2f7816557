# The commands that people and CI use in this repository. `make help` lists them.
# A fresh machine needs Python >= 3.11 and make. Everything else is installed from requirements.lock into .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed
# An environment of the lowest versions that pyproject.toml allows, and the tests where HDF5, Zarr, Dask and pandas meet us.
LOWEST := .venv-lowest
EDGES  := $(addprefix tests/,shards store accumulate convert/test_datasets.py convert/test_verify.py cluster/test_cluster.py \
  report/test_compare.py)
# Two workers, each with whole files, in the order that tests/conftest.py gives them: the longest first. Tests start
# Python a hundred times, so compiled modules are kept, whatever the environment says.
WORKERS ?= 2
KEEPING := env -u PYTHONDONTWRITEBYTECODE
PYTEST   = $(KEEPING) $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# The folder of the demonstration. To choose another one: make demo DEMO=/scratch/demo
DEMO   ?= runs/demo

.DEFAULT_GOAL := help
.PHONY: help install demo notebooks test test-slow test-slurm test-long test-lowest fuzz bench format lint types check docs dist lock clean

help:  ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-11s %s\n", $$1, $$2}'

$(VENV)/.installed: requirements.lock
$(LOWEST)/.installed: requirements-lowest.lock
# pip would compile modules one after the other. Of the lowest versions few are imported, and those are compiled then.
# What some packages hold besides Python cannot be compiled, which is no failure.
$(VENV)/.installed: BYTECODE = $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
%/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python >= 3.11 is required, $$($(PYTHON) --version) found; name another one: make PYTHON=python3.12" >&2; exit 3; }
	$(PYTHON) -m venv $*
	$*/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-compile -r $(filter %.lock,$^)
	$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BYTECODE)
	@touch $@

install: $(READY)  ## Create .venv from the lock file.

demo: $(READY)  ## Simulate shards, run the experiment, write the report: 2 to 4 minutes on 2 cores.
	$(BIN)/headroom sample $(DEMO)/spectra --train 64000 --test 8000 --pixels 1024
	HEADROOM_DEMO=$(DEMO)/spectra $(BIN)/headroom run demo --out $(DEMO)

notebooks: $(READY)  ## Write the .ipynb from the .py and run all six notebooks on the demonstration: 2 minutes.
	$(BIN)/python notebooks/pair.py
	HEADROOM_RUN=$(abspath $(DEMO)) $(BIN)/python -m pytest -q tests/run/test_demo.py -k notebooks

test: $(READY)  ## Run the tests: 4 to 6 minutes on 2 cores.
	$(PYTEST) -m "not slow and not faults and not slurm"

test-slow: $(READY)  ## Run the slow tests: 8 to 12 minutes.
	$(PYTEST) -m slow

test-slurm: $(READY)  ## Run jobs on a real SLURM (as root, with its packages), and kill runs: 5 to 8 minutes.
	$(PYTEST) -m "(faults or slurm) and not slow"

# Three workers: while one waits for SLURM, or for what was killed, two compute.
test-long: WORKERS := 3
test-long: $(READY)  ## Run both together, as CI does: 12 to 16 minutes.
	$(PYTEST) -m "slow or faults or slurm"

# Matplotlib 3.9 calls pyparsing by names that pyparsing has renamed since, and says so.
test-lowest: $(LOWEST)/.installed  ## Run a small demonstration and tests with the lowest versions of all libraries: 3 minutes on 2 cores.
	rm -rf runs/lowest
	$(KEEPING) $(LOWEST)/bin/headroom sample runs/lowest/spectra --train 4000 --test 400 --pixels 64 --shards 2
	HEADROOM_DEMO=runs/lowest/spectra $(KEEPING) $(LOWEST)/bin/headroom run demo --out runs/lowest
	$(KEEPING) $(LOWEST)/bin/python -m pytest -q -n $(WORKERS) --dist loadfile \
	  -m "not slow and not faults and not slurm" -W ignore::pyparsing.warnings.PyparsingDeprecationWarning $(EDGES)

fuzz: $(READY)  ## Damage files at random, 1200 times, and see that no result changes unnoticed: 5 to 15 minutes.
	PYTHONPATH=. $(BIN)/python tests/hostile/fuzz.py

bench: $(READY)  ## Run all benchmarks into one table: about 15 minutes on 2 cores, after 15 GB of spectra are simulated.
	$(BIN)/python benchmarks/run.py

format: $(READY)  ## Rewrite the sources in the house format.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(READY)  ## Check format, style and imports between rooms; change nothing.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(READY)  ## Check types: strictly in the arithmetic core, plainly elsewhere.
	$(BIN)/mypy

check: lint types test  ## Run what a commit must pass: lint, types and test.

docs: $(READY)  ## Build the documentation as a site, dist/docs/index.html: half a minute.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open dist/docs/index.html"

dist: $(READY)  ## Build a wheel and an sdist, see that both are the same, install and run them: 3 to 4 minutes.
	rm -rf dist/headroom-*
	$(BIN)/python -m hatchling build -d dist
	$(BIN)/python tests/try_dist.py dist

# The locks keep extras, since pip 23.2 looks for `dask[array]` of any version if only `dask` is pinned.
COMPILE := --universal --python-version 3.11 --generate-hashes --all-extras --no-strip-extras --custom-compile-command "make lock"
lock:  ## Resolve pyproject.toml into requirements.lock and requirements-lowest.lock (needs uv).
	uv pip compile $(COMPILE) -o requirements.lock pyproject.toml
	uv pip compile $(COMPILE) --resolution lowest-direct -o requirements-lowest.lock pyproject.toml

clean:  ## Remove caches and the demonstration; keep .venv.
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .hypothesis

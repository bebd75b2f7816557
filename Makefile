# The commands that people and CI use in this repository. `make help` lists them.
# A fresh machine needs Python >= 3.11 and make. Everything else is installed from requirements.lock into .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed
# The folder of the demonstration. To choose another one: make demo DEMO=/scratch/demo
DEMO   ?= runs/demo

.DEFAULT_GOAL := help
.PHONY: help install demo notebooks test test-slow test-slurm fuzz bench format lint types check lock clean

help:  ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python >= 3.11 is required, $$($(PYTHON) --version) found; name another one: make PYTHON=python3.12" >&2; exit 3; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

install: $(READY)  ## Create .venv from the lock file.

demo: $(READY)  ## Simulate shards, run the experiment, write the report: 2 to 4 minutes on 2 cores.
	$(BIN)/headroom sample $(DEMO)/spectra --train 64000 --test 8000 --pixels 1024
	HEADROOM_DEMO=$(DEMO)/spectra $(BIN)/headroom run demo --out $(DEMO)

notebooks: $(READY)  ## Write the .ipynb from the .py and run all four notebooks on the demonstration: 1 minute.
	$(BIN)/python notebooks/pair.py
	HEADROOM_RUN=$(abspath $(DEMO)) $(BIN)/python -m pytest -q tests/run/test_demo.py -k notebooks

test: $(READY)  ## Run the tests: 4 to 6 minutes on 2 cores.
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow and not faults and not slurm"

test-slow: $(READY)  ## Run the slow tests, as CI does.
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m slow

test-slurm: $(READY)  ## Run jobs on a real SLURM (as root, with its packages), and kill runs: 4 to 5 minutes.
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "(faults or slurm) and not slow"

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

lock:  ## Resolve pyproject.toml into requirements.lock (needs uv).
	uv pip compile --universal --python-version 3.11 --generate-hashes --all-extras \
	  --custom-compile-command "make lock" -o requirements.lock pyproject.toml

clean:  ## Remove caches and the demonstration; keep .venv.
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .hypothesis

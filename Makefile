# Everything runs in ./.venv. A stamp in .venv/.stamps says what is installed there, so that a second run starts at once.
#   make demo PYTHON=python3.12     builds the environment with another Python (after `make clean`)

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

PROJECTS := core/pyproject.toml plugins/kv_fake/pyproject.toml
SOURCES := core/src plugins/kv_fake/src
CHECKED := $(SOURCES) $(wildcard core/tests plugins/kv_fake/tests tests tools examples benchmarks)

BACKEND ?= fake
DEMO_ARGS ?=
PYTEST_ARGS ?=
EXAMPLE_ARGS ?=
SIMULATE_ARGS ?=
BENCH_ARGS ?=
LONG_ARGS ?=

.PHONY: help demo test lint format docs example simulate bench kill-rounds soak fuzz black-holes clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | while IFS=$$'\t' read -r target text; do \
		printf '  %-14s %s\n' "$$target" "$$text"; done

# --- what is installed ------------------------------------------------------------------------------------------------

$(STAMPS)/venv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "kv-core needs Python 3.10 or newer, this is " + sys.version.split()[0] + ": set PYTHON=python3.12, say")'
	$(PYTHON) -m venv $(VENV)
	mkdir -p $(STAMPS)
	touch $@

# Core, the embedded backend and what they depend on: nothing else, so that `make demo` is quick on a fresh machine.
$(STAMPS)/run: $(STAMPS)/venv $(PROJECTS)
	$(PIP) --editable core --editable plugins/kv_fake
	touch $@

# Dependency groups need a newer pip than some Pythons bring along.
$(STAMPS)/dev: $(STAMPS)/run pyproject.toml
	$(PIP) 'pip>=25.1'
	$(PIP) --group pyproject.toml:dev
	touch $@

$(STAMPS)/example: $(STAMPS)/run pyproject.toml
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "make example is set up for Python 3.11 (its torch build is pinned), $(VENV) has " + sys.version.split()[0] + ": make clean && make example PYTHON=python3.11")'
	$(PIP) 'pip>=25.1'
	$(PIP) --group pyproject.toml:example
	touch $@

# --- what is run ------------------------------------------------------------------------------------------------------

demo: $(STAMPS)/run ## Move pages from a prefill to a decode process and compare every byte (BACKEND, DEMO_ARGS)
	$(BIN)/kv-core demo --backend $(BACKEND) $(DEMO_ARGS)

# The example's model needs a pinned torch build, which there is for Python 3.11 only; elsewhere its test says so and skips.
EXAMPLE_STAMP := $(if $(filter 3.11,$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')),$(STAMPS)/example)

test: $(STAMPS)/dev $(EXAMPLE_STAMP) ## Run every test (PYTEST_ARGS)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(STAMPS)/dev ## Formatting, lint, types, import rules, house rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy $(CHECKED)
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tools/check_repo.py
	$(BIN)/python tools/make_docs.py --check

docs: $(STAMPS)/run ## Write the pages that are made from the code
	$(BIN)/python tools/make_docs.py

format: $(STAMPS)/dev ## Format, and mend what ruff can mend by itself
	$(BIN)/ruff check --fix-only --exit-zero
	$(BIN)/ruff format

example: $(STAMPS)/example ## Generate text across two processes with a real model; compare with one process (BACKEND, EXAMPLE_ARGS)
	$(BIN)/python examples/generate.py --backend $(BACKEND) $(EXAMPLE_ARGS)

simulate: $(STAMPS)/dev ## Run seeded schedules with faults against the protocol, in virtual time (SIMULATE_ARGS)
	$(BIN)/python -m core.tests.simulation --seeds 20000 --mutants $(SIMULATE_ARGS)

bench: $(STAMPS)/dev ## Measure goodput and the engine thread's time; docs/benchmarks.md explains (BENCH_ARGS)
	$(BIN)/python -m benchmarks.bench $(BENCH_ARGS)

kill-rounds: $(STAMPS)/dev ## Long: kill prefill and decode in the middle of traffic, again and again (LONG_ARGS)
	$(BIN)/python -m tests.long.kill_rounds $(LONG_ARGS)

soak: $(STAMPS)/dev ## Long: many rooms through each way to end, then everything has to be back at 0 (LONG_ARGS)
	$(BIN)/python -m tests.long.soak $(LONG_ARGS)

fuzz: $(STAMPS)/dev ## Long: random messages on each socket and route while good traffic is served (LONG_ARGS)
	$(BIN)/python -m tests.long.fuzz $(LONG_ARGS)

black-holes: $(STAMPS)/dev ## Long: fifty black-holed prefill servers must not hide the death of another (LONG_ARGS)
	$(BIN)/python -m tests.long.black_holes $(LONG_ARGS)

clean: ## Remove the environment, caches and built distributions
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist core/dist plugins/*/dist
	find core plugins tests tools examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

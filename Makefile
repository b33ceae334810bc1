# `make demo` and `make test` are all a fresh Debian or Ubuntu machine needs; both make .venv themselves.
#   VENV=DIR    another virtual environment      PYTHON=python3.13   its interpreter
#   ARGS='...'  more arguments for test, test-gpu and bench        JOBS=3  test files that run at once
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory
.NOTPARALLEL:
.DELETE_ON_ERROR:

VENV ?= .venv
JOBS ?= 3
BIN := $(VENV)/bin
RUNS := $(VENV)/.installed-run
DEVELOPS := $(VENV)/.installed-development
OLDER := $(VENV)/older/ipykernel/__init__.py
NODE_MODULES := js/node_modules/.package-lock.json

.PHONY: help demo lab test test-gpu check bench clean
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

demo: $(RUNS) ## run the demo notebook, print its summary and write report.html (about 90 s)
	@$(BIN)/cellmeter demo

lab: $(DEVELOPS) ## open JupyterLab on notebooks/
	@$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

test: $(DEVELOPS) $(OLDER) ## all tests: Python, a real JupyterLab in Chromium, JavaScript
	@tools/need cc:gcc node:nodejs npm:npm fc-list:fontconfig openssl:openssl promtool:prometheus \
		prometheus-alertmanager:prometheus-alertmanager prometheus-node-exporter:prometheus-node-exporter
	@tools/need --run 'fc-list | grep -q .' fonts-dejavu-core
	@tools/need-browser $(BIN)/python
	@$(MAKE) -s $(NODE_MODULES)
	@echo "==> Python and browser tests"
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)
	@echo "==> JavaScript tests"
	@tools/js-test

test-gpu: $(DEVELOPS) ## the tests that need a real NVIDIA GPU
	@$(BIN)/python -m pytest -m gpu tests/gpu $(ARGS)

check: $(DEVELOPS) ## lint, format, types, import order, JavaScript types
	@tools/need node:nodejs npm:npm
	@$(MAKE) -s $(NODE_MODULES)
	@echo "==> ruff"
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet || { echo "cellmeter: not formatted: run $(BIN)/ruff format" >&2; $(BIN)/ruff format --check; }
	@echo "==> mypy"
	@$(BIN)/mypy --num-workers 2
	@echo "==> import order"
	@$(BIN)/lint-imports
	@echo "==> JavaScript types"
	@cd js && npm --silent run check

bench: $(DEVELOPS) ## what cellmeter costs and misses here, beside its peers (about 20 min)
	@tools/need cc:gcc
	@tools/need-browser $(BIN)/python
	@$(BIN)/python -m bench $(ARGS)

clean: ## remove what make made, .venv too
	rm -rf $(VENV) .venv-peers js/node_modules build dist report.html .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find src tests bench -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(RUNS): pyproject.toml
	@tools/setup $(VENV)
	@touch $@

$(DEVELOPS): pyproject.toml
	@tools/setup $(VENV) test check
	@touch $@ $(RUNS)

# Tagging is tested on the previous generation too: it tells of cells in another order.
$(OLDER): pyproject.toml | $(DEVELOPS)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --target $(VENV)/older --no-deps \
		'ipykernel<7' 'ipython<9' decorator
	@touch $@

$(NODE_MODULES): js/package.json js/package-lock.json
	@echo "==> Installing the JavaScript test packages"
	@cd js && npm ci --loglevel=error --no-audit --no-fund </dev/null
	@touch $@

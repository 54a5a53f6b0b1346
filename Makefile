# Every target does its own set-up: nothing but Python 3.11 or newer and make is needed.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

help: ## show the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/\1\t\2/' | expand -t 10

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Silogate needs Python 3.11 or newer; set PYTHON=…")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the locked packages into $(VENV) (once, about half a minute)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(READY)

install: $(READY) ## make .venv with the locked packages

demo: $(READY) ## start everything and print three addresses; CHECK=1 walks the whole journey and exits
	@$(BIN)/silogate demo $(if $(CHECK),--check)

test: $(READY) ## run the test suite against real servers
	@$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(READY) ## lint, types and import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/silogate check deploy/integrations

bench: $(READY) ## measure, print one table, write bench.json
	@$(BIN)/python -m tests.load

faults: $(READY) ## every fault test, with the longer rounds
	@SILOGATE_TEST_FAULTS=all $(BIN)/python -m pytest tests/faults tests/model

soak: $(READY) ## the stress of the cache with 100,000 writes; SOAK=n for another number
	@SILOGATE_TEST_SOAK=$(or $(SOAK),100000) $(BIN)/python -m pytest tests/faults/test_cache_stress.py -s

lock: $(READY) ## rewrite requirements.lock (needs uv)
	@uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --extra dev --extra test --extra bench pyproject.toml -o requirements.lock

clean: ## remove what the project made: the environment, data, caches
	@if [ -x $(BIN)/silogate ]; then $(BIN)/silogate dev down --delete >/dev/null 2>&1 || true; fi
	@rm -rf $(VENV) .silogate .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist bench.json
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help install demo test check bench faults soak lock clean

# One command each; `make` alone lists them.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup tune reproduce ui dashboard test test-fast check docs bench soak

PYTHON ?= python3
PORT ?=
SEARCH ?=
RESUME ?=
KILLS ?= 100
JOBS ?= 2
FIGURE ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SEARCHES := $(patsubst search_spaces/%.yaml,%,$(sort $(wildcard search_spaces/*.yaml search_spaces/*/*.yaml)))

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-9s %s\n", $$1, $$2}' Makefile

setup: $(READY) ## make the environment, .venv; the others do so when it is missing

# The mark is written last: an installation that was interrupted has none, and is made again from nothing.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "error: Python 3.11 or newer is needed, but $(PYTHON) is older; say make PYTHON=python3.12")'
	@if [ -e $@ ]; then rm $@; else $(PYTHON) -m venv --clear $(VENV); fi
	@echo "installing into $(VENV): a few minutes, this once"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,dashboard]'
	@$(BIN)/python -m imavae.training.compiled
	@touch $@
	@echo "ready; to use it by hand: source $(BIN)/activate"

# Without a search it fails at once, before the environment is made.
tune: $(if $(SEARCH),$(READY)) ## run a study: SEARCH=gamma_uniform, RESUME=1 to go on, ARGS="budget.trials=4 ..." for any setting
	@if [ -z "$(SEARCH)" ]; then \
		echo "error: SEARCH must name a search space; say make tune SEARCH=NAME, with one of: $(SEARCHES)" >&2; exit 2; fi
	@$(BIN)/python scripts/tune.py 'search=$(SEARCH)' $(if $(RESUME),resume=true) $(ARGS)

reproduce: $(READY) ## a figure of the paper beside the published numbers: FIGURE=moebius_gamma; without it, the list
	@$(BIN)/python scripts/reproduce.py $(if $(FIGURE),'figure=$(FIGURE)') $(ARGS)

ui: $(READY) ## open MLflow's page on what was tracked: PORT=5000
	@$(BIN)/python scripts/ui.py $(if $(PORT),--port $(PORT))

dashboard: $(READY) ## open Optuna's page on the studies: PORT=8080
	@$(BIN)/python scripts/dashboard.py $(if $(PORT),--port $(PORT))

PYTEST = $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

test: $(READY) ## run all tests, JOBS=2 files at a time; the browser tests need Chromium
	@$(PYTEST)

test-fast: $(READY) ## run the tests that need no Ray, MLflow server or browser
	@$(PYTEST) -m 'not slow'

check: $(READY) ## lint, check the format and the types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy imavae scripts tests benchmarks

docs: $(READY) ## write docs/config.md and docs/metrics.md anew from the code
	@$(BIN)/python scripts/docs.py

bench: $(READY) ## measure training, validation, memory and the phases of a study; ARGS="trials=2000": a long study
	@$(BIN)/python benchmarks/$(if $(ARGS),scale.py $(ARGS),measure.py)

soak: $(READY) ## kill workers, drivers and Ray of studies at random, KILLS=100
	@$(BIN)/python tests/soak.py kills=$(KILLS)

# Everything a newcomer needs: a machine with Python 3.11 and make. Each target sets up .venv by itself.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
WORKERS ?= 2

.PHONY: help demo test test-all lint format bench docs clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[dev,demo]'
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo  ## tune, prune, recover and export a real model on real data, offline (about 7 minutes)
	$(BIN)/dsee demo --output demo

test: $(VENV)/.dev  ## the fast tests, no network
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS)

test-all: $(VENV)/.dev  ## the slow tests too
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) -m ''

lint: $(VENV)/.dev  ## style and types
	$(BIN)/ruff check src tests benchmarks hatch_build.py
	$(BIN)/ruff format --check src tests benchmarks hatch_build.py
	$(BIN)/mypy

format: $(VENV)/.dev  ## rewrite to the house style
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

bench: $(VENV)/.dev  ## the benchmarks; JSON goes to benchmarks/results
	for script in benchmarks/bench_*.py benchmarks/training.py; do OMP_NUM_THREADS=1 $(BIN)/python $$script || exit 1; done

docs: $(VENV)/.dev  ## the documentation site, into site/
	$(BIN)/mkdocs build --strict

clean:  ## remove what the other targets made
	rm -rf $(VENV) site demo .pytest_cache .mypy_cache .ruff_cache

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
EXTRAS := dev,docs,zoo,dmc,distributed,export
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TRAINABLE := $(VENV)/.trainable

LINT_PATHS := $(wildcard sb3_ezm tests examples experiments benchmarks conformance docs README.md CONTRIBUTING.md)

# Options of `make train`: suite or tasks, wall-clock budget, and further arguments of `ezm train`.
SUITE ?= walker
MINUTES ?= 10
ARGS ?=

# Options of `make test`: worker processes, seconds after which a test hangs, and further arguments of pytest.
WORKERS ?= 2
TEST_TIMEOUT ?= 1800
PYTEST_ARGS ?=
# PyTorch of `make test-lowest` and `make test-newest`: the tested version unless you say otherwise, since each is a large download.
TORCH ?= $(shell sed -n 's/^torch==//p' constraints.txt)
# Rows of `make test-matrix` (default: all; `python -m tests.matrix --list` has them).
ROW ?=
# Tests are handed out one by one, so that the few learning tests spread over the workers.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxschedchunk=1 --timeout=$(TEST_TIMEOUT) -rs

# MuJoCo draws through EGL where there is no display, and `import mujoco` fails if it is told to and EGL is missing.
ifeq ($(shell uname),Linux)
ifeq ($(DISPLAY),)
ifneq ($(shell PATH="$$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null | grep libEGL.so.1),)
export MUJOCO_GL ?= egl
endif
endif
endif

.PHONY: help train test test-fast test-lowest test-newest test-matrix docs docs-browser docs-links lint type format check-codestyle commit-checks install clean

help: ## list the commands
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 20

train: $(TRAINABLE) ## train one agent on the tasks of SUITE (walker) for MINUTES (10)
	$(BIN)/ezm train $(SUITE) --minutes $(MINUTES) --film all $(ARGS)

test: $(INSTALLED) ## run every test
	$(PYTEST) $(PYTEST_ARGS)

test-fast: $(INSTALLED) ## run the tests that do not train
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-lowest: ## run the fast tests with the oldest versions that setup.cfg allows
	mkdir -p build
	$(PYTHON) tests/declared.py torch==$(TORCH) > build/lowest.txt
	$(call test-in,.venv-lowest,-c build/lowest.txt)

test-newest: ## run the fast tests with the newest versions that setup.cfg allows
	$(call test-in,.venv-newest,torch==$(TORCH))

# A new virtual environment in the folder $(1), with what `pip install $(2)` puts there. The date of .installed keeps the pins out.
define test-in
$(PYTHON) -m venv --clear $(1)
$(1)/bin/python -m pip install --disable-pip-version-check $(2) -e ".[dev,zoo]"
touch $(1)/.installed
$(MAKE) test-fast VENV=$(1)
endef

test-matrix: $(INSTALLED) ## run the tests as other processors and users would (hours; one row: ROW=narrow)
	$(BIN)/python -m tests.matrix $(ROW) -- $(PYTEST_ARGS)

# `-n` also objects to names of the package that do not exist.
docs: $(INSTALLED) ## build the pages in docs/_build/html; a warning is an error
	@rm -rf docs/api
	$(BIN)/python -m sphinx -q -n -W --keep-going -b html docs docs/_build/html
	$(BIN)/python docs/check_site.py
	@echo "Open docs/_build/html/index.html"

docs-browser: docs ## look at the pages in a headless Chromium without a network: formulas, search
	$(BIN)/python docs/check_site.py --browser

docs-links: $(INSTALLED) ## look up the links that lead out of the pages
	$(BIN)/python -m sphinx -q -n -W --keep-going -b linkcheck docs docs/_build/links

lint: $(INSTALLED) ## look for mistakes
	$(BIN)/ruff check $(LINT_PATHS)

type: $(INSTALLED) ## check the annotations
	$(BIN)/mypy
	$(BIN)/mypy examples

format: $(INSTALLED) ## sort the imports and reformat
	$(BIN)/ruff check --select I --fix $(LINT_PATHS)
	$(BIN)/ruff format $(LINT_PATHS)

check-codestyle: $(INSTALLED) ## fail if `make format` would change anything
	$(BIN)/ruff check --select I $(LINT_PATHS)
	$(BIN)/ruff format --check $(LINT_PATHS)

# One after the other, also under `make -j`.
commit-checks: ## format, type and lint
	$(MAKE) format
	$(MAKE) type
	$(MAKE) lint

install: $(INSTALLED) ## create .venv and install the package with its tools

# Both run again only when a requirement or a pin changes. Training needs the package alone.
$(TRAINABLE): setup.cfg constraints.txt
	$(call pip-install,.)
	@touch $@

$(INSTALLED): setup.cfg constraints.txt
	$(call pip-install,".[$(EXTRAS)]")
	@touch $@ $(TRAINABLE)

define pip-install
$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e $(1)
endef

clean: ## delete .venv, caches and build outputs
	rm -rf $(VENV) .venv-lowest .venv-newest .venv-matrix build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis docs/_build docs/api
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

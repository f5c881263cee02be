# `make` lists the targets. The first that needs it builds .venv, and builds it again when pyproject.toml changes, the
# folder is moved, the interpreter behind it goes away, or an earlier installation was cut short.

.DEFAULT_GOAL := help
SHELL := /bin/sh
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python -m
STAMP := $(VENV)/.installed
CODE := distill tests $(wildcard benchmarks)

# An interpreter of one's own: make test PYTHON=/opt/python3.13/bin/python3
PYTHON ?=
CANDIDATES := $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11)

# Whether .venv was made in this folder (its scripts hold its path), by the interpreter that was asked for, if one was.
AT_HOME = case "$$($(BIN)/pip --version 2>/dev/null)" in *" from $$(pwd -P)/$(VENV)/"*) true;; *) false;; esac
AS_ASKED = test -z "$(PYTHON)" || test "$$($(PYTHON) --version 2>&1)" = "$$($(BIN)/python --version 2>&1)"

# The stamp is written last and holds the folder it was written in. One that is out of step counts as none.
SOUND := $(shell test "$$(cat $(STAMP) 2>/dev/null)" = "$$(pwd -P)" && $(BIN)/python -c "" 2>/dev/null && { $(AS_ASKED); } && echo yes)
ifneq ($(SOUND),yes)
$(STAMP): FORCE
endif

.PHONY: help demo test test-slow test-browser test-gpu lint types imports format clean FORCE

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(STAMP) ## Compare teachers on handwritten digits
	$(BIN)/distill compare recipes/digits.toml

test: lint types imports ## Style, types, imports, and every test that is neither slow nor for a GPU
	$(RUN) pytest

test-slow: $(STAMP) ## The slow tests
	$(RUN) pytest -m "slow and not gpu"

test-browser: $(STAMP) ## report.html in Chromium (Debian: apt-get install chromium)
	$(RUN) pip install --quiet --disable-pip-version-check -e '.[browser]'
	$(RUN) pytest -m browser -n 0

test-gpu: $(STAMP) ## The tests that need a CUDA device
	$(RUN) pytest -m gpu

lint: $(STAMP) ## Style
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: $(STAMP) ## Types
	$(RUN) mypy

imports: $(STAMP) ## Imports go down only
	$(BIN)/lint-imports

format: $(STAMP) ## Format the code and mend what can be mended
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

clean: ## Remove .venv and every cache; runs under checkpoints/ stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find $(CODE) -type d -name __pycache__ -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	@if [ -L $(VENV) ]; then \
	    echo "make: $(VENV) is a link; building it here would empty $$(readlink -f $(VENV)), where it leads" >&2; \
	    echo "  Remove the link (rm $(VENV)): make then builds one of this folder's own" >&2; \
	    exit 1; \
	fi
	@rm -f $(STAMP)
	@{ $(AT_HOME); } && { $(AS_ASKED); } || $(MAKE) $(VENV)
	$(RUN) pip install --quiet --disable-pip-version-check -e '.[dev]'
	@pwd -P > $(STAMP)

$(VENV): FORCE
	@set -e; \
	python=; \
	for candidate in $(CANDIDATES); do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        python=$$candidate; break; \
	    fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "make: no Python of version 3.11 or later among: $(CANDIDATES)" >&2; \
	    echo "  Install one, or name it: make PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "make: $$python cannot make virtual environments: its modules venv and ensurepip are missing" >&2; \
	    echo "  On Debian and Ubuntu: apt-get install python3-venv" >&2; \
	    exit 1; \
	fi; \
	echo "make: building $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv --clear $(VENV)

FORCE:

# Every target makes its own .venv from $(PYTHON) and installs what it needs into it, once.
# `make clean` removes the environment.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
SOURCES := src tests $(wildcard tools benchmarks examples)

.PHONY: help demo test test-all lint format docs clean

help:
	@echo "make demo      train, prune, verify, export and report a small network on real digits"
	@echo "make test      the quick tests (everything but slow and bench)"
	@echo "make test-all  all tests but the benchmarks; the slow ones use PRUNUS_DATA where it is set"
	@echo "make lint      ruff check, ruff format --check, pyright"
	@echo "make format    let ruff mend what it can"
	@echo "make docs      check the links and run the examples of all Markdown pages"
	@echo "make clean     remove the environment and the caches"

demo: $(VENV)/.demo
	$(BIN)/prunus demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-all: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not bench" $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/pyright --pythonpath $(BIN)/python $(SOURCES)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

docs: $(VENV)/.dev
	$(BIN)/python tools/check_docs.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis

# A failed install leaves no stamp, so the next call tries again.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 10) <= v < (3, 14) and "prunus needs Python 3.10 to 3.13, and $(PYTHON) is %d.%d: make PYTHON=python3.11 ..." % v)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing prunus into $(VENV); this takes a few minutes, once"
	$(PIP_INSTALL) -e ".[report,onnx,energy]"
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing prunus and its development tools into $(VENV); this takes a few minutes, once"
	$(PIP_INSTALL) -e ".[dev]"
	@touch $@ $(VENV)/.demo

# make figures    every figure and the table of claims       make test   the test suite
# make lint       linter, formatter, type checker            make bench  the table of speeds
# make notebooks  the six lessons, run anew in their place   make docs   the API reference in site/
# make gallery    the pictures and the page in docs/gallery
#
# Each target sets up what it needs in .venv the first time and reuses it afterwards.
# FIGURES chooses the folder, ARGS passes options on:   make figures ARGS=--quick

PYTHON ?= python3
FIGURES ?= figures
VENV := .venv
BIN := $(VENV)/bin

.PHONY: figures gallery notebooks docs test lint format bench clean

figures: $(VENV)/.installed
	$(BIN)/modeseek figures --out $(FIGURES) $(ARGS)

# Its data and PDFs stay out of the repository.
gallery: FIGURES = docs/gallery
gallery: figures

# Stored without sliders, which only a running notebook can move.
notebooks: $(VENV)/.installed-notebooks
	MODESEEK_STATIC=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace \
	  --ExecutePreprocessor.coalesce_streams=True --ExecutePreprocessor.record_timing=False \
	  notebooks/*.ipynb

docs: $(VENV)/.installed-docs
	$(BIN)/python docs/api/build.py site

# The plain definitions are held to the tests of the core, too, without their faster twins.
test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto $(ARGS)
	MODESEEK_KERNELS=off $(BIN)/python -m pytest -n auto $(ARGS) \
	  tests/bandits/losses tests/bandits/policies tests/bandits/training

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed
	$(BIN)/modeseek bench $(ARGS)

clean:
	rm -rf $(VENV) $(FIGURES) site build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The stamps are written last, so an install that failed half-way starts again.
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "modeseek needs Python 3.11 or newer; name one with: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	@echo "Installing modeseek into $(VENV) (once, a few minutes) ..."

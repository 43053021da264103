# Everything a person types while working here. Each target sets up what is missing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test test-all check lint clean

# The virtual environment, made anew whenever the dependencies change.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[all,dev]"
	touch $@

demo: $(STAMP)  ## train, evaluate and predict on the embedded handwritten digits
	$(BIN)/resnet demo

test: $(STAMP)  ## everything quick: about five minutes on two cores
	$(BIN)/python -m pytest

test-all: lint  ## the slow ones too, and the linters: what CI runs
	$(BIN)/python -m pytest -m "slow or not slow"

check: lint test  ## what to run while working

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache

# The commands for developers. Each target installs what is missing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# The tests of numerical code, and the variables that turn AVX-512 off.
NUMERICAL := tests/models tests/training tests/study tests/evaluation tests/inference
AVX2      := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2

# The oldest versions that pyproject.toml allows. Their indirect dependencies are newer, and cause
# deprecation warnings that are not ours to fix.
OLDEST       := .venv-oldest
OLDEST_STAMP := $(OLDEST)/.installed

.PHONY: demo test test-all test-avx2 test-oldest check lint coverage docs clean

# The virtual environment, updated whenever the dependencies change.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[all,dev]"
	touch $@

demo: $(STAMP)  ## train, evaluate and predict on the built-in handwritten digits
	$(BIN)/resnet demo

test: $(STAMP)  ## the quick tests: about eight minutes on two cores
	$(BIN)/python -m pytest

# On a processor without AVX-512, the first command already covers test-avx2.
test-all: lint  ## the linters, all tests, and test-avx2 if the processor has AVX-512
	$(BIN)/python -m pytest -m "slow or not slow"
	if grep -qs avx512f /proc/cpuinfo; then $(AVX2) $(BIN)/python -m pytest $(NUMERICAL); fi

test-avx2: $(STAMP)  ## the quick tests of numerical code, as on a processor without AVX-512
	$(AVX2) $(BIN)/python -m pytest $(NUMERICAL)

check: lint test  ## what to run while working

$(OLDEST_STAMP): pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST) --resolution lowest-direct -e ".[all,dev]"
	touch $@

test-oldest: $(OLDEST_STAMP)  ## the quick tests with the oldest dependencies that we support
	$(OLDEST)/bin/python -m pytest -W ignore::DeprecationWarning

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

coverage: $(STAMP)  ## the quick tests, and the lines and branches that they do not reach
	$(BIN)/python -m pytest --cov --cov-report=term --cov-report=html:build/coverage

docs: $(STAMP)  ## the documentation as web pages, in build/docs; warnings and broken links are errors
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d build/doctrees -c docs . build/docs
	@echo "open build/docs/index.html"

clean:
	rm -rf $(VENV) $(OLDEST) build dist .coverage* .mypy_cache .pytest_cache .ruff_cache

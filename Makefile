# Everything a person types while working here. Each target sets up what is missing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# The packages that compute, and how to compute as a processor without AVX-512 does.
NUMERICAL := tests/models tests/training tests/study tests/evaluation tests/inference
AVX2      := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2

# The oldest versions that pyproject.toml allows of what it names. What these versions warn about in
# the newer packages that they pull in is not ours.
OLDEST       := .venv-oldest
OLDEST_STAMP := $(OLDEST)/.installed

.PHONY: demo test test-all test-avx2 test-oldest check lint coverage docs clean

# The virtual environment, made anew whenever the dependencies change.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[all,dev]"
	touch $@

demo: $(STAMP)  ## train, evaluate and predict on the embedded handwritten digits
	$(BIN)/resnet demo

test: $(STAMP)  ## everything quick: about eight minutes on two cores
	$(BIN)/python -m pytest

# A processor without AVX-512 has just run the tests of test-avx2 in this way.
test-all: lint  ## the slow ones too, the linters, and with AVX-512 test-avx2: what CI runs
	$(BIN)/python -m pytest -m "slow or not slow"
	if grep -qs avx512f /proc/cpuinfo; then $(AVX2) $(BIN)/python -m pytest $(NUMERICAL); fi

test-avx2: $(STAMP)  ## the quick tests of the packages that compute, as on a processor without AVX-512
	$(AVX2) $(BIN)/python -m pytest $(NUMERICAL)

check: lint test  ## what to run while working

$(OLDEST_STAMP): pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST) --resolution lowest-direct -e ".[all,dev]"
	touch $@

test-oldest: $(OLDEST_STAMP)  ## the quick tests with the oldest versions that we support
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

# Everything starts here. `make setup` needs Python 3.11 or newer, make and a package index; the rest needs nothing more.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
COVER  ?= 85

# One thread a test worker: two workers with two threads each are slower than two with one.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup lock test test-all lint format bench demo picture clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## Create .venv with every extra, exactly as requirements.lock says

# torch: the lock says ==2.13.0, which any build of that version satisfies (2.13.0+cpu, 2.13.0+cu130). Which one you get
# is your package index's choice: point pip at a CPU or CUDA index (pip config, PIP_INDEX_URL, PIP_FIND_LINKS) before setup.
# triton is locked to the version that the CUDA builds of this torch demand.
$(READY): requirements.lock pyproject.toml setup.py $(wildcard src/deepwell/lm/*/native/*.[ch])
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

lock:  ## Resolve everything anew and write requirements.lock (then run make setup and make test-all)
	rm -rf out/lock && $(PYTHON) -m venv out/lock
	out/lock/bin/pip install --quiet 'setuptools>=80' torch==2.13.0 triton==3.7.1
	out/lock/bin/pip install --quiet --editable '.[all,bench,demo,dev]' torch==2.13.0 triton==3.7.1
	{ sed -n '/^#/p' requirements.lock; \
	  out/lock/bin/pip freeze --all --exclude-editable --exclude pip --exclude deepwell | sed -E 's/\+(cpu|cu[0-9]+)$$//'; } > out/requirements.lock
	mv out/requirements.lock requirements.lock
	rm -rf out/lock

lint: setup  ## Style, types and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## Rewrite the source as the formatter wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint  ## Lint, then all quick tests with coverage
	$(BIN)/pytest -n 2 -q -m "not slow and not models" --cov --cov-report=term:skip-covered --cov-fail-under=$(COVER)

test-all: lint  ## Every test, also the slow ones and those that need the starter models
	$(BIN)/pytest -n 2 -q

bench: setup  ## Every figure of docs/measurements.md (hours on a small machine)
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

demo: setup  ## Fetch the starter models, index the example library, search it, ask it
	$(BIN)/python examples/demo.py

picture: setup  ## Draw docs/images/*.svg from a real run of the demo library
	$(BIN)/python docs/make_pictures.py

clean:  ## Remove what was built, but not .venv
	rm -rf out build dist examples/library .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find src tests examples benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

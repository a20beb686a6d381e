# make demo   the main job from end to end (makes .venv first)
# make test   all tests
# make lint   ruff, pyright, hadolint
# make bench  the benchmarks, results into benchmarks/results
# make setup  .venv with everything above

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: setup demo test lint format bench clean

setup: $(READY)

# The packages come once; an edit of pyproject.toml brings what it adds.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "softshard needs Python 3.11 or later, found: $$($(PYTHON) --version). Run: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=24' 'setuptools>=77' wheel
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all,dev]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/softshard demo --out demo-out

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/hadolint docker/Dockerfile

format: $(READY)
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(READY)
	cd benchmarks && ../$(BIN)/python loader_cpu.py
	cd benchmarks && ../$(BIN)/python plan_scale.py

clean:
	rm -rf $(VENV) build dist demo-out *.egg-info .pytest_cache .ruff_cache .hypothesis

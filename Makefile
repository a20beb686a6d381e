# make demo   the main job from end to end (makes .venv first)
# make test   all tests
# make lint   ruff, pyright, hadolint, the schema of compose
# make bench  the benchmarks, results into benchmarks/results
# make soak   an hour of loaders over bad storage: memory and descriptors must stay flat
# make setup  .venv with everything above
#
# The demo needs what a user needs; the tests and linters need a little more. A second file says that it is there.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DEV    := $(VENV)/.ready-dev
PIP     = PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: setup demo test lint format bench soak clean

setup: $(DEV)

# The packages come once; an edit of pyproject.toml brings what it adds.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "softshard needs Python 3.11 or later, found: $$($(PYTHON) --version). Run: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing softshard and what it needs into $(VENV) (about 7 GB, mostly torch and DALI; a few minutes)"
	$(PIP) --upgrade 'pip>=24' 'setuptools>=77' wheel
	$(PIP) --editable '.[all]'
	@touch $(READY)

$(DEV): $(READY)
	$(PIP) --editable '.[all,dev]'
	@touch $(DEV)

demo: $(READY)
	$(BIN)/softshard demo --out demo-out

test: $(DEV)
	$(BIN)/python -m pytest

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml

format: $(DEV)
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(DEV)
	cd benchmarks && ../$(BIN)/python peers.py
	cd benchmarks && ../$(BIN)/python augment_cpu.py
	cd benchmarks && ../$(BIN)/python label_maps.py
	cd benchmarks && ../$(BIN)/python sharder.py
	cd benchmarks && ../$(BIN)/python plan_scale.py
	cd benchmarks && ../$(BIN)/python order_scale.py
	cd benchmarks && ../$(BIN)/python exactness.py
	cd benchmarks && ../$(BIN)/python kill_pack.py
	cd benchmarks && ../$(BIN)/python faults.py
	cd benchmarks && ../$(BIN)/python confusion_groups.py
	cd benchmarks && ../$(BIN)/python losses.py
	cd benchmarks && ../$(BIN)/python semantic_losses.py
	cd benchmarks && ../$(BIN)/python relabel.py
	cd benchmarks && ../$(BIN)/python service.py
	cd benchmarks && ../$(BIN)/python service_kill.py --minutes 10
	cd benchmarks && ../$(BIN)/python tags.py --no-nltk-tagger

soak: $(DEV)
	cd benchmarks && ../$(BIN)/python soak.py --minutes 60

clean:
	rm -rf $(VENV) build dist demo-out *.egg-info .pytest_cache .ruff_cache .hypothesis

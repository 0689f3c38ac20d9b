# `make serve` and `make test` need nothing but python3 >= 3.11: both make .venv first.
PYTHON ?= python3
VENV := .venv
# Without an NVIDIA GPU the CPU build of torch is enough, and gigabytes smaller.
CONSTRAINTS := $(if $(shell command -v nvidia-smi 2>/dev/null),,-c .ci/constraints.txt)
export TRITON_CACHE_DIR ?= $(CURDIR)/.cache/triton
export TRITON_DEFAULT_FP_FUSION ?= 1

.PHONY: serve test lint types install install-dev clean

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml .ci/constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/pip install -q $(CONSTRAINTS) -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml .ci/constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/pip install -q $(CONSTRAINTS) -e '.[dev]'
	touch $@ $(VENV)/.installed

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

serve: install  ## start a server on the demo model
	$(VENV)/bin/sirocco serve

lint: install-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: install-dev
	$(VENV)/bin/mypy

test: lint types  ## lint, type-check, all tests
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(VENV)/bin/pytest -n 2

clean:
	rm -rf $(VENV) .cache build

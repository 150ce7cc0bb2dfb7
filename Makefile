# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := .cache/models/SmolLM2-135M-Instruct
OLDEST := .venv-oldest
# The lowest torch comes with gigabytes of CUDA; TORCH=2.13.0 is a CPU wheel.
TORCH ?= $(shell sed -n 's/^torch==//p' constraints-oldest.txt)
# Two minutes' worth; TESTS=tests runs them all.
TESTS ?= pl_prefopt tests/functional tests/objectives tests/data tests/callbacks tests/modules/test_steps.py \
  tests/test_hardware_configs.py
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# Threads that wait without spinning, so that a busy machine is slower but not ten times slower.
export OMP_WAIT_POLICY := passive
# Material for MkDocs would print its maker's news.
export NO_MKDOCS_2_WARNING := 1

.PHONY: help install model gemma demo test test-oldest check docs format clean

help:
	@echo "make demo    train SmolLM2-135M with DPO on the shipped preferences, and show what changed"
	@echo "make test    run the tests"
	@echo "make test-oldest    run a part of them with the lowest versions of what we depend on"
	@echo "make gemma   get Gemma-3-270M, a reference of another family (1.1 GB, about two minutes)"
	@echo "make check   lint, types and the documentation, strictly"
	@echo "make docs    build the documentation in build/site"
	@echo "make format  format the code"
	@echo "make clean   remove the environment and caches"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,oracle]"
	touch $@

model: install
	$(BIN)/python scripts/models/get.py SmolLM2-135M-Instruct --out $(MODEL)

gemma: install
	$(BIN)/python scripts/models/get.py Gemma-3-270M

demo: model
	$(BIN)/python scripts/demo/run.py --model $(MODEL)

test: model
	$(BIN)/python -m pytest --numprocesses 2

# pip checks what is there and adds what is missing, so this needs no stamp.
test-oldest:
	$(PYTHON) -m venv $(OLDEST)
	sed 's/^torch==.*/torch==$(TORCH)/' constraints-oldest.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --upgrade pip
	$(OLDEST)/bin/python -m pip install --quiet --constraint $(OLDEST)/constraints.txt --editable ".[test]"
	$(OLDEST)/bin/python -m pytest --numprocesses 2 $(TESTS)

check: install docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	$(BIN)/mkdocs build --quiet --strict

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(OLDEST) .cache .pytest_cache .mypy_cache .ruff_cache

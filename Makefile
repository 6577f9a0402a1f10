# Two commands on a fresh machine: `make quickstart` and `make test`. Each makes .venv and installs pinned versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# A CPU machine must not download gigabytes of CUDA: where a folder of wheels is named (PIP_FIND_LINKS) torch comes from
# there, elsewhere uv picks the build for this machine's GPU, or the CPU build where there is none.
UV := UV_FIND_LINKS="$(PIP_FIND_LINKS)" $(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -c constraints.txt
BACKEND := $(if $(PIP_FIND_LINKS),,--torch-backend auto)

.PHONY: quickstart test test-all lint base clean

quickstart: $(VENV)/.lean
	$(BIN)/finlora quickstart

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: $(VENV)/.test-all
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.test
	$(BIN)/ruff check src tests bench recipes

# Rebuilds the embedded base model and its low-rank rival: make base TEXT=path/to/train.jsonl (some three hours on one core).
base: $(VENV)/.lean
	$(BIN)/finlora pretrain recipes/base.toml --set 'data.text=["$(TEXT)"]'
	$(BIN)/finlora pretrain recipes/base_lowrank.toml --set 'data.text=["$(TEXT)"]'
	$(BIN)/python recipes/embed_base.py runs/base runs/base_lowrank

$(VENV)/bin/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt uv

$(VENV)/.lean: $(VENV)/bin/uv pyproject.toml constraints.txt
	$(UV) $(BACKEND) -e .
	touch $@

$(VENV)/.test: $(VENV)/.lean
	$(UV) $(BACKEND) -e '.[test]'
	touch $@

$(VENV)/.test-all: $(VENV)/.test
	$(UV) $(BACKEND) -e '.[test-all]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache

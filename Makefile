# Everything a fresh machine needs is set up by the targets themselves; Python 3.10 or later and a C++ compiler must be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo weights test test-all lint clean

help:
	@echo "make demo      the whole chain on a sample photograph, into out/demo"
	@echo "make weights   train the shipped weights again: SHARP=folder of photographs, MASKS=folder of masks, white = blurred"
	@echo "make test      lint, types and tests"
	@echo "make test-all  the slow tests too: every preset"
	@echo "make lint      lint and types only"
	@echo "make clean     remove what was made, the environment too"

demo: $(READY)
	$(BIN)/r2mrf demo -o out/demo

weights: $(READY)
	$(BIN)/r2mrf train r2mrf-edge --sharp "$(SHARP)" --masks "$(MASKS)" --masks-white blurred \
		--iterations 4000 --size 128 --batch 8 --resume -o out/weights
	$(BIN)/python examples/ship_weights.py out/weights/r2mrf-edge.pth

test: lint
	$(BIN)/python -m pytest -m "not slow"

test-all: lint
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or later is needed: make PYTHON=python3.11 ..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]'
	@touch $@

clean:
	rm -rf $(VENV) out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

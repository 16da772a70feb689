# Everything a newcomer needs: `make demo` trains a real language model, `make test` passes the tests.
# Each makes .venv itself. PYTHON chooses the interpreter (3.11 to 3.13).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/demo
SEED ?= 0

.PHONY: demo preference test checks install format clean

# torch goes first and alone, so that the constraints decide which build of it is taken.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

install: $(VENV)/installed

demo: install
	$(BIN)/llm-gym train TextSummary-v0 --seed $(SEED) --out $(RUN)

# A preference model from bundled data alone: references against the same with names and numbers changed.
preference: install
	$(BIN)/llm-gym feedback corrupt TextSummary-v0 --seed $(SEED) --out runs/preference-pairs.jsonl
	$(BIN)/llm-gym feedback train --data runs/preference-pairs.jsonl --seed $(SEED) --out runs/preference

test: install
	$(BIN)/llm-gym fetch
	$(BIN)/python -m pytest

checks: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) runs build dist *.egg-info

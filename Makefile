# make demo: compare the policies on the embedded digits; make test: the whole suite.
# make cifar100 DATA=FILE.npz: a small true comparison on CIFAR-100, docs/cifar100.md; without DATA torchvision downloads it.
# make thesis-sine, make thesis-mnist DATA_DIR=...: the thesis' experiments, docs/thesis.md.
# make docs: the site of docs/ and of the docstrings, into build/site.
# make bench BENCH_DATA=cifar10 (or folder:PATH) DATA_DIR=...: docs/benchmarks.md.
PYTHON ?= python3
BIN := .venv/bin
DATA_DIR ?= data
BENCH_DATA ?= cifar10

.PHONY: demo cifar100 thesis-sine thesis-mnist bench docs test lint format clean

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $@

demo: $(BIN)/.installed
	$(BIN)/python run.py compare --config experiments/digits.yaml --out runs/digits
	@echo "more: $(BIN)/tensorboard --logdir runs/digits, then open the address that it prints"
	@$(BIN)/python experiments/architectures.py runs/digits

cifar100: $(BIN)/.installed
	$(BIN)/python run.py compare --config experiments/cifar100.yaml --data $(if $(DATA),npz:$(DATA),cifar100) --data_dir $(DATA_DIR) --out runs/cifar100
	@echo "report: runs/cifar100/report.html; layers: $(BIN)/tensorboard --logdir runs/cifar100"

thesis-sine: $(BIN)/.installed
	$(BIN)/python run.py compare --config experiments/sine.yaml --out runs/sine
	$(BIN)/python run.py compare --config experiments/sine-thesis.yaml --out runs/sine-thesis
	$(BIN)/python experiments/thesis.py draw runs/sine runs/sine-thesis

thesis-mnist: $(BIN)/.installed
	$(BIN)/python run.py compare --config experiments/mnist.yaml --data-dir $(DATA_DIR) --out runs/mnist --final
	$(BIN)/python experiments/thesis.py draw runs/mnist

$(BIN)/.docs: $(BIN)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[docs]' -c constraints.txt
	touch $@

docs: $(BIN)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "here: build/site/index.html; $(BIN)/mkdocs serve has its search too"

bench: $(BIN)/.installed
	$(BIN)/python -m benchmarks --data $(BENCH_DATA) --data-dir $(DATA_DIR)

test: $(BIN)/.installed
	$(BIN)/python -m pytest --numprocesses logical --dist worksteal

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(BIN)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache

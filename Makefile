# Everything a person needs here is a target; nothing but Python >= 3.10 with venv and pip must be there before.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test test-all lint docs bench tensorboard clean

$(STAMP): pyproject.toml .constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python >= 3.10 is needed; choose one with: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "Installing into .venv (a few minutes the first time)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check -c .constraints.txt -e '.[recipes,studies,ray,test,dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/lightning-stable fit --recipe charlm_stable
	$(BIN)/lightning-stable report "$$(ls -td runs/charlm_stable/version_* | head -n 1)"

lint: $(STAMP)
	$(BIN)/ruff format --check lightning_stable tests notebooks
	$(BIN)/ruff check lightning_stable tests notebooks
	$(BIN)/pyright lightning_stable
	$(BIN)/lint-imports

# a file is tested by one process: what its tests have in common, such as processes of its own, is started once
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-all: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

docs: $(STAMP)
	$(BIN)/lightning-stable techniques --write README.md

bench: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/lightning-stable bench overhead
	OMP_NUM_THREADS=1 $(BIN)/lightning-stable bench guard
	$(BIN)/lightning-stable bench optimizers
	$(BIN)/lightning-stable bench detectors

tensorboard: $(STAMP)
	$(BIN)/tensorboard --logdir runs

clean:
	rm -rf .venv runs dist build .pytest_cache .ruff_cache .import_linter_cache

# Everything a newcomer needs: `make demo`, `make test`. Both make .venv on the first call and re-use it after.
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test lint install clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[test]"
	mkdir -p .typing && ln -sfn .. .typing/tdraft
	touch $@

demo: install
	$(BIN)/tdraft demo $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal $(ARGS)

clean:
	rm -rf .venv .typing build dist *.egg-info

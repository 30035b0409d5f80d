# Two commands are all that a new user needs: `make quickstart` and `make test`. Both make their own .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart test lint types clean

quickstart: .venv/installed
	$(BIN)/specreg study run digits --trials 12 --workers 2
	$(BIN)/specreg study report digits --html report.html
	@echo "The report is in report.html: it opens offline in any browser."

test: .venv/tested
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto

lint: .venv/developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/developed
	rm -rf build/site
	$(PIP) --no-deps --target build/site .
	cd build/site && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p specreg

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("specreg needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) --editable .
	touch $@

.venv/tested: .venv/installed
	$(PIP) --editable '.[test]'
	touch $@

.venv/developed: .venv/tested
	$(PIP) --editable '.[test,dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info

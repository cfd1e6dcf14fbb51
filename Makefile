# make demo | make lab | make docs | make test | make check; each first makes .venv, where it is not there or out of date.

PYTHON ?= python3
OUT ?= attnreg-demo
NOTEBOOKS ?= runs/notebooks
JOBS ?= 2  # processes of the tests; each computes with one thread
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/attnreg-ready

.PHONY: demo lab docs test lint check format venv constraints clean
.DEFAULT_GOAL := check

demo: venv  ## generate, trace, detect and show, on the emoji world
	$(BIN)/attnreg demo --out "$(OUT)"

lab: venv  ## JupyterLab on a copy of the notebooks of one's own, with everything installed
	mkdir -p "$(NOTEBOOKS)"
	for book in notebooks/*.ipynb; do test -e "$(NOTEBOOKS)/$${book##*/}" || cp "$$book" "$(NOTEBOOKS)/" || exit 1; done
	$(BIN)/jupyter lab "$(NOTEBOOKS)"

docs: venv  ## the site, docs/build/html/index.html; docs/cli.md is written anew
	$(BIN)/python -m typer analysis.cli utils docs --name attnreg > docs/cli.md
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/build/html

test: venv  ## all tests that need neither a graphics card nor full-size weights
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --ignore tests/alone
	$(BIN)/python -m pytest tests/alone  # what needs the machine for itself

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

check: lint test  ## all that must hold for a commit

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

venv: $(READY)

# The last line is the stamp: what is cut short before it is done again.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Attnreg needs Python 3.11 or later: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	touch $@

# The newest of everything, but for what torch itself pins or asks for on one system only.
constraints: venv
	$(BIN)/python -m pip install --upgrade --upgrade-strategy eager -e ".[dev]"
	{ sed -n '/^#/p' constraints.txt; \
	  $(BIN)/python -m pip freeze --exclude attnreg | grep -vE '^(nvidia|cuda)-|^triton=='; } > constraints.new
	mv constraints.new constraints.txt
	touch $(READY)

clean:
	rm -rf $(VENV) docs/build docs/notebooks .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# Two commands do everything on a fresh machine with Python and make:
#   make run    sets up an environment and trains LeNet
#   make test   sets up an environment and checks everything

PYTHON ?= python3
ENVIRONMENT := .venv
BIN := $(ENVIRONMENT)/bin

.PHONY: run test lint types unit bench clean

run: $(ENVIRONMENT)/lab
	$(BIN)/gradstep train

test: lint types unit

lint: $(ENVIRONMENT)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(ENVIRONMENT)/test
	$(BIN)/mypy

unit: $(ENVIRONMENT)/test
	$(BIN)/python -m pytest --cov=gradstep --cov-report=
	$(BIN)/coverage report --skip-covered --sort=cover
	$(BIN)/coverage report --fail-under=95 --include='*/optimizer.py,*/checkpoint.py,*/engine/eager.py,*/engine/plan.py,*/engine/update.py,*/rule/*'

# The figures of the README: about ten minutes on a machine that does nothing else.
bench: $(ENVIRONMENT)/lab
	$(BIN)/gradstep bench --sizes all --load --out bench

$(ENVIRONMENT)/bin/python:
	$(PYTHON) -m venv $(ENVIRONMENT)

$(ENVIRONMENT)/lab: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[lab]'
	@touch $@

$(ENVIRONMENT)/test: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

clean:
	rm -rf $(ENVIRONMENT) .coverage .pytest_cache .mypy_cache .ruff_cache

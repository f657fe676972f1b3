# Two commands do everything on a fresh machine with Python and make:
#   make run    sets up an environment and trains LeNet
#   make test   sets up an environment and checks everything
# and a third, which needs a few more packages:
#   make test-integration   trains with Hugging Face, Lightning and accelerate

PYTHON ?= python3
ENVIRONMENT := .venv
# An environment of its own: what the neighbours bring along must not change what `make test` sees.
INTEGRATION := .venv-integration
BIN := $(ENVIRONMENT)/bin

.PHONY: run test lint types unit test-integration bench clean

run: $(ENVIRONMENT)/lab
	$(BIN)/gradstep train

test: lint types unit

lint: $(ENVIRONMENT)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(ENVIRONMENT)/test
	$(BIN)/mypy

unit: $(ENVIRONMENT)/test
	$(BIN)/python -m pytest -n auto --dist worksteal -m 'sweep and not alone'
	$(BIN)/python -m pytest -n auto --dist worksteal -m 'not sweep and not alone' --cov=gradstep --cov-report=
	$(BIN)/python -m pytest -m alone --cov=gradstep --cov-report= --cov-append
	$(BIN)/coverage report --skip-covered --sort=cover
	$(BIN)/coverage report --fail-under=95 --include='*/optimizer.py,*/planning.py,*/group_run.py,*/parameter_groups.py,*/states.py,*/checkpoint.py,*/engine/eager.py,*/engine/plan.py,*/engine/update.py,*/rule/*'

test-integration: $(INTEGRATION)/ready
	$(INTEGRATION)/bin/python -m pytest tests/integration

# The figures of the README: about ten minutes on a machine that does nothing else.
bench: $(ENVIRONMENT)/lab
	$(BIN)/gradstep bench --sizes all --load --out bench

$(ENVIRONMENT)/bin/python $(INTEGRATION)/bin/python:
	$(PYTHON) -m venv $(@:/bin/python=)

$(ENVIRONMENT)/lab: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[lab]'
	@touch $@

$(ENVIRONMENT)/test: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

$(INTEGRATION)/ready: $(INTEGRATION)/bin/python pyproject.toml constraints.txt constraints-integration.txt
	$(INTEGRATION)/bin/python -m pip install --quiet --constraint constraints.txt --constraint constraints-integration.txt --editable '.[integration]'
	@touch $@

clean:
	rm -rf $(ENVIRONMENT) $(INTEGRATION) .coverage .pytest_cache .mypy_cache .ruff_cache

# Two commands do everything on a fresh machine with Python and make:
#   make run    sets up an environment and trains LeNet
#   make test   sets up an environment and checks it: 6 to 15 minutes
# and for who changes something:
#   make test-all           the same of every rule with every flag, and the lines covered: hours
#   make test-versions      the tests of `make test` with other releases of Python, torch and numba
#   make test-gpu           what an accelerator alone can show: PYTHON=, an environment whose torch has one
#   make docs               builds the site into build/site, and looks for dead links
#   make package            builds the wheel and the sdist into dist/, and checks them
#   make test-package       installs that wheel into empty environments of Python 3.10 to 3.13, and trains
#   make test-integration   trains with Hugging Face, Lightning and accelerate, which it installs

PYTHON ?= python3
ENVIRONMENT := .venv
# An environment of its own: what the neighbours bring along must not change what `make test` sees.
INTEGRATION := .venv-integration
BIN := $(ENVIRONMENT)/bin

# Each process of the tests takes up to a GiB, so `make test` starts no more than two by itself.
WORKERS ?= 2

# Many tests start processes, each of which would compile every module anew.
export PYTHONDONTWRITEBYTECODE :=

PYTEST := $(BIN)/python -m pytest --progress
IN_PARALLEL := --dist worksteal -n
QUICK = $(PYTEST) $(IN_PARALLEL) $(WORKERS) -m 'not deep and not alone'

# A line before and after a part of the work: what it is, and how long it took.
define part
@began=$$(date +%s); echo "$(1) ..."; if $(2); then echo "$(1): passed, $$(($$(date +%s) - began)) s"; else echo "$(1): FAILED after $$(($$(date +%s) - began)) s"; exit 1; fi
endef

.PHONY: run test test-all lint types quick sweep rest alone alone-all coverage test-versions test-gpu test-integration docs package test-package bench clean

run: $(ENVIRONMENT)/lab
	$(BIN)/gradstep train

# The types are checked beside the tests: alone they would leave a core idle.
test: $(ENVIRONMENT)/test
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory -j 2 types quick
	@$(MAKE) --no-print-directory alone

test-all: $(ENVIRONMENT)/test
	@$(MAKE) --no-print-directory lint types
	@$(MAKE) --no-print-directory sweep
	@$(MAKE) --no-print-directory rest
	@$(MAKE) --no-print-directory alone-all coverage

lint: $(ENVIRONMENT)/test
	$(call part,style,$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check .)

types: $(ENVIRONMENT)/test
	$(call part,types,$(BIN)/mypy --no-error-summary)

# First those that start processes, while the ones that run them are small: in one go they would
# take 3.8 GiB together. A part has half of the tests to collect.
WITH_PROCESSES = '^\(from\|import\) \(ranks\|forked\)'

quick: $(ENVIRONMENT)/test
	$(call part,tests with processes,$(QUICK) $$(grep -l $(WITH_PROCESSES) tests/test_*.py))
	$(call part,tests,$(QUICK) $$(grep -L $(WITH_PROCESSES) tests/test_*.py))

sweep: $(ENVIRONMENT)/test
	$(call part,tests of every rule,$(PYTEST) $(IN_PARALLEL) auto -m 'sweep and not alone')

rest: $(ENVIRONMENT)/test
	$(call part,other tests,$(PYTEST) $(IN_PARALLEL) auto -m 'not sweep and not alone' --cov=gradstep --cov-report=)

# Only the files that have such tests: reading all the others takes longer than running these.
ALONE = $$(grep -l 'mark[.]alone' tests/test_*.py)

alone: $(ENVIRONMENT)/test
	$(call part,tests that measure time,$(PYTEST) -m 'alone and not deep' $(ALONE))

alone-all: $(ENVIRONMENT)/test
	$(call part,tests that measure time,$(PYTEST) -m alone --cov=gradstep --cov-report= --cov-append $(ALONE))

coverage:
	$(BIN)/coverage report --skip-covered --sort=cover
	$(call part,95 % of the core's lines,$(BIN)/coverage report --fail-under=95 --include='$(CORE)' >/dev/null)

CORE := */optimizer.py,*/planning.py,*/group_run.py,*/parameter_groups.py,*/states.py,*/checkpoint.py,*/backends/eager.py,*/backends/dispatch.py,*/backends/update.py,*/program/*,*/rule/*

# The lowest and the newest of all that is declared, with Python 3.10 to 3.13, each in an
# environment of its own: an hour or two, and 6 GB of disk for each.
test-versions:
	$(PYTHON) tests/versions.py

test-gpu:
	$(PYTHON) -m pytest tests/gpu

test-integration: $(INTEGRATION)/ready
	$(INTEGRATION)/bin/python -m pytest tests/integration

docs: $(ENVIRONMENT)/docs
	$(BIN)/python site/build.py build/site

package: $(ENVIRONMENT)/package
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

# 6 GB of disk, one environment after the other.
test-package:
	$(PYTHON) tests/packages.py

# The figures of the README: some minutes on a machine that does nothing else.
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

$(ENVIRONMENT)/docs $(ENVIRONMENT)/package: $(BIN)/python pyproject.toml constraints.txt constraints-docs.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --constraint constraints-docs.txt --editable '.[$(@F)]'
	@touch $@

$(INTEGRATION)/ready: $(INTEGRATION)/bin/python pyproject.toml constraints.txt constraints-integration.txt
	$(INTEGRATION)/bin/python -m pip install --quiet --constraint constraints.txt --constraint constraints-integration.txt --editable '.[integration]'
	@touch $@

clean:
	rm -rf $(ENVIRONMENT) $(INTEGRATION) .venv-versions .venv-packages build dist .coverage .pytest_cache .mypy_cache .ruff_cache

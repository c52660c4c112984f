# What can be done from a checkout. `make help` lists it; nothing here needs root.

VENV := .venv
PYTHON = $(shell sh tools/find-python)
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check --quiet --quiet
# Two workers, as most tests wait for something; `make test TESTS=tests.test_queue TRIAL=` runs one file in one process.
TESTS := tests
TRIAL := -j2
# Debian keeps Postfix's smtp-source and smtp-sink there.
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: bench help demo demo-stop test lint types build clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo       start qtwist in ./demo on loopback, send it mail, show where it went'
	@echo 'make demo-stop  stop it'
	@echo 'make test       run the tests'
	@echo 'make lint       check style and formatting'
	@echo 'make types      check types'
	@echo 'make build      build sdist and wheel, and try the wheel in a fresh environment'
	@echo 'make clean      stop the demo and remove all that make has made'

$(VENV)/bin/python:
	@python='$(PYTHON)'; test -n "$$python" && echo "making $(VENV) with $$python" && "$$python" -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	@$(PIP) install --editable '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-lint: pyproject.toml | $(VENV)/bin/python
	@$(PIP) install --editable '.[lint]'
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed
	@$(RUN) -m tools.demo start

demo-stop:
	@test ! -x $(RUN) || $(RUN) -m tools.demo stop

test: $(VENV)/.installed-test
	$(RUN) -m twisted.trial $(TRIAL) --reporter=text $(TESTS)

lint: $(VENV)/.installed-lint
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(VENV)/.installed-lint
	$(RUN) -m mypy

build: $(VENV)/.installed-lint
	@rm -rf dist && mkdir dist
	$(RUN) -m build --outdir dist . >dist/build.log 2>&1 || { cat dist/build.log; exit 1; }
	@rm dist/build.log
	$(RUN) -m tools.try_wheel dist

# Beside Postfix, as root, where other accounts can run this Python (bench/README.md).
bench: $(VENV)/.installed
	$(RUN) bench/peers.py $(BENCH)

clean: demo-stop
	rm -rf $(VENV) dist build demo _trial_temp* .hypothesis .mypy_cache .ruff_cache
	find qtwist tests tools twisted -name __pycache__ -prune -exec rm -rf {} +
	rm -f twisted/plugins/dropin.cache

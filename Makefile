# What can be done from a checkout. `make help` lists it; nothing here needs root.

VENV := .venv
PYTHON = $(shell sh tools/find-python)
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check --quiet --quiet
# Two workers, as most tests wait for something; `make test TESTS=tests.test_queue TRIAL=` runs one file in one process.
TESTS := tests
TRIAL := -j2
# What `make coverage` measures, and the rest: measured, it would take twice as long and tell 0.2 % more.
E2E := $(wildcard tests/e2e/test_*.py)
MEASURED := $(wildcard tests/test_*.py)
MEASURED += $(filter $(addprefix %,content.py flow.py install.py qmailctl.py queue_verbs.py roles.py start.py supervision.py),$(E2E))
UNMEASURED := $(filter-out $(MEASURED),$(E2E)) tests/fuzz tests/sim tests/soak
# `make soak SECONDS=3600 SEED=…`: the seed of the first stories, as a failure has printed it.
SECONDS := 60
SEED :=
# 1 for a daemon with control/journal.
JOURNAL := 0
# Debian keeps Postfix's smtp-source and smtp-sink there.
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: bench bench-all bench-plots coverage fuzz mutants soak-faults soak-overload help demo demo-stop test lint types build clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo       start qtwist in ./demo on loopback, send it mail, show where it went'
	@echo 'make demo-stop  stop it'
	@echo 'make test       run the tests'
	@echo 'make soak       stop the machine at random points for SECONDS=…, then try every mutation of the syncs'
	@echo 'make soak-faults SECONDS=600 JOURNAL=1  kill the daemon and its roles under load, and account for every message'
	@echo 'make coverage   which branches the tests take, in all processes'
	@echo 'make soak-overload            ten times the load of the tests of overload'
	@echo 'make mutants    break the code in 250 places, and see whether the tests notice'
	@echo 'make fuzz SECONDS=600         hostile bytes for every engine and parser'
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
	@$(PIP) install --editable '.[test,bench]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-lint: pyproject.toml | $(VENV)/bin/python
	@$(PIP) install --editable '.[lint]'
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed
	@$(RUN) -m tools.demo start

demo-stop:
	@test ! -x $(RUN) || $(RUN) -m tools.demo stop

# With MEASURE=1 in the environment, the same in two parts, the first of which tells the coverage (.ci/run does).
ifdef MEASURE
test: $(VENV)/.installed-coverage
	@$(MAKE) --no-print-directory coverage; measured=$$?; \
	$(RUN) -m twisted.trial $(TRIAL) --reporter=text $(UNMEASURED) && exit $$measured
else
test: $(VENV)/.installed-test
	$(RUN) -m twisted.trial $(TRIAL) --reporter=text $(TESTS)
endif

soak: $(VENV)/.installed-test
	$(RUN) -m tests.sim.soak $(SECONDS) $(SEED)
	$(RUN) -m tests.sim.mutations

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

# Real processes killed under load; as root, each role too.
soak-faults: $(VENV)/.installed-test
	SOAK_SECONDS=$(SECONDS) SOAK_SEED=$(SEED) SOAK_JOURNAL=$(JOURNAL) $(RUN) -m twisted.trial --reporter=text tests.soak.test_kills

# Which branches the tests take; the machine of tests/sim takes most of its time and tells little.
$(VENV)/.installed-coverage: pyproject.toml | $(VENV)/.installed-test
	@$(PIP) install --editable '.[test,coverage]'
	@touch $@

coverage: $(VENV)/.installed-coverage
	@$(RUN) -m tools.measure $(RUN) -m twisted.trial $(TRIAL) --reporter=text $(MEASURED)

# Ten times the overload of the tests; more with OVERLOAD=N.
OVERLOAD := 10
soak-overload: $(VENV)/.installed-test
	OVERLOAD=$(OVERLOAD) $(RUN) -m twisted.trial --reporter=text tests.e2e.test_overload

# Engines and parsers with bytes that nobody meant.
$(VENV)/.installed-fuzz: pyproject.toml | $(VENV)/.installed-test
	@$(PIP) install --editable '.[test,fuzz]' || echo 'atheris cannot be installed for this Python'
	@touch $@

fuzz: $(VENV)/.installed-fuzz
	$(RUN) -m tests.fuzz.run $(SECONDS) $(SEED)

# The code broken on purpose, in a copy; MUTANTS=word chooses by file or description.
MUTANTS :=
mutants: $(VENV)/.installed-test
	$(RUN) -m tests.mutants.run $(MUTANTS)

# Beside Postfix, as root, where other accounts can run this Python (bench/README.md).
RESULTS := bench/results
bench: $(VENV)/.installed
	@mkdir -p $(RESULTS)
	$(RUN) -m bench.peers --json $(RESULTS)/peers.json $(BENCH)
	$(RUN) -m bench.pop3 --json $(RESULTS)/pop3.json $(BENCH_POP3)

# All that there is, and what the pictures are made of: bench/README.md says how long it takes.
GROWTH_SERVERS := journaled,notqmail,postfix
bench-all: bench
	$(RUN) -m bench.peers --growth --rounds 2 --only $(GROWTH_SERVERS) --json $(RESULTS)/growth.json $(BENCH_GROWTH)
	$(RUN) -m bench.backlog --json $(RESULTS)/backlog.json $(BENCH_BACKLOG)
	$(RUN) -m bench.stages --json $(RESULTS)/stages.json $(BENCH_STAGES)

# The pictures of doc/performance.md, from what bench-all has measured; a word in each title with NOTE='trial run'.
NOTE :=
$(VENV)/.installed-bench: pyproject.toml | $(VENV)/bin/python
	@$(PIP) install --editable '.[bench]'
	@touch $@ $(VENV)/.installed

bench-plots: $(VENV)/.installed-bench
	$(RUN) -m bench.plots --note '$(NOTE)' $(foreach name,growth backlog stages,$(RESULTS)/$(name).json)

clean: demo-stop
	rm -rf $(VENV) dist build demo _trial_temp* .hypothesis .mypy_cache .ruff_cache
	find qtwist tests tools twisted -name __pycache__ -prune -exec rm -rf {} +
	rm -f twisted/plugins/dropin.cache

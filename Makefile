# GNU make and a POSIX shell. `make demo` for a first look, `make test` before a change is handed in.

# The Python that makes .venv: the first of these that is new enough, or your own: make PYTHON=/path/to/python test
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)
# Of two cores, one would wait whenever a test waits for another process.
JOBS ?= 3
RECORDS ?= runs/bench

BIN := .venv/bin
# Not compiled: most of what is installed is never imported.
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile
# Set in many containers: every process would compile again all that it imports, which takes longer than most tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint types unit slow docs newest bench clean .venv

demo: .venv/.installed-report
	@out=runs/demo; n=2; while [ -e "$$out" ]; do out=runs/demo-$$n; n=$$((n + 1)); done; \
	$(BIN)/bygrad reproduce mnist --budget quick --out "$$out"

# Side by side what takes one core each; then the tests, which take all.
test: .venv/.installed-test
	@$(MAKE) --no-print-directory -j 2 lint types docs .venv313/.installed-test
	@$(MAKE) --no-print-directory -j 1 unit newest

lint: .venv/.installed-test
	@echo "ruff"
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

types: .venv/.installed-test
	@echo "pyright"
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python

unit: .venv/.installed-test
	@echo "pytest, `$(BIN)/python --version`"
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal

# What `unit` leaves out, for a change that reaches far: half an hour more. Every benchmark runs, at a small size.
slow: .venv/.installed-test
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m slow

# Into build/docs. A warning is an error: a broken link or a docstring that cannot be read.
docs: .venv/.installed-test
	@echo "sphinx"
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

# JAX 0.10 is the last for Python 3.11; a second environment, without PyTorch, runs the core of the tests on the newest,
# and of a test with many cases one: the others are those of the first environment. To import a module takes longer than
# a test, so no other modules.
newest: .venv313/.installed-test
	@if [ -e .venv313/.installed-test ]; then \
		echo "pytest -m core, `.venv313/bin/python --version`"; \
		.venv313/bin/python -m pytest -q -n $(JOBS) --dist worksteal -m "core and not slow" --few-cases \
			`grep -rl --include 'test_*.py' mark.core tests`; \
	fi

# `make bench RECORDS=benchmarks/records` renews most of what `docs/results.md` quotes, whose table of commands has the
# options of the others: on a machine with nothing else to do.
bench: .venv/.installed-test
	@for script in benchmarks/[!_]*.py; do \
		echo "$$script"; \
		$(BIN)/python "$$script" --json "$(RECORDS)/`basename $$script .py`.json" || exit 1; \
	done

# Never the runs: they may have taken days.
clean:
	rm -rf .venv .venv313 build dist .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

.venv: .venv/.installed-test

.venv/.made:
	@[ -n "$(PYTHON)" ] || { echo "No Python 3.11 or newer found: install one, or name it: make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "bygrad needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) --version`"; exit 1; }
	@echo "Making .venv with `$(PYTHON) --version`"
	@$(PYTHON) -m venv .venv || $(PYTHON) -m virtualenv --quiet .venv || { \
		echo "$(PYTHON) cannot make an environment: install its venv module (Debian: python3-venv) or virtualenv."; exit 1; }
	@touch $@

.venv/.installed-report: pyproject.toml .venv/.made
	@echo "Installing bygrad and what it needs into .venv"
	@$(BIN)/python $(PIP_INSTALL) --editable '.[report]'
	@touch $@

.venv/.installed-test: pyproject.toml .venv/.made
	@echo "Installing bygrad, what it needs, PyTorch, and the test tools into .venv"
	@$(BIN)/python $(PIP_INSTALL) --editable '.[report,test,torch,docs]'
	@touch .venv/.installed-report $@

# Leaves no stamp, and `newest` then has nothing to run, where there is no Python 3.13 or it cannot make an environment.
# Debian's Python often has no ensurepip: virtualenv, installed into .venv, brings its own pip.
.venv313/.installed-test: pyproject.toml .venv/.installed-test
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 13))'; then \
		echo "No second environment: the first one has the newest JAX already"; rm -f $@; exit 0; \
	fi; \
	for python in python3.13 /usr/bin/python3; do \
		"$$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 13))' 2>/dev/null && break; python=; \
	done; \
	if [ -z "$$python" ]; then echo "SKIPPED the tests on Python 3.13: there is none here"; rm -f $@; exit 0; fi; \
	echo "Making .venv313 with $$python, for the newest JAX"; \
	"$$python" -m venv .venv313 2>/dev/null || { \
		$(BIN)/python $(PIP_INSTALL) virtualenv && $(BIN)/python -m virtualenv --quiet --python "$$python" .venv313; \
	} || { echo "SKIPPED the tests on Python 3.13: $$python cannot make an environment"; rm -f $@; exit 0; }; \
	.venv313/bin/python $(PIP_INSTALL) --upgrade --editable '.[report,test]' && touch $@

# Two commands do everything on Linux and macOS; README.md gives the plain commands behind them, also for Windows.
#   make demo    learn filters from one sample brain, restore another, print the figures
#   make test    run the test suite
# Another interpreter: make demo PYTHON=python3.12 (it counts when .venv is first made).

PYTHON ?= python3
RUN := .venv/bin/python

export PYTHONUNBUFFERED = 1

.PHONY: help demo test clean

help:
	@echo "make demo   fetch two sample brains, train, restore, print the figures; all files go to demo/"
	@echo "make test   run the tests"
	@echo "make clean  remove demo/ and the caches; .venv/, train/, test/, arrays/ and result/ stay"

demo: .venv/installed
	$(RUN) sample.py --train_dir demo/train --test_dir demo/test --no_hint
	$(RUN) train.py --train_dir demo/train --arrays_dir demo/arrays
	$(RUN) test.py --test_dir demo/test --arrays_dir demo/arrays --result_dir demo/result

test: .venv/installed-dev
	$(RUN) -m pytest -n 2

clean:
	rm -rf demo .pytest_cache .ruff_cache .hypothesis __pycache__ tests/__pycache__

# A virtual environment that failed half-way (Debian without python3-venv) must not pass for a good one.
$(RUN):
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "make: $(PYTHON) is older than Python 3.10; name a newer one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

# The empty stamp files are newer than the requirements they stand for.
.venv/installed: requirements.txt | $(RUN)
	$(RUN) -m pip install --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/installed-dev: requirements-dev.txt requirements.txt | $(RUN)
	$(RUN) -m pip install --disable-pip-version-check -r requirements-dev.txt
	@touch $@

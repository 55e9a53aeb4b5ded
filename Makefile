# The commands of the project; `make` alone lists them.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
TRITONS ?= 3.6.0 3.7.1 3.8.0 3.9.0

.PHONY: help demo test check check-triton check-extras bench clean

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 24

demo: $(INSTALLED) ## spot, recognise and choose what to label, on synthetic speech; a page shows it
	$(BIN)/python recipes/demo.py --out out/demo

# one thread a process: results do not depend on the machine, and two processes fill two cores
test: export OMP_NUM_THREADS = 1
test: $(INSTALLED) ## run the tests
	$(BIN)/pytest -q -n 2

check: $(INSTALLED) ## lint, check format and types, run the tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(MAKE) test

# each version in a folder of its own; the interpreter of 3.6 and 3.7 fails with NumPy 2.4
check-triton: export OMP_NUM_THREADS = 1
check-triton: $(INSTALLED) ## run the tests of the GPU kernels with other versions of triton
	@set -e; for version in $(TRITONS); do \
		folder=$(CURDIR)/.tritons/$$version; echo "triton $$version"; \
		test -d $$folder || $(BIN)/python -m pip install --quiet --no-deps --target $$folder triton==$$version "numpy<2.4"; \
		PYTHONPATH=$$folder:. TRITON_CACHE_DIR=$$folder/cache \
			$(BIN)/pytest -q -n 2 tests/kernels/test_triton_interpreter.py tests/kernels/test_kernel_budget.py; \
	done

check-extras: $(INSTALLED) ## run the tests that need Ray, and torchaudio's beam search
	$(BIN)/python -m pip install --quiet --editable '.[ray,lm]'
	$(BIN)/pytest -q tests/active_learning/test_engines.py tests/test_recipes.py -k "ray or beam"

bench: export OMP_NUM_THREADS = 1
bench: $(INSTALLED) ## measure speed, of what passes its tests first
	$(BIN)/pytest -q tests/speechkit/test_frontend.py tests/speechkit/test_pcen.py tests/kws/test_detector.py
	$(BIN)/pytest -q tests/bench_*.py --benchmark-columns=min,median,max,rounds
	$(BIN)/python -m speechkit kernels bench --out out/bench/kernels

clean: ## remove the environment and all that is generated
	rm -rf .venv .tritons out build dist *.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ...")'
	@echo "installing into .venv: some minutes, once"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev,synth,export,label]'
	@touch $@

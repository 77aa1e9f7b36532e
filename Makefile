# Everything runs in .venv, benchmarks with their peers in .venv-bench; the first target that needs one creates it and
# installs it from constraints.txt.
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
BENCH_PY := .venv-bench/bin/python
BENCH_STAMP := .venv-bench/.installed
FOLDERS := rayconf envs algos pbt analysis tests benchmarks
CACHES := build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
# The half of the tests that mostly computes, in one process. The other half launches the command again and again, waits
# for it, and holds every test that is not listed here. Two halves that end together use two cores best.
COMPUTING := tests/algos tests/analysis tests/envs tests/pbt tests/rayconf tests/test_benchmarks.py \
  tests/test_generalisation_benchmark.py tests/test_audit.py tests/test_decide.py tests/test_fleet.py \
  tests/test_publish.py tests/test_status.py

export RAY_USAGE_STATS_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-computing test-launching test-cluster lint format bench bench-gpu clean

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(STAMP)  ## Create .venv with the pinned versions (a minute or two)

demo: $(STAMP)  ## Train, backtest and report on the embedded market
	@$(PY) -c "import torch; cuda = torch.version.cuda; \
	  print('torch', torch.__version__.split('+')[0], f'(CUDA {cuda} build)' if cuda else '(CPU build)')"
	@$(PY) -m pbt.launch --preset demo

test: $(STAMP)  ## Run all tests, in two halves side by side
	@mkdir -p build && rm -f build/test-*.log
	@$(MAKE) --no-print-directory -k -j2 test-computing test-launching; status=$$?; \
	  grep -E '^(FAILED|ERROR) |^=* ?[0-9]+ .* in [0-9.]+s' build/test-*.log; exit $$status

test-computing: TESTS := $(COMPUTING)
test-launching: TESTS := tests $(COMPUTING:%=--ignore=%)
test-computing test-launching: export OMP_NUM_THREADS := 1
test-computing test-launching: SHELL := bash
test-computing test-launching: $(STAMP)
	@mkdir -p build
	@set -o pipefail; $(PY) -m pytest $(TESTS) 2>&1 | tee build/$@.log | sed -u 's/^/$(@:test-%=%)  /'

test-cluster: export OMP_NUM_THREADS := 1
test-cluster: $(STAMP)  ## Try the cluster files on machines made of namespaces (Linux, root; minutes)
	@$(PY) -m pytest -m "fleet or fleet_aws" -rs tests/fleet

lint: $(STAMP)  ## Check style, formatting and types
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -m mypy

format: $(STAMP)  ## Mend what can be mended by machine
	@$(PY) -m ruff check --fix
	@$(PY) -m ruff format

bench: export OMP_NUM_THREADS := 1
bench: $(BENCH_STAMP)  ## Run the benchmarks of minutes each, five of them
	@for name in throughput encoders optimality population engine; do echo "== $$name"; $(BENCH_PY) -m benchmarks.$$name || exit 1; done

bench-gpu: export OMP_NUM_THREADS := 1
bench-gpu: $(STAMP)  ## Measure members that share a GPU (ARGS=--dry-run: try the code on CPU)
	@$(PY) -m benchmarks.gpu --compiled $(ARGS)

clean:  ## Remove build products and caches; .venv and runs stay
	@rm -rf $(CACHES)
	@find $(FOLDERS) -name __pycache__ -type d -prune -exec rm -rf {} +

# As variables the lock also binds the backends that pip calls to build a package.
$(STAMP) $(BENCH_STAMP): export PIP_CONSTRAINT := constraints.txt
$(STAMP) $(BENCH_STAMP): export PIP_BUILD_CONSTRAINT := constraints.txt
$(STAMP): pyproject.toml constraints.txt | $(PY)
	@echo "Installing the pinned versions into $(VENV) ..."
	@$(PY) -m pip install -qq --disable-pip-version-check -e ".[test]"
	@touch $@

$(BENCH_STAMP): pyproject.toml constraints.txt | $(BENCH_PY)
	@echo "Installing the pinned versions and the benchmark's peers into .venv-bench ..."
	@$(BENCH_PY) -m pip install -qq --disable-pip-version-check -e ".[bench]"
	@touch $@

# A name on the path may be a shim that runs nothing, and a system Python may lack venv: ask each one.
$(PY) $(BENCH_PY):
	@for candidate in $(PYTHON) python3.11 python3.12 python3 python; do \
	  if $$candidate -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then \
	    echo "Creating $(@:/bin/python=) with $$($$candidate --version)"; exec $$candidate -m venv $(@:/bin/python=); \
	  fi; \
	done; \
	echo "make: no usable Python 3.11 or 3.12 with venv found; install one (Debian: python3.11-venv) or name it:" \
	  "make PYTHON=/path/to/python3.11 ..." >&2; exit 1

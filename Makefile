# Every target sets up what it needs: `make demo` and `make test` work in a fresh clone.
# All paths are relative, and tools run as `python -m`, so that a folder name with a space works.
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-slow check format bench clean moved

PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install -qq --no-compile -c constraints.txt
JOBS ?= 2
# Keep the threads of the test processes from fighting over the processor.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist worksteal

help:  ## say what the targets do
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

demo: .venv/demo.stamp  ## train on real digits, steer, sample, judge: runs/demo/report.html
	@$(PY) -m fewstep demo

test: .venv/dev.stamp  ## run the tests
	@$(PYTEST)

test-slow: .venv/dev.stamp  ## run the nightly tests: the slow ones and those for a GPU
	@$(PY) -m pytest -m "slow or gpu" --timeout 3600

check: .venv/dev.stamp  ## lint, format, budgets, layers, types: all of them, then the verdict
	@bad=; \
	for tool in "-m ruff check ." "-m ruff format --check ." "tools/check_source.py" \
	    "tools/check_layers.py" "-m pyright"; do \
	    echo "== python $$tool"; $(PY) $$tool || bad=yes; \
	done; \
	if [ "$$bad" ]; then echo "make check: something is not in order (see above)"; exit 1; fi; \
	echo "make check: all in order"

format: .venv/dev.stamp  ## put the source in order
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

bench: .venv/bench.stamp  ## compare speed with diffusers, azula and k-diffusion: ratios
	@$(PY) -m benchmarks

clean:  ## remove the environment and the caches; runs/ stays
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

# The editable install knows the folder by its full path: install again when it has moved.
MOVED := $(shell test "$$(cat .venv/place 2>/dev/null)" = "$$(pwd)" || echo moved)

.venv/place: $(MOVED)
	@sh tools/make_venv.sh
	@pwd > $@

.venv/demo.stamp: .venv/place pyproject.toml constraints.txt
	@echo "Installing fewstep into .venv (torch is large: this takes some minutes, once) ..."
	@$(PIP) -e ".[eval,report]"
	@touch $@

.venv/dev.stamp: .venv/place pyproject.toml constraints.txt
	@echo "Installing fewstep and the tools of its tests into .venv (some minutes, once) ..."
	@$(PIP) -e ".[dev]"
	@touch $@

.venv/bench.stamp: .venv/dev.stamp
	@echo "Installing the programs to compare with into .venv (some minutes, once) ..."
	@$(PIP) -e ".[bench]"
	@touch $@

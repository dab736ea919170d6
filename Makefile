# `make demo` runs a whole cascade on two CPU cores in minutes; `make test` checks everything. Both set up .venv first.
# On Linux, PyPI's torch brings gigabytes of CUDA; for the CPU build, before the first make:
#   python3 -m venv .venv && .venv/bin/pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

.PHONY: demo test
demo: .venv/.ready
	@$(BIN)/hf-cascade run recipes/tiny/cascade.yaml --output_dir runs/tiny

# Two processes of one torch thread each are faster here than one process of two: the tests' tensors are tiny.
test: .venv/.ready
	@$(BIN)/ruff check
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "hf-cascade needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is another: make PYTHON=python3.12"; exit 1; }
	@echo "set-up 1/3: virtual environment in .venv"
	@$(PYTHON) -m venv .venv
	@echo "set-up 2/3: torch 2.13.0 (the largest part; kept if it is there)"
	@$(PIP) torch==2.13.0
	@echo "set-up 3/3: hf-cascade and the versions in constraints.txt"
	@$(PIP) -c constraints.txt -e ".[dev]"
	@touch $@

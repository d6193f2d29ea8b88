# Everything runs in .venv beside this file; Python 3.11+ and make are enough to start.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test lint gpu-test ptx bench clean

help:
	@echo "make demo      walk this shell's own address space"
	@echo "make test      the whole test suite (no GPU needed)"
	@echo "make bench     time the CPU back end beside copies; writes benchmarks/results/"
	@echo "make lint      ruff and mypy --strict"
	@echo "make gpu-test  the tests that need a CUDA device"
	@echo "make ptx       compiled CUDA kernels at length without a GPU: CASES=2000 VECTORS=folder"
	@echo "make clean     remove .venv and caches"

.venv/core.done: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gpuhmm needs Python 3.11 or newer; try make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/test.done: .venv/core.done
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

.venv/bench.done: .venv/core.done
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[out]'
	touch $@

.venv/lint.done: .venv/core.done
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[lint,test]'
	touch $@

demo: .venv/core.done
	$(BIN)/gpuhmm walk

test: .venv/test.done
	$(BIN)/python -m pytest -n auto --dist loadfile

gpu-test: .venv/test.done
	$(BIN)/python -m pytest -m gpu

CASES ?= 2000
ptx: .venv/test.done
	GPUHMM_PTX_CASES=$(CASES) $(if $(VECTORS),GPUHMM_VECTORS=$(abspath $(VECTORS))) \
		$(BIN)/python -m pytest tests/kernels/test_ptx_machine.py

bench: .venv/bench.done
	$(BIN)/gpuhmm bench --out benchmarks/results/cpu.json

lint: .venv/lint.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist

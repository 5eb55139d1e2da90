# `make demo` and `make test` work from a clean clone: they create .venv themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PATHS := src tests examples benchmarks setup.py

.DEFAULT_GOAL := help
.PHONY: help compat test-vllm test-xla demo test slow lint fmt type bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(INSTALLED)  ## fetch a small model, compile it, and let it answer a question
	$(BIN)/python examples/demo.py

test: lint type  ## lint, check types and run all tests but the slow ones
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile

compat: $(VENV)-4.57/installed  ## run the golden tests on transformers 4.57
	$(VENV)-4.57/bin/python -m pytest -m "not slow" tests/golden

test-vllm: $(VENV)-vllm/installed  ## run the tests with vLLM (installs 3 GB)
	$(VENV)-vllm/bin/python -m pytest -m "not slow" tests/vllm_plugin

test-xla: $(VENV)-xla/installed  ## lower every graph to HLO and run it on XLA (installs 8 GB)
	PJRT_DEVICE=CPU $(VENV)-xla/bin/python -m pytest tests/xla

slow: $(INSTALLED)  ## run the slow tests
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED)  ## check style and format
	$(BIN)/ruff check $(PATHS)
	$(BIN)/ruff format --check $(PATHS)

fmt: $(INSTALLED)  ## format, and fix what can be fixed
	$(BIN)/ruff format $(PATHS)
	$(BIN)/ruff check --fix $(PATHS)

type: $(INSTALLED)  ## check types
	$(BIN)/mypy

bench: $(INSTALLED)  ## measure the cpu backend against transformers, on a quiet machine
	$(BIN)/python benchmarks/cpu_backend.py
	$(BIN)/python benchmarks/batching.py

clean:  ## remove what the other targets made
	rm -rf $(VENV) $(VENV)-4.57 $(VENV)-vllm $(VENV)-xla .demo build .mypy_cache .pytest_cache .ruff_cache .hypothesis src/*.egg-info

# torch comes first: the rest then keeps the build that is already there.
$(INSTALLED): setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable '.[test]'
	touch $@

$(VENV)-4.57/installed: setup.py
	test -x $(VENV)-4.57/bin/python || $(PYTHON) -m venv $(VENV)-4.57
	$(VENV)-4.57/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VENV)-4.57/bin/python -m pip install --quiet --disable-pip-version-check transformers==4.57.6 --editable '.[test]'
	touch $@

# vLLM without kernels: its wheel on a registry is the one for CUDA.
$(VENV)-vllm/installed: setup.py constraints.txt
	test -x $(VENV)-vllm/bin/python || $(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VENV)-vllm/bin/python -m pip install --quiet --disable-pip-version-check 'setuptools>=78.1.1,<81' wheel packaging setuptools_scm setuptools-rust jinja2 numpy
	VLLM_TARGET_DEVICE=empty VLLM_VERSION_OVERRIDE=0.32.0 $(VENV)-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-binary vllm --editable '.[demo,vllm]' vllm==0.32.0 hypothesis pytest pytest-timeout
	touch $@

# torch_xla on a registry ends at 2.9; transformers is what fits its torch.
$(VENV)-xla/installed: setup.py
	test -x $(VENV)-xla/bin/python || $(PYTHON) -m venv $(VENV)-xla
	$(VENV)-xla/bin/python -m pip install --quiet --disable-pip-version-check torch==2.9.0 torch_xla==2.9.0 jax==0.10.2 'numpy<2.3' transformers==4.57.6 --editable '.[test]'
	touch $@

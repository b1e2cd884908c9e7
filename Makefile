# make demo   set up, run the demonstration, say where the picture is
# make test   set up, run the tests of every room that take a few minutes together
# make test-all  those, then all others but the studies (pytest -m study)
# make lint   set up, run ruff and pyright
# make docs   set up, build the documentation: docs/_build/html/index.html
# make targets  set up another environment, compile the device programs for a TPU v5e, four of them and
#               an H100, none of which need be there; SIZES=16,64,256 (pixels a side), TARGETS_OPTIONS="--targets h100"
# make clean  remove what the others made
# Options: PYTHON=python3.12 (any interpreter >= 3.11), VENV=.venv, PYTEST="-n 2", PIP_ARGS=...

VENV ?= .venv
OUT ?= demo_output
SIZES ?= 16
TARGETS_OPTIONS ?=
PYTEST ?= -n 2 --dist loadfile --no-loadscope-reorder
# The first interpreter that runs and is recent enough.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

BIN := $(VENV)/bin

.PHONY: demo test test-all lint docs targets clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

demo: $(VENV)/.ready
	$(BIN)/dal-jax demo --out $(OUT)

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest $(PYTEST)

test-all: test
	$(BIN)/python -m pytest $(PYTEST) -m "slow and not study"

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Warnings are errors; nothing is fetched.
docs: $(VENV)/.ready-docs
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html -d docs/_build/doctrees docs docs/_build/html
	@echo docs/_build/html/index.html

targets: $(VENV)-targets/.ready
	$(VENV)-targets/bin/python -m benchmarks.targets --sizes $(SIZES) $(TARGETS_OPTIONS)

clean:
	rm -rf $(VENV) $(VENV)-targets $(OUT) docs/_build

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 found: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e ".[all]"
	@touch $@

# Each holds all that .ready needs, too.
$(VENV)/.ready-%: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e ".[all,$*]"
	@touch $(VENV)/.ready $@

# The compilers of TPUs and GPUs, of the version of JAX; neither drivers nor the libraries of CUDA.
$(VENV)-targets/.ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 found: make targets PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e .
	jax=$$($(@D)/bin/python -c 'from importlib.metadata import version; print(version("jax"))') && \
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) "jax[tpu]==$$jax" \
		"jax-cuda12-plugin==$$jax" "jax-cuda12-pjrt==$$jax" nvidia-cuda-nvcc-cu12
	@touch $@

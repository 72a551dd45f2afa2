# Octavo: from a clone to a served model, and to its tests.
#
#   make serve            virtual environment, native build, model, http://127.0.0.1:8000
#   make test             everything the tests need, then linters, types and tests
#   make test-reference   the same model beside transformers and PyTorch
#   make bench-peers      Octavo beside other engines on this machine (BENCH_ARGS="--rows decode --readme")
#   make bench-kernels    every kernel beside what this machine allows
#   make format           ruff and clang-format
#   make clean            everything that make made
#
# Needs Python 3.11 or newer with its headers and venv, and a C++20 compiler (Debian: python3-dev python3-venv
# build-essential). CMake and Ninja come with the build. Running a target again does only what has changed.

PYTHON ?= python3
VENV   ?= .venv
HOST   ?= 127.0.0.1
PORT   ?= 8000
MODEL  ?= smollm2-135m-instruct
PYTEST_ARGS ?=
SERVE_ARGS ?=

PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
NATIVE_SOURCES := pyproject.toml $(wildcard CMakeLists.txt) $(shell find native -type f 2>/dev/null)
PYTHON_SOURCES := $(shell find src -name '*.py' 2>/dev/null)

# One environment serves both: once it holds the development install (which reads src/ in place), `make serve` uses that.
DEV  := $(VENV)/.installed-dev
USER := $(VENV)/.installed
INSTALLED := $(if $(wildcard $(DEV)),$(DEV),$(USER))

.PHONY: help install serve test lint test-reference bench-peers-setup bench-peers bench-peers-smoke bench-kernels format clean
.DEFAULT_GOAL := help

help:
	@sed -n '3,9s/^#   //p' Makefile

install: $(INSTALLED)

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Octavo needs Python 3.11 or newer; set PYTHON=" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(USER): $(VENV)/.created $(NATIVE_SOURCES) $(PYTHON_SOURCES)
	@echo "Installing Octavo into $(VENV) (the native build takes about a minute) …"
	$(PIP) install --quiet --no-compile '.[uvloop]'
	@touch $@

$(DEV): $(VENV)/.created $(NATIVE_SOURCES)
	@echo "Installing Octavo for development into $(VENV) (the native build takes about a minute) …"
	$(PIP) install --quiet --no-compile --editable '.[test,uvloop]'
	@touch $@

serve: $(INSTALLED)
	@exec $(VENV)/bin/octavo serve "$(MODEL)" --host $(HOST) --port $(PORT) $(SERVE_ARGS)

lint: $(DEV)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	find native benchmarks -name '*.[ch]pp' | xargs $(VENV)/bin/clang-format --dry-run --Werror

test: $(DEV) lint
	@$(VENV)/bin/octavo pull smollm2-135m-instruct >/dev/null
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

test-reference: $(DEV)
	$(PIP) install --quiet --no-compile --editable '.[test,reference]'
	@$(VENV)/bin/octavo pull smollm2-135m-instruct >/dev/null
	$(VENV)/bin/python -m pytest -m reference $(PYTEST_ARGS)

bench-peers-setup: $(DEV)
	$(VENV)/bin/python -m benchmarks.peers.environments $(BENCH_ARGS)

bench-peers: $(DEV)
	$(VENV)/bin/python -m benchmarks.peers.run $(BENCH_ARGS)

bench-peers-smoke: $(DEV)
	OCTAVO_PEERS_SMOKE=1 $(VENV)/bin/python -m benchmarks.peers.run --reps 1 --extra-reps 0 --patience 0 $(BENCH_ARGS)

bench-kernels: $(DEV)
	$(VENV)/bin/python -m benchmarks.kernels.run $(BENCH_ARGS)

format: $(DEV)
	$(VENV)/bin/ruff check --fix --quiet .
	$(VENV)/bin/ruff format .
	find native benchmarks -name '*.[ch]pp' | xargs $(VENV)/bin/clang-format -i

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

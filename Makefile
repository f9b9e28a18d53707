# Every target works on a fresh machine with make and Python 3.11 or newer; nothing else is needed.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

# Our models are small: threads cost more than they give, and timings must not depend on the cores.
export OMP_NUM_THREADS = 1

.DEFAULT_GOAL := help
.PHONY: help demo test check format lint layers types tests docs bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/demo.stamp ## See an ill and a healthy network diagnosed
	$(BIN)/steadygrad demo

test: .venv/dev.stamp ## Run the tests, the README's examples among them
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: format lint layers types tests docs ## All that a change must pass

format: .venv/dev.stamp ## Fail on unformatted code (ruff format repairs it)
	$(BIN)/ruff format --check .

lint: .venv/dev.stamp ## Check the rules of style
	$(BIN)/ruff check .

layers: .venv/dev.stamp ## Check that imports point downward
	$(BIN)/lint-imports

types: .venv/dev.stamp ## Check the types
	$(BIN)/mypy

tests: test

docs: .venv/dev.stamp ## Build the documentation into site/
	$(BIN)/python docs/generate.py
	$(BIN)/zensical build --strict --clean

bench: .venv/bench.stamp ## Measure cost and accuracy on real architectures
	$(BIN)/python -m bench

clean: ## Remove what make has built
	rm -rf .venv site build dist docs/findings docs/remedies .*_cache

# A stamp stands for an installed set of packages. torch comes first and alone, so that no other
# package's requirement chooses its version.
.venv/torch.stamp: constraints.txt
	@echo "Installing torch into .venv (once, it takes a few minutes) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv .venv
	@$(PIP) torch==2.13.0
	@touch $@

.venv/demo.stamp: .venv/torch.stamp pyproject.toml
	@echo "Installing steadygrad for the demo ..."
	@$(PIP) -e '.[demo]'
	@touch $@

.venv/dev.stamp: .venv/torch.stamp pyproject.toml
	@echo "Installing steadygrad and the developers' tools ..."
	@$(PIP) -e '.[dev]'
	@touch $@

.venv/bench.stamp: .venv/torch.stamp pyproject.toml
	@echo "Installing steadygrad and the benchmarks' libraries ..."
	@$(PIP) -e '.[dev,bench]'
	@touch $@

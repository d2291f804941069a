# `make` lists the targets. Everything lives in .venv; PYTHON chooses the interpreter that creates it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install run test test-long lint audit clean

PYTHON ?= python3.11
ARGS ?=

PIP := .venv/bin/python -m pip -qq --disable-pip-version-check --no-input
TORCH := $(shell grep '^torch==' cpu.lock)
TORCH_INDEX := https://download.pytorch.org/whl/cpu

# ninja (DeepSpeed builds a helper with it) is in .venv/bin.
IN_VENV := PATH="$(CURDIR)/.venv/bin:$$PATH"

export RAY_USAGE_STATS_ENABLED ?= 0
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO ?= 0
export VLLM_NO_USAGE_STATS ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
export TOKENIZERS_PARALLELISM ?= false

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  ARGS=... is passed on, e.g. make test ARGS='-k losses'. PYTHON=... chooses the interpreter (now $(PYTHON))."

install: .venv/.installed ## create .venv and install cpu.lock into it (2 to 4 minutes on two cores, 3 GB)

run: .venv/.installed ## train and evaluate: python -m srl.main run $(ARGS)
	@$(IN_VENV) .venv/bin/python -m srl.main run $(ARGS)

test: .venv/.installed ## run the tests: pytest $(ARGS)
	@$(IN_VENV) .venv/bin/python -m pytest -q $(ARGS)

test-long: .venv/.installed ## run the tests that take longest: jobs, several ranks, kills and recipes with real engines
	@$(IN_VENV) .venv/bin/python -m pytest -q -m long $(ARGS)

lint: .venv/.installed ## check style and formatting
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .

# The tool gets an environment of its own: the locks are what is examined. --strict: a package that cannot be looked up is no pass.
audit: ## look up known vulnerabilities of every pinned package
	@test -x build/audit/bin/pip-audit || { $(PYTHON) -m venv build/audit && build/audit/bin/python -m pip -qq --no-input install pip-audit; }
	@for lock in cpu gpu; do sed 's/+cpu$$//' $$lock.lock > build/audit/$$lock.txt; echo "audit: $$lock.lock"; \
	  build/audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r build/audit/$$lock.txt || exit 1; done

clean: ## remove .venv, caches and build products (keeps runs/)
	@rm -rf .venv build *.egg-info .pytest_cache .hypothesis .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# PyTorch comes first and by its CPU version, which the configured indexes may lack. The stamp makes `run` and `test`
# install again when .venv is missing or older than the lock.
.venv/.installed: cpu.lock
	@command -v $(PYTHON) >/dev/null || { echo "install: $(PYTHON) not found; name a Python 3.11 with PYTHON=..." >&2; exit 2; }
	@echo "install: .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv
	@echo "install: $(TORCH)"
	@$(PIP) install --no-deps "$(TORCH)" 2>/dev/null \
	  || $(PIP) install --no-deps --index-url $(TORCH_INDEX) "$(TORCH)" 2>/dev/null \
	  || { echo "install: no package index has $(TORCH): neither those that pip is configured with nor $(TORCH_INDEX)" >&2; exit 2; }
	@echo "install: $$(grep -c '^[^#].*==' cpu.lock) packages of cpu.lock"
	@$(PIP) install --no-deps -r cpu.lock
	@echo "install: srl, editable"
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@
	@echo "install: done"

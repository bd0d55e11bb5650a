# Two commands do everything: `make quickstart` and `make test`. The rest is for contributors.
SHELL := /bin/sh
PY := .venv/bin/python

.PHONY: help setup quickstart test test-fast test-reference check fmt bench clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort

setup: ## Install what is missing: distribution packages, then the Python environment
	@scripts/setup run

quickstart: ## Set up, build the example, push it, pull it back by digest and run it
	@scripts/setup run
	@scripts/quickstart

test: ## Set up and run every test lane that this machine can run
	@scripts/setup test
	@scripts/test all

test-fast: ## The everyday lane: checks, unit and property tests
	@scripts/setup test
	@scripts/test fast

test-reference: ## Hold the suites against upstream: BUILDCTL=... BUILDKITD=... [BUILDX=...]
	@scripts/setup test
	@BUILDCTL="$(BUILDCTL)" BUILDKITD="$(BUILDKITD)" BUILDX="$(BUILDX)" scripts/test reference

check: ## Formatting, lint, types and import direction
	@scripts/setup test
	@scripts/test check

fmt: ## Format the code
	@.venv/bin/ruff format src tests benchmarks tools examples
	@.venv/bin/ruff check --fix-only -q src tests benchmarks tools examples

bench: ## Ratios against another builder: ADDR=unix:///run/buildkit/buildkitd.sock
	@$(PY) benchmarks/run.py $(if $(ADDR),--against $(ADDR),)

clean: ## Remove the environment and caches (state folders are left alone)
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# `make` lists the targets.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CONTRACT := proto/matchbus/v1/matchbus.proto

.DEFAULT_GOAL := help
.PHONY: help install test dashboard browser demo chaos bench proto clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## make .venv and install everything into it

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

test: install ## ruff, mypy, pytest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

dashboard: ## build the dashboard's page from its sources; needs Node and npm
	cd exchange/dashboard && npm ci --no-audit --no-fund --ignore-scripts && node build.mjs

browser: install ## test the dashboard in Chromium, with Playwright installed beside
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,browser]'
	$(BIN)/pytest tests/dashboard

demo: install ## a real market with simulated clients; ARGS="--duration 10 --headless"
	$(BIN)/matchbus demo $(ARGS)

chaos: install ## faults strike a market under load, a witness judges; ARGS="--minutes 5 --seed 7"
	$(BIN)/simulation chaos $(ARGS)

bench: install ## every benchmark, one after the other
	set -e; for name in core order_entry unary book_structures; do $(BIN)/python benchmarks/$$name.py; done

proto: install ## generate the Python modules of the gRPC contract
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=proto --pyi_out=proto --grpc_python_out=proto $(CONTRACT)

clean: ## remove .venv and what tools left
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis logs

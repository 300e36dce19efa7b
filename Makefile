# `make` lists the targets.

RECENT := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python $(RECENT) 2> /dev/null && echo $$python && break; done)
VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CONTRACT := proto/matchbus/v1/matchbus.proto

.DEFAULT_GOAL := help
.PHONY: help install peers test dashboard browser demo replay chaos bench bench-quick ratchet proto reference clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## make .venv and install everything into it

$(INSTALLED): pyproject.toml
	@test -x $(BIN)/pip || $(or $(PYTHON),false) $(RECENT) 2> /dev/null || { echo >&2 "Matchbus needs Python 3.11" \
		"or newer, and $(or $(PYTHON),python3) is not: install one, or name one with" \
		"'make PYTHON=/path/to/python install'."; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) # without pip it was left by a venv that failed
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

replay: install ## 30 minutes of Bitstamp's orders through an engine: the same 284 trades as there; ARGS="--engines 3"
	$(BIN)/simulation replay $(ARGS)

chaos: install ## faults strike a market under load, a witness judges; ARGS="--minutes 5 --seed 7"
	$(BIN)/simulation chaos $(ARGS)

bench: install peers ## every benchmark in full, and the tables in docs/performance.md; ARGS="--long"
	$(BIN)/python -m benchmarks --write-docs $(ARGS)

bench-quick: install ## every benchmark with small sizes, in less than a minute; ARGS="--only core feed"
	$(BIN)/python -m benchmarks --quick $(ARGS)

ratchet: install ## fail if a ratio is more than 15 % worse than in benchmarks/kept.json
	$(BIN)/python -m benchmarks --check

peers: $(PEERS)/.installed ## install the order books of PyPI that ours is measured beside, apart from everything

$(PEERS)/.installed: benchmarks/peer_books.txt
	test -x $(PEERS)/bin/pip || $(PYTHON) -m venv $(PEERS)
	grep -v '^#' $< | while read -r book; do $(PEERS)/bin/python -m pip install --quiet \
		--disable-pip-version-check "$$book" || echo "$$book cannot be installed here: shown as such"; done
	touch $@

proto: install ## generate the Python modules of the gRPC contract
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=proto --pyi_out=proto --grpc_python_out=proto $(CONTRACT)

reference: install ## write docs/reference.md from the contract, the docstrings and the servicers
	$(BIN)/python -m tests.reference_page

clean: ## remove .venv, .venv-peers and what tools left
	rm -rf $(VENV) $(PEERS) .mypy_cache .pytest_cache .ruff_cache .hypothesis logs

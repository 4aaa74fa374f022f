# Every command is non-interactive and safe to repeat; `make help` lists them.
SHELL := bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := -q --disable-pip-version-check --require-hashes

.DEFAULT_GOAL := help
.PHONY: help demo test install up down worker bench deploy deploy-core lint format lock clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/.local $(VENV)-aws/.installed ## the whole system at work on this machine: real speech, both routes
	@$(BIN)/python -m cli demo

test: install lint ## linters' and types' checks, unit and integration tests
	@$(BIN)/python -m pytest $(PYTEST)

install: $(VENV)/.dev $(VENV)-aws/.installed ## everything for development, into .venv and .venv-aws

up: $(VENV)/.local $(VENV)-aws/.installed ## start the local stack, deployed and ready (NO_SERVER=1: without the server)
	@$(BIN)/python -m cli up

down: ## stop the local stack
	@[ ! -x $(BIN)/python ] || $(BIN)/python -m cli down

worker: $(VENV)/.local $(VENV)-aws/.installed ## drain the local stack's queue
	@$(BIN)/python -m cli worker

deploy: deploy-core ## run the numbered deploy scripts against the AWS (or endpoint) of .env

deploy-core: $(VENV)/.local $(VENV)-aws/.installed ## the core of them: queues, bucket events, router
	@set -e; for step in 000 001 010 011 020 021 340 341 342; do bash infra/scripts/step-$$step-*.sh; done

bench: $(VENV)/.dev $(VENV)-aws/.installed ## measure the server on real speech, beside stock WhisperX (ARGS="--help")
	@$(BIN)/python -m bench $(ARGS)

lint: $(VENV)/.dev ## ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(VENV)/.dev ## rewrite the code as ruff wants it
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

lock: $(VENV)/.dev ## renew the pinned requirements, with hashes
	@bash requirements/lock.sh

clean: down ## remove what was built and the local stack's data; the virtual environments stay
	@rm -rf .local .build .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The development environment holds all that the local one does, so it counts as that too.
$(VENV)/.local: requirements/local.txt | $(VENV)/bin/python
	@if [ -e $(VENV)/.dev ] && [ $(VENV)/.dev -nt requirements/dev.txt ]; then touch $@; exit; fi; \
	echo "installing what the demo needs into $(VENV) (once, about a minute)"; \
	$(BIN)/python -m pip install $(PIP) -r $< && touch $@

$(VENV)/.dev: requirements/dev.txt | $(VENV)/bin/python
	@echo "installing everything for development into $(VENV) (once: WhisperX and torch are about 7 GB)"
	@$(BIN)/python -m pip install $(PIP) -r $< && touch $@

$(VENV)-aws/.installed: requirements/emulator.txt
	@echo "installing the local AWS and the AWS CLI into $(VENV)-aws"
	@$(PYTHON) -m venv $(VENV)-aws && $(VENV)-aws/bin/python -m pip install $(PIP) -r $< && touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "$(PYTHON) is older than Python 3.11: name a newer one, e.g. make demo PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

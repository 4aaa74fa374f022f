# Every command is non-interactive and safe to repeat; `make help` lists them.
SHELL := bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := -q --disable-pip-version-check --no-compile --require-hashes
SHELL_FILES := .ci/run $(sort $(shell find infra requirements -name '*.sh'))

.DEFAULT_GOAL := help
.PHONY: help demo test install up down worker report dlq backfill bench bench-drain simulate faults deploy deploy-core deploy-check destroy image-check lint format lock clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/.local $(VENV)-aws/.installed ## the whole system at work on this machine: real speech, both routes
	@$(BIN)/python -m cli demo

test: install lint ## linters' and types' checks, unit and integration tests
	@$(BIN)/python -m pytest -n 2 --no-loadscope-reorder $(PYTEST)

install: $(VENV)/.dev $(VENV)-aws/.installed ## everything for development, into .venv and .venv-aws

up: $(VENV)/.local $(VENV)-aws/.installed ## start the local stack, deployed and ready (NO_SERVER=1: without the server)
	@$(BIN)/python -m cli up

down: ## stop the local stack
	@[ ! -x $(BIN)/python ] || $(BIN)/python -m cli down

worker: $(VENV)/.local $(VENV)-aws/.installed ## drain the local stack's queue
	@$(BIN)/python -m cli worker

# DRY_RUN=1 only prints what would change; YES=1 asks nothing.
FLAGS = $(if $(DRY_RUN),--dry-run) $(if $(YES),--yes)

deploy: $(VENV)/.local $(VENV)-aws/.installed ## the numbered deploy scripts, against .env's AWS (FROM=NNN, SKIP="NNN …")
	@bash infra/scripts/deploy.sh $(FLAGS) all

deploy-core: $(VENV)/.local $(VENV)-aws/.installed ## the core of them: queues, bucket events, router
	@bash infra/scripts/deploy.sh $(FLAGS) core

destroy: $(VENV)/.local $(VENV)-aws/.installed ## all of it goes; the bucket with the recordings only with DELETE_AUDIO=yes
	@bash infra/scripts/step-999-destroy-all.sh $(FLAGS)

deploy-check: $(VENV)/.dev $(VENV)-aws/.installed ## deploy, use and destroy it on a local AWS with IAM enforced
	@$(BIN)/python -m pytest tests/infra/test_destroy.py tests/infra/test_scripts.py tests/infra/test_whole_deployment.py -k "deploys_it or second_deployment or make_deploy"

image-check: ## build the GPU image here with buildah, and ask its container for a transcript (root; 40 GB of disk)
	@bash infra/image/check.sh

# For the deployment of .env or, after `source .local/env`, for the local stack; docs/operations.md explains them.
report: $(VENV)/.local ## what the last batch runs did and cost (ARGS=2026-01-31)
	@$(BIN)/python -m cli report $(ARGS)

dlq: $(VENV)/.local ## dead letters: ARGS="list", "show ID", "redrive …", "fail ID"
	@$(BIN)/python -m cli dlq $(or $(ARGS),list)

backfill: $(VENV)/.local ## queue all audio that was never transcribed (ARGS="--dry-run")
	@$(BIN)/python -m cli backfill $(ARGS)

bench: $(VENV)/.dev $(VENV)-aws/.installed ## measure the server on real speech, beside stock WhisperX (ARGS="--help")
	@$(BIN)/python -m bench $(ARGS)

bench-drain: $(VENV)/.dev $(VENV)-aws/.installed ## a queue of 20 sessions drained by worker and server, beside the engine alone
	@$(BIN)/python -m bench.drain $(ARGS)

simulate: $(VENV)/.dev ## a day of uploads through launcher, queue and fleet, up to 10 million (ARGS="--help")
	@$(BIN)/python -m bench.simulation $(ARGS)

faults: $(VENV)/.dev $(VENV)-aws/.installed ## nothing is lost or wrong under fire: hours of it, with a table (ARGS="chaos --seed 7")
	@$(BIN)/python -m tests.faults $(or $(ARGS),all)

lint: $(VENV)/.dev ## ruff, mypy, shellcheck and shfmt
	@$(BIN)/shfmt -i 2 -ci -d $(SHELL_FILES)
	@$(BIN)/shellcheck $(SHELL_FILES) & \
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && wait $$!

format: $(VENV)/.dev ## rewrite the code as ruff wants it
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format . ; $(BIN)/shfmt -i 2 -ci -w $(SHELL_FILES)

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

.DEFAULT_GOAL := help
.NOTPARALLEL:
SHELL := /bin/sh

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOCK := uv pip compile pyproject.toml --extra otlp --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	--no-annotate --no-emit-index-url --no-emit-find-links --no-emit-package whatsapp-qr-contracts

.PHONY: help more setup run unit test operators faults neighbours bench growth check format lint counts types imports generated diagram page image compose imagetest sbom lock clean

help: ## Print this help
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | while IFS="	" read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done
	@echo "  make more       Print the other targets, which maintainers need now and then"

more: #+ Print these targets
	@sed -n 's/^\([a-z]*\):.*#+ /\1\t/p' Makefile | while IFS="	" read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

setup: $(READY) #+ Create .venv with all dependencies (only when they changed)

# Of a clone that was copied or moved, or whose Python is gone: made anew.
ifneq ($(shell cat $(READY) 2>/dev/null)$(shell [ -x $(BIN)/python ] && echo +),$(CURDIR)+)
.PHONY: $(READY)
endif

$(READY): requirements-dev.lock pyproject.toml contracts/pyproject.toml
	@deploy/local/setup.sh venv
	@{ [ -x $(BIN)/python ] && [ "$$(cat $@ 2>/dev/null)" = "$(CURDIR)" ]; } || rm -rf $(VENV)
	@echo "Installing the dependencies into $(VENV)"
	@export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore; if command -v uv >/dev/null; then \
		set -e; \
		[ -x $(BIN)/python ] || uv venv --quiet --clear --python '>=3.11' $(VENV); \
		uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements-dev.lock; \
		uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e contracts -e .; \
	else \
		set -e; \
		$(BIN)/python -m pip --version >/dev/null 2>&1 || python3 -m venv --clear $(VENV); \
		$(BIN)/python -m pip install --quiet --quiet --require-hashes -r requirements-dev.lock; \
		$(BIN)/python -m pip install --quiet --quiet --no-deps --no-build-isolation -e contracts -e .; \
	fi
	@echo "$(CURDIR)" >$@

run: setup ## Run everything on this machine: http://127.0.0.1:8000/docs
	@exec $(BIN)/whatsapp-qr up

unit: setup ## Run the tests that need no server (seconds)
	$(BIN)/python -m pytest tests/unit -m "not slow" --quiet --numprocesses 2

SERVERS ?=
test: setup ## Run the tests on real RabbitMQ, PostgreSQL and SQLite; SERVERS=new takes RabbitMQ 4.0 and PostgreSQL 17
	@docker version >/dev/null 2>&1 || deploy/local/setup.sh rabbitmq postgresql
	@deploy/local/setup.sh chromium prometheus
	SERVERS=$(SERVERS) $(if $(filter new,$(SERVERS)),deploy/local/newer-servers.sh) $(BIN)/python -m pytest -m "not long and not image and not operators" --numprocesses 3 --dist worksteal

SEEDS ?= 3
faults: setup ## Break everything, by plan and at random: make faults SEEDS=20 takes an hour
	@docker version >/dev/null 2>&1 || deploy/local/setup.sh rabbitmq postgresql
	SEEDS=$(SEEDS) $(BIN)/python -m pytest -m "fault or long" --numprocesses 3 --dist worksteal

operators: setup #+ Check the manifests by the schemas of the operators' custom resources: make operators CRD_SCHEMAS=FOLDER
	CRD_SCHEMAS=$(abspath $(CRD_SCHEMAS)) $(BIN)/python -m pytest -m operators --quiet tests/deploy

neighbours: setup #+ Measure what one chatbot's or subscriber's misbehaviour costs others; RECORD=1 writes it into docs/guarantees.md
	@docker version >/dev/null 2>&1 || deploy/local/setup.sh rabbitmq postgresql
	$(BIN)/python -m pytest tests/neighbours -q

bench: setup ## Measure whole paths in hops and compare with the baseline; RECORD=1 writes it into docs/capacity.md
	@docker version >/dev/null 2>&1 || deploy/local/setup.sh rabbitmq postgresql
	$(BIN)/python tests/bench/run.py

growth: setup #+ Measure sweeps, reconciler, gauges and claims with a million messages; none may take longer than a second
	@docker version >/dev/null 2>&1 || deploy/local/setup.sh rabbitmq postgresql
	$(BIN)/python tests/bench/growth.py

check: lint types imports generated test ## Run everything CI runs

format: setup ## Format the code and repair what can be repaired
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: setup #+ Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

counts: setup #+ Print counts of words and lines, and their limits
	$(BIN)/python -m tests.counts

types: setup #+ Check types
	$(BIN)/mypy

imports: setup #+ Check the dependency rules between modules
	$(BIN)/lint-imports

generated: setup #+ Check that the generated files are up to date, valid, and break nothing that was released
	$(BIN)/python schemas/generate.py --check
	$(BIN)/python deploy/monitoring/generate.py --check
	$(BIN)/python schemas/validate.py

diagram: #+ Draw the picture of README.md and docs/architecture.md anew (needs Graphviz)
	@command -v dot >/dev/null || { echo "Missing: Graphviz. Type: sudo apt-get install graphviz" >&2; exit 1; }
	dot -Tsvg docs/architecture.dot -o docs/architecture.svg
	echo "<!-- drawn from architecture.dot $$(sha256sum <docs/architecture.dot | cut -c 1-16) -->" >>docs/architecture.svg

COMPONENT := @asyncapi/react-component@3.2.1
COMPONENT_SHA512 := 93966a25debea3161a436a3a177ac6589d4c4c88d7769b14601dcd2906d5aabe32ceb3743af8f973b799c7c346777c1f28f85b3ab2d112d625f4ad8e3df9d2b0
page: #+ Fetch what shows /asyncapi anew (needs npm)
	@command -v npm >/dev/null || { echo "Missing: npm" >&2; exit 1; }
	@set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; vendor=$(CURDIR)/service/ingress/asyncapi/vendor; cd "$$folder"; \
	npm pack --silent $(COMPONENT) >/dev/null; \
	echo "$(COMPONENT_SHA512)  $$(ls)" | sha512sum --check --quiet; \
	tar -xzf *.tgz; \
	cp package/LICENSE package/browser/standalone/index.js package/browser/standalone/index.js.LICENSE.txt \
		package/styles/default.min.css "$$vendor"

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
LABELS = VERSION=$(VERSION) REVISION=$(shell git rev-parse HEAD 2>/dev/null || echo unknown) SOURCE=$(or $(SOURCE),unknown)
image: #+ Build the container image whatsapp-qr (needs Docker); SOURCE=https://… says where its code is
	docker build --file deploy/Dockerfile --tag whatsapp-qr:$(VERSION) $(addprefix --build-arg=,$(LABELS)) .

compose: ## Run everything in containers (needs Docker): http://127.0.0.1:8000/docs
	python3 deploy/compose/prepare.py
	$(LABELS) docker compose --file deploy/compose/compose.yaml up --build --wait

imagetest: setup #+ Build the image without Docker and run it, read-only (needs root on Debian; minutes)
	@docker version >/dev/null 2>&1 || deploy/local/setup.sh rabbitmq postgresql
	deploy/local/setup.sh image
	$(BIN)/python -m pytest -m image tests/deploy/test_image_run.py

sbom: setup #+ Write what the image is made of, as CycloneDX: dist/sbom.json
	$(BIN)/python deploy/sbom.py

lock: #+ Pin the newest allowed dependencies, with hashes
	$(LOCK) --upgrade -o requirements.lock
	$(LOCK) --upgrade --group dev -c requirements.lock -o requirements-dev.lock

clean: ## Remove what was built; the data in .local/ stays
	rm -rf $(VENV) dist schemas/node_modules contracts/examples/node/node_modules .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

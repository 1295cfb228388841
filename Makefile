# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Each target sets up what it needs in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
K8S := deploy/kubernetes
MESH := $(K8S)/base/mesh.env
PROTOS := $(shell find protos/bulkhead -name '*.proto' 2>/dev/null)

.PHONY: help demo up test lint proto bench soak manifests images lock clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Bulkhead needs Python 3.11 or newer; this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@echo "setting up $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --only-binary :all: --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

demo: $(READY) ## Play the main job for two tenants on the embedded stack
	@$(BIN)/python -m deploy.local.demo

up: $(READY) ## Start the embedded stack in .bulkhead/ and stay in the foreground
	@$(BIN)/bulkhead up

test: $(READY) ## Run every test
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: $(READY) ## Formatting, style, types, import rules and contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd protos && ../$(BIN)/buf lint

proto: $(READY) ## Generate protos/gen from protos/
	@$(BIN)/python -m deploy.protos

bench: $(READY) ## Measure the front door, the limiter, keys, the provisioning, wakes, vends and tracing
	@$(BIN)/python bench/door.py
	@$(BIN)/python bench/limit.py
	@$(BIN)/python bench/resolve.py
	@$(BIN)/python bench/provision.py
	@$(BIN)/python bench/wake.py
	@$(BIN)/python bench/vend.py
	@$(BIN)/python bench/tracing.py

soak: $(READY) ## Keep mixed load up for ten minutes, and see whether any service grows
	@$(BIN)/python bench/soak.py

manifests: $(READY) ## Write the front door's configurations for the manifests
	@$(BIN)/python -m deploy.envoy $(MESH) > $(K8S)/base/envoy/envoy.json
	@$(BIN)/python -m deploy.envoy identity.json $(MESH) > $(K8S)/base/envoy/identity.json
	@$(BIN)/python -m deploy.envoy authority.json $(MESH) > $(K8S)/base/envoy/authority.json
	@$(BIN)/python -m deploy.envoy $(MESH) $(K8S)/overlays/dev/mesh.env > $(K8S)/overlays/dev/envoy.json
	@$(BIN)/python -m deploy.envoy $(MESH) $(K8S)/components/otel/otel.env > $(K8S)/components/otel/envoy.json

images: ## Build the services' images with docker, podman or buildah, whichever is there
	@BASE="$(BASE)" REGISTRY="$(REGISTRY)" TAG="$(TAG)" ENGINE="$(ENGINE)" deploy/images/build

COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command "make lock"

lock: ## Resolve the locks anew for every supported Python
	@$(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet uv
	$(COMPILE) --extra dev pyproject.toml -o requirements.lock
	$(COMPILE) --constraint requirements.lock pyproject.toml -o requirements-services.lock
	$(COMPILE) --constraint requirements.lock --group pyproject.toml:build -o requirements-build.lock

clean: ## Stop the stack in .bulkhead/ and remove what was made
	@if [ -x $(BIN)/bulkhead ]; then $(BIN)/bulkhead down --purge >/dev/null 2>&1 || true; fi
	rm -rf $(VENV) .bulkhead .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# One command for each habit. Plain `make` lists them.
PYTHON ?= python3
DOCKER ?= docker
IMAGE ?= pipeline
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo repro test test-cuda test-machine-code test-arm64 check format compare results claims pictures gpu-kit networks ways bench scaling seeds torture properties lock image-cpu image-cuda run-cpu run-cuda

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /|/' | awk -F'|' '{printf "  make %-17s %s\n", $$1, $$2}'

# what pip, uv and Python are told elsewhere to install, or to install into; where packages come from they are told
unexport PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_DRY_RUN PIP_NO_DEPS PIP_IGNORE_INSTALLED PIP_NO_BINARY PIP_ONLY_BINARY
unexport PIP_REQUIRE_HASHES PIP_REQUIREMENT PIP_CONSTRAINT PIP_EDITABLE PIP_REQUIRE_VIRTUALENV PYTHONPATH PYTHONHOME PYTHONNOUSERSITE
unexport UV_PYTHON UV_SYSTEM_PYTHON UV_PROJECT_ENVIRONMENT UV_REQUIRE_HASHES UV_NO_BUILD UV_NO_BINARY UV_CONSTRAINT UV_OVERRIDE
unexport UV_EXCLUDE_NEWER UV_RESOLUTION UV_PRERELEASE UV_NO_BUILD_ISOLATION UV_BUILD_CONSTRAINT UV_COMPILE_BYTECODE

setup: $(READY) ## make the environment in .venv (TORCH_INDEX_URL=... chooses where PyTorch comes from)

UV_INSTALL = $(BIN)/python -m uv pip install --quiet --compile-bytecode --python $(BIN)/python

# uv reads no setting of pip's: it is given pip's index, and the certificates that pip trusts, where it has none of its own. Without an
# NVIDIA driver Linux takes PyTorch's CPU wheels, 200 MB in place of 3 GB, from PyTorch's own index, and where that does not answer what the
# usual index has.
$(READY): requirements/uv.txt requirements/dev.txt requirements/torch.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or later is needed; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-user --disable-pip-version-check --require-hashes -r requirements/uv.txt
	set -e; usual=$${UV_DEFAULT_INDEX:-$${UV_INDEX_URL:-$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null || :)}}}; \
	if [ -n "$$usual" ]; then export UV_DEFAULT_INDEX="$$usual"; fi; \
	trusted=$${SSL_CERT_FILE:-$${PIP_CERT:-$$($(BIN)/python -m pip config get global.cert 2>/dev/null || :)}}; \
	if [ -n "$$trusted" ]; then export SSL_CERT_FILE="$$trusted"; fi; \
	$(UV_INSTALL) --require-hashes -r requirements/dev.txt; \
	if [ -n "$$TORCH_INDEX_URL" ]; then $(UV_INSTALL) --default-index "$$TORCH_INDEX_URL" -r requirements/torch.txt; \
	else $(UV_INSTALL) --torch-backend "$${UV_TORCH_BACKEND:-auto}" -r requirements/torch.txt || $(UV_INSTALL) -r requirements/torch.txt; fi; \
	$(UV_INSTALL) --no-deps --no-build-isolation --editable .
	touch $@

demo: $(READY) ## train and evaluate on the synthetic set and prove the claim, in demo/
	$(BIN)/python -m pipeline demo

repro: $(READY) ## run the stages with params.yaml (dvc repro)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro # dvc.yaml says `python`: this one

test: $(READY) ## run the tests that this machine can run (with PIPELINE_TEST_LONG=1 the long ones too), files side by side
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

test-cuda: $(READY) ## run the tests that need a GPU
	$(BIN)/python -m pytest -m cuda

test-machine-code: $(READY) ## read the CUDA kernels of the installed PyTorch, for every GPU architecture (no GPU needed)
	PIPELINE_TEST_MACHINE_CODE=1 $(BIN)/python -m pytest tests/test_machine_code.py

test-arm64: $(READY) ## run the goldens on an ARM64 that QEMU plays (Debian on x86-64; half a GB from its archive and the index)
	$(BIN)/python -m tools.arm64

check: $(READY) ## lint, formatting, types, known vulnerabilities
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tools.audit

format: $(READY) ## format the sources
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

compare: $(READY) ## compare the kept runs
	$(BIN)/python -m pipeline compare

results: $(READY) ## make the README's table from the kept runs in results/
	$(BIN)/python -m tools.results

claims: $(READY) ## make the tables of machines from the records in results/machines/
	$(BIN)/python -m tools.claims

pictures: $(READY) ## draw the README's picture from the kept runs in results/
	$(BIN)/python -m tools.pictures

gpu-kit: $(READY) ## put all that a machine with a GPU and no network needs into .cache/gpu-kit
	$(BIN)/python -m tools.gpu_kit

networks: $(READY) ## train each of torchvision's classification networks exactly, and make the table of docs/networks.md
	$(BIN)/python -m tools.networks

ways: $(READY) ## train six networks in every way that this machine has, and make the second table of docs/networks.md
	$(BIN)/python -m tools.ways

bench: $(READY) ## measure the tutorial's script, native and exact side by side
	$(BIN)/python -m tools.bench

scaling: $(READY) ## measure one worker, two and four on this machine's CPUs
	$(BIN)/python -m tools.scaling

seeds: $(READY) ## train the same seeds with exact and native numerics on the set in data/, in several recipes, and write docs/quality.md
	$(BIN)/python -m tools.seeds

torture: $(READY) ## kill dvc repro 50 times at random moments; each time the next must end in the right bits
	$(BIN)/python -m tests.torture

properties: $(READY) ## draw 10,000 networks, and compare exact numerics with their second implementation on each
	PIPELINE_TEST_NETWORKS=10000 $(BIN)/python -m pytest tests/test_exact_properties.py

lock: $(READY) ## lock the requirements again
	cd requirements && for set in run dev export uv; do \
	  ../$(BIN)/python -m uv pip compile --quiet --generate-hashes --universal --python-version 3.11 --no-header $$set.in -o $$set.txt; done

# PIPELINE_DOCKER_BUILD_ARGS and PIPELINE_DOCKER_RUN_ARGS in the environment add options, such as --build-arg TORCH_INDEX_URL=
image-cpu: ## build the CPU image from Dockerfile.cpu
	$(call build,cpu)

image-cuda: ## build the CUDA image from Dockerfile.cuda
	$(call build,cuda)

run-cpu: ## run the stages on this checkout in the CPU image
	$(call run,cpu)

run-cuda: ## run the stages on this checkout in the CUDA image, with all GPUs
	$(call run,cuda,--gpus all)

build = DOCKER_BUILDKIT=1 $(DOCKER) build --file Dockerfile.$(1) --tag $(IMAGE):$(1) \
	  --build-arg REVISION=$$(git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown) \
	  --build-arg VERSION=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' pipeline/__init__.py) $(PIPELINE_DOCKER_BUILD_ARGS) .

run = $(DOCKER) run --rm --user "$$(id -u):$$(id -g)" --volume "$(CURDIR):/workspace" --read-only --tmpfs /tmp \
	  --cap-drop ALL --security-opt no-new-privileges $(2) $(PIPELINE_DOCKER_RUN_ARGS) $(IMAGE):$(1)

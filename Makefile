# One command for each habit. Plain `make` lists them.
PYTHON ?= python3
DOCKER ?= docker
IMAGE ?= pipeline
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo repro test test-cuda test-arm64 check format compare results claims pictures gpu-kit bench scaling seeds torture lock image-cpu image-cuda run-cpu run-cuda

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /|/' | awk -F'|' '{printf "  make %-11s %s\n", $$1, $$2}'

setup: $(READY) ## make the environment in .venv (TORCH_INDEX_URL=... chooses where PyTorch comes from)

$(READY): requirements/uv.txt requirements/dev.txt requirements/torch.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or later is needed; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	$(BIN)/python -m tools.setup
	touch $@

demo: $(READY) ## train and evaluate on the synthetic set and prove the claim, in demo/
	$(BIN)/python -m pipeline demo

repro: $(READY) ## run the stages with params.yaml (dvc repro)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro # dvc.yaml says `python`: this one

test: $(READY) ## run all the tests that this machine can run, a file at a time on each CPU
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-cuda: $(READY) ## run the tests that need a GPU
	$(BIN)/python -m pytest -m cuda

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

claims: $(READY) ## make the README's table of machines from the records in results/machines/
	$(BIN)/python -m tools.claims

pictures: $(READY) ## draw the README's picture from the kept runs in results/
	$(BIN)/python -m tools.pictures

gpu-kit: $(READY) ## put all that a machine with a GPU and no network needs into .cache/gpu-kit
	$(BIN)/python -m tools.gpu_kit

bench: $(READY) ## measure the tutorial's script, native and exact side by side
	$(BIN)/python -m tools.bench

scaling: $(READY) ## measure one worker, two and four on this machine's CPUs
	$(BIN)/python -m tools.scaling

seeds: $(READY) ## train ten seeds with exact and native numerics on the set in data/, and write docs/quality.md
	$(BIN)/python -m tools.seeds

torture: $(READY) ## kill dvc repro 50 times at random moments; each time the next must end in the right bits
	$(BIN)/python -m tests.torture

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

# Every target makes the virtual environment first if there is none; `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help setup data demo demo-flexvar demo-var try study study-report study-cost test test-fast test-parity test-slow lint format tensorboard clean fashion-kl fashion-classifier fashion-flowar

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOGS ?= runs
# One process per CPU, which computes on one thread; who has finished takes over what another has still to do.
PARALLEL := -n auto --dist worksteal

# PyTorch without CUDA, from its index of CPU wheels, or as PyPI has it (on Linux with CUDA); .venv keeps what it has.
CPU_WHEELS := https://download.pytorch.org/whl/cpu
HAS := $(shell cat $(VENV)/lib/python3*/site-packages/torch/version.py 2>/dev/null | \
	sed -n "s/^__version__.*+cpu.*/cpu/p; s/^cuda.*'.*/pypi/p")
TORCH := $(or $(HAS),pypi)
ifeq ($(filter cpu pypi,$(TORCH)),)
$(error TORCH is cpu or pypi, not $(TORCH))
endif
ifneq ($(filter-out $(TORCH),$(HAS)),)
$(error $(VENV) was made with TORCH=$(HAS); for TORCH=$(TORCH) remove it first: rm -rf $(VENV))
endif

help: ## list the targets
	@grep -hE '^[a-z0-9%-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-20s %s\n", $$1, $$2}'

# The CPU wheels come first, of the versions that pyproject.toml wants: then pip finds these satisfied.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
ifeq ($(TORCH),cpu)
	$(BIN)/pip install --index-url $(CPU_WHEELS) $(shell grep -oE '"torch(vision)?[<>=~!][^"]*"' pyproject.toml)
endif
	$(BIN)/pip install -e '.[dev]'
	touch $@

setup: $(READY) ## make .venv with everything in it; TORCH=cpu: with PyTorch's CPU wheels, without CUDA

data: $(READY) ## check the embedded Fashion-MNIST shards
	$(BIN)/scalear data verify data/fashion-mnist
	$(BIN)/scalear data stats data/fashion-mnist

demo: $(READY) ## tokenizer, latents, FlowAR, samples and numbers from nothing, into runs/demo; goes on where it was stopped
	$(BIN)/scalear demo

demo-flexvar: $(READY) ## the same for FlexVAR, into runs/demo-flexvar, with pictures of other sizes and of edits
	$(BIN)/scalear demo --tokenizer configs/fashion/vq.yaml --generator configs/fashion/flexvar.yaml \
		--output_dir runs/demo-flexvar --generator_name flexvar --pictures true

demo-var: $(READY) ## the same for VAR, into runs/demo-var
	$(BIN)/scalear demo --tokenizer configs/fashion/rvq.yaml --generator configs/fashion/var.yaml \
		--output_dir runs/demo-var --generator_name var

try: $(READY) ## learn a folder of pictures: make try PICTURES=~/pictures ARGS="--minutes 20"
	$(if $(PICTURES),,$(error name the folder: make try PICTURES=~/pictures))
	$(BIN)/scalear try "$(PICTURES)" $(ARGS)

study: $(READY) ## the papers' tables at a laptop's size, what of them has no result yet; NAME=row or group, MINUTES=50
	$(BIN)/scalear study $(if $(NAME),--name $(NAME)) $(if $(MINUTES),--minutes $(MINUTES))

study-report: $(READY) ## write docs/study.md and its curves from the results in docs/study
	$(BIN)/scalear study --report

study-cost: $(READY) ## time a training step and sampling of every row of the study
	$(BIN)/scalear study --cost

test: $(READY) ## run the tests
	$(BIN)/pytest $(PARALLEL)

test-fast: $(READY) ## run the tests of parts alone: no whole commands, configs or trainings, no processes
	$(BIN)/pytest $(PARALLEL) -m 'not slow and not integration'

test-parity: $(READY) ## compare with recordings of the official code (SCALEAR_PARITY_DIR: other recordings)
	$(BIN)/pytest tests/interop/official/test_parity.py

test-slow: $(READY) ## run the tests of full-size models too
	$(BIN)/pytest -m ''

lint: $(READY) ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## mend style and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tensorboard: $(READY) ## watch the runs under LOGS (default: runs)
	$(BIN)/scalear board --logdir $(LOGS)

clean: ## remove caches; runs and the virtual environment stay
	rm -rf .pytest_cache .ruff_cache build *.egg-info

fashion-kl: $(READY) ## train the Fashion-MNIST tokenizer and cache its latents
	$(BIN)/scalear fit -c configs/fashion/kl.yaml --ckpt_path last
	$(BIN)/scalear test -c configs/fashion/kl.yaml --ckpt_path runs/fashion/kl/checkpoints/last.ckpt
	$(BIN)/scalear predict -c configs/fashion/kl.yaml --ckpt_path runs/fashion/kl/checkpoints/last.ckpt

fashion-flowar: $(READY) ## train FlowAR on those latents, sample and measure
	$(BIN)/scalear fit -c configs/fashion/flowar.yaml --ckpt_path last
	$(BIN)/scalear test -c configs/fashion/flowar.yaml --ckpt_path runs/fashion/flowar/checkpoints/last.ckpt

fashion-classifier: $(READY) ## train the network that measures FID on Fashion-MNIST
	$(BIN)/scalear data pack --source FashionMNIST --source.num_train 45000 --source.num_val 1000 \
		--source.skip 14000 --output_dir data/fashion-mnist-rest --image_size 32 --compress true
	$(BIN)/scalear fit -c configs/fashion/classifier.yaml --ckpt_path last
	$(BIN)/scalear test -c configs/fashion/classifier.yaml --data.data_dir data/fashion-mnist \
		--model.export_path data/fashion-mnist-rest/classifier.safetensors

# NAME is a file of configs/imagenet256 (flowar, tokenizer-kl16) or family and variant (flowar-l, flexvar-mamba-d16).
family = $(firstword $(subst -, ,$*))
imagenet256-%: $(READY) ## train a config of imagenet256, as in make imagenet256-flowar-l ARGS="--trainer.devices 4"
	$(BIN)/scalear fit --ckpt_path last $(if $(wildcard configs/imagenet256/$*.yaml),-c configs/imagenet256/$*.yaml,-c \
		configs/imagenet256/$(family).yaml -c configs/imagenet256/$(family)/$(patsubst $(family)-%,%,$*).yaml) $(ARGS)

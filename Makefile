# Targets hold no logic: each is one `kdcache` command. `make help` lists them and their variables.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

ifdef DATA
RECIPE  ?= photos
TEACHER ?=
CACHE   ?= build/$(RECIPE)-cache.zarr
OUT     ?= build/$(RECIPE)-run
else
# without arguments: the embedded digits, their teacher, and distillation against labels, 4 seeds each
DEMO    := build/digits
DATA    := $(DEMO)
RECIPE  ?= digits
TEACHER ?= $(DEMO)/teacher-model
CACHE   ?= build/digits-cache.zarr
OUT     ?= build/digits-run
TRAIN_ARGS ?= --seeds 4 --against labels
endif
STUDENT ?=
CACHE_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install data cache train test check clean

help:  ## list the targets and variables
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  variables, with their values in this call:"
	@echo "  DATA=$(DATA)       folder of shards or images (none: the embedded digits)"
	@echo "  TEACHER=$(TEACHER) timm name, hf-hub:…, folder with model.safetensors (none: the recipe's)"
	@echo "  STUDENT=$(STUDENT) timm name (none: the recipe's)"
	@echo "  RECIPE=$(RECIPE)   name or path of a recipe: digits, photos, vanillakd-a2"
	@echo "  CACHE=$(CACHE)     where the cache lies"
	@echo "  OUT=$(OUT)         where the run lies"
	@echo "  CACHE_ARGS=$(CACHE_ARGS) TRAIN_ARGS=$(TRAIN_ARGS) further arguments"

install: $(VENV)/installed  ## create the environment in .venv

$(VENV)/installed: pyproject.toml
	@echo "creating $(VENV) and installing torch, timm, … (minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[demo,lite,dev]'
	@touch $@

data: install  ## write the embedded data set and train its teacher (only without DATA)
	$(if $(DEMO),$(BIN)/kdcache demo $(DEMO),@true)

cache: data  ## stage 1: run the teacher once, store and verify what it said
	$(BIN)/kdcache cache $(RECIPE) --data $(DATA) --out $(CACHE) \
	  $(if $(TEACHER),--teacher $(TEACHER)) $(CACHE_ARGS)
	$(BIN)/kdcache verify $(CACHE) --data $(DATA)

train: cache  ## stage 2: train students from the cache (makes it first when there is none)
	$(BIN)/kdcache train $(RECIPE) --cache $(CACHE) --data $(DATA) --out $(OUT) $(TRAIN_ARGS) \
	  $(if $(STUDENT),student=$(STUDENT))

test: install  ## run the tests (the slow ones: make test PYTEST_ARGS='-m slow')
	$(BIN)/pytest -n auto -m 'not slow' $(PYTEST_ARGS)

check: install  ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:  ## remove build/ (data, caches, runs); the environment stays
	rm -rf build

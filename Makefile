# Targets hold no logic: each is one `kdcache` command. `make help` lists them and their variables.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

ifdef DATA
RECIPE  ?= photos
TEACHER ?=
# several students share a cache: the recipe of stage 2 names that of stage 1
CACHE_RECIPE ?= $(or $(shell sed -n 's/^cache_recipe *= *"\(.*\)".*/\1/p' \
  $(wildcard train/recipes/$(RECIPE).toml $(RECIPE)) /dev/null),$(RECIPE))
CACHE   ?= build/$(notdir $(basename $(CACHE_RECIPE)))-cache.zarr
OUT     ?= build/$(notdir $(basename $(RECIPE)))-run
else
# without arguments: the embedded digits, their teacher, and distillation against labels, 4 seeds each
DEMO    := build/digits
DATA    := $(DEMO)
RECIPE  ?= digits
CACHE_RECIPE ?= digits
TEACHER ?= $(DEMO)/teacher-model
CACHE   ?= build/digits-cache.zarr
OUT     ?= build/digits-run
TRAIN_ARGS ?= --seeds 4 --against labels
endif
STUDENT ?=
GRID    ?= digits
SWEEP   ?= build/$(notdir $(basename $(GRID)))-sweep
SWEEP_ARGS ?=
BENCH   ?=
CACHE_ARGS ?=
FUZZ_SECONDS ?= 3600
FUZZ_READERS ?=

.DEFAULT_GOAL := help
.PHONY: help install ffcv data cache train sweep bench test fuzz check docs clean

help:  ## list the targets and variables
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  variables, with their values in this call:"
	@echo "  DATA=$(DATA)       folder of shards or images (none: the embedded digits)"
	@echo "  TEACHER=$(TEACHER) timm name, hf-hub:…, folder with model.safetensors (none: the recipe's)"
	@echo "  STUDENT=$(STUDENT) timm name (none: the recipe's)"
	@echo "  RECIPE=$(RECIPE)   name or path of a recipe: those of train/recipes"
	@echo "  CACHE_RECIPE=$(CACHE_RECIPE) its recipe of stage 1: those of pipeline/recipes"
	@echo "  GRID=$(GRID)       students of make sweep: train/grids, or a file; into SWEEP=$(SWEEP)"
	@echo "  CACHE=$(CACHE)     folder of the cache"
	@echo "  OUT=$(OUT)         folder of the run"
	@echo "  BENCH=$(BENCH)            with its arguments, a benchmark for make bench"
	@echo "  CACHE_ARGS=$(CACHE_ARGS) TRAIN_ARGS=$(TRAIN_ARGS) SWEEP_ARGS=$(SWEEP_ARGS) further arguments"

install: $(VENV)/installed  ## create the environment in .venv

$(VENV)/installed: pyproject.toml
	@echo "creating $(VENV) and installing torch, timm, … (minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[demo,lite,report,turbo,dev]'
	@touch $@

# Debian has OpenCV in parts; FFCV includes all of it but links two, so that two lines stand for the
# rest. --no-deps: it would bring opencv-python, which writes over opencv-python-headless. Its other
# needs (torch, numba, numpy, pillow, tqdm) are there.
ffcv: install  ## build FFCV, for kdcache train loader=ffcv (needs the apt packages it names)
	@pkg-config --exists libturbojpeg && test -d /usr/include/opencv4/opencv2/imgproc || { echo \
	  "first: apt-get install --no-install-recommends" \
	  "g++ pkg-config libturbojpeg0-dev libopencv-core-dev libopencv-imgproc-dev"; exit 2; }
	mkdir -p build/ffcv/opencv2
	printf '#include <opencv2/core.hpp>\n#include <opencv2/imgproc.hpp>\n' > build/ffcv/opencv2/opencv.hpp
	printf 'Name: opencv4\nDescription: core, imgproc\nVersion: 4\nCflags: -I%s -I/usr/include/opencv4\nLibs: -lopencv_imgproc -lopencv_core\n' \
	  "$(CURDIR)/build/ffcv" > build/ffcv/opencv4.pc
	echo 'setuptools==75.8.0' > build/ffcv/constraint.txt
	PIP_CONSTRAINT="$(CURDIR)/build/ffcv/constraint.txt" PKG_CONFIG_PATH="$(CURDIR)/build/ffcv" \
	  $(BIN)/pip install --quiet --no-deps ffcv==1.0.2

data: install  ## write the embedded data set and train its teacher (only without DATA)
	$(if $(DEMO),$(BIN)/kdcache demo $(DEMO),@true)

cache: data  ## stage 1: run the teacher once, store and verify its soft targets
	$(BIN)/kdcache cache $(CACHE_RECIPE) --data $(DATA) --out $(CACHE) \
	  $(if $(TEACHER),--teacher $(TEACHER)) $(CACHE_ARGS)
	$(BIN)/kdcache verify $(CACHE) --data $(DATA)

train: cache  ## stage 2: train students from the cache (makes it first when there is none)
	$(BIN)/kdcache train $(RECIPE) --cache $(CACHE) --data $(DATA) --out $(OUT) $(TRAIN_ARGS) \
	  $(if $(STUDENT),student=$(STUDENT))

sweep: cache  ## train a grid of students that share every batch; table, picture, costs
	$(BIN)/kdcache sweep $(GRID) --cache $(CACHE) --data $(DATA) --out $(SWEEP) \
	  $(if $(TEACHER),--teacher $(TEACHER)) $(SWEEP_ARGS)

bench: $(if $(BENCH),install,cache)  ## the bottleneck of training here; BENCH="render --repeats 11": one of benchmarks/
	$(if $(BENCH),$(BIN)/python -m benchmarks.$(BENCH),$(BIN)/kdcache bench loader $(RECIPE) \
	  --cache $(CACHE) --data $(DATA))

test: install  ## run the tests (the slow ones: make test PYTEST_ARGS='-m slow')
	$(BIN)/pytest -n auto -m 'not slow' $(PYTEST_ARGS)

fuzz: install  ## feed every reader with damaged files; FUZZ_SECONDS=3600 of all, FUZZ_READERS="tar zip_cache"
	ulimit -v 30000000; $(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) $(FUZZ_READERS)

check: install  ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/docs: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

# Tracked files alone, under their own paths: a link of a page works here and on the repository's page.
docs: $(VENV)/docs  ## build the site of the documentation, build/site; a dead link or an undocumented name fails
	$(BIN)/python docs/generate.py --check
	rm -rf build/docs && mkdir -p build/docs
	git ls-files -z | tar --create --null --files-from=- | tar --extract --directory build/docs
	$(BIN)/zensical build --clean --strict

clean:  ## remove build/ (data, caches, runs); the environment stays
	rm -rf build

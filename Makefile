# One command each; `make` alone lists them. Everything happens in .venv beside this file.

PYTHON ?= python3
TORCH  ?= torch==2.13.0# what `make setup` installs first; the extension is built against it
TORCH_OPTIONS ?=# for pip, with that: for example an --index-url that holds CPU-only or CUDA builds
EXTRAS ?= crafter,tensorboard,dev
RUN    ?= runs/demo
PRETRAIN ?= runs/nano-pretrain
BENCH  ?= ops
BENCH_PLOTS ?= runs/bench
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.colaworld-installed
BUILT_FROM := pyproject.toml CMakeLists.txt $(shell find csrc -type f 2>/dev/null)
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup native test test-all test-distributed demo demo-long plan-demo study-quick study-gpu nano-pretrain sanitize cuda-check nightly gpu gpu-quick lint format bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## create .venv, install torch and colaworld (again only when the build changes)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "colaworld needs Python 3.10 to 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
	    echo "Name another one: make setup PYTHON=python3.12"; exit 1; }
	@echo "setup: creating $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) cannot make virtual environments. On Debian or Ubuntu: apt install python3-venv"; \
	  exit 1; }

# The constraints file holds every later install to the torch that is already there.
$(STAMP): $(BIN)/python $(BUILT_FROM)
	@if $(BIN)/python -c 'import torch' 2>/dev/null; then :; else \
	  echo "setup: installing $(TORCH)"; $(PIP) install -q '$(TORCH)' $(TORCH_OPTIONS); fi
	@$(BIN)/python -c 'from importlib.metadata import version as v; print("torch==" + v("torch"))' \
	  > $(VENV)/constraints.txt
	@$(PIP) install -q -c $(VENV)/constraints.txt 'scikit-build-core>=0.11' 'pybind11>=2.13' 'cmake>=3.24' ninja
	@if ! { command -v "$${CXX:-c++}" || command -v g++ || command -v clang++; } >/dev/null && \
	  [ "$${COLAWORLD_NO_EXTENSION:-0}" = 0 ]; then \
	  echo "setup: NOT FOUND: a C++ compiler (Debian, Ubuntu: apt install g++)."; \
	  echo "       Installing without the extension: everything works, on the slower reference ops."; \
	  echo "       For the fast ones install one, then: make clean setup"; \
	  export COLAWORLD_NO_EXTENSION=1; \
	fi; \
	echo "setup: installing colaworld[$(EXTRAS)]"; \
	PATH="$(abspath $(BIN)):$$PATH" $(PIP) install -q -c $(VENV)/constraints.txt \
	  --no-build-isolation -e '.[$(EXTRAS)]'
	@touch $@
	@COLUMNS=200 $(BIN)/colaworld info | grep -E '^(extension|cuda) '
	@echo "setup: done; $(BIN)/colaworld info tells more"

# Whatever Python has torch: the one of .venv where there is one. No install, no network.
HERE = $(or $(wildcard $(BIN)/python),$(PYTHON))
NATIVE := build/native
native:  ## the compiled ops alone, without an install: build/native/_native.so
	@PATH="$(abspath $(BIN)):$$PATH"; cmake -S . -B $(NATIVE) -DCMAKE_BUILD_TYPE=Release \
	  -DPython_EXECUTABLE="$$(command -v $(HERE))" && \
	MAKEFLAGS=--no-print-directory cmake --build $(NATIVE) --target colaworld_native --parallel "$$(nproc)"
	@echo "native: COLAWORLD_NATIVE_LIBRARY=$(NATIVE)/_native.so runs on it, here and where the file is carried to"

# One process for each core, at most 8, of one thread each: two that take all cores would fight.
# worksteal: each takes neighbouring tests, which share fixtures, and whoever is done first helps out.
WORKERS ?= logical --maxprocesses 8
PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal
test: setup  ## the tests, without the slow ones (WORKERS=2: in two processes; 0: in one)
	@$(PYTEST) -m "not slow"

test-all: setup  ## every test
	@$(PYTEST)

# A process that a test leaves behind carries the mark of this call in its environment.
MARK := COLAWORLD_TEST_MARK=$(shell echo $$$$)
test-distributed: setup  ## training by several processes, slow tests and torchrun included; nothing may be left running
	@$(MARK) timeout 1800 $(BIN)/python -m pytest -q -n 0 tests/training/test_distributed.py \
	  tests/training/test_shard_files.py tests/training/test_faults.py tests/cli/test_launch.py tests/benchmarks/test_scale.py
	@left=$$(grep -lz '^$(MARK)$$' /proc/[0-9]*/environ 2>/dev/null); \
	  [ -z "$$left" ] || { echo "test-distributed: still running: $$left"; exit 1; }

demo: setup  ## record, train, evaluate, report: about 8 minutes on two cores
	@$(BIN)/colaworld demo --out $(RUN)

demo-long: setup  ## the same with an hour of training
	@$(BIN)/colaworld demo --out $(RUN)-long --long

plan-demo: setup  ## plan in the own scene, with a world trained jointly and one of two stages
	@$(BIN)/colaworld study planning --data scene --seeds 1 --resume --out runs/plan-demo

study-quick: setup  ## the study `quick`: collapse, and joint against two stages, in a look
	@$(BIN)/colaworld study quick --seeds 1 --resume --out runs/study-quick

study-gpu: setup  ## with a GPU: the study `gpu`, ten times the size, ten minutes as estimated (STUDY: more options)
	@$(BIN)/colaworld study gpu --seeds 1 --device cuda --resume --out runs/study-gpu $(STUDY)

nano-pretrain: setup  ## train the shipped nano video model again
	@test -d $(PRETRAIN)/data || $(BIN)/colaworld record crafter --out $(PRETRAIN)/data \
	  --episodes 600 --steps 100 --seed 1000 --behaviour sticky-random --repeat 0.3 --start varied --workers 2
	@$(BIN)/colaworld train nano.pretrain --data $(PRETRAIN)/data --out $(PRETRAIN)/run --training.compile full --resume
	@$(BIN)/python -m colaworld.runs.weights $(PRETRAIN)/run

# The op tests on a build that finds every access outside of memory and every undefined operation.
SANITIZED := build/sanitize
sanitize: setup  ## the op tests once, on a build with AddressSanitizer and UBSan (gcc)
	@$(BIN)/cmake -S . -B $(SANITIZED) -G Ninja -DCMAKE_MAKE_PROGRAM="$(abspath $(BIN)/ninja)" \
	  -DCMAKE_BUILD_TYPE=Release -DCOLAWORLD_SANITIZE=ON -DPython_EXECUTABLE="$(abspath $(BIN)/python)" \
	  > $(SANITIZED).log || \
	  { cat $(SANITIZED).log; exit 1; }
	@$(BIN)/cmake --build $(SANITIZED)
	@ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libubsan.so)" \
	  COLAWORLD_NATIVE_LIBRARY="$(abspath $(SANITIZED))/_native.so" $(BIN)/python -m pytest -q -x tests/ops -m "not slow" -k "not compile"

cuda-check: setup  ## without a GPU: every GPU kernel that changed (ONLY=adaln: of one op) compiled, its code compared
	@$(BIN)/python tests/cuda_check $(if $(ONLY),--only $(ONLY))

nightly:  ## what takes too long for every change: PART (all, tests, sanitize, cuda-check, oldest-torch)
	@.ci/nightly $(PART)

gpu: gpu-quick  ## with a GPU: what gpu-quick does, then compiled rivals, the joint step, block sizes (GPU_OPTIONS)
	@$(HERE) -m benchmarks.gpu B $(GPU_OPTIONS)

gpu-quick:  ## with a GPU and any Python that has torch: right or wrong, ceilings, the main ops (3 minutes)
	@$(HERE) -m benchmarks.gpu A $(GPU_OPTIONS)

lint: setup  ## ruff, mypy and clang-format, changing nothing
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | \
	  xargs $(BIN)/clang-format --dry-run --Werror

format: setup  ## write what lint asks for
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format -i

bench: setup  ## time BENCH (ops; models training data rollout planning scale), tests first, into benchmarks/results/
	@$(BIN)/python -c 'from importlib.metadata import requires; print(*(r.split(";")[0] for r in requires("colaworld") if r.endswith("bench\"")), sep="\n")' \
	  > $(VENV)/bench.txt || { echo "bench: no colaworld in $(VENV)"; exit 1; }
	@$(PIP) install -q -c $(VENV)/constraints.txt -r $(VENV)/bench.txt  # the extra `bench`, without a new build
	@$(BIN)/colaworld bench $(BENCH) --json --plot $(BENCH_PLOTS)

clean:  ## remove .venv and what was built; runs/ stays
	@rm -rf $(VENV) build dist
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
	@rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks

# The commands of the project. `make demo` and `make test` set everything up themselves, in .venv. The others are for
# developers.
#
# PYTHON=python3.12 chooses the Python. If it can import torch, that torch is used; otherwise TORCH_SPEC is installed.

PYTHON ?= python3
TORCH_SPEC ?= torch==2.13.0
VENV ?= .venv
MODEL := smollm2-135m

OUTER := $(or $(shell command -v $(PYTHON)),$(PYTHON))
BIN := $(VENV)/bin
RUN := $(BIN)/python -P
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check
SOURCES := $(shell find cmake csrc -type f) CMakeLists.txt
CXX_FILES := $(shell find csrc tests/emulator -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
CUDA_HEADER := $(firstword $(wildcard $(CUDA_HOME)/include/cuda_runtime.h /usr/local/cuda/include/cuda_runtime.h /usr/include/cuda_runtime.h))
# The scripts of the outer Python may include cmake or ninja.
export PATH := $(abspath $(BIN)):$(shell $(OUTER) -c 'import sysconfig; print(sysconfig.get_path("scripts"))' 2>/dev/null):$(PATH)
OLDEST_CMAKE := $(shell sed -n 's/^cmake_minimum_required(VERSION \([0-9.]*\)).*/\1/p' CMakeLists.txt)
# Not empty if a Ninja and a CMake that is new enough are on the path.
BUILD_TOOLS := $(shell PATH="$(PATH)"; found=$$(cmake --version 2>/dev/null | sed -n 's/^cmake version //p'); test -n "$$found" && \
  printf '%s\n' "$(OLDEST_CMAKE)" "$$found" | sort -CV && command -v ninja)

.PHONY: help demo test test-packaging emulator test-emulator sanitize gpu-check dev check format kernels cuda-ops clean

help:
	@echo "make demo     decode with a real model, three ways (sets everything up first)"
	@echo "make test     run the tests (sets everything up first)"
	@echo "make dev      the developer's tools and an editable install"
	@echo "make check    lint, types and formats       make format   correct what a tool can"
	@echo "make kernels  compile the CUDA kernels; needs nvcc, and CMake $(OLDEST_CMAKE) and Ninja or a Python to fetch them"
	@echo "make test-emulator  run the CUDA kernels' tests on the CPU; needs CUDA's headers, no GPU"
	@echo "make sanitize       run the ops' tests with an extension built with sanitizers"
	@echo "make gpu-check      build, test and time kernels and decodes on this machine's GPU"

demo: $(VENV)/built
	$(BIN)/ssd pull $(MODEL)
	$(BIN)/ssd demo

test: $(VENV)/test
	$(BIN)/ssd pull $(MODEL)
	$(RUN) -m pytest -n 2 --dist loadfile -m "not packaging" $(PYTEST)

test-packaging: $(VENV)/test
	$(RUN) -m pytest -m packaging $(PYTEST)

dev: $(VENV)/dev $(VENV)/test

check: $(VENV)/dev
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy --strict ssd/
	$(RUN) profiling/tables.py --check
	clang-format --dry-run -Werror $(CXX_FILES)

format: $(VENV)/dev
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format
	clang-format -i $(CXX_FILES)

# Uses the CMake and Ninja on the path; where one is missing or too old, both come from PyPI, into .venv.
kernels: $(if $(BUILD_TOOLS),,$(VENV)/tools)
	cmake -G Ninja -S . -B build/kernels -DSSD_WERROR=ON -DSSD_KERNELS_ONLY=ON $(if $(SSD_CUDA_ARCHS),"-DSSD_CUDA_ARCHS=$(SSD_CUDA_ARCHS)")
	cmake --build build/kernels --target ssd_kernels --parallel 2

# Compiles the torch side of the kernels, with a CPU build of torch and the CUDA toolkit.
cuda-ops: $(VENV)/ready
	cmake -G Ninja -S . -B build/cuda_ops -DSSD_WERROR=ON -DSSD_CUDA_OPS_CHECK=ON -DPython_EXECUTABLE=$(abspath $(BIN)/python)
	cmake --build build/cuda_ops --target cuda_ops_check

# The CUDA kernels compiled as C++, for tests without a GPU (tests/emulator).
emulator: $(VENV)/test
	cmake -G Ninja -S . -B build/emulator -DSSD_WERROR=ON -DSSD_EMULATOR=ON -DPython_EXECUTABLE=$(abspath $(BIN)/python)
	cmake --build build/emulator --target ssd_emulator ssd_emulator_mistakes --parallel 2

# SKIP_CODE=1 makes it a failure if they cannot run.
ifeq ($(CUDA_HEADER),)
test-emulator:
	@echo "SKIPPED: the kernels' tests on the emulator; cuda_runtime.h was not found, so install the CUDA toolkit or set CUDA_HOME."
	@exit $(or $(SKIP_CODE),0)
else
test-emulator: emulator
	@$(RUN) -m pytest tests/emulator --backend emulator -q $(PYTEST) > build/emulator/tests.log 2>&1 & on_emulator=$$!; \
	$(RUN) -m pytest tests/ops --backend emulator -q $(PYTEST); ops=$$?; \
	wait $$on_emulator; emulator=$$?; cat build/emulator/tests.log; exit $$((ops | emulator))
endif

# The extension with AddressSanitizer and UndefinedBehaviorSanitizer, and with ThreadSanitizer. The tests of the ops and of
# recorded rounds must be clean, and the sanitizers must find what is planted (tests/sanitize).
SANITIZED := tests/sanitize tests/ops tests/engine/test_recorded.py tests/engine/test_overlap.py tests/engine/test_programs.py
LIBRARY = $(shell $(or $(CXX),c++) -print-file-name=$(1))
SANITIZED_RUN = PYTHONPATH=$(abspath build/sanitize/$(1)) LD_PRELOAD="$(call LIBRARY,$(2)) $(call LIBRARY,libstdc++.so)" $(3) \
  setarch -R $(RUN) -m pytest -q -n 2 --dist load -p no:cacheprovider $(SANITIZED) $(PYTEST)

sanitize: $(VENV)/test
	SSD_SANITIZE=address $(BIN)/python setup.py -q build --build-lib build/sanitize/address
	$(call SANITIZED_RUN,address,libasan.so,ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1)
	SSD_SANITIZE=thread $(BIN)/python setup.py -q build --build-lib build/sanitize/thread
	$(call SANITIZED_RUN,thread,libtsan.so,TSAN_OPTIONS=suppressions=$(abspath tests/sanitize/thread.txt))

# Uses the Python on this machine and its CUDA torch; nothing is downloaded. STEPS=build,smoke runs some of the steps,
# RESULTS=DIR is the folder of the result files, and LARGE=1 adds a pair of 70 GB.
gpu-check:
	$(PYTHON) profiling/gpu_check.py $(if $(STEPS),--steps $(STEPS)) $(if $(RESULTS),--results "$(RESULTS)") $(if $(LARGE),--large)

clean:
	rm -rf $(VENV) build dist *.egg-info ssd/*.so ssd/_build_info.py

# Set-up, in stamps: `ready` is an environment with torch and the build's tools, `built` has the package, `test` and `dev` add
# packages. `tools` has CMake and Ninja only.

$(VENV)/tools: CMakeLists.txt
	@test -x $(BIN)/python || $(OUTER) -m venv $(VENV)
	@$(PIP) "cmake>=$(OLDEST_CMAKE)" ninja
	@touch $@

$(VENV)/ready: pyproject.toml setup.py
	@$(OUTER) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "ssd needs Python 3.11 or later; choose one with PYTHON=..."; exit 1; }
	@echo "Setting up $(VENV). These are downloaded, unless they are cached or installed already:"
	@$(OUTER) -c 'import torch; print("  torch       nothing: the torch", torch.__version__, "of $(OUTER) is used")' 2>/dev/null || \
	  echo "  torch       $(TORCH_SPEC): 0.2 GB for a CPU build, up to 3 GB for a CUDA build"
	@echo "  packages    0.1 GB: build tools and dependencies of ssd (cmake, ninja, numpy, transformers, ..)"
	@echo "  the model   0.1 GB: SmolLM2-135M, for 'make demo' and 'make test'"
	@echo "  test tools  0.1 GB at most: for 'make test' only"
	@test -x $(BIN)/python || $(OUTER) -m venv $(VENV)
	@# Packages of the outer Python can be imported here, after our own, so that its torch is not downloaded again.
	@if $(OUTER) -c 'import torch' 2>/dev/null; then \
	  $(OUTER) -c 'import sys; print(*[p for p in sys.path if p.endswith("-packages")], sep="\n")' \
	    > $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth; \
	fi
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) "$(TORCH_SPEC)"
	@$(BIN)/python -c 'import tomllib; requires = tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"]; \
	  print(*[r for r in requires if not r.startswith("torch")], sep="\n")' > $(VENV)/build-requires.txt
	@$(PIP) -r $(VENV)/build-requires.txt
	@touch $@

$(VENV)/built: $(VENV)/ready $(SOURCES)
	@echo "Building ssd and installing its dependencies .."
	@$(PIP) --no-build-isolation -e .
	@touch $@

$(VENV)/test $(VENV)/dev: $(VENV)/built
	@$(PIP) --no-build-isolation -e ".[$(@F)]"
	@touch $@

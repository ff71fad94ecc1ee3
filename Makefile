# make demo   set everything up, train a one-step student of handwritten digits, say where the report is
# make test   set everything up, run the tests (PYTEST_ARGS="-k fdiv" narrows them; WORKERS=0 for one process)
# make lint   ruff, mypy, clang-format
# make bench  the benchmark's quick choice, on two cores within two minutes (BENCH_ARGS="--html speed.html")
# make readme-figures  the README's figures and tables of speed, from benchmarks/results
# make software-device  every contract of the CUDA library on the software device in WAYS=5 schedules more (make test
#             has each in one; WAYS=11: in all), sanitizers, faults planted in its sources
# make check-kernels  compile the Triton kernels for GPUs that need not be here (ALL=1: every target); inspect them and
#             those of the CUDA library
# make check-versions  build from source and run the core tests under the oldest and newest torch, Python and Triton
#             (VERSIONS="2.10.0 2.11.0": these alone)
# make gpu-check OUT=folder  build, test, sanitize, bench and profile on a GPU, with what PYTHON=python3 has installed
#             (STAGES=build,test: these alone; BUDGET=540: seconds of each; DEVICE=cpu: a rehearsal)
# make gpu-command OUT=folder STAGES=build  print the same as a command for a machine that has neither git nor make
# make build  recompile the binaries in place after a change in csrc/ (FDKERNELS_CUDA_ARCHS=90: for these GPUs alone)
# make format rewrite Python and C++ sources in the project's style
#
# Everything but gpu-check is in .venv; stamps there make each step run again only when what it depends on has changed.
PYTHON ?= python3
VENV ?= .venv
# The CPU build, by its exact local version: a bare version could bring several gigabytes of CUDA packages.
# TORCH=torch==2.13.0 takes whatever build the configured index offers.
TORCH ?= $(shell grep '^torch==' constraints.txt)+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PYTEST_ARGS ?=
WORKERS ?= auto
WAYS ?= 5
ALL ?=
OUT ?=
STAGES ?=
BUDGET ?=
DEVICE ?= cuda
VERSIONS ?=
BENCH_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CPP_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
CPP_FORMATTED := $(CPP_SOURCES) $(shell find tests tools -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
PY_ROOTS := fdkernels python benchmarks examples tests tools setup.py

.PHONY: demo test lint bench readme-figures build software-device check-kernels check-versions gpu-check gpu-command format FORCE
.DELETE_ON_ERROR:

demo: $(VENV)/.stamp-build
	$(BIN)/fdistill train digits --resume
	@echo "The report: $(CURDIR)/runs/digits-js/report.html"

test: $(VENV)/.stamp-build
	$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

lint: $(VENV)/.stamp-build
	$(BIN)/ruff check $(PY_ROOTS)
	$(BIN)/ruff format --check $(PY_ROOTS)
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP_FORMATTED)

bench: $(VENV)/.stamp-build
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

readme-figures: $(VENV)/.stamp-build
	$(BIN)/python -m benchmarks.report.figures

build: $(VENV)/.stamp-build

software-device: $(VENV)/.stamp-build
	FDKERNELS_SOFTWARE_DEVICE=$(WAYS) $(BIN)/python -m pytest -n $(WORKERS) tests/fdkernels -k software $(PYTEST_ARGS)
	$(BIN)/python -m tests.software_device.sanitized
	$(BIN)/python -m tests.software_device.mutations

check-kernels: $(VENV)/.stamp-build
	$(BIN)/python -m tools.machine_code $(if $(ALL),--all)

check-versions: $(VENV)/.stamp-deps
	$(BIN)/python -m tools.check_versions $(VERSIONS)

GPU_CHECK = -m tools.gpu_check --out '$(or $(OUT),$(error OUT=folder: where to write))' --device $(DEVICE) \
  $(if $(STAGES),--stages $(STAGES)) $(if $(BUDGET),--budget $(BUDGET))

# Installs nothing: such a machine may reach no index.
gpu-check:
	$(PYTHON) $(GPU_CHECK)

# Names the commit, which a copy without .git does not know.
gpu-command:
	@echo "FDKERNELS_COMMIT=$$(git describe --always --dirty --abbrev=40 --exclude='*') $(PYTHON) $(strip $(GPU_CHECK))"

format: $(VENV)/.stamp-deps
	$(BIN)/ruff check --fix $(PY_ROOTS)
	$(BIN)/ruff format $(PY_ROOTS)
	$(BIN)/clang-format -i $(CPP_FORMATTED)

$(VENV)/.stamp-venv:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.stamp-torch: $(VENV)/.stamp-venv constraints.txt
	$(PIP) install --quiet --constraint constraints.txt '$(TORCH)' \
	  || $(PIP) install --quiet --constraint constraints.txt --extra-index-url $(TORCH_INDEX) '$(TORCH)'
	touch $@

$(VENV)/.stamp-deps: $(VENV)/.stamp-torch constraints.txt pyproject.toml
	$(PIP) install --quiet --constraint constraints.txt setuptools wheel cmake ninja pybind11 numpy
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[train,test,dev]'
	touch $@

# Changes only when the variable does, and the binaries with it.
$(VENV)/.stamp-cuda-archs: FORCE | $(VENV)/.stamp-venv
	@echo '$(FDKERNELS_CUDA_ARCHS)' | cmp -s - $@ || echo '$(FDKERNELS_CUDA_ARCHS)' > $@

$(VENV)/.stamp-build: $(VENV)/.stamp-deps $(VENV)/.stamp-cuda-archs CMakeLists.txt setup.py $(CPP_SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

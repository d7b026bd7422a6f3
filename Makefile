# make test, make demo: everything from a fresh checkout. The virtual environment is made on the first run and kept.

PYTHON ?= python3
# What pip installs as torch. On a machine where a plain `torch` would bring CUDA along, name the build you want here.
TORCH ?= torch==2.13.0

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet
BUILD_NEEDS := "setuptools>=77" wheel ninja pybind11 numpy
FILES_NEEDS := "polars>=2"
# pytest-xdist runs the tests on all cores: each is too small to keep more than one busy.
TEST_NEEDS := pytest pytest-xdist hypothesis scipy ranx faiss-cpu
BENCHMARK_NEEDS := matplotlib tqdm torch_geometric safetensors
EXAMPLE_NEEDS := lightning scikit-learn
DEV_NEEDS := ruff mypy build
# Only make docs and make test-docs install these. playwright drives Debian's chromium; hnswlib is for a page's code.
DOCS_NEEDS := "sphinx>=9" myst-nb jupytext ipykernel pydata-sphinx-theme sphinx-copybutton sphinx-design \
	sphinx-mathjax-offline playwright hnswlib
# Only for the MovieLens-100K file inside its wheel; it is never imported.
DATA_NEEDS := recbole==1.2.1

SOURCES := setup.py $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp)

.PHONY: help venv build docs test test-build test-benchmarks test-docs test-all fuzz sanitize demo wheels clean

help:
	@echo "make demo             train on MovieLens-100K with BPR, SL, SL@20 and CW; table, JSON and plot under runs/"
	@echo "make test             run the tests of the kernels and the Python API, in minutes; so does a bare pytest, on one core"
	@echo "make test-build       run the tests that build: emulated CUDA kernels, sanitizers, failing allocations, packages"
	@echo "make test-benchmarks  run the tests of benchmarks/ and examples/"
	@echo "make test-all         run all of these, and the thorough tests that make test leaves out"
	@echo "make fuzz             random calls of every form of the loss against the reference, and random wrong ones"
	@echo "make sanitize         run the tests of the CPU kernels under the compiler's sanitizers"
	@echo "make build            build the extension in place"
	@echo "make docs             build this project's documentation site in docs/_build/html"
	@echo "make test-docs        run every code block of the documentation, and look at its pages in Chromium"
	@echo "make wheels           build the binary wheels, for Linux on x86-64 and ARM, with and without CUDA: see .ci/wheels"
	@echo "make clean            remove builds and the virtual environment"

venv: $(VENV)/.installed
build: $(VENV)/.built

$(VENV)/.installed: Makefile
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"cw_ext needs Python >= 3.11, $(PYTHON) is {v[0]}.{v[1]}; run make PYTHON=...")'
	@test -x $(PY) || { echo "making a virtual environment in $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing $(TORCH) and what builds, tests and benchmarks need"
	@$(PIP) --upgrade pip
	@$(PIP) $(BUILD_NEEDS)
	@$(PIP) $(TORCH)
	@$(PIP) $(FILES_NEEDS) $(TEST_NEEDS) $(BENCHMARK_NEEDS) $(EXAMPLE_NEEDS) $(DEV_NEEDS)
	@$(PIP) --no-deps $(DATA_NEEDS)
	@touch $@

$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	@echo "building the extension (about a minute)"
	@mkdir -p build
	@$(PY) setup.py --quiet build_ext --inplace > build/log.txt 2>&1 || { cat build/log.txt; exit 1; }
	@touch $@

# One process per core, but not more than eight: each of them imports torch first.
PARALLEL := -n logical --maxprocesses 8 --dist loadgroup

test: build
	@$(PY) -m pytest $(PARALLEL)

# -m "" lets the thorough tests run as well. tests/build starts its own processes, as many as there are cores.
test-build: build
	@$(PY) -m pytest -m "" tests/build

test-benchmarks: build
	@$(PY) -m pytest -m "" $(PARALLEL) tests/benchmarks

test-all: build
	@$(PY) -m pytest -m "" $(PARALLEL)
	@$(MAKE) --no-print-directory test-benchmarks test-build

# How many calls, in the place of the few hundred that `make test` draws, and other ones each time: examples for each
# of the tests, and wrong calls in all.
FUZZ_EXAMPLES ?= 2000
FUZZ_BAD_CALLS ?= 6000
FUZZ_SEED := $(shell date +%s)
fuzz: build
	@CW_EXT_TEST_EXAMPLES=$(FUZZ_EXAMPLES) $(PY) -m pytest $(PARALLEL) tests/test_fuzz.py
	@$(PY) -m pytest $(PARALLEL) -m thorough -k every_parameter
	@$(PY) tests/bad_calls.py $(FUZZ_BAD_CALLS) $(FUZZ_SEED)

sanitize: build
	@$(PY) .ci/sanitize

# Compiles everything by itself, for machines and Pythons other than these.
wheels: venv
	@$(PY) .ci/wheels

$(VENV)/.docs: $(VENV)/.installed
	@echo "installing what the documentation needs"
	@$(PIP) $(DOCS_NEEDS)
	@touch $@

# -W: a warning is an error; -n would also ask for links to torch's own classes.
docs: build $(VENV)/.docs
	@$(PY) -m sphinx -W --keep-going --quiet -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

test-docs: docs
	@$(PY) -m pytest $(PARALLEL) tests/documentation

demo: build
	@$(PY) -m benchmarks.demo

clean:
	rm -rf $(VENV) build *.egg-info cw_ext/*.so

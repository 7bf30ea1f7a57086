"""ONNX Runtime's TensorRT provider: its options for a graph, and the folders where its engines are kept.

TensorRT compiles a graph into an *engine*: it measures which kernels are fastest on this GPU for a range of shapes, and
includes the weights. That takes from seconds to minutes, so engines are kept. ONNX Runtime looks up a kept engine by
the names of the graph's file, inputs and nodes, but not by its weights, so an SAE could run with the engine of another
SAE of the same shape (microsoft/onnxruntime#6455). Each engine is therefore kept in its own folder, whose name depends
on everything that the engine was built from.

Source: https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html, ONNX Runtime 1.23 and later.
"""

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ...arrays.dtypes import BFLOAT16, FLOAT16, FLOAT32
from ...artifact.folder import Artifact
from ...artifact.manifest import GraphSpec
from ...artifact.names import TOKENS, K
from ...errors import InputError, ProviderError
from ..cuda.driver import GPU
from ..cuda.search import BLOCK, FEATURES_PER_K
from ..options import TF32

ENGINES, TIMINGS = "trt_engine_cache_path", "trt_timing_cache_path"

TF32_SWITCH = "NVIDIA_TF32_OVERRIDE"
FIRST_WITH_TF32 = (8, 0)
"""The compute capability from which TensorRT rounds float32 products to TF32, to 10 bits, unless `TF32_SWITCH` is 0."""

LARGEST_MODEL = (1 << 31) - (1 << 20)
"""Largest size in bytes of weights that ONNX Runtime can pass to TensorRT together with the graph.

It is the 2 GiB limit of a protobuf message, less room for the graph.
"""

LOCK, UNFINISHED = "lock", "unfinished"
WRITTEN = {".engine", ".profile", ".timing"}


@dataclass(frozen=True)
class Shapes:
    """The shapes that an engine is built for. It cannot run any others.

    Attributes:
        tokens: Largest number of tokens in one run, which is a block.
        usual_tokens: Number of tokens that the engine is tuned for.
        edits: Largest number of edits in an intervention.
        usual_edits: Number of edits that the engine is tuned for.
    """

    tokens: int
    usual_tokens: int
    edits: int = 64
    usual_edits: int = 1

    def __post_init__(self) -> None:
        for what, usual, most in (
            ("tokens", self.usual_tokens, self.tokens),
            ("edits", self.usual_edits, self.edits),
        ):
            if not 1 <= usual <= most:
                raise InputError(f"An engine for at most {most} {what}, usually {usual}: 1 <= usual <= most must hold.")


@dataclass(frozen=True)
class Versions:
    """The versions of the software that builds an engine. Other versions build their own engines.

    Attributes:
        tensorrt: Version of TensorRT, such as "10.9.0".
        onnxruntime: Version of ONNX Runtime, such as "1.31.1".
    """

    tensorrt: str
    onnxruntime: str


def provider_options(
    artifact: Artifact,
    graph: str,
    gpu: GPU,
    versions: Versions,
    shapes: Shapes,
    *,
    precision: str = FLOAT32,
    root: Path | None = None,
    stream: int | None = None,
    extra: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the options of ONNX Runtime's TensorRT provider for a graph.

    Nothing is written: `building` creates the folders.

    Args:
        artifact: Artifact of the graph.
        graph: Name of a portable graph.
        gpu: GPU that will run it.
        versions: Versions of TensorRT and ONNX Runtime.
        shapes: Shapes that will be run.
        precision: Precision of products in float32: "float32", or "tf32" to allow rounding their factors to 10 bits.
        root: Folder of all kept engines. None means `default_root()`.
        stream: Address of the CUDA stream to queue on. None lets ONNX Runtime create one.
        extra: Further options that the engine is built with, such as `trt_max_workspace_size` in bytes or
            `trt_builder_optimization_level` from 0 to 5.

    Raises:
        ProviderError: TensorRT cannot run the graph, or not in this precision.
    """
    manifest = artifact.manifest
    options = (
        _profile(manifest.graphs[graph], shapes) | _precision(manifest.sae.dtype, precision, gpu) | {**(extra or {})}
    )
    if manifest.files[manifest.weights].bytes > LARGEST_MODEL:
        options["trt_load_user_initializer"] = "1"  # weights are passed separately, from ONNX Runtime 1.23 on
    folder = cache_folder(root or default_root(), artifact, graph, gpu, versions, options)
    options |= {
        "device_id": str(gpu.index),
        "trt_engine_cache_enable": "1",
        ENGINES: str(folder),
        "trt_engine_cache_prefix": graph,
        "trt_timing_cache_enable": "1",
        TIMINGS: str(folder.parent),
    }
    if stream is not None:
        options |= {"has_user_compute_stream": "1", "user_compute_stream": str(stream)}
    return options


def _profile(spec: GraphSpec, shapes: Shapes) -> dict[str, str]:
    """Return the smallest, usual and largest shape of every input, in the form "input:1x768,target:1x768"."""
    if any(tensor.name == K for tensor in spec.inputs):
        raise ProviderError(
            f"{spec.file} takes k, which determines the shapes of its outputs. TensorRT builds engines for ranges of "
            f'input shapes, and cannot run it. Open the artifact with device="cuda" for {spec.file}. `top_features` '
            f"can do without it if d_sae is a multiple of {BLOCK}, k at most d_sae / {FEATURES_PER_K}, and no "
            "activation can be negative."
        )
    # The strengths of edits have one row for all tokens, or one per token. An intervention without edits, m = 0, is run
    # by the graph without interventions, so the engine does not need that shape.
    ranges = {
        TOKENS: (1, shapes.usual_tokens, shapes.tokens),
        "rows": (1, 1, shapes.tokens),
        "m": (1, shapes.usual_edits, shapes.edits),
    }
    if unknown := {size for tensor in spec.inputs for size in tensor.shape if isinstance(size, str)} - set(ranges):
        raise ProviderError(
            f"{spec.file} has the dimension {', '.join(sorted(unknown))}, and this release does not know its range. "
            'Update the runtime, or open the artifact with device="cuda".'
        )
    options = {}
    for i, bound in enumerate(("min", "opt", "max")):
        forms = []
        for tensor in spec.inputs:
            sizes = [ranges[size][i] if isinstance(size, str) else size for size in tensor.shape]
            forms.append(f"{tensor.name}:{'x'.join(map(str, sizes))}")
        options[f"trt_profile_{bound}_shapes"] = ",".join(forms)
    return options


def _precision(dtype: str, precision: str, gpu: GPU) -> dict[str, str]:
    """Return the options that make TensorRT compute in an artifact's dtype, and in no lower precision."""
    if dtype in (FLOAT16, BFLOAT16):
        switch = {FLOAT16: "trt_fp16_enable", BFLOAT16: "trt_bf16_enable"}[dtype]
        # The squares and means of a normalisation are float32 in the graph, and must stay float32.
        return {switch: "1", "trt_layer_norm_fp32_fallback": "1"}
    off = os.environ.get(TF32_SWITCH) == "0"
    if precision == FLOAT32 and not off and gpu.capability >= FIRST_WITH_TF32:
        raise ProviderError(
            f'precision="float32" on {gpu.name}: TensorRT rounds products to TF32, and ONNX Runtime has no option to '
            f"prevent it. Set {TF32_SWITCH}=0 in the environment before Python starts, because it is read when CUDA's "
            'libraries are loaded; or pass precision="tf32".'
        )
    if precision == TF32 and off:
        raise ProviderError(f'precision="tf32", but {TF32_SWITCH}=0 forbids it. Unset it, or pass precision="float32".')
    return {}


def default_root() -> Path:
    """Return the default folder of engines: `saeexport/tensorrt` in `$XDG_CACHE_HOME`, or else in `~/.cache`."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache") / "saeexport" / "tensorrt"


def cache_folder(
    root: Path, artifact: Artifact, graph: str, gpu: GPU, versions: Versions, options: Mapping[str, str]
) -> Path:
    """Return the folder of a graph's engine. Its parent holds the timings of all engines for this kind of GPU.

    Args:
        root: Folder of all kept engines.
        artifact: Artifact of the graph. Its content determines the folder; its path does not.
        graph: Name of the graph.
        gpu: GPU that runs it. GPUs of the same kind share engines.
        versions: Versions of TensorRT and ONNX Runtime.
        options: Options that the engine depends on, such as its profile and precision.
    """
    manifest, sae = artifact.manifest, artifact.manifest.sae
    files = [manifest.files[name].sha256 for name in (manifest.graphs[graph].file, manifest.weights)]
    tf32 = os.environ.get(TF32_SWITCH)  # graphs in half precision may also multiply in float32
    made_of = [files, gpu.name, tf32, dict(options)]  # the rest is in the names of the folders
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    card = _words(gpu.name, f"sm{gpu.capability[0]}{gpu.capability[1]}", "tensorrt", versions.tensorrt)
    engine = _words(
        sae.hook_name, f"{sae.d_in}x{sae.d_sae}", graph, sae.dtype, "onnxruntime", versions.onnxruntime, digest
    )
    return root / card / engine


def _words(*words: str) -> str:
    """Join words into a name that every file system accepts."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(words))


@contextlib.contextmanager
def building(options: Mapping[str, str]) -> Iterator[None]:
    """Create the folders of an engine, and lock them for the block that starts a session with these options.

    ONNX Runtime writes engines and timings where it reads them, and only threads of the same process wait for each
    other. Here processes wait for each other as well, except on Windows. Files that a killed process left, which may be
    incomplete, are deleted.

    Args:
        options: Result of `provider_options`.

    Raises:
        ProviderError: The folders cannot be written.
    """
    places = Path(options[ENGINES]), Path(options[TIMINGS])
    with _opened(places[0], places[1] / LOCK) as lock:
        _wait_for(lock)
        for place in places:
            if (place / UNFINISHED).exists():
                for path in [path for path in place.iterdir() if path.suffix in WRITTEN]:
                    path.unlink()
            (place / UNFINISHED).touch()
        yield
        for place in places:
            (place / UNFINISHED).unlink()


def _opened(folder: Path, lock: Path) -> IO[bytes]:
    """Create the folder of an engine, and open the file that is locked while an engine is built."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return lock.open("ab")
    except OSError as error:
        raise ProviderError(
            f"TensorRT's engine cannot be kept in {folder}: {error}. Choose a writable folder with cache= or "
            "XDG_CACHE_HOME."
        ) from error


def _wait_for(lock: IO[bytes]) -> None:
    """Wait for the lock. It is released when the file is closed, or when the process ends."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX)

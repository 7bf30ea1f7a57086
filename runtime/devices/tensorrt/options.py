"""TensorRT, as a provider of ONNX Runtime: its options for one graph, and where what it builds is kept.

TensorRT makes an *engine* of a graph: it measures on this GPU which kernels are fastest for a range of shapes, and puts
the weights in. That takes from seconds to minutes, so engines are kept. ONNX Runtime finds a kept one by the names of
the graph's file, inputs and nodes, not by its weights: another SAE of the same shape would be answered by this one's
(microsoft/onnxruntime#6455). So an engine here has a folder of its own, called after all that it was made of.

Source: the options of `TensorrtExecutionProvider` in ONNX Runtime 1.23 and later, as its documentation lists them.
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
from ...artifact.manifest import INT8, GraphSpec
from ...artifact.names import TOKENS, K
from ...errors import InputError, ProviderError
from ..cuda.driver import GPU

ENGINES, TIMINGS = "trt_engine_cache_path", "trt_timing_cache_path"

TF32 = "tf32"
TF32_SWITCH = "NVIDIA_TF32_OVERRIDE"
FIRST_WITH_TF32 = (8, 0)
"""The compute capability from which float32 products are rounded to TF32, which has 10 bits, unless told otherwise."""

LARGEST_MODEL = (1 << 31) - (1 << 20)
"""Bytes of weights that fit into the message that ONNX Runtime hands to TensorRT, protobuf's 2 GiB less the graph."""

LOCK, UNFINISHED = "lock", "unfinished"
WRITTEN = {".engine", ".profile", ".timing"}


@dataclass(frozen=True)
class Shapes:
    """For which shapes an engine is built; it runs no others.

    Attributes:
        tokens: the most in one run, that is in a block.
        usual_tokens: for how many it is fastest; None for `tokens`.
        edits: the most features of an intervention.
        usual_edits: for how many it is fastest.
    """

    tokens: int
    usual_tokens: int | None = None
    edits: int = 64
    usual_edits: int = 1

    def __post_init__(self) -> None:
        for what, usual, most in (
            ("tokens", self.usual, self.tokens),
            ("edits", self.usual_edits, self.edits),
        ):
            if not 1 <= usual <= most:
                raise InputError(f"An engine for at most {most} {what}, usually {usual}: 1 <= usual <= most must hold.")

    @property
    def usual(self) -> int:
        """For how many tokens it is fastest."""
        return self.tokens if self.usual_tokens is None else self.usual_tokens


@dataclass(frozen=True)
class Versions:
    """The software that builds engines, as "10.9.0" and "1.31.1"; another one builds its own."""

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
    """Return the options of ONNX Runtime's provider for a graph; nothing is written, `building` makes the folders.

    Args:
        artifact: with the graph.
        graph: its name; one of the portable ones.
        gpu: on which it will run.
        versions: of what will build the engine.
        shapes: that will be run.
        precision: of products in float32: "float32", or "tf32" to let their factors be rounded to 10 bits.
        root: of the kept engines; None for `default_root()`.
        stream: a CUDA stream to queue on, as an address; None lets ONNX Runtime make one.
        extra: what else the engine is to be built with, as ONNX Runtime calls it, such as `trt_max_workspace_size` in
            bytes or `trt_builder_optimization_level` from 0 to 5.

    Raises:
        ProviderError: TensorRT cannot run the graph, or not in this precision.
    """
    manifest = artifact.manifest
    if manifest.weights_dtype == INT8:
        raise ProviderError(
            f"{artifact.path} has int8 weights, in operators that only ONNX Runtime's CPU provider has. "
            'Open it with device="cpu", or export the SAE again without weights="int8".'
        )
    options = (
        _profile(manifest.graphs[graph], shapes) | _precision(manifest.sae.dtype, precision, gpu) | {**(extra or {})}
    )
    if manifest.files[manifest.weights].bytes > LARGEST_MODEL:
        options["trt_load_user_initializer"] = "1"  # weights beside the message, from ONNX Runtime 1.23 on
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
    """Return the smallest, the usual and the largest shape of every input, as "input:1x768,target:1x768"."""
    if any(tensor.name == K for tensor in spec.inputs):
        raise ProviderError(
            f"{spec.file} takes k, a number that decides how large its outputs are. TensorRT builds engines for ranges "
            f'of shapes, and takes no such number. Open the artifact with device="cuda" for {spec.file}.'
        )
    # Strengths of edits have one row for all tokens or one for each. An intervention may have no edits at all, m = 0;
    # it is the graph without them, so the engine need not take it.
    ranges = {
        TOKENS: (1, shapes.usual, shapes.tokens),
        "rows": (1, 1, shapes.tokens),
        "m": (1, shapes.usual_edits, shapes.edits),
    }
    if unknown := {size for tensor in spec.inputs for size in tensor.shape if isinstance(size, str)} - set(ranges):
        raise ProviderError(
            f"{spec.file} has the dimension {', '.join(sorted(unknown))}, of which this release does not know how "
            'large it gets. Update the runtime, or open the artifact with device="cuda".'
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
    """Return what lets TensorRT compute in an artifact's dtype, and in nothing less."""
    if precision not in (FLOAT32, TF32) or (precision == TF32 and dtype != FLOAT32):
        raise ProviderError(
            f"precision is {precision!r}, of an artifact in {dtype}. TensorRT computes in the artifact's dtype, one in "
            'float32 with precision="tf32" also in that. For another one, export the SAE with dtype=: what that loses '
            "is measured there."
        )
    if dtype in (FLOAT16, BFLOAT16):
        switch = {FLOAT16: "trt_fp16_enable", BFLOAT16: "trt_bf16_enable"}[dtype]
        # The squares and means of a normalisation are float32 in the graph, and are to stay it.
        return {switch: "1", "trt_layer_norm_fp32_fallback": "1"}
    off = os.environ.get(TF32_SWITCH) == "0"
    if precision == FLOAT32 and not off and gpu.capability >= FIRST_WITH_TF32:
        raise ProviderError(
            f'precision="float32" on {gpu.name}: TensorRT rounds products to TF32, and ONNX Runtime has no option '
            f"against it. Set {TF32_SWITCH}=0 in the environment before Python starts: it is read when CUDA's "
            'libraries are loaded. Or ask for precision="tf32".'
        )
    if precision == TF32 and off:
        raise ProviderError(
            f'precision="tf32", but {TF32_SWITCH}=0 forbids it. Unset it, or ask for precision="float32".'
        )
    return {}


def default_root() -> Path:
    """Return where engines are kept: `$XDG_CACHE_HOME/saeexport/tensorrt`, or else in `~/.cache`."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache") / "saeexport" / "tensorrt"


def cache_folder(
    root: Path, artifact: Artifact, graph: str, gpu: GPU, versions: Versions, options: Mapping[str, str]
) -> Path:
    """Return the folder of a graph's engine, whose parent has the timings of all engines for this GPU.

    Args:
        root: of all.
        artifact: with the graph. Its content counts, not where it lies or what its folder is called.
        graph: its name.
        gpu: its kind counts, not which one of several it is.
        versions: of what builds the engine.
        options: that the engine depends on, such as its profile and precision.
    """
    manifest, sae = artifact.manifest, artifact.manifest.sae
    files = [manifest.files[name].sha256 for name in (manifest.graphs[graph].file, manifest.weights)]
    tf32 = os.environ.get(TF32_SWITCH)  # half precision may multiply in float32, too
    made_of = [files, gpu.name, tf32, dict(options)]  # the rest is in the names themselves
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    card = _words(gpu.name, f"sm{gpu.capability[0]}{gpu.capability[1]}", "tensorrt", versions.tensorrt)
    engine = _words(
        sae.hook_name, f"{sae.d_in}x{sae.d_sae}", graph, sae.dtype, "onnxruntime", versions.onnxruntime, digest
    )
    return root / card / engine


def _words(*words: str) -> str:
    """Return a name that every file system takes."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(words))


@contextlib.contextmanager
def building(options: Mapping[str, str]) -> Iterator[None]:
    """Start a session with such options inside: no other process builds for this kind of GPU meanwhile.

    ONNX Runtime writes engines and timings where it reads them, and only the threads of one process wait for each
    other. Here all wait; and what a process that was killed left behind, which may be half a file, is thrown away.
    (On Windows processes do not wait.)

    Raises:
        ProviderError: nothing can be written there.
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
    """Make the folder of an engine, and return the file that is locked while something is written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return lock.open("ab")
    except OSError as error:
        raise ProviderError(
            f"TensorRT's engine cannot be kept in {folder}: {error}. Choose a folder that can be written: cache=, or "
            "XDG_CACHE_HOME."
        ) from error


def _wait_for(lock: IO[bytes]) -> None:
    """Wait until no other one holds the lock; it is given up when the file is closed, or its process ends."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX)

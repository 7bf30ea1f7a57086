"""Checks, before anything is loaded, which devices can run an artifact and how many tokens at a time."""

from collections.abc import Iterable

import onnxruntime as ort

from ..arrays.dtypes import BFLOAT16, FLOAT16, FLOAT32
from ..artifact.contracts import MODEL
from ..artifact.folder import Artifact
from ..artifact.manifest import INT8, Manifest
from ..errors import InputError, ProviderError, SAEError
from .blocks import default_block, token_bytes
from .cuda.driver import driver
from .options import TF32, Options
from .select import check_device_name, find_device
from .start import CPU, Device

MIN_CAPABILITY = {FLOAT16: (5, 3), BFLOAT16: (8, 0), TF32: (8, 0)}
"""The lowest compute capability of a GPU that supports a dtype or precision; float32 runs on every GPU.

Source: https://docs.nvidia.com/cuda/cuda-c-programming-guide/, "Arithmetic Instructions" by compute capability.
"""


def missing_capability(capability: tuple[int, int], what: str) -> str:
    """Return why a GPU does not support a dtype or precision, or an empty string if it does.

    Args:
        capability: Compute capability of the GPU.
        what: Dtype or precision, such as "bfloat16" or "tf32".
    """
    needed = MIN_CAPABILITY.get(what, (0, 0))
    if capability >= needed:
        return ""
    return "{} needs compute capability {}.{} or later, this GPU has {}.{}".format(what, *needed, *capability)


def why_not_on(device: Device, needed: Iterable[str]) -> str:
    """Return the name of a device and what it lacks, or an empty string if it lacks nothing.

    Args:
        device: The device.
        needed: Dtypes and precisions.
    """
    if device.kind == CPU:
        return ""
    gpu = driver().gpus()[device.index]
    reasons = (missing_capability(gpu.capability, what) for what in needed)
    return next((f"{device.name} ({gpu.name}): {reason}" for reason in reasons if reason), "")


def newer_onnxruntime(manifest: Manifest) -> str:
    """Return the release of ONNX Runtime that an artifact needs if this one is older, or else an empty string."""
    requires = manifest.graphs[MODEL].requires
    needed = "" if requires is None else requires.onnxruntime or ""
    return needed if needed and _release(ort.__version__) < _release(needed) else ""


def _release(version: str) -> list[int]:
    """Return the first two numbers of a version, such as [1, 18] for "1.18.1"."""
    return [int(part) for part in version.split(".")[:2]]


def choose_device(artifact: Artifact, name: str, options: Options) -> Device:
    """Return the device that runs an artifact; "auto" is a GPU that can run it, or else the CPU.

    Raises:
        ProviderError: The device does not work on this machine, or it cannot run the artifact.
        InputError: Options contradict each other, the artifact or the device.
    """
    device = find_device(resolve_device_name(artifact, name))
    try:
        check_runs(artifact, device, options)
    except ProviderError:
        if name != "auto" or device.kind == CPU:
            raise
        device = Device(CPU)
        check_runs(artifact, device, options)
    return device


def resolve_device_name(artifact: Artifact, device: str) -> str:
    """Return the name of the device to look for: int8 weights run on the CPU only, so "auto" is "cpu" for them.

    Raises:
        ProviderError: The name is not that of a device, or a GPU was asked for and the weights are int8.
    """
    check_device_name(device)
    if artifact.manifest.weights_dtype != INT8 or device == CPU:
        return device
    if device == "auto":
        return CPU
    raise ProviderError(
        f"{device} was asked for, but {artifact.path} has int8 weights, which run on a CPU only. Open it with "
        'device="cpu", or export the SAE in float32 or half precision.'
    )


def check_runs(artifact: Artifact, device: Device, options: Options) -> None:
    """Check that a device can run an artifact with these options.

    Raises:
        ProviderError: The device does not support the artifact's dtype, or an option that was set, or this ONNX Runtime
            is too old.
        InputError: Options contradict each other, the artifact or the device.
    """
    dtype = artifact.manifest.sae.dtype
    if needed := newer_onnxruntime(artifact.manifest):
        raise ProviderError(
            f"{artifact.path} needs ONNX Runtime {needed} or later; {ort.__version__} is installed: "
            "pip install --upgrade onnxruntime"
        )
    if options.precision == TF32 and dtype != FLOAT32:
        raise InputError(f'precision="tf32" applies to float32 artifacts; {artifact.path} is in {dtype}. Leave it out.')
    if device.kind == CPU:
        if options.only_for_gpus:
            raise ProviderError(
                f"{', '.join(options.only_for_gpus)} can be set on a GPU only, and the session runs on the CPU."
            )
        if dtype == BFLOAT16 and options.graphs == "portable":
            raise ProviderError(
                f"{artifact.path} is in bfloat16, and ONNX Runtime does not run the bfloat16 operators of its portable "
                'graphs on a CPU. Use graphs="auto": the CPU variants compute in float32 and round to bfloat16.'
            )
        return
    if options.graphs == "cpu":
        raise InputError(f'graphs="cpu" selects CPU variants, but this session runs on {device.name}.')
    if reason := why_not_on(device, (dtype, options.precision)):
        raise ProviderError(f"{artifact.path} cannot run on {reason}.")


def choose_block_tokens(artifact: Artifact, device: Device, options: Options) -> int:
    """Return how many tokens a session runs at a time.

    Raises:
        SAEError: The memory limit is too low for the weights and one token.
    """
    cfg = artifact.manifest.sae
    block = options.block_tokens or default_block(cfg, on_gpu=device.kind != CPU)
    if options.memory_limit is None:
        return block
    weights = artifact.manifest.files[artifact.manifest.weights].bytes
    largest = (options.memory_limit - weights) // token_bytes(cfg)
    if largest < 1:
        raise SAEError(
            f"memory_limit is {options.memory_limit:,} bytes; the weights of {artifact.path} alone take {weights:,}, "
            f"and a token up to {token_bytes(cfg):,}."
        )
    return min(block, largest)

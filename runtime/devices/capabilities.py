"""What a device can run: dtypes, precisions, weights, and how much at a time. Asked before anything is loaded."""

from ..arrays.dtypes import BFLOAT16, FLOAT16, FLOAT32
from ..artifact.folder import Artifact
from ..artifact.manifest import INT8
from ..errors import InputError, ProviderError, SAEError
from .blocks import default_block, token_bytes
from .cuda.driver import driver
from .options import TF32, Options
from .select import find_device
from .start import CPU, Device

NEEDED = {FLOAT16: (5, 3), BFLOAT16: (8, 0), TF32: (8, 0)}
"""The compute capability from which on a GPU has the arithmetic of a dtype or precision.

Source: https://docs.nvidia.com/cuda/cuda-c-programming-guide/, "Arithmetic Instructions" by compute capability.
"""


def missing_capability(capability: tuple[int, int], what: str) -> str:
    """Return why a GPU of a compute capability has not the arithmetic of a dtype or precision; nothing if it has."""
    needed = NEEDED.get(what, (0, 0))
    if capability >= needed:
        return ""
    return "{} needs compute capability {}.{} or later, this GPU has {}.{}".format(what, *needed, *capability)


def device_of(artifact: Artifact, name: str, options: Options) -> Device:
    """Return the device called `name` for an artifact; "auto" is a GPU that can run it, else the CPU.

    Raises:
        ProviderError: the device cannot be used, or has not the arithmetic.
        InputError: options contradict each other, the artifact or the device.
    """
    device = find_device(device_for(artifact, name))
    try:
        check_runs(artifact, device, options)
    except ProviderError:
        if name != "auto" or device.kind == CPU:
            raise
        device = Device(CPU)
        check_runs(artifact, device, options)
    return device


def device_for(artifact: Artifact, device: str) -> str:
    """Return the device to look for: "auto" is the CPU where the weights run nowhere else."""
    if artifact.manifest.weights_dtype != INT8 or device == CPU:
        return device
    if device == "auto":
        return CPU
    raise ProviderError(f"{device} was asked for, but {artifact.path} has int8 weights, which run on a CPU only.")


def check_runs(artifact: Artifact, device: Device, options: Options) -> None:
    """Refuse what a device cannot run.

    Raises:
        ProviderError: the device has not the arithmetic.
        InputError: options contradict each other, the artifact or the device.
    """
    dtype = artifact.manifest.sae.dtype
    if options.precision == TF32 and dtype != FLOAT32:
        raise InputError(f'precision="tf32" is a way to compute in float32; {artifact.path} is in {dtype}.')
    if device.kind == CPU:
        if options.only_for_gpus:
            raise ProviderError(
                f"{', '.join(options.only_for_gpus)}: this is for GPUs, and the session runs on the CPU."
            )
        if dtype == BFLOAT16 and options.graphs == "portable":
            raise ProviderError(
                f"{artifact.path} is in bfloat16, for which ONNX Runtime has no operators on a CPU. Its graphs that "
                'are written for the CPU compute in float32 and round: graphs="auto".'
            )
        return
    if options.graphs == "cpu":
        raise InputError(f'graphs="cpu" are written for a CPU; this session is on {device.name}.')
    gpu = driver().gpus()[device.index]
    for what in (dtype, options.precision):
        if reason := missing_capability(gpu.capability, what):
            raise ProviderError(f"{artifact.path} cannot run on {device.name} ({gpu.name}): {reason}.")


def block_for(artifact: Artifact, device: Device, options: Options) -> int:
    """Return how many tokens a session runs at a time.

    Raises:
        SAEError: under the memory limit not one token can be run.
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

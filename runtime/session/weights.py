"""The parameters of an SAE as arrays: the weights file of the artifact, mapped into memory."""

from ..arrays.tensor import Array
from ..artifact.files import OpenedFile
from ..artifact.tensorfile import tensors_in


def map_parameters(weights: OpenedFile) -> dict[str, Array]:
    """Return the tensors of a safetensors file as read-only arrays, mapped and not loaded.

    bfloat16 is `ml_dtypes.bfloat16`.

    Raises:
        ArtifactError: The file is not safetensors.
    """
    return tensors_in(weights.map(), weights.path)


def parameter(parameters: dict[str, Array], name: str, architecture: str) -> Array:
    """Return one of the parameters.

    Raises:
        AttributeError: The parameter does not exist; the message lists those that do.
    """
    if name in parameters:
        return parameters[name]
    parts = [part for part in parameters if part.startswith(f"{name}.")]
    if parts:
        raise AttributeError(f"{name} is stored as int8 ({', '.join(parts)}); take it from the float32 artifact.")
    raise AttributeError(
        f"This {architecture} SAE does not have the parameter {name}; it has {', '.join(sorted(parameters))}."
    )

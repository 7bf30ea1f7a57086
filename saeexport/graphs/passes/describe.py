"""Describes a graph in its `metadata_props`, under the prefix `saeexport.`, in case it is used without its folder."""

import onnx_ir as ir

from runtime.artifact.contracts import METADATA_PREFIX, WEIGHTS_KEY, contracts_of
from runtime.artifact.manifest import FORMAT_VERSION, SAEConfig


def describe(model: ir.Model, graph: str, sae: SAEConfig, weights_sha256: str) -> ir.Model:
    """Write the essential fields of the manifest and the checksum of the weights into the model."""
    heads = "" if sae.head_shape is None else "x".join(map(str, sae.head_shape))
    fields = {
        "format_version": FORMAT_VERSION,
        "graph": graph,
        "description": contracts_of(sae.dtype)[graph].description,
        "architecture": sae.architecture,
        "hook_name": sae.hook_name,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": sae.dtype,
        "use_error_term": str(sae.use_error_term).lower(),
        "head_shape": heads,
        "fired_hooks": ",".join(sae.fired_hooks),
    }
    model.metadata_props.update({METADATA_PREFIX + key: str(value) for key, value in fields.items()})
    model.metadata_props[WEIGHTS_KEY] = weights_sha256
    return model

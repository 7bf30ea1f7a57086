"""Nothing of the exporting machine stays in a graph: no stack traces, local paths or remarks."""

import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass


def strip_remarks(model: ir.Model) -> ir.Model:
    """Remove the metadata and doc strings of the model, its graph and its nodes."""
    model = ClearMetadataAndDocStringPass()(model).model
    model.doc_string = None
    model.metadata_props.clear()
    model.producer_name, model.producer_version = "saeexport", None  # versions are in the manifest
    return model

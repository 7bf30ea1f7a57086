"""Loads the ONNX model of a language model as a host: its graph with the type of every value, and its facts."""

import hashlib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveInitializersFromInputsPass

from runtime.arrays.arguments import as_path
from runtime.arrays.dtypes import BFLOAT16, FLOAT32
from runtime.artifact.budgets import FLOOR
from runtime.artifact.files import hash_file
from runtime.errors import GraftError

from .float32 import compute_in_float32, computes_in_bfloat16
from .inference import NAMES, infer_types
from .unfuse import expose_residuals

OLDEST_OPSET = 14
DOMAINS = ("", "ai.onnx", "com.microsoft")
"""Domains of operators that ONNX Runtime has. Those of other domains need a library that the folder cannot bring."""

PAST, PRESENT = re.compile(r"past(_key_values)?"), re.compile(r"present(_key_values)?")


@dataclass
class Host:
    """The ONNX model of a language model.

    Attributes:
        path: File of the model.
        name: Name of the model: that of its file, or of its folder if the file is called "model.onnx".
        model: The model. Its weights stay in the file until they are copied.
        sha256: Checksum of the file; with external data, of the checksums of the file and of each data file.
        exporter: Name and version of the program that wrote the file.
        opset: Version of ONNX's operators that the model uses.
        dtype: The dtype of its values that rounds most.
        is_widened: Whether the model was exported in bfloat16, and computes in float32 now; its file does not run on a
            CPU then. See `saeexport.grafting.float32`.
        cache: Pairs of an input with past keys or values and the output that continues it.
    """

    path: Path
    name: str
    model: ir.Model
    sha256: str
    exporter: str
    opset: int
    dtype: str
    is_widened: bool
    cache: tuple[tuple[str, str], ...]

    @property
    def exported_dtype(self) -> str:
        """The dtype that rounds most of the model as it was exported."""
        return BFLOAT16 if self.is_widened else self.dtype

    @property
    def graph(self) -> ir.Graph:
        """The graph of the model."""
        return self.model.graph

    def values(self) -> dict[str, ir.Value]:
        """Return the values of the outermost graph by name: inputs, and what its nodes compute."""
        return values_of(self.graph)


def values_of(graph: ir.Graph) -> dict[str, ir.Value]:
    """Return the values of a graph by name, without those of its subgraphs and without initializers."""
    found = {value.name: value for value in graph.inputs if value.name}
    found |= {value.name: value for node in graph for value in node.outputs if value.name}
    return found


def coarsest_dtype(dtypes: Collection[str]) -> str:
    """Return the dtype that rounds most; those without a unit of rounding, such as int64, do not count."""
    return max(FLOOR.keys() & set(dtypes), key=lambda dtype: FLOOR[dtype], default=FLOAT32)


def load_host(path: "str | Path") -> Host:
    """Load an ONNX model as a host. Its weights are not read.

    Raises:
        GraftError: The file is not an ONNX model, or has operators that cannot be run or grafted into.
    """
    path = as_path("host", path)
    if path.is_dir():
        raise GraftError(
            f"The host {path} is a folder. Give its ONNX file, or hf:{path} to export the Hugging Face model in it."
        )
    try:
        model = ir.load(path)
    except OSError as error:
        raise GraftError(f"The host {path} cannot be read: {error}") from None
    except Exception as error:  # protobuf and onnx_ir raise exceptions of their own
        raise GraftError(f"The host {path} is not an ONNX model: {error}") from None
    model = RemoveInitializersFromInputsPass()(model).model
    opset = _check_operators(model, path)
    exporter = " ".join(filter(None, (model.producer_name, model.producer_version)))
    sha256 = _sha256(model, path)
    model.graph.sort()
    is_widened = computes_in_bfloat16(model)
    if is_widened:
        compute_in_float32(model)
    expose_residuals(model.graph)
    model = infer_types(model, path.absolute().parent)
    name = path.stem if path.stem != "model" else path.absolute().parent.name
    dtype = coarsest_dtype({NAMES[value.dtype] for value in values_of(model.graph).values() if value.dtype in NAMES})
    return Host(path, name, model, sha256, exporter, opset, dtype, is_widened, _cache(model.graph))


def _check_operators(model: ir.Model, path: Path) -> int:
    """Return the version of ONNX's operators, after refusing those that cannot be grafted into."""
    domains = {node.domain for node in model.graph.all_nodes()}
    local = {function.domain for function in model.functions.values()}
    if strange := sorted(domains - set(DOMAINS) - local):
        raise GraftError(
            f"The host {path} has operators of {', '.join(strange)}, which ONNX Runtime does not have. Export it with "
            "operators of ONNX and com.microsoft only."
        )
    opset = max(model.opset_imports.get("", 0), model.opset_imports.get("ai.onnx", 0))
    if opset < OLDEST_OPSET:
        raise GraftError(
            f"The host {path} has opset {opset}; at least {OLDEST_OPSET} is needed. Export it again with a newer opset."
        )
    return opset


def _sha256(model: ir.Model, path: Path) -> str:
    """Return the checksum of a model's file, or of the checksums of all its files if it has external data."""
    own = hash_file(path).sha256
    located = {
        Path(value.const_value.path)
        for graph in (model.graph, *model.graph.subgraphs())
        for value in graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    if not located:
        return own
    records = [own, *(hash_file(file).sha256 for file in sorted(located))]
    return hashlib.sha256("\n".join(records).encode()).hexdigest()


def _cache(graph: ir.Graph) -> tuple[tuple[str, str], ...]:
    """Return the pairs of an input with past keys or values and the output that continues it, by their names."""
    presents = {PRESENT.sub("", name, count=1): name for name in _names(graph.outputs) if PRESENT.match(name)}
    pasts = [name for name in _names(graph.inputs) if PAST.match(name)]
    return tuple((name, presents[rest]) for name in pasts if (rest := PAST.sub("", name, count=1)) in presents)


def _names(values: Iterable[ir.Value]) -> list[str]:
    return [value.name for value in values if value.name]

"""What a grafted host contains, as text: the language model, the SAEs with their evidence, the graphs and the proof."""

from collections.abc import Mapping

from ..arrays.dtypes import BFLOAT16
from ..hosts.folder import GraftedHost
from ..hosts.manifest import Evidence, OutputParity
from ..parity.report import count
from ..tables import format_table


def describe_host(host: GraftedHost) -> str:
    """Return the host, its SAEs, graphs and parity record as text."""
    manifest = host.manifest
    model, parity, golden = manifest.host, manifest.parity, manifest.golden
    facts = [
        ("exported by", model.exporter or "not known"),
        ("opset", str(model.opset)),
        ("dtype", f"{model.dtype}, computed in float32" if model.dtype == BFLOAT16 else model.dtype or "not known"),
        ("sha256", model.sha256[:16]),
        ("inputs", ", ".join(_tensor(tensor.name, tensor.dtype, tensor.shape) for tensor in model.inputs)),
        ("outputs", ", ".join(_tensor(tensor.name, tensor.dtype, tensor.shape) for tensor in model.outputs)),
        ("golden batch", f"{golden.file}, {golden.tokens} tokens, {golden.source}"),
        ("made with", ", ".join(f"{name} {version}" for name, version in manifest.producer.items())),
        ("format", str(manifest.format_version)),
    ]
    saes = [
        (place.hook, place.value, _tensor("", place.dtype, place.shape), _describe_evidence(place.evidence))
        for sae in manifest.saes
        for place in sae.places
    ]
    graphs = [
        (graph.file, f"{manifest.files[graph.file].bytes:,} bytes", graph.description)
        for graph in manifest.graphs.values()
    ]
    against = "PyTorch" if parity.reference == "pytorch" else "the stages of the host"
    exact = "; the tap's outputs are those of the host, bit for bit" if parity.exact else ""
    return "\n\n".join(
        (
            f"{host.path}: {model.kind} {model.name} with {count(len(manifest.saes), 'SAE')}",
            format_table(facts, indent=2),
            "SAEs, with the value of the model at their hook, and at that of a transcoder's target\n"
            + format_table(saes, header=("hook", "value", "tensor", "evidence"), indent=2),
            f"graphs\n{format_table(graphs, right={1}, indent=2)}",
            f"parity, {parity.tokens} tokens on {parity.device}, spliced outputs against {against}{exact}\n"
            + _errors(
                {
                    "hook": parity.inputs,
                    "tap": parity.tap,
                    "splice, none attached": parity.detached,
                    "splice": parity.splice,
                    "splice, edited": parity.edited,
                    "splice, token by token": parity.decoded,
                }
            ),
        )
    )


def _tensor(name: str, dtype: str, shape: tuple[int | str, ...]) -> str:
    return f"{name} {dtype} [{', '.join(map(str, shape))}]".strip()


def _describe_evidence(evidence: Evidence) -> str:
    """Return how the value was identified, in words."""
    parts = [evidence.method.replace("_", " ")]
    if evidence.error is not None:
        parts.append(f"error {evidence.error:.1e}")
    if evidence.runner_up_error is not None:
        parts.append(f"next best {evidence.runner_up_error:.1e}")
    if evidence.variance_explained is not None:
        parts.append(f"variance explained {evidence.variance_explained:.3f}")
    return ", ".join(parts)


def _errors(records: Mapping[str, Mapping[str, OutputParity]]) -> str:
    rows = [
        (what, name, *(f"{value:.2e}" for value in (record.own, record.error, record.budget)))
        for what, outputs in records.items()
        for name, record in outputs.items()
    ]
    header = ("graph", "output", "host's own error", "error", "budget")
    return format_table(rows, header=header, right={2, 3, 4}, indent=2)

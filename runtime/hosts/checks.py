"""Checks a host's manifest: each value is possible, and the parts are consistent with each other."""

import dataclasses
import functools

from ..arrays.dtypes import SAE_DTYPES
from ..artifact.checks import FILE_NAME, SHA256, check_file_name, check_file_record, check_values
from ..artifact.manifest import MANIFEST as SAE_MANIFEST
from ..artifact.requirement import require as require_in
from .manifest import FORMAT, KINDS, MANIFEST, METHODS, Evidence, GraftedSAE, GraftParity, HostManifest, OutputParity
from .names import FEATURES, MODES, SPLICE, STAGE, TAP, sae_folder, stage

REFERENCES = ("pytorch", "stages")

require = functools.partial(require_in, manifest=MANIFEST)


def check_host_manifest(manifest: HostManifest) -> None:
    """Check every value of a manifest.

    Raises:
        ManifestError: A value is outside of its range, or contradicts another; the message names the key.
    """
    check_values(dataclasses.asdict(manifest), MANIFEST)
    require(manifest.format == FORMAT, "format", manifest.format, repr(FORMAT))
    host = manifest.host
    require(host.kind in KINDS, "host: kind", host.kind, " or ".join(KINDS))
    require(SHA256.fullmatch(host.sha256) is not None, "host: sha256", host.sha256, "64 hexadecimal digits")
    require(host.opset >= 1, "host: opset", host.opset, "at least 1")
    inputs, outputs = [tensor.name for tensor in host.inputs], [tensor.name for tensor in host.outputs]
    for role, names in (("inputs", inputs), ("outputs", outputs)):
        require(len(names) == len(set(names)) > 0, f"host: {role}", names, "one name or more, each once")
    for pair in host.cache:
        require(pair.past in inputs, "host: cache: past", pair.past, "the name of an input")
        require(pair.present in outputs, "host: cache: present", pair.present, "the name of an output")
    require(len(manifest.saes) >= 1, "saes", list(manifest.saes), "one SAE or more")
    hooks = [hook for sae in manifest.saes for hook in dict.fromkeys((sae.hook, sae.replaced))]
    require(len(set(hooks)) == len(hooks), "saes", hooks, "one SAE per hook")
    require(not manifest.cuts or sorted(manifest.cuts) == sorted(hooks), "cuts", list(manifest.cuts),
            f"the hooks {sorted(hooks)}, each once")  # fmt: skip
    require(bool(manifest.cuts) or all(sae.target is None for sae in manifest.saes), "cuts", [],
            f"the hooks {sorted(hooks)}, because a transcoder reads one and replaces another")  # fmt: skip
    for sae in manifest.saes:
        _check_sae(sae, manifest)
    _check_files(manifest)
    _check_graphs(manifest)
    require(manifest.golden.tokens >= 1, "golden: tokens", manifest.golden.tokens, "at least 1")
    _check_parity(manifest.parity, manifest)


def _check_sae(sae: GraftedSAE, manifest: HostManifest) -> None:
    where = f"saes: {sae.hook}"
    require(FILE_NAME.fullmatch(sae.hook) is not None, f"{where}: hook", sae.hook, "a plain file name")
    require(sae.folder == sae_folder(sae.hook), f"{where}: folder", sae.folder, repr(sae_folder(sae.hook)))
    require(sae.dtype in SAE_DTYPES, f"{where}: dtype", sae.dtype, " or ".join(SAE_DTYPES))
    least = 3 if sae.heads else 2
    require(len(sae.shape) >= least, f"{where}: shape", list(sae.shape), f"of {least} dimensions or more")
    _check_evidence(sae.evidence, where)
    if sae.target is not None:
        of_target = f"{where}: target"
        require(FILE_NAME.fullmatch(sae.target.hook) is not None, f"{of_target}: hook", sae.target.hook, "a plain name")
        require(sae.target.dtype in SAE_DTYPES, f"{of_target}: dtype", sae.target.dtype, " or ".join(SAE_DTYPES))
        require(len(sae.target.shape) >= 2, f"{of_target}: shape", list(sae.target.shape), "of 2 dimensions or more")
        _check_evidence(sae.target.evidence, of_target)
    own = f"{sae.folder}/{SAE_MANIFEST}"
    recorded = manifest.files[own].sha256 if own in manifest.files else "none"
    require(sae.sha256 == recorded, f"{where}: sha256", sae.sha256, f"that of {own} in files, {recorded}")


def _check_evidence(evidence: Evidence, where: str) -> None:
    require(evidence.method in METHODS, f"{where}: evidence: method", evidence.method, " or ".join(METHODS))
    require(evidence.tokens >= 0, f"{where}: evidence: tokens", evidence.tokens, "at least 0")


def _check_files(manifest: HostManifest) -> None:
    """Check that every file is in the folder, or is the manifest of an SAE, and that every file used has a checksum."""
    of_saes = {f"{sae.folder}/{SAE_MANIFEST}" for sae in manifest.saes}
    for name, record in manifest.files.items():
        if name not in of_saes:
            check_file_name(name, MANIFEST)
        check_file_record(name, record, MANIFEST)
    for name in (manifest.golden.file, *(graph.file for graph in manifest.graphs.values())):
        require(name in manifest.files, "files", sorted(manifest.files), f"with an entry for {name}, which is used")


def _check_graphs(manifest: HostManifest) -> None:
    """Check that the graphs take and give what the host does, and that the stages are complete."""
    graphs, host = manifest.graphs, manifest.host
    require(any(mode in graphs for mode in MODES), "graphs", list(graphs), f"with one of {', '.join(MODES)}")
    for name, spec in graphs.items():
        inputs = [tensor.name for tensor in spec.inputs]
        if name in (TAP, SPLICE):
            outputs = [tensor.name for tensor in spec.outputs]
            first = "those of the host, and then those of the SAEs"
            require(spec.inputs[: len(host.inputs)] == host.inputs, f"graph {name!r}: inputs", inputs, first)
            require(spec.outputs[: len(host.outputs)] == host.outputs, f"graph {name!r}: outputs", outputs, first)
        elif name in (FEATURES, stage(0)):
            require(set(spec.inputs) <= set(host.inputs), f"graph {name!r}: inputs", inputs, "inputs of the host")
    stages = [name for name in graphs if name.startswith(STAGE)]
    if stages:
        known = [stage(i) for i in range(len(manifest.all_hooks) + 1)]
        require({known[0], known[-1]} <= set(stages) <= set(known), "graphs", list(graphs),
                f"with {known[0]} and {known[-1]}, and no stages but those between them")  # fmt: skip


def _check_parity(parity: GraftParity, manifest: HostManifest) -> None:
    require(parity.device != "", "parity: device", parity.device, "the name of a device")
    require(parity.reference in REFERENCES, "parity: reference", parity.reference, " or ".join(REFERENCES))
    require(parity.tokens >= 1, "parity: tokens", parity.tokens, "at least 1")
    outputs = {tensor.name for tensor in manifest.host.outputs}
    present = {pair.present for pair in manifest.host.cache}
    hooks = set(manifest.all_hooks)
    require(set(parity.inputs) == hooks, "parity: inputs", sorted(parity.inputs), f"for {sorted(hooks)}")
    for name, record in parity.inputs.items():
        _check_record(f"parity: inputs[{name!r}]", record)
    for mode, records in (("tap", parity.tap), ("detached", parity.detached), ("splice", parity.splice),
                          ("edited", parity.edited), ("decoded", parity.decoded)):  # fmt: skip
        graph = TAP if mode == "tap" else SPLICE
        if graph not in manifest.graphs or (mode == "decoded" and not manifest.host.cache):
            require(not records, f"parity: {mode}", sorted(records), "empty, because it was not asked for")
            continue
        found = set(records)
        least = outputs - present
        if mode == "decoded":  # an output without a row for each token is not judged token by token
            least = set()
        require(bool(found) and least <= found <= outputs, f"parity: {mode}", sorted(found), f"for {sorted(outputs)}")
        for name, record in records.items():
            _check_record(f"parity: {mode}[{name!r}]", record)


def _check_record(where: str, record: OutputParity) -> None:
    for name in ("own", "error", "budget"):
        require(getattr(record, name) >= 0, f"{where}: {name}", getattr(record, name), "at least 0")
    require(record.error <= record.budget, f"{where}: error", record.error, f"at most {record.budget!r}, its budget")

"""Checks a manifest: every number in the range that its meaning allows, and each part consistent with the others.

The exporter runs these checks, too, so that it does not write what a reader refuses.
"""

import dataclasses
import itertools
import math
import re
from typing import Any

from ..arrays.dtypes import BFLOAT16, DTYPES, FLOAT32
from ..errors import ManifestError
from .check_records import check_fidelity, check_parity
from .contracts import ACTIVATE, CPU_VARIANTS, DECODE, graph_specs
from .engines import CONTROL_FLOW, STANDARD, Requirements
from .manifest import CUSTOM, INT8, MANIFEST, FileRecord, GraphSpec, Manifest, SAEConfig
from .names import FEATURE_HOOKS, HOOK_ERROR, HOOK_NAMES
from .requirement import require
from .strict_json import shown

MAX_TEXT = 4096
"""Largest number of characters of a string. The longest one that is written, a description, has about 1,000."""

NOT_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters except for tab and newline, and halves of a surrogate pair, which UTF-8 cannot hold."""

FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")
"""A file name that every file system can hold, and that names a file inside the folder of the artifact."""

SHA256 = re.compile("[0-9a-f]{64}")

RELEASE = re.compile(r"\d{1,4}\.\d{1,4}")

LEAST_INT, MOST_INT = -(2**63), 2**64 - 1
"""The integers that readers in other languages can hold, signed or unsigned."""


def check_manifest(manifest: Manifest) -> None:
    """Check every value of a manifest.

    Raises:
        ManifestError: A value is outside of its range, or contradicts another; the message names the key.
    """
    check_values(manifest, MANIFEST)
    _check_dtypes(manifest)
    _check_sae(manifest.sae)
    _check_files(manifest)
    _check_graphs(manifest)
    _check_sizes(manifest)
    if manifest.parity is not None:
        check_parity(manifest.sae, manifest.parity)
    if manifest.fidelity is not None:
        check_fidelity(manifest.sae, manifest.weights_dtype, manifest.fidelity)
    golden, tokens = manifest.golden, manifest.record.tokens
    require(1 <= golden.tokens <= tokens, "golden: tokens", golden.tokens, f"from 1 to {tokens}, those of the proof")
    require(golden.source in ("activations", "synthetic"), "golden: source", golden.source, "activations or synthetic")


def check_values(value: Any, where: str) -> None:
    """Check what holds for all strings, integers and floats."""
    if dataclasses.is_dataclass(value):
        for key, item in vars(value).items():
            check_values(item, f"{where}: {key}")
    elif isinstance(value, dict):
        for key, item in value.items():
            check_values(key, f"{where}: a key")
            check_values(item, f"{where}: {key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            check_values(item, f"{where}[{i}]")
    elif isinstance(value, str):
        if len(value) > MAX_TEXT or NOT_TEXT.search(value):
            raise ManifestError(
                f"{where} is {shown(value)}; it must be a text of at most {MAX_TEXT} characters, without control "
                "characters and single surrogates."
            )
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ManifestError(f"{where} is {value}; it must be finite.")
    elif isinstance(value, int) and not LEAST_INT <= value <= MOST_INT:
        raise ManifestError(f"{where} is {shown(value)}; it must be an integer of 64 bits.")


def _check_dtypes(manifest: Manifest) -> None:
    """Check the dtypes, and that parity and fidelity are there or not, as the dtypes require."""
    weights, dtype = manifest.weights_dtype, manifest.sae.dtype
    if dtype not in CPU_VARIANTS or weights not in (dtype, *((INT8,) if dtype == FLOAT32 else ())):
        raise ManifestError(
            f"{MANIFEST}: dtype is {shown(dtype)} and weights_dtype {shown(weights)}; this release reads "
            f"{', '.join(CPU_VARIANTS)}, with weights of the same dtype, and {FLOAT32} with {INT8}."
        )
    if (manifest.parity is None) != (weights == INT8):
        raise ManifestError(
            f"{MANIFEST}: weights_dtype is {weights!r}; "
            f"parity must be there unless it is {INT8!r}, and then it must be null."
        )
    if manifest.fidelity is None if weights == INT8 else manifest.fidelity is not None and dtype == FLOAT32:
        raise ManifestError(
            f"{MANIFEST}: weights_dtype is {weights!r}; "
            f"fidelity must be there with {INT8!r}, and null with {FLOAT32!r}."
        )


def _check_sae(sae: SAEConfig) -> None:
    """Check the sizes, the hooks and the options of the SAE."""
    sizes = {"d_in": sae.d_in, "d_sae": sae.d_sae, **({} if sae.d_out is None else {"d_out": sae.d_out})}
    for name, size in sizes.items():
        require(size >= 1, f"sae: {name}", size, "at least 1")
    require(sae.architecture not in ("", CUSTOM), "sae: architecture", sae.architecture, "the name of an architecture")
    if (ids := sae.feature_ids) is not None:
        fit = len(ids) == sae.d_sae == len(set(ids)) and min(ids) >= 0
        require(fit, "sae: feature_ids", ids, f"{sae.d_sae} distinct ids")
    if sae.head_shape is not None:
        require(
            len(sae.head_shape) == 2 and min(sae.head_shape) >= 1 and math.prod(sae.head_shape) == sae.d_in,
            "sae: head_shape", list(sae.head_shape), f"n_heads and d_head, whose product is d_in = {sae.d_in}",
        )  # fmt: skip
    fired = tuple(hook for hook in HOOK_NAMES if sae.use_error_term or hook != HOOK_ERROR)
    require(sae.fired_hooks == fired, "sae: fired_hooks", list(sae.fired_hooks), ", ".join(fired))
    k = sae.options.get("k")
    if type(k) is int and not sae.architecture.startswith(CUSTOM):
        require(1 <= k <= sae.d_sae, "sae: options['k']", k, f"from 1 to d_sae = {sae.d_sae}")


def _check_files(manifest: Manifest) -> None:
    """Check that every file is in the folder and has a checksum."""
    for name, record in manifest.files.items():
        check_file_name(name, MANIFEST)
        check_file_record(name, record, MANIFEST)
    used = [manifest.weights, manifest.golden.file, *(graph.file for graph in manifest.graphs.values())]
    for name in used:
        if name not in manifest.files:
            raise ManifestError(f"{MANIFEST}: {shown(name)} is used but has no entry in files.")


def check_file_name(name: str, manifest: str) -> None:
    """Check that a name names a file inside the folder, and not the manifest.

    Raises:
        ManifestError: It does not.
    """
    if not FILE_NAME.fullmatch(name) or name.lower() == manifest:
        raise ManifestError(
            f"{manifest}: files names {shown(name)}, which is not a plain file name: letters, digits and ._- only, "
            f"and not {manifest}."
        )


def check_file_record(name: str, record: FileRecord, manifest: str) -> None:
    """Check the checksum and the size of a file.

    Raises:
        ManifestError: One of them is not possible.
    """
    require(
        SHA256.fullmatch(record.sha256) is not None, f"files['{name}']: sha256", record.sha256,
        "64 hexadecimal digits in lower case", manifest,
    )  # fmt: skip
    require(1 <= record.bytes < 2**63, f"files['{name}']: bytes", record.bytes, "at least 1", manifest)


def _check_graphs(manifest: Manifest) -> None:
    """Check every graph against its contract; graphs without a contract come from a later release."""
    needing_input = [
        name for name, graph in manifest.graphs.items() if name in (ACTIVATE, DECODE) and len(graph.inputs) > 1
    ]
    specs = graph_specs(manifest.sae, needing_input)
    for name, expected in specs.items():
        if name not in manifest.graphs:
            raise ManifestError(
                f"{MANIFEST}: graphs has no {name!r}; every artifact in {manifest.sae.dtype} has {', '.join(specs)}."
            )
        _check_graph(name, manifest.graphs[name], expected)
    for name, graph in manifest.graphs.items():
        if graph.requires is not None:
            _check_requirements(f"graph {name!r}: requires", graph.requires)


def _check_graph(name: str, graph: GraphSpec, expected: GraphSpec) -> None:
    require(graph.file == expected.file, f"graph {name!r}: file", graph.file, f"{expected.file!r}")
    for role in ("inputs", "outputs"):
        pairs = itertools.zip_longest(getattr(graph, role), getattr(expected, role))
        for i, (found, wanted) in enumerate(pairs):
            if found != wanted:
                raise ManifestError(
                    f"{MANIFEST}: graph {name!r}: {role}[{i}] is {shown(found)}; for this SAE it must be {wanted}."
                )


def _check_requirements(where: str, requires: Requirements) -> None:
    """Check what a graph says about itself: the parts must agree with each other."""
    require(requires.ir_version >= 1, f"{where}: ir_version", requires.ir_version, "at least 1")
    opsets, operators = requires.opset_import, requires.operators
    require(STANDARD in opsets, f"{where}: opset_import", ", ".join(opsets) or "empty", f"with {STANDARD}")
    for domain, version in opsets.items():
        require(version >= 1, f"{where}: opset_import[{domain!r}]", version, "at least 1")
    sorted_once = len(operators) >= 1 and list(operators) == sorted(set(operators))
    require(sorted_once, f"{where}: operators", list(operators), "names in alphabetical order, each once")
    own = {name for name in operators if name.rpartition(".")[0] not in ("", *opsets)}
    require(not own, f"{where}: operators", list(operators), f"of the domains {', '.join(opsets)}")
    kept = [name for name in operators if "." in name or name in CONTROL_FLOW]
    require(not (requires.portable and kept), f"{where}: portable", requires.portable, f"false with {', '.join(kept)}")
    if requires.onnxruntime is not None:
        is_release = RELEASE.fullmatch(requires.onnxruntime) is not None
        require(is_release, f"{where}: onnxruntime", requires.onnxruntime, "a release such as 1.18")


def _check_sizes(manifest: Manifest) -> None:
    """Check that the files of the weights and of the golden batch are large enough for the sizes of the SAE."""
    sae, tokens = manifest.sae, manifest.golden.tokens
    weight = 1 if manifest.weights_dtype == INT8 else DTYPES[sae.dtype].numpy.itemsize
    stored = 4 if sae.dtype == BFLOAT16 else DTYPES[sae.dtype].numpy.itemsize
    widths = [sae.d_sae if hook in FEATURE_HOOKS else math.prod(sae.output_shape) for hook in sae.hooks[1:]]
    # A residual in float32 belongs to each computed hook. A custom class may have no matrix of this size.
    least = {manifest.golden.file: tokens * (sae.d_in * stored + sum(widths) * (stored + 4))}
    if not sae.architecture.startswith(CUSTOM):
        least[manifest.weights] = sae.d_in * sae.d_sae * weight
    for name, size in least.items():
        require(
            manifest.files[name].bytes >= size, f"files['{name}']: bytes", manifest.files[name].bytes,
            f"at least {size} for d_in = {sae.d_in}, d_sae = {sae.d_sae} and {tokens} golden tokens",
        )  # fmt: skip

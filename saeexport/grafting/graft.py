"""Grafts SAEs into a host: finds the values at their hooks, writes the folder, proves it, and puts it in its place."""

import contextlib
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import onnx_ir as ir
from safetensors import SafetensorError

from runtime.arrays.arguments import as_path
from runtime.arrays.dtypes import BFLOAT16
from runtime.artifact.budgets import FLOOR
from runtime.artifact.files import hash_file
from runtime.artifact.folder import Artifact, read_artifact
from runtime.artifact.manifest import INT8, GraphSpec
from runtime.artifact.manifest import MANIFEST as SAE_MANIFEST
from runtime.artifact.names import HOOK_NAMES
from runtime.artifact.signature import SIGNATURE
from runtime.errors import GraftError, ManifestError
from runtime.hosts.checks import check_host_manifest
from runtime.hosts.folder import GraftedHost, read_host
from runtime.hosts.manifest import MANIFEST, Evidence, HostManifest
from runtime.hosts.names import DATA, FEATURES, GOLDEN, MODES, SPLICE, TOKENIZER, sae_folder
from runtime.hosts.verify import verify_host
from runtime.parity.report import Report

from ..staging import check_output_folder, staged_folder
from ..versions import package_versions
from .build import DESCRIPTIONS, build_graph, build_stages, describe_stage
from .candidates import Reference
from .describe import describe_host, describe_sae
from .given import Given, prepare
from .host import Host, load_host
from .huggingface import opened
from .inference import NAMES
from .insert import Graft, trailing_dimensions
from .locate import find
from .names import block_of
from .prove import prove
from .write import move_weights, write_graph

PathLike: TypeAlias = "str | os.PathLike[str]"
GRAFT = re.compile(r"(?P<hook>[^@=]+)(@(?P<value>[^=]+))?")
"""A hook, and the name of the host's value at it if the caller knows it: `HOOK` or `HOOK@VALUE`."""


def graft(
    host: PathLike,
    saes: "Mapping[str, PathLike] | Sequence[PathLike]",
    path: PathLike,
    *,
    hf: "PathLike | None" = None,
    reference: "PathLike | None" = None,
    modes: Collection[str] = MODES,
    hooks: Collection[str] = HOOK_NAMES,
    force: bool = False,
    overwrite: bool = False,
) -> GraftedHost:
    """Graft SAEs into the ONNX model of their language model, and return the proved folder.

    The same host, SAEs and package versions give the same bytes. If anything fails, no files are left behind and what
    was at `path` before is unchanged.

    Args:
        host: ONNX model of the language model, or "hf:MODEL_DIR" to export a model of Hugging Face's transformers.
        saes: Artifacts by hook, such as {"blocks.2.hook_resid_post": "sae"}, or by "HOOK@VALUE" if the name of the
            host's value at the hook is known; or artifacts alone, which are grafted at the hooks that they were trained
            on.
        path: Folder to write. It must not exist unless `overwrite` is set.
        hf: Folder of the same model for transformers, with which the values are confirmed and the splice is proved.
        reference: Safetensors or .npz file with feeds of the host, and optionally activations `hooks/<hook>` and
            outputs `outputs/<name>`, instead of `hf`.
        modes: Which graphs to write: "tap", "splice", "features".
        hooks: Names of the hooks that are outputs of tap and splice, in addition to hook_sae_input and
            hook_sae_acts_post; all that an SAE computes by default.
        force: Whether to graft at a value that could not be confirmed. The manifest records it.
        overwrite: Whether to replace a grafted host at `path`.

    Raises:
        GraftError: The host or an SAE cannot be used, or a value cannot be found or confirmed.
        ParityError: The grafted host does not compute what the host with its SAEs computes.
        ArtifactError: An SAE is not an artifact, or is damaged.
    """
    path = as_path("path", path)
    check_names("modes", modes, MODES)
    check_names("hooks", hooks, HOOK_NAMES)
    check_output_folder(path, overwrite)
    asked = read_saes(saes, modes)
    with opened(host, hf, [each.hook for each in asked]) as (file, model):
        loaded = load_host(file)
        _check_can_be_proved(loaded)
        given = prepare(loaded, [each.hook for each in asked], model, reference)
        located = locate_all(loaded, asked, given.reference, force)
        with _as_graft_errors(path), staged_folder(path, overwrite) as folder:
            _write(folder, path, loaded, located, given, [mode for mode in MODES if mode in modes], hooks)
    return read_host(path)


def _write(
    folder: Path, path: Path, host: Host, located: Sequence[tuple[Graft, Evidence]], given: Given,
    modes: Sequence[str], hooks: Collection[str],
) -> None:  # fmt: skip
    """Write and prove everything that a grafted host consists of."""
    grafts, values = [each for each, _ in located], host.values()
    saes = tuple(describe_sae(values, each, evidence) for each, evidence in located)
    for each in grafts:
        _copy_sae(each.artifact, folder / each.folder)
    if given.tokenizer is not None:
        shutil.copyfile(given.tokenizer, folder / TOKENIZER)
    move_weights(host.model, folder)
    graphs = _write_graphs(host, grafts, modes, hooks, folder)
    proof = prove(folder, path, host, grafts, graphs, given)
    files = [GOLDEN, *(spec.file for spec in graphs.values()), *(f"{each.folder}/{SAE_MANIFEST}" for each in grafts)]
    files += [name for name in (DATA, TOKENIZER) if (folder / name).exists()]
    records = {name: hash_file(folder / name) for name in sorted(files)}
    manifest = HostManifest(
        describe_host(host, proof.kind), saes, graphs, proof.golden, proof.parity, package_versions(), records
    )
    try:
        check_host_manifest(manifest)
    except ManifestError as error:
        raise GraftError(f"{path} was not written: {error}") from error
    (folder / MANIFEST).write_text(manifest.to_json(), "utf-8")
    report = verify_host(folder, "cpu")
    Report(f"{path} was not written: verification failed", report.verdicts, report.problems).raise_for_failures()


@contextlib.contextmanager
def _as_graft_errors(path: Path) -> Iterator[None]:
    """Turn errors of the file system into ones that say what was not written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, TimeoutError) and error.errno is None:
            raise  # not of the file system, but of a signal handler that limits the time
        raise GraftError(f"{path} was not written: {error}") from error


def _check_can_be_proved(host: Host) -> None:
    """Refuse a host that no CPU can run.

    Raises:
        GraftError: It computes in bfloat16.
    """
    for value in host.values().values():
        node = value.producer()
        if value.dtype == ir.DataType.BFLOAT16 and node is not None and node.op_type != "Cast":
            raise GraftError(
                f"The host {host.path} computes {value.name} in bfloat16, which no CPU provider of ONNX Runtime does, "
                "so that the graft could not be proved. Export the model in float32 or float16."
            )


@dataclass(frozen=True)
class Asked:
    """An SAE as a caller asks for it.

    Attributes:
        hook: Name of the hook.
        value: Name of the host's value at the hook; None if it is to be found.
        artifact: The SAE.
    """

    hook: str
    value: str | None
    artifact: Artifact


def read_saes(saes: "Mapping[str, PathLike] | Sequence[PathLike]", modes: Collection[str]) -> list[Asked]:
    """Return the SAEs that a caller asks for, after checking that they can be grafted.

    Raises:
        GraftError: There is none, two are for one hook, or one of them cannot be grafted.
        ArtifactError: A folder is not an artifact, or is damaged.
    """
    pairs = list(saes.items()) if isinstance(saes, Mapping) else [(None, path) for path in saes]
    asked = []
    for key, path in pairs:
        artifact = read_artifact(path)
        artifact.check_files()
        sae = artifact.manifest.sae
        match = GRAFT.fullmatch(sae.hook_name if key is None else key)
        if match is None:
            raise GraftError(
                f"The hook of {artifact.path} is {key or sae.hook_name!r}. Name the hook at which it is grafted, as in "
                "blocks.2.hook_resid_post, or with the host's value, as in blocks.2.hook_resid_post@VALUE."
            )
        if artifact.manifest.weights_dtype == INT8:
            raise GraftError(f"{artifact.path} has int8 weights, which are not at parity. Graft the SAE in float32.")
        if sae.dtype == BFLOAT16:
            raise GraftError(
                f"{artifact.path} is in bfloat16, which no CPU provider of ONNX Runtime computes, so that the graft "
                "could not be proved. Export the SAE in float32 or float16: saeexport export --dtype float32."
            )
        if sae.d_out is not None and set(modes) != {FEATURES}:
            raise GraftError(
                f"{artifact.path} is a transcoder, which predicts another activation than the one it reads. It can be "
                "grafted for its features only: modes=['features'], --modes features."
            )
        asked.append(Asked(match["hook"], match["value"], artifact))
    hooks = [each.hook for each in asked]
    if not asked:
        raise GraftError("No SAE was given. Pass at least one artifact.")
    if twice := sorted({hook for hook in hooks if hooks.count(hook) > 1}):
        raise GraftError(f"Two SAEs are to be grafted at {', '.join(twice)}. Graft one SAE at each hook.")
    return asked


def check_names(argument: str, given: Collection[str], known: Collection[str]) -> None:
    """Refuse an empty collection of names, or one with a name that is not known.

    Raises:
        GraftError: It is refused.
    """
    if isinstance(given, str) or not given or not set(given) <= set(known):
        raise GraftError(f"{argument} is {given!r}; it must hold one or more of {', '.join(known)}.")


def locate_all(host: Host, asked: Sequence[Asked], reference: Reference, force: bool) -> list[tuple[Graft, Evidence]]:
    """Return the SAEs with their places and the evidence, in the order in which the host computes the values.

    SAEs at one value are in the order of their blocks, in which TransformerLens calls the hooks: first the end of a
    block, then the beginning of the next one.

    Raises:
        GraftError: A value cannot be found or confirmed.
    """
    order = {name: i for i, name in enumerate(host.values())}
    located = [_locate(host, each, reference, force) for each in asked]
    return sorted(located, key=lambda pair: (order[pair[0].value], block_of(pair[0].hook)))


def _locate(host: Host, asked: Asked, reference: Reference, force: bool) -> tuple[Graft, Evidence]:
    """Return an SAE with its place, and the evidence for the place."""
    values = host.values()
    if asked.value is not None and asked.value not in values:
        raise GraftError(
            f"The host {host.path} does not compute a value {asked.value}. saeexport locate lists those that fit."
        )
    forced = force and asked.value is not None
    located = find(host, asked.hook, asked.artifact, reference, asked.value, forced)
    found = Graft(asked.hook, asked.artifact, sae_folder(asked.hook), located.value)
    trailing_dimensions(values[located.value], found)
    dtype, own = NAMES[ir.DataType(values[located.value].dtype or 0)], asked.artifact.manifest.sae.dtype
    if FLOOR[own] > FLOOR[dtype]:
        raise GraftError(
            f"The SAE {asked.artifact.path} is in {own}, and the host is in {dtype} at {located.value}: the SAE would "
            f"round what it reads. Export the SAE in {dtype}: saeexport export --dtype {dtype}."
        )
    return found, located.evidence


def _copy_sae(artifact: Artifact, folder: Path) -> None:
    """Copy an artifact byte for byte, with its signature if it has one."""
    folder.mkdir(parents=True)
    for name in (SAE_MANIFEST, SIGNATURE, *artifact.manifest.files):
        if name != SIGNATURE or (artifact.folder / name).exists():
            shutil.copyfile(artifact.folder / name, folder / name)


def _write_graphs(
    host: Host, grafts: Sequence[Graft], modes: Collection[str], hooks: Collection[str], folder: Path
) -> dict[str, GraphSpec]:
    """Write the graph of each mode, and the stages, and return their specs by name."""
    specs = {}
    for mode in MODES:
        if mode in modes:
            graph = build_graph(host.model, grafts, mode, hooks)
            specs[mode] = write_graph(graph, host.model, folder / f"{mode}.onnx", DESCRIPTIONS[mode])
    if SPLICE in modes:
        for name, graph in build_stages(host.model, grafts).items():
            specs[name] = write_graph(graph, host.model, folder / f"{name}.onnx", describe_stage(name, graph))
    return specs

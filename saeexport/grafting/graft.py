"""Grafts SAEs into a host: finds the values at their hooks, writes the folder, proves it, and puts it in its place."""

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from runtime.arrays.arguments import as_path
from runtime.artifact.files import hash_file
from runtime.artifact.folder import Artifact
from runtime.artifact.manifest import MANIFEST as SAE_MANIFEST
from runtime.artifact.manifest import GraphSpec
from runtime.artifact.names import HOOK_NAMES
from runtime.artifact.signature import SIGNATURE
from runtime.errors import GraftError, ManifestError
from runtime.hosts.checks import check_host_manifest
from runtime.hosts.folder import GraftedHost, read_host
from runtime.hosts.manifest import MANIFEST, HostManifest
from runtime.hosts.names import DATA, GOLDEN, MODES, SPLICE, TOKENIZER
from runtime.hosts.verify import verify_host
from runtime.parity.report import Report

from ..staging import check_output_folder, explained_errors, staged_folder
from ..versions import package_versions
from .asked import PathLike, read_saes
from .build import DESCRIPTIONS, build_graph, build_stages, describe_stage
from .describe import describe_host, describe_sae
from .given import Given, prepare
from .grafts import Graft
from .host import Host, load_host
from .huggingface import opened
from .order import cuts_of, in_order
from .placing import Placed, locate_all
from .prove import prove
from .write import move_weights, write_graph


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
            on. For a transcoder, "HOOK,TARGET" also names the hook of the activation that it predicts.
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
    names = [hook for each in asked for hook in each.hooks]
    with opened(host, hf, names) as (file, model):
        loaded = load_host(file)
        given = prepare(loaded, names, model, reference)
        placed = locate_all(loaded, asked, given.reference, force)
        with explained_errors(path, GraftError), staged_folder(path, overwrite) as folder:
            _write(folder, path, loaded, placed, given, [mode for mode in MODES if mode in modes], hooks)
    return read_host(path)


def _write(
    folder: Path, path: Path, host: Host, placed: Sequence[Placed], given: Given,
    modes: Sequence[str], hooks: Collection[str],
) -> None:  # fmt: skip
    """Write and prove everything that a grafted host consists of."""
    grafts, values = [each.graft for each in placed], host.values()
    saes = tuple(describe_sae(values, each.graft, each.evidence, each.of_target) for each in placed)
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
        describe_host(host, proof.kind), saes, graphs, proof.golden, proof.parity, package_versions(), records,
        cuts=cuts_of(in_order(values, grafts)),
    )  # fmt: skip
    try:
        check_host_manifest(manifest)
    except ManifestError as error:
        raise GraftError(f"{path} was not written: {error}") from error
    (folder / MANIFEST).write_text(manifest.to_json(), "utf-8")
    report = verify_host(folder, "cpu")
    Report(f"{path} was not written: verification failed", report.verdicts, report.problems).raise_for_failures()


def check_names(argument: str, given: Collection[str], known: Collection[str]) -> None:
    """Refuse an empty collection of names, or one with a name that is not known.

    Raises:
        GraftError: It is refused.
    """
    if isinstance(given, str) or not given or not set(given) <= set(known):
        raise GraftError(f"{argument} is {given!r}; it must hold one or more of {', '.join(known)}.")


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

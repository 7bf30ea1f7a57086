"""Proof without PyTorch: runs the graphs that this machine can run, and compares them with the golden batch."""

import os

from ..arrays.dtypes import FLOAT32
from ..artifact.contracts import FEATURES, contracts_of
from ..artifact.folder import Artifact, read_artifact
from ..artifact.manifest import MANIFEST, Manifest
from ..artifact.names import HOOK_ACTS_POST, L0, VALUES
from ..artifact.signature import read_signed
from ..devices.start import CPU, TENSORRT
from ..errors import ArtifactError, IntegrityError, SignatureError
from ..session.described import check_unloaded
from ..session.session import SAESession
from .golden import load_golden
from .proof import judge_graphs
from .reference import SteeredReference
from .report import Report
from .running import SessionRunner


def verify(
    path: str | os.PathLike[str],
    device: str = "auto",
    precision: str = FLOAT32,
    *,
    public_key: str | os.PathLike[str] | None = None,
) -> Report:
    """Verify an artifact; see `runtime.hosts.verify.verify`, which also takes grafted hosts.

    Of a graph that does not run on the device, only inputs, outputs and the checksum of the weights are checked.
    """
    artifact = read_intact(path, public_key)
    if isinstance(artifact, Report):  # do not run what was changed
        return artifact
    with open_verified(artifact, device, precision) as session:
        return judge_session(session, load_golden(artifact, precision))


def read_intact(path: str | os.PathLike[str], public_key: str | os.PathLike[str] | None = None) -> Artifact | Report:
    """Return the artifact in a folder, or a report of every file that was changed, or of its signature.

    Args:
        path: Folder of the artifact.
        public_key: As for `verify`.

    Raises:
        ArtifactError: The folder is not an artifact.
        InputError: `public_key` cannot be read.
    """
    try:
        artifact = read_signed(path, public_key, read_artifact, MANIFEST)
    except SignatureError as error:
        return Report(f"{path}: not signed as asked", problems=[str(error)])
    problems = artifact.damage()
    return Report(f"{path}: not intact", problems=problems, artifact=artifact) if problems else artifact


def open_verified(artifact: Artifact, device: str, precision: str = FLOAT32) -> SAESession:
    """Open a session of an artifact whose files were checked.

    Raises:
        IntegrityError: Another artifact has taken its place.
    """
    session = SAESession(artifact.path, device, precision=precision, shared_stages=False)
    if session.artifact.sha256 != artifact.sha256:
        session.close()
        raise IntegrityError(f"{artifact.path} was replaced while it was verified. Verify it again.")
    return session


def judge_session(session: SAESession, steered: SteeredReference) -> Report:
    """Run the graphs of an open session on the inputs of a reference and return the verdicts."""
    manifest, artifact = session.artifact.manifest, session.artifact
    skipped = skipped_graphs(manifest, session.device)
    contracts = contracts_of(manifest.sae.dtype)
    held_to = "; int8 weights, held to twice the errors at export: fidelity, not parity" if not manifest.parity else ""
    unseen = [name for name in skipped if not contracts[name].for_cpu]
    not_run = f"; not run here: {', '.join(unseen)}" if unseen else ""
    report = Report(
        f"{artifact.path} on {session.device}: {steered.tokens} tokens{held_to}{not_run}",
        skipped=skipped, artifact=artifact, device=session.device, tokens=steered.tokens,
    )  # fmt: skip

    for graph in skipped:
        try:
            check_unloaded(artifact, graph)
        except ArtifactError as error:
            report.problems.append(str(error))

    judge_graphs([name for name in contracts if name not in skipped], manifest, steered, SessionRunner(session), report)
    return report


def skipped_graphs(manifest: Manifest, device: str) -> dict[str, str]:
    """Return the graphs that a verification does not run on a device, with the reason."""
    skipped = {}
    for name, contract in contracts_of(manifest.sae.dtype).items():
        if contract.for_cpu and device != CPU:
            skipped[name] = "it is a CPU variant, which runs on a CPU only"
        elif not contract.for_cpu and device == CPU and manifest.sae.dtype != FLOAT32:
            skipped[name] = f"a CPU does not compute in {manifest.sae.dtype}; this graph runs on a GPU only"
        elif name == FEATURES and device.startswith(TENSORRT):
            skipped[name] = "TensorRT cannot take its input k"
    return skipped


def judged_outputs(manifest: Manifest) -> list[tuple[str, str]]:
    """Return graph and name of every verdict that a verification gives if no graph is skipped and nothing fails.

    The verdicts of `features` are about what its outputs amount to.
    """
    return [
        (graph, name)
        for graph in contracts_of(manifest.sae.dtype)
        for name in (
            (HOOK_ACTS_POST, L0, VALUES)
            if graph.partition(".")[0] == FEATURES
            else [tensor.name for tensor in manifest.graphs[graph].outputs]
        )
    ]

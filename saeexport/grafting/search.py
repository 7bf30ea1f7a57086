"""Lists the values of a host that may be the tensor at an SAE's hook, with the evidence for each."""

from dataclasses import dataclass

from runtime.arrays.arguments import as_path
from runtime.artifact.folder import read_artifact
from runtime.errors import GraftError

from .asked import PathLike
from .candidates import Candidate, rank
from .given import prepare
from .host import load_host
from .huggingface import opened
from .locate import Located, decide, target_hook


@dataclass(frozen=True)
class Search:
    """What was found in a host for an SAE.

    Attributes:
        hook: TransformerLens name of the hook.
        candidates: The values of the right width, the best one first.
        located: The value at the hook; None if it was refused.
        refusal: Why no value was taken; None if one was.
    """

    hook: str
    candidates: tuple[Candidate, ...]
    located: Located | None
    refusal: str | None


def locate(
    host: PathLike,
    sae: PathLike,
    *,
    hook: str | None = None,
    hf: "PathLike | None" = None,
    reference: "PathLike | None" = None,
) -> Search:
    """Find the value of a host at the hook of an SAE, without grafting it.

    Args:
        host: ONNX model of the language model, or "hf:MODEL_DIR" to export a model of Hugging Face's transformers.
        sae: Artifact of the SAE.
        hook: TransformerLens name of the hook; None for the one that the SAE was trained at. For a transcoder it may be
            the hook of the activation that it predicts.
        hf: Folder of the same model for transformers, with whose activation the values are compared.
        reference: Safetensors or .npz file with feeds of the host and the activation `hooks/<hook>`, instead of `hf`.

    Raises:
        GraftError: The host cannot be run, or the hook has no tensor in the model.
        ArtifactError: The SAE is not an artifact, or is damaged.
    """
    artifact = read_artifact(as_path("sae", sae))
    name = hook or artifact.manifest.sae.hook_name
    if not name:
        raise GraftError(
            f"{artifact.path} does not say at which hook it was trained. Name it: hook=, --sae HOOK=ARTIFACT."
        )
    with opened(host, hf, [name]) as (path, folder):
        loaded = load_host(path)
        given = prepare(loaded, [name], folder, reference)
        is_target = artifact.manifest.sae.d_out is not None and name == target_hook(artifact)
        width = artifact.manifest.sae.d_out if is_target else None
        ranked = rank(loaded, name, artifact, given.reference, width=width)
        try:
            located = decide(loaded, name, artifact, given.reference, ranked, is_target=is_target)
            return Search(name, tuple(ranked), located, None)
        except GraftError as error:
            return Search(name, tuple(ranked), None, str(error))

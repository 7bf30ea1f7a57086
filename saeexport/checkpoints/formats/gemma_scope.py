"""Gemma Scope: `params.npz` with the tensors of a JumpReLU SAE or transcoder, without a config.

`d_in` and `d_sae` are taken from the shape of `W_enc`. The file does not name its hook, so `hook_name` is empty. The
SAEs on the embedding take the embedding as it is stored, before the model multiplies it by `sqrt(d_in)`.

The files of transcoders are the same as those of SAEs. The caller tells them apart (`Request.transcoder`), or else the
path does, whose last part that is named after a release decides: `gemma-scope-2b-pt-transcoders` is of transcoders,
`gemma-scope-2b-pt-res` of SAEs. A transcoder's error term is taken against its target instead of its input.

Source: Lieberum et al. 2024 (arXiv:2408.05147); SAELens 6.54, `gemma_2_sae_huggingface_loader` and
`gemma_2_transcoder_huggingface_loader`.
"""

import re
from pathlib import Path

from ...original.hooked_sae import HookedSAE
from ..build import build
from ..files import matrix_shape, only_dtype, read_tensors
from ..request import Request

WEIGHTS = "params.npz"

TITLE = "Gemma Scope"
NAME = f"Gemma Scope, {WEIGHTS} or a folder with it"
FILES = (WEIGHTS,)
ARCHITECTURES = ("jumprelu", "jumprelu_transcoder")
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")

RELEASES = {"transcoder": True, "transcoders": True, "res": False, "mlp": False, "att": False}
"""Words in the names of the published releases, and whether they are of transcoders."""


def recognises(path: Path) -> bool:
    """Tell whether `path` is a `.npz` file or a folder with `params.npz`."""
    return _file(path).suffix == ".npz" and _file(path).is_file()


def read(path: Path, request: Request) -> HookedSAE:
    """Return the HookedSAE of a Gemma Scope file.

    Raises:
        CheckpointError: The file is damaged, or its tensors are not those of a JumpReLU SAE.
    """
    file = _file(path)
    tensors = read_tensors(file)
    dtype = only_dtype(tensors, file)
    d_in, d_sae = matrix_shape(tensors, "W_enc", file)
    config = {"d_in": d_in, "d_sae": d_sae, "hook_name": "", "dtype": dtype, "apply_b_dec_to_input": False}
    if not _is_transcoder(file, request):
        return build("jumprelu", config, tensors, str(file))
    config["d_out"] = matrix_shape(tensors, "W_dec", file)[1]
    return build("jumprelu_transcoder", config, tensors, str(file))


def _is_transcoder(file: Path, request: Request) -> bool:
    """Tell whether a file is a transcoder, and note who says so."""
    said: bool | None = request.take("transcoder")
    by = "as was said"
    if said is None:
        part, said = _release(file)
        by = f"as the name {part!r} in its path says" if part else "because nothing in its path says transcoder"
    other = "--no-transcoder" if said else "--transcoder"
    request.notes.append(
        f"It is read as {'a transcoder' if said else 'an SAE'}, {by}. Its files do not tell; otherwise use {other}."
    )
    return said


def _release(file: Path) -> tuple[str, bool]:
    """Return the last part of a path that is named after a release, "" if none is, and whether it is of transcoders."""
    for part in reversed(file.absolute().parts[:-1]):
        for word in reversed(re.split(r"[^a-z]+", part.lower())):
            if word in RELEASES:
                return part, RELEASES[word]
    return "", False


def _file(path: Path) -> Path:
    return path / WEIGHTS if path.is_dir() else path

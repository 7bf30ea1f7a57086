"""Gemma Scope: `params.npz` with the tensors of a JumpReLU SAE or transcoder, without a config.

The names may be in lower case (`w_enc`). `d_in`, `d_sae` and `d_out` are taken from the shapes, and `b_dec` is not
subtracted from the input. The file does not name its hook. The folders above it do, if they are named as in the
repositories, `google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82`; without them `hook_name` is empty. The
SAEs on the embedding take the embedding as it is stored, before the model multiplies it by `sqrt(d_in)`; their
`hook_name` is empty.

The files of transcoders are the same as those of SAEs. The caller tells them apart (`Request.transcoder`), or else the
path does, whose last part that is named after a release decides: `gemma-scope-2b-pt-transcoders` is of transcoders,
`gemma-scope-2b-pt-res` of SAEs. A transcoder's error term is taken against its target instead of its input.

Source: Lieberum et al. 2024 (arXiv:2408.05147); SAELens 6.54, `gemma_2_sae_huggingface_loader` and
`gemma_2_transcoder_huggingface_loader`.
"""

import re
from pathlib import Path
from typing import Any

from ...original.hooked_sae import HookedSAE
from ..build import build
from ..files import choose_dtype, matrix_shape, read_tensors
from ..folders import search_above
from ..renaming import rename_known
from ..request import Request

WEIGHTS = "params.npz"

TITLE = "Gemma Scope"
NAME = f"Gemma Scope, {WEIGHTS} or a folder with it"
ARCHITECTURES = ("jumprelu", "jumprelu_transcoder")
TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")

RELEASES = {"transcoder": True, "transcoders": True, "res": False, "mlp": False, "att": False}
"""Words in the names of the published releases, and whether they are of transcoders."""

LOWER_CASE = {"w_enc": "W_enc", "w_dec": "W_dec"}

HOOKS = {
    "res": ("hook_resid_post", ""),
    "mlp": ("hook_mlp_out", ""),
    "att": ("attn.hook_z", ""),
    "transcoders": ("ln2.hook_normalized", "hook_mlp_out"),
}
"""TransformerLens names of the input and of the prediction within a block, by the end of a repository's name."""

_REPOSITORY = re.compile(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)(?![a-z])")
_LAYER = re.compile(r"^layer_(\d+)$")


def recognises(path: Path) -> bool:
    """Tell whether `path` is a `.npz` file or a folder with `params.npz`."""
    return _file(path).suffix == ".npz" and _file(path).is_file()


def read(path: Path, request: Request) -> HookedSAE:
    """Return the HookedSAE of a Gemma Scope file.

    Raises:
        CheckpointError: The file is damaged, or its tensors are not those of a JumpReLU SAE.
    """
    file = _file(path)
    tensors = rename_known(read_tensors(file), LOWER_CASE, file)
    dtype = choose_dtype(tensors, file, request)
    d_in, d_sae = matrix_shape(tensors, "W_enc", file)
    hook_name, hook_name_out, model_name = _names(file)
    config: dict[str, Any] = {
        "d_in": d_in,
        "d_sae": d_sae,
        "hook_name": hook_name,
        "model_name": model_name,
        "dtype": dtype,
        "apply_b_dec_to_input": False,
    }
    if not _is_transcoder(file, request):
        return build("jumprelu", config, tensors, str(file))
    config |= {"d_out": matrix_shape(tensors, "W_dec", file)[1], "hook_name_out": hook_name_out}
    return build("jumprelu_transcoder", config, tensors, str(file))


def _names(file: Path) -> tuple[str, str, str | None]:
    """Return the names of the two hooks and of the model that the folders above a file tell.

    Names that they do not tell are empty, and that of the model is None.
    """
    repository, layer = search_above(file, _REPOSITORY), search_above(file, _LAYER)
    if repository is None or layer is None:
        return "", "", None
    size, variant, place = repository.groups()
    block, (point_in, point_out) = f"blocks.{layer[1]}", HOOKS[place]
    model_name = f"google/gemma-2-{size}{'-it' if variant == 'it' else ''}"
    return f"{block}.{point_in}", f"{block}.{point_out}" if point_out else "", model_name


def _is_transcoder(file: Path, request: Request) -> bool:
    """Tell whether a file is a transcoder, and note who says so."""
    said: bool | None = request.take("transcoder")
    by = "as the caller says"
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

"""Attention SAEs of GPT-2 small: `<run>.pt` beside `<run>_cfg.json`, the config of the training run.

`act_size` is `d_in`, `dict_size` is `d_sae` and `act_name` is `hook_name`. The activation function is ReLU, and `b_dec`
is subtracted from the input.

Source: Kissane et al. 2024 (arXiv:2406.17759); SAELens 6.54, `connor_rob_hook_z_huggingface_loader`.
"""

from pathlib import Path

from runtime.arrays.dtypes import BFLOAT16, FLOAT16, FLOAT32

from ...original.hooked_sae import HookedSAE
from ..build import build
from ..files import choose_dtype, dtype_names, read_json, read_tensors
from ..options import Options
from ..request import Request

TITLE = "GPT-2 attention"
NAME = "an attention SAE of GPT-2, <run>.pt with <run>_cfg.json (act_size, dict_size, act_name)"
ARCHITECTURES = ("standard",)

DTYPES = {"fp32": FLOAT32, "fp16": FLOAT16, "bf16": BFLOAT16}

_TRAINING = (  # options of the training and its data
    "seed batch_size buffer_mult lr num_tokens l1_coeff beta1 beta2 dict_mult seq_len site layer device "
    "reinit head concat_heads resample_scheme anthropic_neuron_resample_scale dead_direction_cutoff re_init_every "
    "anthropic_resample_last resample_factor num_resamples wandb_project_name wandb_entity save_state_dict_every "
    "b_dec_init sched_type sched_epochs sched_lr_factor sched_warmup_epochs sched_finish anthropic_resample_batches "
    "eval_every model_batch_size buffer_size buffer_batches name"
)
WITHOUT_EFFECT = frozenset(_TRAINING.split())


def recognises(path: Path) -> bool:
    """Tell whether `path` is a `.pt` file with a config of this format beside it."""
    if path.suffix != ".pt" or not path.is_file() or not _config(path).is_file():
        return False
    return "act_size" in read_json(_config(path))


def read(path: Path, request: Request) -> HookedSAE:
    """Return the HookedSAE of an attention SAE.

    Raises:
        CheckpointError: A file is damaged, or an option is unknown; the message names it.
    """
    options = Options(read_json(_config(path)), str(_config(path)), request)
    tensors = read_tensors(path)
    dtype = choose_dtype(tensors, path, request)
    enc_dtype = options.choose("enc_dtype", DTYPES)
    if DTYPES[enc_dtype] != (stored := dtype_names(tensors)):
        raise options.refused("enc_dtype", enc_dtype, f"{path.name} holds {stored}")
    config = {
        "d_in": options.take("act_size", int),
        "d_sae": options.take("dict_size", int),
        "hook_name": options.take("act_name", str, ""),
        "model_name": options.take("model_name", str, None),
        "dtype": dtype,
    }
    options.finish(WITHOUT_EFFECT)
    return build("standard", config, tensors, str(path))


def _config(path: Path) -> Path:
    return path.with_name(f"{path.stem}_cfg.json")

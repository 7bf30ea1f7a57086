"""The equations of every architecture in float64 NumPy, and comparisons with them for the tests of checkpoints."""

import json
import os
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

D_IN, D_SAE, D_OUT, K = 6, 16, 5, 4
SHAPES = {
    "W_enc": (D_IN, D_SAE),
    "b_enc": (D_SAE,),
    "W_dec": (D_SAE, D_IN),
    "b_dec": (D_IN,),
    "threshold": (D_SAE,),
    "b_gate": (D_SAE,),
    "b_mag": (D_SAE,),
    "r_mag": (D_SAE,),
    "W_skip": (D_OUT, D_IN),
}
PARAMETERS = {
    "standard": "W_enc b_enc W_dec b_dec",
    "jumprelu": "W_enc b_enc W_dec b_dec threshold",
    "gated": "W_enc W_dec b_dec b_gate b_mag r_mag",
    "topk": "W_enc b_enc W_dec b_dec",
    "abstopk": "W_enc b_enc W_dec b_dec",
    "transcoder": "W_enc b_enc W_dec b_dec",
    "skip_transcoder": "W_enc b_enc W_dec b_dec W_skip",
    "jumprelu_transcoder": "W_enc b_enc W_dec b_dec threshold",
    "jumprelu_skip_transcoder": "W_enc b_enc W_dec b_dec threshold W_skip",
}
X = np.random.default_rng(5).normal(0.4, 1.3, (40, D_IN)).astype(np.float32)


def draw(architecture, dtype=np.float32, *, seed=7, d_sae=D_SAE):
    """Return the tensors of an SAE, by HookedSAE's names, all different from one another."""
    draws = np.random.default_rng(seed)
    tensors = {}
    for name in PARAMETERS[architecture].split():
        shape = tuple(d_sae if length == D_SAE else length for length in SHAPES[name])
        if "transcoder" in architecture and name in ("W_dec", "b_dec"):
            shape = (*shape[:-1], D_OUT)
        values = draws.normal(0, 0.6, shape)
        tensors[name] = (np.abs(values) if name == "threshold" else values).astype(dtype)
    return tensors


def normalised(x, how):
    """Return the normalised input, and the factor and the summand that undo the normalisation."""
    if how == "constant_norm_rescale":
        scale = np.linalg.norm(x, axis=-1, keepdims=True) / np.sqrt(x.shape[-1])
        return x / scale, scale, 0.0
    if how == "layer_norm":
        mean, deviation = x.mean(-1, keepdims=True), x.std(-1, keepdims=True, ddof=1)
        return (x - mean) / (deviation + 1e-5), deviation, mean
    return x, 1.0, 0.0


def largest(keys, values, k):
    """Return `values` where `keys` is among the k largest of its row, else 0."""
    kept = np.zeros_like(values)
    for row, columns in enumerate(np.argsort(-keys, axis=-1)[:, :k]):
        kept[row, columns] = values[row, columns]
    return kept


def reference(architecture, tensors, x=X, *, subtract=True, normalization="none", k=K, rescaled=False):
    """Return hook_sae_acts_pre, hook_sae_acts_post and hook_sae_recons, float64."""
    t = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
    flat = x.reshape(-1, t["W_enc"].shape[0]).astype(np.float64)
    c, scale, shift = normalised(flat, normalization)
    c = c - t["b_dec"] if subtract else c
    norms = np.linalg.norm(t["W_dec"], axis=-1) if rescaled else 1.0
    if architecture == "gated":
        pre = c @ (t["W_enc"] * np.exp(t["r_mag"])) + t["b_mag"]
        post = np.maximum(pre, 0) * (c @ t["W_enc"] + t["b_gate"] > 0)
    else:
        pre = (c @ t["W_enc"] + t["b_enc"]) * norms
        post = np.maximum(pre, 0)
        if architecture.startswith("jumprelu"):
            post = post * (pre > t["threshold"])
        if architecture == "topk":
            post = largest(pre, post, k)
        if architecture == "abstopk":
            post = largest(np.abs(pre), pre, k)
    recons = ((post / norms) @ t["W_dec"] + t["b_dec"]) * scale + shift
    if "skip" in architecture:
        recons = recons + flat @ t["W_skip"].T
    return {"hook_sae_acts_pre": pre, "hook_sae_acts_post": post, "hook_sae_recons": recons}


def check(sae, expected, x=X, atol=1e-5):
    """Compare the hooks of an SAE with the values of the equations. Some features must be on and some off."""
    _, cache = sae.run_with_cache(torch.from_numpy(x).to(sae.W_enc.device, sae.W_enc.dtype))
    assert 0 < np.count_nonzero(expected["hook_sae_acts_post"]) < expected["hook_sae_acts_post"].size
    for hook, values in expected.items():
        got = cache[hook].detach().cpu().double().numpy().reshape(values.shape)
        np.testing.assert_allclose(got, values, rtol=0, atol=atol, err_msg=hook)


def write(folder, config, tensors, config_name, weights_name):
    """Write a config and a safetensors file; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / config_name).write_text(json.dumps(config))
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / weights_name)
    return folder


def linked(folder, root):
    """Return `folder` as the Hub's client stores it: symbolic links with the file names, to blobs named by hash."""
    snapshot, blobs = root / "snapshots" / "main", root / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        blob = blobs / f"{number:040x}"
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def is_mapped(tensor, file):
    """Tell whether a tensor's memory is the mapped file itself and not a copy."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, name = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in span.split("-"))
        if start <= tensor.data_ptr() < end:
            return name == os.path.realpath(file)
    return False

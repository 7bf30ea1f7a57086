"""The equations of the standard SAE in plain PyTorch, as the original computes them and with each product once."""

import torch
from torch import Tensor


def original_hooks(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> tuple[Tensor, ...]:
    """Return the six hook tensors as HookedSAE computes them, operator by operator, without its hook points.

    This function replaces HookedSAE where transformer_lens is not installed. It uses einsums, adds the biases
    afterwards, and makes a second pass for the error, as `saeexport/original/hooked_sae.py` does.
    """

    def encode() -> tuple[Tensor, Tensor]:
        acts_pre = torch.einsum("td,df->tf", x - b_dec, W_enc) + b_enc
        return acts_pre, torch.relu(acts_pre)

    def decode(acts_post: Tensor) -> Tensor:
        return torch.einsum("tf,fd->td", acts_post, W_dec) + b_dec

    acts_pre, acts_post = encode()
    recons = decode(acts_post)
    error = x - decode(encode()[1])
    return x, acts_pre, acts_post, recons, error, recons + error


def six_hooks(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> tuple[Tensor, ...]:
    """Return the six hook tensors of the standard SAE with the error term; each product is computed once."""
    acts_pre = torch.addmm(b_enc, x - b_dec, W_enc)
    acts_post = torch.relu(acts_pre)
    recons = torch.addmm(b_dec, acts_post, W_dec)
    error = x - recons
    return x, acts_pre, acts_post, recons, error, recons + error


def encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> Tensor:
    """Return the feature activations, `(rows, d_sae)`."""
    return torch.relu(torch.addmm(b_enc, x - b_dec, W_enc))


def top_features(acts_post: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the indices and values of the k strongest features of each token, and its L0."""
    values, indices = acts_post.topk(k, dim=-1)
    return indices, values, (acts_post != 0).sum(dim=-1)

"""SAEs of random weights that cost what a real one costs: as many features on, as unevenly.

What an SAE costs that looks only at the features that are on depends on three things: how many are on for a token (L0),
how far that varies from token to token, and whether a batch needs the same few features again and again or every token
others. Two constructions:

    realistic   features differ in how often they are on and tokens in L0, both by as much as in the real SAE that
                `python -m benchmarks.losses.firing` measures
    uniform     every feature is on equally often, and tokens differ by chance alone: the worst case for what gathers
                the features of a batch, because nearly every feature that is on is another one
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.shared.machine import ROOT
from runtime.arrays.tensor import Array
from saeexport import HookedSAE

FIRING = ROOT / "benchmarks" / "results" / "firing.json"
L0 = 50
NODES = 65  # scales of a token over which an average is taken


@dataclass(frozen=True)
class Subject:
    """An SAE, and inputs for it by number of tokens."""

    sae: HookedSAE
    inputs: Callable[[int], Array]


def subject_of(d_in: int, d_sae: int, l0: float = L0, frequencies: str = "realistic") -> Subject:
    """Return an SAE with the error term on, and inputs, `(tokens, d_in)` float32, with `l0` features on in the mean.

    Args:
        d_in: width of the activations.
        d_sae: number of features.
        l0: from 0 to `d_sae`; the uniform construction needs one between.
        frequencies: "realistic" or "uniform".
    """
    if frequencies == "uniform":
        return Subject(sae_of(d_in, d_sae, l0), lambda tokens: activations(tokens, d_in))
    return _realistic(d_in, d_sae, l0)


def sae_of(d_in: int, d_sae: int, l0: float = L0) -> HookedSAE:
    """Return an SAE with unit decoder rows whose bias lets about `l0` features on for standard normal inputs."""
    sae = HookedSAE({"d_in": d_in, "d_sae": d_sae, "hook_name": "h", "use_error_term": True, "seed": 0}).cpu()
    with torch.no_grad():
        sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
        acts_pre = sae.preactivations(torch.from_numpy(activations(64, d_in, seed=2)))
        sae.b_enc.sub_(acts_pre.flatten().kthvalue(round(acts_pre.numel() * (1 - l0 / d_sae))).values)
    return sae


def activations(tokens: int, d_in: int, seed: int = 1) -> Array:
    """Return standard normal activations, `(tokens, d_in)` float32."""
    return np.random.default_rng(seed).standard_normal((tokens, d_in)).astype(np.float32)


def firing(sae: HookedSAE, x: Array) -> dict[str, float]:
    """Return what is on for `x`: mean and standard deviation of L0, and the share of features on for any token."""
    counts, fired = [], torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    with torch.no_grad():
        for block in torch.from_numpy(x).split(256):
            on = sae.encode(block) > 0
            counts.append(on.sum(1))
            fired |= on.any(0)
    l0 = torch.cat(counts).double()
    return {"l0_mean": round(l0.mean().item(), 2), "l0_std": round(l0.std(correction=0).item(), 2),
            "fired_share": round(fired.double().mean().item(), 4)}  # fmt: skip


def _realistic(d_in: int, d_sae: int, l0: float) -> Subject:
    """Return an SAE whose feature f is on with a log-normal frequency, and inputs whose scales differ.

    An input less `b_dec` is `s * sqrt(d_in)` long and points anywhere, so that `s` times a variable of a known
    distribution, nearly normal, comes in at each feature, and its bias says how often that is positive. A token of a
    larger `s` has more features on.
    """
    known = json.loads(FIRING.read_text())
    draws = np.random.default_rng(0)
    tail = _Tail(d_in)
    frequency = _log_normal(l0 / d_sae, known["log10_frequency_std"], draws.standard_normal(d_sae))
    width, bias = _width_of(frequency, l0, known["l0_std_over_mean"], tail)
    sae = HookedSAE({"d_in": d_in, "d_sae": d_sae, "hook_name": "h", "use_error_term": True, "seed": 0}).cpu()
    with torch.no_grad():
        sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
        sae.W_enc.div_(sae.W_enc.norm(dim=0))
        sae.b_enc.copy_(torch.from_numpy(bias))
        sae.b_dec.copy_(torch.from_numpy(0.1 * draws.standard_normal(d_in)))
    b_dec = sae.b_dec.detach().numpy()

    def inputs(tokens: int) -> Array:
        draws = np.random.default_rng(1)
        x = draws.standard_normal((tokens, d_in))
        scales = _scales(tokens, width, bias, tail)
        x *= draws.permutation(scales)[:, None] * d_in**0.5 / np.linalg.norm(x, axis=1, keepdims=True)
        return (x + b_dec).astype(np.float32)

    return Subject(sae, inputs)


class _Tail:
    """How often one component of a random direction, `sqrt(d_in)` long, is above a number."""

    def __init__(self, d_in: int) -> None:
        self.most = d_in**0.5
        self.at = np.linspace(-self.most, self.most, 40001)
        density = np.clip(1 - self.at**2 / d_in, 0, None) ** ((d_in - 3) / 2)
        below = np.cumsum(density)
        self.above = 1 - below / below[-1]

    def __call__(self, at: Array) -> Array:
        return np.interp(at, self.at, self.above)


def _log_normal(mean: float, std: float, normal: Array) -> Array:
    """Return frequencies of at most 1 with this mean, their log10 otherwise normal with this standard deviation."""
    if mean in (0.0, 1.0):
        return np.full(normal.shape, mean)
    shape, low, high = 10 ** (std * normal), -12.0, 12.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(10**middle * shape, 1).mean() < mean else (low, middle)
    return np.minimum(10**low * shape, 1)


def _nodes(width: float) -> Array:
    """Return the scales in the middle of equally probable parts of a log-normal, `width` its deviation, median 1."""
    grid = np.linspace(-6, 6, 20001)
    below = np.cumsum(np.exp(-(grid**2) / 2))
    return np.exp(width * np.interp((np.arange(NODES) + 0.5) / NODES, below / below[-1], grid))


def _bias_of(frequency: Array, scales: Array, tail: _Tail) -> Array:
    """Return the biases with which features are on as often as this, over tokens of these scales."""
    grid = np.linspace(-1.01, 1.01, 40001) * tail.most * scales.max()
    often = np.mean([tail(-grid / scale) for scale in scales], axis=0)
    return np.interp(frequency, often, grid)


def _l0_at(scales: Array, bias: Array, tail: _Tail) -> Array:
    """Return how many features are on in the mean for a token of each scale."""
    return np.array([tail(-bias / scale).sum() for scale in scales])


def _width_of(frequency: Array, l0: float, spread: float, tail: _Tail) -> tuple[float, Array]:
    """Return how far tokens' scales have to differ for L0 to spread by `spread` times its mean, and the biases.

    Where nearly all features are on, or none, no scale makes L0 spread that far; it spreads as far as it can.
    """
    chance = float((frequency * (1 - frequency)).sum())  # the variance of L0 for tokens of one scale
    low, high = 0.0, 0.3
    for _ in range(12):
        width = (low + high) / 2
        scales = _nodes(width)
        bias = _bias_of(frequency, scales, tail)
        variance = float(_l0_at(scales, bias, tail).var()) + chance
        low, high = (width, high) if variance < (spread * l0) ** 2 else (low, width)
    return width, bias


def _scales(tokens: int, width: float, bias: Array, tail: _Tail) -> Array:
    """Return the scales of `tokens` tokens, whose mean L0 is the wanted one however few they are.

    Each stands for an equally probable part of the tokens, and has the mean L0 of its part.
    """
    nodes = _nodes(width)
    l0 = _l0_at(nodes, bias, tail)
    if l0[-1] - l0[0] < 1e-6:  # all features are on, or none
        return np.ones(tokens)
    at, fine = (np.arange(NODES) + 0.5) / NODES, max(1, 4096 // tokens)
    parts = np.interp((np.arange(tokens * fine) + 0.5) / (tokens * fine), at, l0).reshape(tokens, fine).mean(axis=1)
    return np.interp(parts, l0, nodes)

"""SAEs with random weights and the cost of a real one: as many features are on, and as unevenly.

The cost of an SAE that reads only the features that are on depends on L0, on how far L0 varies between tokens, and on
whether the tokens of a batch share their features. There are two constructions:

    realistic   Features differ in how often they are on, and tokens in L0, as much as in the real SAE that
                `python -m benchmarks.losses.firing` measures.
    uniform     Every feature is on equally often, and tokens differ only by chance. This is the worst case for graphs
                that gather the features of a batch, because the tokens share almost none.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.shared.machine import RESULTS
from runtime.arrays.tensor import Array
from saeexport import HookedSAE

FIRING = RESULTS / "firing.json"
L0 = 50
NODES = 65  # scales of a token over which an average is taken


@dataclass(frozen=True)
class Workload:
    """An SAE and inputs for it.

    Attributes:
        sae: The SAE, with the error term on.
        inputs: A function that returns inputs, `(tokens, d_in)` float32, for a number of tokens.
    """

    sae: HookedSAE
    inputs: Callable[[int], Array]


def make_workload(d_in: int, d_sae: int, l0: float = L0, frequencies: str = "realistic") -> Workload:
    """Return an SAE and inputs for which `l0` features are on per token on average.

    Args:
        d_in: Width of the activations.
        d_sae: Number of features.
        l0: From 0 to `d_sae`. The uniform construction needs a value between these.
        frequencies: "realistic" or "uniform".
    """
    if frequencies == "uniform":
        return Workload(make_uniform_sae(d_in, d_sae, l0), lambda tokens: draw_activations(tokens, d_in))
    return _make_realistic(d_in, d_sae, l0)


def make_uniform_sae(d_in: int, d_sae: int, l0: float = L0) -> HookedSAE:
    """Return an SAE with unit decoder rows and a bias with which about `l0` features are on for normal inputs."""
    sae = _with_unit_decoder(d_in, d_sae)
    with torch.no_grad():
        acts_pre = sae.preactivations(torch.from_numpy(draw_activations(64, d_in, seed=2)))
        sae.b_enc.sub_(acts_pre.flatten().kthvalue(round(acts_pre.numel() * (1 - l0 / d_sae))).values)
    return sae


def draw_activations(tokens: int, d_in: int, seed: int = 1) -> Array:
    """Return standard normal activations, `(tokens, d_in)` float32."""
    return np.random.default_rng(seed).standard_normal((tokens, d_in)).astype(np.float32)


def measure_sparsity(sae: HookedSAE, x: Array) -> dict[str, float]:
    """Return the mean and standard deviation of L0 over the tokens of `x`, and the share of features on for any."""
    counts, fired = [], torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    with torch.no_grad():
        for block in torch.from_numpy(x).split(256):
            on = sae.encode(block) > 0
            counts.append(on.sum(1))
            fired |= on.any(0)
    l0 = torch.cat(counts).double()
    return {"l0_mean": round(l0.mean().item(), 2), "l0_std": round(l0.std(correction=0).item(), 2),
            "fired_share": round(fired.double().mean().item(), 4)}  # fmt: skip


def _with_unit_decoder(d_in: int, d_sae: int) -> HookedSAE:
    sae = HookedSAE({"d_in": d_in, "d_sae": d_sae, "hook_name": "h", "use_error_term": True, "seed": 0}).cpu()
    with torch.no_grad():
        sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
    return sae


def _make_realistic(d_in: int, d_sae: int, l0: float) -> Workload:
    """Return an SAE whose features are on with log-normal frequencies, and inputs of different scales.

    An input minus `b_dec` has the length `s * sqrt(d_in)` and a random direction. Each feature therefore sees `s` times
    a variable of a known, nearly normal distribution, and its bias says how often the sum is positive. A token with a
    larger `s` has more features on.
    """
    known = json.loads(FIRING.read_text())
    draws = np.random.default_rng(0)
    tail = _Tail(d_in)
    frequency = _log_normal(l0 / d_sae, known["log10_frequency_std"], draws.standard_normal(d_sae))
    width, bias = _fit_width(frequency, l0, known["l0_std_over_mean"], tail)
    sae = _with_unit_decoder(d_in, d_sae)
    with torch.no_grad():
        sae.W_enc.div_(sae.W_enc.norm(dim=0))
        sae.b_enc.copy_(torch.from_numpy(bias))
        sae.b_dec.copy_(torch.from_numpy(0.1 * draws.standard_normal(d_in)))
    b_dec = sae.b_dec.detach().numpy()

    def inputs(tokens: int) -> Array:
        draws = np.random.default_rng(1)
        x = draws.standard_normal((tokens, d_in))
        scales = _draw_scales(tokens, width, bias, tail)
        x *= draws.permutation(scales)[:, None] * d_in**0.5 / np.linalg.norm(x, axis=1, keepdims=True)
        return (x + b_dec).astype(np.float32)

    return Workload(sae, inputs)


class _Tail:
    """The probability that one component of a random direction of length `sqrt(d_in)` is above a value."""

    def __init__(self, d_in: int) -> None:
        self.limit = d_in**0.5
        self.at = np.linspace(-self.limit, self.limit, 40001)
        density = np.clip(1 - self.at**2 / d_in, 0, None) ** ((d_in - 3) / 2)
        below = np.cumsum(density)
        self.above = 1 - below / below[-1]

    def __call__(self, at: Array) -> Array:
        return np.interp(at, self.at, self.above)


def _log_normal(mean: float, std: float, normal: Array) -> Array:
    """Return frequencies with this mean, clipped at 1; their log10 is normal with this standard deviation."""
    if mean in (0.0, 1.0):
        return np.full(normal.shape, mean)
    shape, low, high = 10 ** (std * normal), -12.0, 12.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(10**middle * shape, 1).mean() < mean else (low, middle)
    return np.minimum(10**low * shape, 1)


def _nodes(width: float) -> Array:
    """Return the middles of `NODES` equally probable parts of a log-normal distribution with median 1.

    Args:
        width: Standard deviation of the logarithm.
    """
    grid = np.linspace(-6, 6, 20001)
    below = np.cumsum(np.exp(-(grid**2) / 2))
    return np.exp(width * np.interp((np.arange(NODES) + 0.5) / NODES, below / below[-1], grid))


def _bias_of(frequency: Array, scales: Array, tail: _Tail) -> Array:
    """Return the biases with which features have these frequencies over tokens of these scales."""
    grid = np.linspace(-1.01, 1.01, 40001) * tail.limit * scales.max()
    often = np.mean([tail(-grid / scale) for scale in scales], axis=0)
    return np.interp(frequency, often, grid)


def _l0_at(scales: Array, bias: Array, tail: _Tail) -> Array:
    """Return the mean L0 of a token of each scale."""
    return np.array([tail(-bias / scale).sum() for scale in scales])


def _fit_width(frequency: Array, l0: float, spread: float, tail: _Tail) -> tuple[float, Array]:
    """Return the width of the scales with which L0 has a deviation of `spread` times its mean, and the biases.

    If nearly all features are on, or nearly none, no scales make L0 vary that much; it then varies as much as it can.
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


def _draw_scales(tokens: int, width: float, bias: Array, tail: _Tail) -> Array:
    """Return the scales of `tokens` tokens, which have the wanted mean L0 even if they are few.

    Each scale represents an equally probable part of all tokens and has the mean L0 of its part.
    """
    nodes = _nodes(width)
    l0 = _l0_at(nodes, bias, tail)
    if l0[-1] - l0[0] < 1e-6:  # all features are on, or none is
        return np.ones(tokens)
    at, fine = (np.arange(NODES) + 0.5) / NODES, max(1, 4096 // tokens)
    parts = np.interp((np.arange(tokens * fine) + 0.5) / (tokens * fine), at, l0).reshape(tokens, fine).mean(axis=1)
    return np.interp(parts, l0, nodes)

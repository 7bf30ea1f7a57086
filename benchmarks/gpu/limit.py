"""The limit: how fast all six hooks could be on this device, from what is measured on it in the same run.

operations   two products; their time is that of `torch.mm` at the same shapes and precision
bytes        each weight and x read once, acts_pre, acts_post, recons, error and output written once, acts_post read
             once by the decoder; hook_sae_input is the input itself. Their time is that of a large copy
limit        the longer of the two: everything that is not a product happens inside of one, at no cost
sum          the products, and a pass of its own for each thing that their libraries do not do: x - b_dec, ReLU,
             error and output. cuBLASLt's epilogues add a bias but write one tensor, and acts_pre and acts_post are
             two; so this is the fairer line for what calls a library's products
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.contenders import COPY, DECODE_PRODUCT, ENCODE_PRODUCT, Way
from benchmarks.gpu.device import Device
from runtime.arrays.tensor import Array

PEAK_RUNS = 7


@dataclass(frozen=True)
class Work:
    """All six hooks of a batch, counted.

    Attributes:
        itemsize: bytes of a number.
    """

    d_in: int
    d_sae: int
    rows: int
    itemsize: int

    @property
    def operations(self) -> int:
        """Multiplications and additions of the two products."""
        return 2 * 2 * self.rows * self.d_in * self.d_sae

    @property
    def least_bytes(self) -> int:
        """The fewest bytes that move to and from the device's memory."""
        weights = 2 * self.d_in * self.d_sae + self.d_in + self.d_sae
        return self.itemsize * (weights + self.rows * (self.d_in + 2 * self.d_sae + 3 * self.d_in + self.d_sae))

    @property
    def bytes_beside_products(self) -> int:
        """What passes of their own move: x - b_dec and ReLU read and write, error and output read two and write two."""
        return self.itemsize * self.rows * (2 * self.d_in + 2 * self.d_sae + 4 * self.d_in)

    @property
    def needed_bytes(self) -> int:
        """About what the contenders take: the weights four times, once in float32, and eleven wide tensors.

        PyTorch and the graphs of three requests have weights; the original holds four wide tensors at a time, ONNX
        Runtime's arenas up to five, the products two.
        """
        weights = 2 * self.d_in * self.d_sae * (3 * self.itemsize + 4)
        return weights + 11 * self.rows * self.d_sae * self.itemsize


def limits(work: Work, times: Mapping[str, Array], copied: int) -> dict[str, Array]:
    """Return the limit and the sum in milliseconds, by round.

    Args:
        work: what all contenders compute.
        times: milliseconds by round, of the products and of the copy.
        copied: bytes that the copy reads; it writes as many.
    """
    products = times[ENCODE_PRODUCT] + times[DECODE_PRODUCT]
    bytes_per_ms = 2 * copied / times[COPY]
    return {
        "limit": np.maximum(products, work.least_bytes / bytes_per_ms),
        "sum": products + work.bytes_beside_products / bytes_per_ms,
    }


def limit_ways(weights: dict[str, Tensor], inputs: list[Tensor], acts_post: Tensor, device: Device) -> dict[str, Way]:
    """Return the products and the copy, their results written in place.

    Args:
        weights: of the SAE.
        inputs: sets of the encoder's inputs.
        acts_post: as sparse as they really are, `(rows, d_sae)`: zeros take less power, and so less time.
        device: what runs them.
    """
    wide, narrow = torch.empty_like(acts_post), torch.empty_like(inputs[0])
    source = torch.empty(device.copied_bytes, dtype=torch.uint8, device=device.torch)
    target = torch.empty_like(source)
    return {
        ENCODE_PRODUCT: Way(inputs, lambda x: torch.mm(x, weights["W_enc"], out=wide)),
        DECODE_PRODUCT: Way([acts_post], lambda acts: torch.mm(acts, weights["W_dec"], out=narrow)),
        COPY: Way([source], target.copy_),
    }


def peak_rate(device: Device, dtype: torch.dtype) -> dict[str, float]:
    """Return the rate of the fastest square product of a few sizes in operations per second, and its size."""
    rates = {}
    for n in device.product_sizes:
        a, b = (torch.randn(n, n, device=device.torch, dtype=dtype) for _ in range(2))
        product = functools.partial(torch.mm, a, b, out=torch.empty_like(a))
        times = [device.queued(product) for _ in range(PEAK_RUNS)]
        rates[n] = 2 * n**3 / (1e-3 * float(np.median(times)))
    best = max(rates, key=lambda n: rates[n])
    return {"size": best, "operations_per_second": rates[best]}


def bandwidth(device: Device) -> float:
    """Return the bytes per second of a large copy, those read and those written."""
    source = torch.empty(device.copied_bytes, dtype=torch.uint8, device=device.torch)
    target = torch.empty_like(source)
    times = [device.queued(lambda: target.copy_(source)) for _ in range(PEAK_RUNS)]
    return 2 * device.copied_bytes / (1e-3 * float(np.median(times)))

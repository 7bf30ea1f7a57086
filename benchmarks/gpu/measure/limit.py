"""The limit: how fast all six hooks could be on this device, computed from what is measured in the same run.

operations   Two products. Their time is that of `torch.mm` with the same shapes and precision.
bytes        Each weight and x are read once; acts_pre, acts_post, recons, error and output are written once; the
             decoder reads acts_post once; hook_sae_input is the input itself. Their time is that of a large copy.
limit        The longer of the two: everything except the products is done inside the products at no cost.
sum          The products, and a kernel of its own for each step that their libraries do not do: x - b_dec, ReLU, error
             and output. An epilogue of cuBLASLt adds a bias but writes one tensor, and acts_pre and acts_post are two;
             so this is the fairer line for a program that calls a library's products.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.contenders.names import COPY, DECODE_PRODUCT, ENCODE_PRODUCT, Contender
from benchmarks.gpu.device import Device
from runtime.arrays.tensor import Array

PEAK_RUNS = 7


@dataclass(frozen=True)
class Work:
    """The operations and bytes of all six hooks of a batch.

    Attributes:
        d_in: Width of the activations.
        d_sae: Number of features.
        rows: Number of tokens.
        itemsize: Bytes of an element.
    """

    d_in: int
    d_sae: int
    rows: int
    itemsize: int

    @property
    def operations(self) -> int:
        """Number of multiplications and additions of the two products."""
        return 2 * 2 * self.rows * self.d_in * self.d_sae

    @property
    def least_bytes(self) -> int:
        """Smallest number of bytes moved to and from the device's memory."""
        weights = 2 * self.d_in * self.d_sae + self.d_in + self.d_sae
        return self.itemsize * (weights + self.rows * (self.d_in + 2 * self.d_sae + 3 * self.d_in + self.d_sae))

    @property
    def bytes_beside_products(self) -> int:
        """Bytes of the other kernels: x - b_dec and ReLU read and write; error and output read two and write two."""
        return self.itemsize * self.rows * (2 * self.d_in + 2 * self.d_sae + 4 * self.d_in)

    @property
    def needed_bytes(self) -> int:
        """Approximate memory of all contenders: the weights four times, once in float32, and eleven wide tensors.

        PyTorch and the graphs of three requests have the weights. The original holds four wide tensors at a time, ONNX
        Runtime's arenas up to five, and the products two.
        """
        weights = 2 * self.d_in * self.d_sae * (3 * self.itemsize + 4)
        return weights + 11 * self.rows * self.d_sae * self.itemsize


def limits(work: Work, times: Mapping[str, Array], copied: int) -> dict[str, Array]:
    """Return the limit and the sum in milliseconds, one per round.

    Args:
        work: The work of all contenders.
        times: Milliseconds of the products and of the copy, one per round.
        copied: Bytes that the copy reads; it writes as many.
    """
    products = times[ENCODE_PRODUCT] + times[DECODE_PRODUCT]
    bytes_per_ms = 2 * copied / times[COPY]
    return {
        "limit": np.maximum(products, work.least_bytes / bytes_per_ms),
        "sum": products + work.bytes_beside_products / bytes_per_ms,
    }


def limit_contenders(
    weights: dict[str, Tensor], inputs: list[Tensor], acts_post: Tensor, device: Device
) -> dict[str, Contender]:
    """Return the products and the copy, which write their results to existing memory.

    Args:
        weights: Parameters of the SAE.
        inputs: Sets of the encoder's inputs.
        acts_post: Real activations, `(rows, d_sae)`: zeros take less power, and therefore less time.
        device: The device that runs them.
    """
    wide, narrow = torch.empty_like(acts_post), torch.empty_like(inputs[0])
    source = torch.empty(device.copied_bytes, dtype=torch.uint8, device=device.torch)
    target = torch.empty_like(source)
    return {
        ENCODE_PRODUCT: Contender(inputs, lambda x: torch.mm(x, weights["W_enc"], out=wide)),
        DECODE_PRODUCT: Contender([acts_post], lambda acts: torch.mm(acts, weights["W_dec"], out=narrow)),
        COPY: Contender([source], target.copy_),
    }


def peak_rate(device: Device, dtype: torch.dtype) -> dict[str, float]:
    """Return the rate of the fastest square product of a few sizes in operations per second, and its size."""
    rates = {}
    for n in device.product_sizes:
        a, b = (torch.randn(n, n, device=device.torch, dtype=dtype) for _ in range(2))
        product = functools.partial(torch.mm, a, b, out=torch.empty_like(a))
        times = [device.time_queued(product) for _ in range(PEAK_RUNS)]
        rates[n] = 2 * n**3 / (1e-3 * float(np.median(times)))
    best = max(rates, key=lambda n: rates[n])
    return {"size": best, "operations_per_second": rates[best]}


def bandwidth(device: Device) -> float:
    """Return the bytes per second of a large copy, reads and writes together."""
    source = torch.empty(device.copied_bytes, dtype=torch.uint8, device=device.torch)
    target = torch.empty_like(source)
    times = [device.time_queued(lambda: target.copy_(source)) for _ in range(PEAK_RUNS)]
    return 2 * device.copied_bytes / (1e-3 * float(np.median(times)))

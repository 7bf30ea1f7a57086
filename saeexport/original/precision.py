"""Runs PyTorch in another precision than that of its tensors: in float64, for the truth, or in TF32, as CUDA may.

`HalfProducts` changes the time that half precision takes on a CPU, and not its precision.

Source of the rounding to TF32, which keeps 10 bits of the mantissa: https://developer.nvidia.com/blog/accelerating-ai-training-with-tf32-tensor-cores
"""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

FACTORS: dict[str, slice] = {
    **dict.fromkeys(("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "dot", "linear"), slice(0, 2)),
    **dict.fromkeys(("addmm", "addmv", "baddbmm"), slice(1, 3)),
    "einsum": slice(1, None),
}
"""PyTorch's products, and which of their arguments are the factors."""

HALF = (torch.float16, torch.bfloat16)

DROPPED_BITS = 23 - 10
"""Bits of the mantissa of float32 that TF32 drops."""


class InFloat64(TorchFunctionMode):
    """A context in which every operation on floating-point tensors is carried out in float64.

    The inputs of an operation are widened only while it runs, one matrix of an SAE at a time. A copy of the SAE in
    float64 would take three times the memory of the weights.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function on widened tensors; the `dtype` of a floating-point tensor reads as float64."""
        if getattr(func, "__name__", "") == "__get__":
            value = func(*args)
            return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value
        args, kwargs = tree_map_only(Tensor, _widened, (args, kwargs or {}))
        # Results are widened too: a later operation may change in place what `torch.zeros` and the like have made.
        return tree_map_only(Tensor, _widened, func(*args, **kwargs))


class InTF32(TorchFunctionMode):
    """A context in which the factors of float32 products are rounded to TF32, and accumulated in float32."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function with the factors of a product rounded."""
        factors = FACTORS.get(getattr(func, "__name__", ""))
        if factors is not None:
            positions = range(*factors.indices(len(args)))
            args = tuple(tree_map_only(Tensor, _to_tf32, arg) if i in positions else arg for i, arg in enumerate(args))
        return func(*args, **(kwargs or {}))


class HalfProducts(TorchFunctionMode):
    """A context in which a CPU multiplies factors in half precision in float32, and rounds the product once.

    PyTorch's own products do the same: they accumulate in float32 and round once. On a CPU without instructions for
    float16 they do so one number at a time, which takes tens of times as long as a product in float32. Only the order
    of the sum differs.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a product with widened factors, and round the result to their dtype."""
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        is_product = name in FACTORS and "out" not in kwargs
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)] if is_product else []
        kinds = {(tensor.dtype, tensor.device.type) for tensor in given}
        is_chain = name == "einsum" and len(given) > 2  # PyTorch rounds after each pair
        if is_chain or len(kinds) != 1 or not kinds <= {(half, "cpu") for half in HALF}:
            return func(*args, **kwargs)
        args, kwargs = tree_map_only(Tensor, Tensor.float, (args, kwargs))
        return func(*args, **kwargs).to(given[0].dtype)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _to_tf32(tensor: Tensor) -> Tensor:
    """Return a float32 tensor rounded to TF32, to nearest with ties to even."""
    if tensor.dtype != torch.float32:
        return tensor
    bits = tensor.detach().view(torch.int32)
    last_kept = (bits >> DROPPED_BITS).bitwise_and_(1)  # reused in place below: a matrix may take a gigabyte
    rounded = last_kept.add_((1 << (DROPPED_BITS - 1)) - 1).add_(bits).bitwise_and_(-(1 << DROPPED_BITS))
    return rounded.view(torch.float32)

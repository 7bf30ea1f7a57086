"""PyTorch in another precision than its tensors': in float64, for the truth, and in TF32, as CUDA may multiply.

Source of TF32's rounding, to 10 bits of mantissa: https://developer.nvidia.com/blog/accelerating-ai-training-with-tf32-tensor-cores
"""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

FACTORS: dict[str, slice] = {
    **dict.fromkeys(("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "dot", "linear"), slice(0, 2)),
    **dict.fromkeys(("addmm", "addmv", "baddbmm"), slice(1, 3)),
    "einsum": slice(1, None),
}
"""PyTorch's products, and which of their arguments are multiplied."""

DROPPED_BITS = 23 - 10
"""Of float32's mantissa, which TF32 has not."""


class InFloat64(TorchFunctionMode):
    """Inside, every operation on floating-point tensors is carried out in float64.

    Only what an operation takes is widened, and only for as long as it runs: of an SAE one matrix at a time, where a
    copy in float64 would hold three times the weights.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Widen the tensors, and let the dtype of a tensor be what it will be widened to."""
        if getattr(func, "__name__", "") == "__get__":
            value = func(*args)
            return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value
        args, kwargs = tree_map_only(Tensor, _widened, (args, kwargs or {}))
        # What `torch.zeros` and its like make is widened too: a later operation may change it in place.
        return tree_map_only(Tensor, _widened, func(*args, **kwargs))


class InTF32(TorchFunctionMode):
    """Inside, the factors of products in float32 are rounded to TF32; the products are added up in float32."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Round the factors of a product."""
        factors = FACTORS.get(getattr(func, "__name__", ""))
        if factors is not None:
            positions = range(*factors.indices(len(args)))
            args = tuple(tree_map_only(Tensor, _to_tf32, arg) if i in positions else arg for i, arg in enumerate(args))
        return func(*args, **(kwargs or {}))


def _widened(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _to_tf32(tensor: Tensor) -> Tensor:
    """Return a float32 tensor rounded to the nearest number of TF32, in a tie to the even one."""
    if tensor.dtype != torch.float32:
        return tensor
    bits = tensor.detach().view(torch.int32)
    last_kept = (bits >> DROPPED_BITS).bitwise_and_(1)  # in one tensor: a matrix may take a gigabyte
    rounded = last_kept.add_((1 << (DROPPED_BITS - 1)) - 1).add_(bits).bitwise_and_(-(1 << DROPPED_BITS))
    return rounded.view(torch.float32)

"""What an SAE takes: shapes and dtypes, and the words that say why not."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .manifest import HOOK_NAMES

Array: TypeAlias = npt.NDArray[Any]
NamesFilter: TypeAlias = str | list[str] | Callable[[str], bool] | None


def flat_shape(shape: Sequence[int], width: int, hook_name: str = "", what: str = "The input") -> tuple[int, ...]:
    """Return `shape` with what belongs to one token flattened, `(..., width)`.

    That is `(width,)`, or `(n_heads, d_head)` where `hook_name` ends in `_z`. The first is tried first.

    Raises:
        InputError: it is neither.
    """
    takes_heads = hook_name.endswith("_z")
    if len(shape) >= 1 and shape[-1] == width:
        return tuple(shape)
    if takes_heads and len(shape) >= 2 and shape[-2] * shape[-1] == width:
        return (*shape[:-2], width)
    heads = f" or (..., n_heads, d_head) with n_heads * d_head = {width}" if takes_heads else ""
    raise InputError(f"{what} has shape {tuple(shape)}; this SAE takes (..., {width}){heads}.")


def as_dtype(array: Any, dtype: np.dtype[Any], what: str) -> Array:
    """Return `array` in the SAE's `dtype`, if the original would take it; without a copy where it has it already.

    float32 SAEs take float32, float16, bfloat16 (of `ml_dtypes`) and integers; float16 SAEs take float16 only.

    Raises:
        InputError: the original would raise, or would read other numbers than the array holds.
    """
    array = np.asarray(array)
    given, name = f"{what} is {array.shape} {array.dtype}", array.dtype.name
    if not array.dtype.isnative:
        raise InputError(f'{given}, big-endian. Pass x.astype(x.dtype.newbyteorder("=")).')
    if array.dtype == dtype:
        return array
    widens = dtype.itemsize >= 4 and (
        array.dtype.kind in "iu" or name == "bfloat16" or (array.dtype.kind == "f" and array.itemsize < dtype.itemsize)
    )
    if not widens:
        fix = f'Pass x.astype("{dtype}").' if array.dtype.kind in "fiub" else "Pass an array of numbers."
        raise InputError(f"{given}; this SAE is {dtype}. {fix}")
    return array.astype(dtype)


def select_hooks(names_filter: NamesFilter) -> list[str]:
    """Return the hooks that a TransformerLens `names_filter` selects, in firing order; unknown names are ignored.

    Raises:
        ValueError: the filter is not None, a string, a list of strings or a function.
    """
    if names_filter is None:
        return list(HOOK_NAMES)
    if isinstance(names_filter, str):
        return [name for name in HOOK_NAMES if name == names_filter]
    if isinstance(names_filter, list):
        return [name for name in HOOK_NAMES if name in names_filter]
    if callable(names_filter):
        return [name for name in HOOK_NAMES if names_filter(name)]
    raise ValueError(
        f"names_filter is {names_filter!r}; it must be None, a string, a list of strings, or a function of a name."
    )

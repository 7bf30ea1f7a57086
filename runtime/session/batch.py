"""The batch of a call: which shapes and dtypes an SAE accepts, and how they become the inputs of a graph."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ..arrays.dtypes import BFLOAT16, DTYPES, is_float
from ..arrays.limits import check_fits
from ..arrays.tensor import Array as Array
from ..arrays.tensor import Tensor, TensorValue, as_given
from ..artifact.manifest import SAEConfig
from ..artifact.names import FEATURE_HOOKS, HOOK_INPUT, HOOK_NAMES, INPUT, TARGET
from ..errors import InputError

NamesFilter: TypeAlias = str | list[str] | Callable[[str], bool] | None


def flat_shape(shape: Sequence[int], width: int, hook_name: str = "", what: str = "The input") -> tuple[int, ...]:
    """Return `shape` with the dimensions of one token flattened, `(..., width)`.

    A token has the shape `(width,)`, or `(n_heads, d_head)` if `hook_name` ends in `_z`. The first is tried first.

    Raises:
        InputError: The last dimensions have neither shape.
    """
    takes_heads = hook_name.endswith("_z")
    if len(shape) >= 1 and shape[-1] == width:
        return tuple(shape)
    if takes_heads and len(shape) >= 2 and shape[-2] * shape[-1] == width:
        return (*shape[:-2], width)
    heads = f" or (..., n_heads, d_head) with n_heads * d_head = {width}" if takes_heads else ""
    raise InputError(f"{what} has shape {tuple(shape)}; this SAE takes (..., {width}){heads}.")


def as_dtype(array: Any, dtype: str, what: str) -> TensorValue:
    """Return `array` in the SAE's `dtype` if the original would accept it, without a copy if it has that dtype already.

    float32 SAEs accept float32, float16, bfloat16 and integers; SAEs in half precision accept only their own dtype. A
    tensor on a GPU is not converted.

    Raises:
        InputError: The original would raise an error, or would read other values than the array holds, or the converted
            array does not fit in memory.
    """
    array = array if isinstance(array, Tensor) else np.asarray(array)
    if isinstance(array, np.ndarray) and not array.dtype.isnative:
        raise InputError(
            f'{what} is {array.shape} {array.dtype}, big-endian. Pass x.astype(x.dtype.newbyteorder("=")).'
        )
    found, wanted = np.dtype(array.dtype), DTYPES[dtype].numpy
    if found == wanted:
        return array
    integer = found.kind in "iu"
    widens = wanted.itemsize >= 4 and (integer or (is_float(found) and found.itemsize < wanted.itemsize))
    if not widens or isinstance(array, Tensor):
        convert = "Pass x.astype(ml_dtypes.bfloat16)." if dtype == BFLOAT16 else f'Pass x.astype("{dtype}").'
        fix = convert if integer or is_float(found) or found.kind == "b" else "Pass an array of numbers."
        raise InputError(f"{what} is {array.shape} {found.name}; this SAE is {dtype}. {fix}")
    check_fits(what, array.size * wanted.itemsize)
    return array.astype(wanted)


def check_target(target: TensorValue, cfg: SAEConfig, lead: tuple[int, ...], what: str = "target") -> None:
    """Refuse a target that does not belong to a batch with the leading dimensions `lead`.

    Raises:
        InputError: The target has another shape, or the SAE does not take one.
    """
    expected = (*lead, cfg.d_out)
    if not cfg.takes_target or target.shape != expected:
        takes = "none, because it is not a transcoder with the error term"
        if cfg.takes_target:
            takes = f"one of shape {expected}"
        raise InputError(f"{what} is {target.shape} {target.dtype}; this SAE takes {takes}.")


@dataclass(frozen=True)
class Batch:
    """The arrays that a caller passed, and how they become the inputs of a graph.

    Attributes:
        cfg: Configuration of the SAE.
        given: Array of the caller, unchanged.
        lead: Leading dimensions, the `...` of `(..., d_in)`.
        target: Activation that a transcoder predicts, `(..., d_out)`; None if it was not passed.
    """

    cfg: SAEConfig
    given: TensorValue
    lead: tuple[int, ...]
    target: TensorValue | None

    @classmethod
    def of(cls, x: Any, cfg: SAEConfig, target: Any = None, given: Callable[[Any], TensorValue] = as_given) -> "Batch":
        """Return the batch of an array, and of a target if there is one.

        Args:
            x: Array of any library.
            cfg: Configuration of the SAE.
            target: Array of any library, or None.
            given: Function that imports an array of another library without a copy.

        Raises:
            InputError: A shape does not fit, or the SAE does not take the target.
        """
        array = given(x)
        lead = flat_shape(array.shape, cfg.d_in, cfg.hook_name)[:-1]
        if target is None:
            return cls(cfg, array, lead, None)
        target = given(target)
        check_target(target, cfg, lead)
        return cls(cfg, array, lead, target)

    def feeds(self) -> dict[str, TensorValue]:
        """Return the inputs of a graph by name: `input`, and `target` if there is one.

        Raises:
            InputError: A dtype does not fit.
        """
        dtype, tokens = self.cfg.dtype, math.prod(self.lead)
        feeds = {INPUT: _in_shape(as_dtype(self.given, dtype, "x"), (tokens, *self.cfg.input_shape), "x")}
        if self.target is not None:
            target = as_dtype(self.target, dtype, "target")
            feeds[TARGET] = _in_shape(target, (tokens, *self.cfg.output_shape), "target")
        return feeds

    def feature_rows(self, tensor: TensorValue) -> TensorValue:
        """Return a tensor of features, `(..., d_sae)`, as the input of a graph, `(tokens, d_sae)`."""
        return tensor.reshape(math.prod(self.lead), self.cfg.d_sae)

    def shaped(self, hook: str, tensor: TensorValue) -> TensorValue:
        """Return an output of a graph, `(tokens, ...)`, with the leading dimensions of the batch."""
        shape = self.shape(hook)
        return tensor if tensor.shape == shape else tensor.reshape(shape)

    def shape(self, hook: str) -> tuple[int, ...]:
        """Return the shape of a hook's tensor."""
        if hook in FEATURE_HOOKS:
            return (*self.lead, self.cfg.d_sae)
        if hook == HOOK_INPUT or self.cfg.d_out is None:
            return self.given.shape
        return (*self.lead, self.cfg.d_out)


def _in_shape(array: TensorValue, shape: tuple[int, ...], what: str) -> TensorValue:
    """Return an array in another shape: a view where that is possible, or else a copy.

    Raises:
        InputError: The copy does not fit in memory.
    """
    if isinstance(array, np.ndarray) and array.shape != shape and not array.flags.c_contiguous:
        check_fits(what, array.nbytes)
    return array.reshape(shape)


def select_hooks(names_filter: NamesFilter, names: Sequence[str] = HOOK_NAMES) -> list[str]:
    """Return the hooks that a TransformerLens `names_filter` selects, in firing order; unknown names are ignored.

    Args:
        names_filter: None for all hooks, a name, a list of names, or a predicate on names.
        names: The hooks to select from, in firing order.

    Raises:
        InputError: The filter is not None, a string, a list of strings or a function; it is a ValueError.
    """
    if names_filter is None:
        return list(names)
    if isinstance(names_filter, str):
        return [name for name in names if name == names_filter]
    if isinstance(names_filter, list):
        return [name for name in names if any(isinstance(one, str) and one == name for one in names_filter)]
    if callable(names_filter):
        return [name for name in names if names_filter(name)]
    raise InputError(
        f"names_filter is {names_filter!r}; it must be None, a string, a list of strings, or a function of a name."
    )

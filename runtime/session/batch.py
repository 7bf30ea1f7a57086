"""What an SAE takes: shapes and dtypes, and the words that say why not."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ..arrays.dtypes import BFLOAT16, DTYPES, is_float
from ..arrays.tensor import Array as Array
from ..arrays.tensor import Tensor, TensorValue, as_given
from ..artifact.manifest import SAEConfig
from ..artifact.names import FEATURE_HOOKS, HOOK_INPUT, HOOK_NAMES, INPUT, TARGET
from ..errors import InputError

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


def as_dtype(array: Any, dtype: str, what: str) -> TensorValue:
    """Return `array` in the SAE's `dtype`, if the original would take it; without a copy where it has it already.

    float32 SAEs take float32, float16, bfloat16 and integers; those of half precision take their own dtype only. What
    is on a GPU is not converted.

    Raises:
        InputError: the original would raise, or would read other numbers than the array holds.
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
    return array.astype(wanted)


@dataclass(frozen=True)
class Batch:
    """What a caller gave to the SAE, and how it becomes what a graph takes.

    Attributes:
        cfg: of the SAE.
        given: the caller's array, as it is.
        lead: the leading dimensions, `...` of `(..., d_in)`.
        target: what a transcoder's error is taken against, `(..., d_out)`, if it was given.
    """

    cfg: SAEConfig
    given: TensorValue
    lead: tuple[int, ...]
    target: TensorValue | None

    @classmethod
    def of(cls, x: Any, cfg: SAEConfig, target: Any = None, given: Callable[[Any], TensorValue] = as_given) -> "Batch":
        """Return the batch of an array, and of a target if there is one.

        Args:
            x: an array of any library.
            cfg: of the SAE.
            target: likewise.
            given: takes over what a caller gave, where it is.

        Raises:
            InputError: a shape does not fit, or there is a target that the SAE does not take.
        """
        array = given(x)
        lead = flat_shape(array.shape, cfg.d_in, cfg.hook_name)[:-1]
        if target is None:
            return cls(cfg, array, lead, None)
        target, expected = given(target), (*lead, cfg.d_out)
        if not cfg.takes_target or target.shape != expected:
            takes = f"one of shape {expected}" if cfg.takes_target else "none: it is no transcoder with the error term"
            raise InputError(f"target is {target.shape} {target.dtype}; this SAE takes {takes}.")
        return cls(cfg, array, lead, target)

    def feeds(self) -> dict[str, TensorValue]:
        """Return the inputs of a graph from what was given: `input`, and `target` if there is one.

        Raises:
            InputError: a dtype does not fit.
        """
        dtype, tokens = self.cfg.dtype, math.prod(self.lead)
        feeds = {INPUT: as_dtype(self.given, dtype, "x").reshape(tokens, *self.cfg.input_shape)}
        if self.target is not None:
            feeds[TARGET] = as_dtype(self.target, dtype, "target").reshape(tokens, *self.cfg.output_shape)
        return feeds

    def feature_rows(self, tensor: TensorValue) -> TensorValue:
        """Return a tensor of features, `(..., d_sae)`, as a graph's input, `(tokens, d_sae)`."""
        return tensor.reshape(math.prod(self.lead), self.cfg.d_sae)

    def shaped(self, hook: str, tensor: TensorValue) -> TensorValue:
        """Return what a graph gave, `(tokens, ...)`, as the caller has the batch."""
        return tensor.reshape(self.shape(hook))

    def shape(self, hook: str) -> tuple[int, ...]:
        """Return the shape of a hook's tensor."""
        if hook in FEATURE_HOOKS:
            return (*self.lead, self.cfg.d_sae)
        if hook == HOOK_INPUT or self.cfg.d_out is None:
            return self.given.shape
        return (*self.lead, self.cfg.d_out)


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

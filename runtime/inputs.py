"""What an SAE takes: shapes and dtypes, and the words that say why not."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .manifest import SAEConfig
from .names import FEATURE_HOOKS, HOOK_INPUT, HOOK_NAMES, INPUT, TARGET

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
    given: Array
    lead: tuple[int, ...]
    target: Array | None

    @classmethod
    def of(cls, x: Any, cfg: SAEConfig, target: Any = None) -> "Batch":
        """Return the batch of an array, and of a target if there is one.

        Raises:
            InputError: a shape does not fit, or there is a target that the SAE does not take.
        """
        given = np.asarray(x)
        lead = flat_shape(given.shape, cfg.d_in, cfg.hook_name)[:-1]
        if target is None:
            return cls(cfg, given, lead, None)
        target, expected = np.asarray(target), (*lead, cfg.d_out)
        if not cfg.takes_target or target.shape != expected:
            takes = f"one of shape {expected}" if cfg.takes_target else "none: it is no transcoder with the error term"
            raise InputError(f"target is {target.shape} {target.dtype}; this SAE takes {takes}.")
        return cls(cfg, given, lead, target)

    def feeds(self) -> dict[str, Array]:
        """Return the inputs of a graph from what was given: `input`, and `target` if there is one.

        Raises:
            InputError: a dtype does not fit.
        """
        dtype, tokens = np.dtype(self.cfg.dtype), math.prod(self.lead)
        feeds = {INPUT: as_dtype(self.given, dtype, "x").reshape(tokens, *self.cfg.input_shape)}
        if self.target is not None:
            feeds[TARGET] = as_dtype(self.target, dtype, "target").reshape(tokens, *self.cfg.output_shape)
        return feeds

    def feature_rows(self, tensor: Array) -> Array:
        """Return a tensor of features, `(..., d_sae)`, as a graph's input, `(tokens, d_sae)`."""
        return tensor.reshape(math.prod(self.lead), self.cfg.d_sae)

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

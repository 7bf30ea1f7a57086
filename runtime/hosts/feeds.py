"""The inputs of a host: what a caller gives is checked against the manifest, and what follows from it is added."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..arrays.dtypes import DTYPES, is_float
from ..arrays.limits import check_fits
from ..arrays.tensor import Array, Tensor, as_given
from ..artifact.manifest import TensorSpec
from ..errors import InputError
from .manifest import Host
from .names import ATTENTION_MASK, INPUT_IDS, POSITION_IDS, TOKEN_TYPE_IDS

BOOL = "bool"


def complete_feeds(host: Host, given: Mapping[str, Any]) -> dict[str, Array]:
    """Return an array for every input of a host, in order.

    Inputs that are not given and follow from `input_ids` are added: an `attention_mask` of ones, `token_type_ids` of
    zeros, `position_ids` that count the tokens that are not masked, and an empty cache.

    Args:
        host: The host.
        given: Arrays of any library, by the name of the input.

    Raises:
        InputError: A name is not that of an input, an input is missing and does not follow from the others, or an array
            has another shape or dtype than the input, an id of a token is negative, or the mask does not fit the ids.
    """
    if not isinstance(given, Mapping):
        raise InputError(
            f"feeds is {given!r}; it must be a dict from the names of inputs to arrays, a text, or a list of texts."
        )
    specs = {spec.name: spec for spec in host.inputs}
    if unknown := [str(name) for name in given if name not in specs]:
        raise InputError(f"The host does not take {', '.join(unknown)}; it takes {', '.join(specs)}.")
    feeds = {name: _checked(specs[name], array) for name, array in given.items()}
    for name in specs:
        if name not in feeds and (array := _default(host, specs[name], feeds)) is not None:
            feeds[name] = array
    if missing := [name for name in specs if name not in feeds]:
        raise InputError(f"The host also needs {', '.join(missing)}.")
    dimensions(host.inputs, feeds)
    _check_mask(host, feeds)
    if INPUT_IDS in feeds and feeds[INPUT_IDS].min(initial=0) < 0:  # ONNX counts them from the end of the vocabulary
        raise InputError(f"{INPUT_IDS} has the id {feeds[INPUT_IDS].min()}; ids of tokens count from 0.")
    return {name: feeds[name] for name in specs}


def dimensions(specs: tuple[TensorSpec, ...], feeds: Mapping[str, Array]) -> dict[str, int]:
    """Return the sizes of the named dimensions of inputs.

    Raises:
        InputError: A dimension has another size than in the manifest, or than another dimension of the same name.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        if spec.name not in feeds:
            continue
        for dimension, n in zip(spec.shape, feeds[spec.name].shape, strict=True):
            expected, source = (dimension, "") if isinstance(dimension, int) else \
                sizes.setdefault(dimension, (n, f" like {spec.name}"))  # fmt: skip
            if n != expected:
                raise InputError(
                    f"{spec.name} is {feeds[spec.name].shape}; the host takes {list(spec.shape)}, and "
                    f"{dimension} must be {expected}{source}."
                )
    return {name: n for name, (n, _) in sizes.items()}


def _check_mask(host: Host, feeds: Mapping[str, Array]) -> None:
    """Refuse a mask of more or fewer tokens than there are: some hosts ignore what is too much of it.

    With tokens in the cache the host decides, because some caches forget tokens.
    """
    ids, mask = feeds.get(INPUT_IDS), feeds.get(ATTENTION_MASK)
    if ids is None or mask is None or ids.ndim != 2 or mask.ndim != 2:
        return
    if mask.shape[1] != ids.shape[1] and not any(feeds[pair.past].size for pair in host.cache):
        raise InputError(
            f"{ATTENTION_MASK} is {mask.shape}, and {INPUT_IDS} is {ids.shape}; without tokens in the cache, each "
            "token has one value in the mask."
        )


def tokens_of(feeds: Mapping[str, Array]) -> tuple[int, ...]:
    """Return the leading dimensions of the activations at a hook, `(batch, sequence)`."""
    others = (feed for name, feed in feeds.items() if name != ATTENTION_MASK)  # which also has the tokens in a cache
    first = feeds[INPUT_IDS] if INPUT_IDS in feeds else next(others, next(iter(feeds.values())))
    return first.shape[:2]


def is_token(feeds: Mapping[str, Array]) -> Array:
    """Return which tokens of this call are not masked, `(batch, sequence)` bool.

    The mask of a call with a cache also has the earlier tokens, which come first.
    """
    lead = tokens_of(feeds)
    mask = feeds.get(ATTENTION_MASK)
    if mask is None or mask.ndim != 2 or len(lead) < 2:
        return np.ones(lead, bool)
    return mask[:, mask.shape[1] - lead[1] :] != 0


def _default(host: Host, spec: TensorSpec, feeds: Mapping[str, Array]) -> Array | None:
    """Return the value of an input that follows from those that were given; None if it does not."""
    ids = feeds.get(INPUT_IDS)
    if ids is None or ids.ndim != 2:
        return None
    dtype = numpy_dtype(spec.dtype)
    pasts = {pair.past for pair in host.cache}
    if spec.name in pasts:
        return _empty_cache(spec, len(ids))
    given = (other for other in host.inputs if other.name in pasts and other.name in feeds)
    past = max((feeds[other.name].shape[_token_dimension(other)] for other in given), default=0)
    if spec.name == ATTENTION_MASK:
        return np.ones((len(ids), past + ids.shape[1]), dtype)
    if spec.name == TOKEN_TYPE_IDS:
        return np.zeros(ids.shape, dtype)
    if spec.name == POSITION_IDS:
        mask = feeds.get(ATTENTION_MASK, np.ones((len(ids), past + ids.shape[1]), np.int64))
        positions = np.maximum(np.cumsum(mask != 0, axis=1) - 1, 0)
        return positions[:, positions.shape[1] - ids.shape[1] :].astype(dtype)
    return None


def _token_dimension(spec: TensorSpec) -> int:
    """Return which dimension of an input of the cache counts tokens: the one after the batch that has a name.

    Raises:
        InputError: The shape of the input does not say it.
    """
    named = [i for i, dimension in enumerate(spec.shape) if i and isinstance(dimension, str)]
    if len(named) != 1:
        raise InputError(f"{spec.name} has the shape {list(spec.shape)}, from which its size is not known. Pass it.")
    return named[0]


def _empty_cache(spec: TensorSpec, batch: int) -> Array:
    """Return a cache without tokens.

    Raises:
        InputError: As for `_token_dimension`.
    """
    tokens = _token_dimension(spec)
    shape = [batch, *(0 if i == tokens else int(size) for i, size in enumerate(spec.shape) if i)]
    return np.zeros(shape, numpy_dtype(spec.dtype))


def numpy_dtype(name: str) -> "np.dtype[Any]":
    """Return the numpy dtype of an input or output; unlike an SAE's, it may be bool."""
    return np.dtype(np.bool_) if name == BOOL else DTYPES[name].numpy


def _checked(spec: TensorSpec, value: Any) -> Array:
    """Return a caller's array with the rank and the dtype of an input.

    Integers and bools become integers of another size if their values fit, and floats become wider floats.

    Raises:
        InputError: The array cannot be read, or has another rank or dtype, or does not fit in memory.
    """
    array = value.numpy() if isinstance(value, Tensor) else as_given(value)
    assert isinstance(array, np.ndarray)
    wanted, found = numpy_dtype(spec.dtype), array.dtype
    takes = f"the host takes {list(spec.shape)} {spec.dtype}"
    if array.ndim != len(spec.shape):
        raise InputError(f"{spec.name} is {array.shape} {found}; {takes}.")
    if not found.isnative:
        raise InputError(f'{spec.name} is {found}, big-endian. Pass x.astype(x.dtype.newbyteorder("=")).')
    check_fits(spec.name, array.size * wanted.itemsize)
    if found == wanted:
        return array
    if wanted.kind in "iu" and found.kind in "iub":
        bounds = np.iinfo(wanted)
        if array.size and (int(array.min()) < bounds.min or int(array.max()) > bounds.max):
            raise InputError(f"{spec.name} has values from {array.min()} to {array.max()}; {takes}.")
        return array.astype(wanted)
    widens = is_float(wanted) and is_float(found) and found.itemsize < wanted.itemsize
    if not widens and not (wanted.kind == "b" and found.kind in "iu"):
        raise InputError(f"{spec.name} is {array.shape} {found}; {takes}. Pass x.astype({spec.dtype!r}).")
    return array.astype(wanted)

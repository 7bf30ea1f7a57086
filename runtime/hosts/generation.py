"""Generation: a decoder continues a sequence token by token, with its cache of keys and values."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..arrays.arguments import as_integer
from ..arrays.dtypes import widened
from ..arrays.tensor import Array, as_given
from ..errors import InputError, SAEError
from .manifest import DECODER, Host
from .names import INPUT_IDS, LOGITS

Run = Callable[[Mapping[str, Any], Sequence[str]], dict[str, Array]]
"""A function that runs the host on some of its inputs, and returns the outputs with the given names."""


class Decoder:
    """A sequence that a decoder reads, a few tokens at a time.

    Attributes:
        length: Number of tokens that were read.

    Args:
        host: The host.
        run: Function that runs it.

    Raises:
        InputError: The host is not a decoder, or does not have the input `input_ids` and the output `logits`.
    """

    def __init__(self, host: Host, run: Run) -> None:
        names = {tensor.name for tensor in (*host.inputs, *host.outputs)}
        if host.kind != DECODER or not {INPUT_IDS, LOGITS} <= names:
            raise InputError(
                f"{host.name} is an {host.kind} with the outputs {', '.join(tensor.name for tensor in host.outputs)}; "
                f"only a decoder with the input {INPUT_IDS} and the output {LOGITS} generates."
            )
        self.length = 0
        self._host = host
        self._run = run
        self._cache: dict[str, Array] = {}
        self._ids = np.zeros((1, 0), np.int64)

    def read(self, ids: Array, names: Sequence[str] = (LOGITS,)) -> dict[str, Array]:
        """Read the next tokens, `(1, tokens)`, and return outputs of the host for them.

        Without a cache the outputs are those of the whole sequence.
        """
        pairs = self._host.cache
        self._ids = np.concatenate((self._ids, ids), axis=1)
        self.length += ids.shape[1]
        presents = [pair.present for pair in pairs]
        outputs = self._run({INPUT_IDS: ids if pairs else self._ids, **self._cache}, [*names, *presents])
        self._cache = {pair.past: outputs[pair.present] for pair in pairs}
        return {name: outputs[name] for name in names}


def generate(
    host: Host,
    run: Run,
    prompt: Any,
    max_new_tokens: int,
    *,
    do_sample: bool,
    temperature: float,
    top_k: int | None,
    seed: int | None,
    eos_token_id: int | Sequence[int] | None,
) -> Array:
    """Return the ids of a prompt and of the tokens that continue it, `(tokens,)` int64; see `HostSession.generate`.

    Raises:
        InputError: The host is not a decoder, or an argument has an invalid value.
        SAEError: The logits are not finite.
    """
    decoder = Decoder(host, run)
    ids = _checked_prompt(prompt)
    max_new_tokens = as_integer("max_new_tokens", max_new_tokens, 0)
    ends = _checked_ends(eos_token_id)
    choose = _sampler(temperature, top_k, seed) if do_sample else _largest
    sequence, given = list(ids[0].tolist()), ids
    for _ in range(max_new_tokens):
        logits = widened(decoder.read(given)[LOGITS])[0, -1]
        if not np.isfinite(logits.max()):
            raise SAEError(
                f"The logits of token {len(sequence)} are not finite, so that no token can be chosen. Edits may be too "
                "large for the dtype of the host."
            )
        token = choose(logits)
        sequence.append(token)
        if token in ends:
            break
        given = np.array([[token]], np.int64)
    return np.array(sequence, np.int64)


def _largest(logits: Array) -> int:
    return int(np.argmax(logits))


def _sampler(temperature: float, top_k: int | None, seed: int | None) -> Callable[[Array], int]:
    """Return a function that draws a token from logits: `softmax(logits / temperature)`, over the `top_k` largest."""
    try:
        divisor = float(temperature)
    except (TypeError, ValueError):
        divisor = math.nan
    if isinstance(temperature, bool) or not (0 < divisor < math.inf):
        raise InputError(
            f"temperature is {temperature!r}; it must be a positive number. For none, leave out do_sample."
        )
    if top_k is not None:
        top_k = as_integer("top_k", top_k, 1, hint=", or None for all tokens")
    if seed is not None:
        seed = as_integer("seed", seed, 0, hint=", or None")
    draws = np.random.default_rng(seed)

    def draw(logits: Array) -> int:
        scaled = logits.astype(np.float64) / divisor
        kept = np.arange(len(scaled))
        if top_k is not None and top_k < len(scaled):
            kept = np.sort(np.argpartition(-scaled, top_k - 1)[:top_k])
        weights = np.exp(scaled[kept] - scaled[kept].max())
        return int(draws.choice(kept, p=weights / weights.sum()))

    return draw


def _checked_prompt(prompt: Any) -> Array:
    array = np.asarray(as_given(prompt))
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or len(array) != 1 or not array.size or array.dtype.kind not in "iu":
        raise InputError(
            f"The prompt is {array.shape} {array.dtype}; it must be a text, or the ids of one token or more, (tokens,) "
            "or (1, tokens)."
        )
    return array.astype(np.int64)


def _checked_ends(eos_token_id: int | Sequence[int] | None) -> set[int]:
    if eos_token_id is None:
        return set()
    several = isinstance(eos_token_id, (list, tuple))
    ids: Sequence[Any] = eos_token_id if several else [eos_token_id]  # type: ignore[assignment]
    return {as_integer("eos_token_id", one, 0, hint=", a list of them, or None") for one in ids}

"""Generation: a decoder continues sequences token by token, with its cache of keys and values."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..arrays.arguments import as_integer
from ..arrays.dtypes import widened
from ..arrays.tensor import Array, as_given
from ..errors import InputError, SAEError
from ..session.interventions import Intervention
from .manifest import DECODER, CachePair, Host
from .names import ATTENTION_MASK, INPUT_IDS, LOGITS, POSITION_IDS

Run = Callable[[Mapping[str, Any], Sequence[str]], dict[str, Array]]
"""A function that runs the host on some of its inputs, and returns the outputs with the given names."""


class Decoder:
    """Sequences that a decoder reads, a few tokens at a time.

    Args:
        host: The host.
        run: Function that runs it.
        padding: Number of tokens at the beginning of each sequence that are masked, `(sequences,)`.

    Raises:
        InputError: The host is not a decoder, or does not have the input `input_ids` and the output `logits`; or a
            sequence is padded, and the host does not take what tells it so.
    """

    def __init__(self, host: Host, run: Run, padding: Array) -> None:
        inputs = {tensor.name for tensor in host.inputs}
        if host.kind != DECODER or INPUT_IDS not in inputs or LOGITS not in {tensor.name for tensor in host.outputs}:
            raise InputError(
                f"{host.name} is an {host.kind} with the outputs {', '.join(tensor.name for tensor in host.outputs)}; "
                f"only a decoder with the input {INPUT_IDS} and the output {LOGITS} generates."
            )
        if padding.any() and not {ATTENTION_MASK, POSITION_IDS} <= inputs:
            raise InputError(
                f"The prompts have different numbers of tokens, and {host.name} takes {', '.join(sorted(inputs))}: "
                f"without {ATTENTION_MASK} and {POSITION_IDS} it cannot leave padding out. Generate from one prompt at "
                "a time, or from prompts of one length."
            )
        self._host = host
        self._run = run
        self._padding = padding
        self._cache: dict[str, Array] = {}
        self._ids = np.zeros((len(padding), 0), np.int64)

    def read(self, ids: Array) -> Array:
        """Read the next tokens, `(sequences, tokens)`, and return the logits behind the last one."""
        pairs = self._host.cache
        self._ids = np.concatenate((self._ids, ids), axis=1)
        feeds = {INPUT_IDS: ids if pairs else self._ids, **self._cache}
        if self._padding.any():
            feeds[ATTENTION_MASK] = (np.arange(self._ids.shape[1]) >= self._padding[:, None]).astype(np.int64)
        outputs = self._run(feeds, [LOGITS, *(pair.present for pair in pairs)])
        self._cache = {pair.past: outputs[pair.present] for pair in pairs}
        return widened(outputs[LOGITS])[:, -1]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the sequences only; the others take no further positions, which the host may not have."""
        self._ids, self._padding = self._ids[rows], self._padding[rows]
        self._cache = {name: array[rows] for name, array in self._cache.items()}


def read_step_by_step(
    cache: Sequence[CachePair], feeds: Mapping[str, Array], tokens: Array, run: Run, names: Sequence[str]
) -> dict[str, Array]:
    """Return outputs of a decoder that reads its feeds token by token, each with the cache of those before.

    Args:
        cache: The cache of the host.
        feeds: Inputs of the host. The cache may hold tokens, which come first in the mask.
        tokens: Any array of the shape of the tokens, `(batch, sequence)`.
        run: Function that runs the host.
        names: Outputs with a row for each token.

    Returns:
        The outputs by name, `(batch, sequence, ...)`.
    """
    pasts = {pair.past for pair in cache}
    given = {name: feeds[name] for name in pasts}
    parts: dict[str, list[Array]] = {name: [] for name in names}
    for i in range(tokens.shape[1]):
        step = dict(given)
        for name, array in feeds.items():
            if name == ATTENTION_MASK and array.ndim == tokens.ndim:
                step[name] = array[:, : array.shape[1] - tokens.shape[1] + i + 1]
            elif name not in pasts:
                step[name] = array[:, i : i + 1] if array.shape[: tokens.ndim] == tokens.shape else array
        outputs = run(step, [*names, *(pair.present for pair in cache)])
        given = {pair.past: outputs[pair.present] for pair in cache}
        for name in names:
            parts[name].append(outputs[name])
    return {name: np.concatenate(part, axis=1) for name, part in parts.items()}


def generate(
    host: Host,
    run: Run,
    prompts: Sequence[Array],
    max_new_tokens: int,
    *,
    do_sample: bool,
    temperature: float,
    top_k: int | None,
    seed: int | None,
    eos_token_id: int | Sequence[int] | None,
) -> list[Array]:
    """Return the ids of each prompt and of the tokens that continue it, `(tokens,)` int64; see `HostSession.generate`.

    Raises:
        InputError: The host is not a decoder, or an argument has an invalid value.
        SAEError: The logits are not finite.
    """
    longest = max(len(prompt) for prompt in prompts)
    decoder = Decoder(host, run, np.array([longest - len(prompt) for prompt in prompts]))
    max_new_tokens = as_integer("max_new_tokens", max_new_tokens, 0)
    ends = _checked_ends(eos_token_id)
    if do_sample:
        choosers = _samplers(temperature, top_k, seed, len(prompts))
    else:
        _check_nothing_is_drawn(temperature, top_k, seed)
        choosers = [_largest] * len(prompts)
    sequences = [prompt.tolist() for prompt in prompts]
    active = list(range(len(prompts)))
    given = np.stack([np.pad(prompt, (longest - len(prompt), 0)) for prompt in prompts])
    for _ in range(max_new_tokens):
        logits = decoder.read(given)
        for row, i in enumerate(active):
            if not np.isfinite(logits[row].max()):
                raise SAEError(
                    f"The logits of token {len(sequences[i])} are not finite, so that no token can be chosen. Edits "
                    "may be too large for the dtype of the host."
                )
            sequences[i].append(choosers[i](logits[row]))
        rows = [row for row, i in enumerate(active) if sequences[i][-1] not in ends]
        if not rows:
            break
        if len(rows) < len(active):
            decoder.keep(rows)
            active = [active[row] for row in rows]
        given = np.array([sequences[i][-1:] for i in active], np.int64)
    return [np.array(sequence, np.int64) for sequence in sequences]


def _check_nothing_is_drawn(temperature: float, top_k: int | None, seed: int | None) -> None:
    """Refuse options of drawing, which would have no effect."""
    options = {"temperature": (temperature, 1.0), "top_k": (top_k, None), "seed": (seed, None)}
    if given := [f"{name}={value!r}" for name, (value, default) in options.items() if value != default]:
        raise InputError(
            f"{', '.join(given)} applies to tokens that are drawn, and do_sample is False, so that each token is the "
            "one with the largest logit. Pass do_sample=True, or leave it out."
        )


def _largest(logits: Array) -> int:
    return int(np.argmax(logits))


def _samplers(temperature: float, top_k: int | None, seed: int | None, count: int) -> Sequence[Callable[[Array], int]]:
    """Return a function for each sequence that draws a token from logits.

    It draws from `softmax(logits / temperature)`, over the `top_k` largest. The first sequence has the draws of the
    seed itself, so that they are those of a single one.
    """
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
    first = np.random.SeedSequence(seed)
    return [_sampler(divisor, top_k, np.random.default_rng(one)) for one in (first, *first.spawn(count - 1))]


def _sampler(temperature: float, top_k: int | None, draws: np.random.Generator) -> Callable[[Array], int]:
    def draw(logits: Array) -> int:
        scaled = logits.astype(np.float64) / temperature
        kept = np.arange(len(scaled))
        if top_k is not None and top_k < len(scaled):
            kept = np.sort(np.argpartition(-scaled, top_k - 1)[:top_k])
        weights = np.exp(scaled[kept] - scaled[kept].max())
        return int(draws.choice(kept, p=weights / weights.sum()))

    return draw


def check_same_for_all_tokens(edits: Mapping[str, Intervention]) -> None:
    """Refuse edits, by hook, with a value for each token.

    Raises:
        InputError: An edit has one.
    """
    for hook, intervention in edits.items():
        if intervention.scale.ndim > 1 or intervention.shift.ndim > 1:
            raise InputError(
                f"The edits at {hook} have a value for each token, and a sequence that is generated has no fixed "
                "number of tokens. Give one number for all tokens."
            )


def checked_prompt(prompt: Any) -> Array:
    """Return the ids of a prompt, `(tokens,)` int64.

    Raises:
        InputError: It is not the ids of one token or more, `(tokens,)` or `(1, tokens)`.
    """
    array = np.asarray(as_given(prompt))
    if array.ndim == 2 and len(array) == 1:
        array = array[0]
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
        raise InputError(
            f"The prompt is {array.shape} {array.dtype}; it must be a text, or the ids of one token or more, (tokens,) "
            "or (1, tokens). Several prompts are a list of texts, or of arrays of ids."
        )
    return array.astype(np.int64)


def _checked_ends(eos_token_id: int | Sequence[int] | None) -> set[int]:
    if eos_token_id is None:
        return set()
    several = isinstance(eos_token_id, (list, tuple))
    ids: Sequence[Any] = eos_token_id if several else [eos_token_id]  # type: ignore[assignment]
    return {as_integer("eos_token_id", one, 0, hint=", a list of them, or None") for one in ids}

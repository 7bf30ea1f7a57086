"""Answers requests that name inputs and outputs, as inference protocols do, within limits."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays.arguments import as_integer
from ..arrays.dtypes import DTYPES, is_float
from ..arrays.tensor import Array, as_given
from ..artifact.contracts import FEATURES, STEER
from ..artifact.manifest import TensorSpec
from ..artifact.names import (
    FEATURE_HOOKS,
    FEATURE_IDS,
    HOOK_ACTS_POST,
    HOOK_INPUT,
    INDICES,
    INPUT,
    INTERVENTION,
    L0,
    TARGET,
    VALUES,
    K,
)
from ..errors import InputError, LimitError, UnknownHookError
from ..session.batch import flat_shape
from ..session.interventions import Intervention
from ..session.session import SAESession

OK, BAD_REQUEST, TOO_LARGE, FAILED = 200, 400, 413, 500
"""Status codes of HTTP."""

OF_FEATURES = (INDICES, VALUES, L0)
INT64_BYTES = 8


@dataclass(frozen=True)
class Limits:
    """The largest request that a service accepts.

    Attributes:
        tokens: Number of tokens.
        output_bytes: Size of the answer's arrays in bytes.
    """

    tokens: int = 4096
    output_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            as_integer(name, value, 1)


@dataclass(frozen=True, eq=False)
class Observation:
    """What is known about a request when it is over.

    Attributes:
        status: Status code of HTTP, see `http_status`.
        seconds: How long it took.
        tokens: Number of tokens; 0 if the request was refused or failed.
        not_finite: Number of tokens with NaN or infinity in the input.
        l0: L0 of each token without NaN, `(tokens,)` int64; None if the request did not ask for what tells it, or
            edited features.
    """

    status: int
    seconds: float
    tokens: int = 0
    not_finite: int = 0
    l0: Array | None = None


class Service:
    """An open SAE that answers requests by the names of inputs and outputs.

    The names are those of the artifact's graphs, and the session chooses the graph:

        inputs                                               outputs
        ---------------------------------------------------  ------------------------------
        input, or input and target                           hooks
        the same with feature_ids, feature_scale and         hooks, or indices, values, l0,
        feature_shift                                        with edited features
        input and k                                          indices, values, l0

    It may be called from several threads at once. In a server that runs an event loop, call it in a thread.

    Args:
        session: The SAE.
        limits: The largest request that is answered.
        observe: Function that is called with the `Observation` of each request, from the thread that made it.
    """

    def __init__(
        self,
        session: SAESession,
        limits: Limits | None = None,
        observe: Callable[[Observation], Any] = lambda observation: None,
    ) -> None:
        self.session = session
        self.limits = limits or Limits()
        self._observe = observe

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The tensors that a request may have, as the graphs describe them; `input` is needed."""
        graphs = self.session.artifact.manifest.graphs
        return tuple({spec.name: spec for graph in (STEER, FEATURES) for spec in graphs[graph].inputs}.values())

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The tensors that a request may ask for, as the graphs describe them."""
        graphs = self.session.artifact.manifest.graphs
        return (*graphs[STEER].outputs, *graphs[FEATURES].outputs)

    def warm_up(self, *requests: Sequence[str]) -> None:
        """Load the graphs of some requests, so that the first of them do not wait for it.

        Args:
            *requests: The outputs of each request; without any, those of the activations and of the features. Each
                graph has a copy of the weights in memory, so name only what will be asked for.

        Raises:
            InputError: A name is not that of an output.
        """
        cfg = self.session.cfg
        dtype = DTYPES[cfg.dtype].numpy
        inputs = {INPUT: np.zeros((1, *cfg.input_shape), dtype), K: np.array([1])}
        if cfg.takes_target:
            inputs[TARGET] = np.zeros((1, *cfg.output_shape), dtype)
        for outputs in requests or ([HOOK_ACTS_POST], [INDICES]):
            self._answer(inputs, outputs)

    def answer(self, inputs: Mapping[str, Array], outputs: Sequence[str] = ()) -> dict[str, Array]:
        """Return the named outputs, in that order.

        Args:
            inputs: Array for each input, by name. `input` is `(..., d_in)`, and the other shapes are those of the
                graphs; `k` is one whole number.
            outputs: Names from `outputs`; if there are none, `hook_sae_acts_post`.

        Raises:
            LimitError: The request is larger than the limits.
            InputError: A name is not known, an input is missing, or an array has another shape or dtype.
            SAEError: The request could not be carried out; this is not the caller's mistake.
        """
        start = time.perf_counter()
        try:
            arrays = {name: np.asarray(as_given(array)) for name, array in inputs.items()}
            found = self._answer(arrays, outputs)
        except Exception as error:
            self._observe(Observation(http_status(error), time.perf_counter() - start))
            raise
        self._observe(self._observation(arrays, found, time.perf_counter() - start))
        return found

    def _answer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        session, names = self.session, list(outputs) or [HOOK_ACTS_POST]
        _check_names("output", names, self.outputs)
        _check_names("input", inputs, self.inputs)
        hooks = [name for name in names if name not in OF_FEATURES]
        wants_features = len(hooks) < len(names)
        needed = [INPUT, *([K] if wants_features else []), *(INTERVENTION if set(INTERVENTION) & set(inputs) else [])]
        if missing := [name for name in needed if name not in inputs]:
            raise InputError(f"The request needs the input {', '.join(missing)}; it has {', '.join(inputs) or 'none'}.")
        x = inputs[INPUT]
        k = as_integer(K, _whole_number(inputs[K]), 1, session.cfg.d_sae, most_is="d_sae = ") if wants_features else 0
        self._check_size(x.shape, names, k)
        edits = (
            session.steering(Intervention(*(inputs[name] for name in INTERVENTION)))
            if FEATURE_IDS in inputs
            else contextlib.nullcontext()
        )
        with edits:
            found: dict[str, Any] = session.compute(x, hooks, inputs.get(TARGET)) if hooks else {}
            if wants_features:
                found |= dict(zip(OF_FEATURES, session.top_features(x, k), strict=True))
        return {name: np.asarray(found[name]) for name in names}

    def _observation(self, inputs: Mapping[str, Array], found: Mapping[str, Array], seconds: float) -> Observation:
        x, edited = inputs[INPUT], FEATURE_IDS in inputs
        tokens = self._tokens(x.shape)
        rows = x.reshape(tokens, self.session.cfg.d_in)
        not_finite = int((~np.isfinite(rows).all(axis=1)).sum()) if is_float(x.dtype) else 0
        l0 = None
        if L0 in found and not edited:
            l0 = found[L0].reshape(tokens)
        elif HOOK_ACTS_POST in found and not edited:
            acts = found[HOOK_ACTS_POST].reshape(tokens, self.session.cfg.d_sae)
            l0 = np.where(np.isnan(acts).any(axis=1), -1, (acts != 0).sum(axis=1))
        return Observation(OK, seconds, tokens, not_finite, None if l0 is None else l0[l0 >= 0])

    def _tokens(self, shape: tuple[int, ...]) -> int:
        return math.prod(flat_shape(shape, self.session.cfg.d_in, self.session.cfg.hook_name)[:-1])

    def _check_size(self, shape: tuple[int, ...], names: Sequence[str], k: int) -> None:
        """Check a request before anything is computed.

        Raises:
            LimitError: It is larger than the limits.
            InputError: `shape` is not that of activations.
        """
        tokens = self._tokens(shape)
        if tokens > self.limits.tokens:
            raise LimitError(
                f"The request has {tokens:,} tokens; this service takes {self.limits.tokens:,}. Send fewer at a time."
            )
        nbytes = tokens * sum(self._token_bytes(name, k) for name in names)
        if nbytes > self.limits.output_bytes:
            raise LimitError(
                f"The answer would have {nbytes:,} bytes; this service gives {self.limits.output_bytes:,}. Send fewer "
                "tokens at a time, or ask for fewer outputs or a smaller k."
            )

    def _token_bytes(self, name: str, k: int) -> int:
        """Return the size of an output for one token in bytes."""
        cfg = self.session.cfg
        item = DTYPES[cfg.dtype].numpy.itemsize
        if name in OF_FEATURES:
            return {INDICES: k * INT64_BYTES, VALUES: k * item, L0: INT64_BYTES}[name]
        if name in FEATURE_HOOKS:
            return cfg.d_sae * item
        return math.prod(cfg.input_shape if name == HOOK_INPUT else cfg.output_shape) * item


def http_status(error: BaseException) -> int:
    """Return the status code of HTTP for a request that raised an error.

    413 is for a request that is too large, 400 for other mistakes of the caller, and 500 for everything else. The
    message of a 500 may name paths of the server: log it, and do not send it.
    """
    if isinstance(error, LimitError):
        return TOO_LARGE
    return BAD_REQUEST if isinstance(error, (InputError, UnknownHookError)) else FAILED


def _check_names(what: str, given: Iterable[str], known: Sequence[TensorSpec]) -> None:
    names = [spec.name for spec in known]
    if unknown := [str(name) for name in given if name not in names]:
        raise InputError(f"There is no {what} {', '.join(unknown)}; there are {', '.join(names)}.")


def _whole_number(array: Array) -> int:
    """Return the number in an array with one element, such as the `k` of a graph, `(1,)`.

    Raises:
        InputError: It has another number of elements, or another dtype than whole numbers.
    """
    if array.size != 1 or array.dtype.kind not in "iu":
        raise InputError(f"{K} is {array.shape} {array.dtype}; it must be one whole number.")
    return int(array.reshape(())[()])

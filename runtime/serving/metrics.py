"""What services count, for Prometheus.

The metrics of a process are its own: scrape each process, or run one.

Source: https://prometheus.io/docs/practices/naming/, https://github.com/prometheus/client_python.
"""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from ..arrays.tensor import Array
from .service import OK, Observation

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
    from prometheus_client.core import HistogramMetricFamily
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'The metrics of a service need prometheus_client: pip install "saeexport[metrics]"', name=error.name
    ) from None

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
L0_BOUNDS = (0, *(2**i for i in range(16)))
"""Upper bounds of the buckets of both histograms. The last bucket of each has no bound."""


class Metrics:
    """The metrics of all services of a process.

        sae_requests_total{model, code}     requests, by status code of HTTP
        sae_request_seconds{model}          histogram of how long they took
        sae_tokens_total{model}             tokens that were answered
        sae_not_finite_tokens_total{model}  those of them with NaN or infinity in the input
        sae_l0{model}                       histogram of the L0 of tokens, where the request told it

    `rate(sae_not_finite_tokens_total[5m]) / rate(sae_tokens_total[5m])` is the share of rows with NaN, and
    `rate(sae_l0_sum[5m]) / rate(sae_l0_count[5m])` is the mean L0. If it leaves the L0 of the golden batch, the
    activations come from another model or layer than the SAE was trained on.

    Args:
        registry: Where the metrics are registered; None for the default registry of prometheus_client.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry or REGISTRY
        self._requests = Counter("sae_requests", "Requests by status code.", ["model", "code"], registry=registry)
        self._seconds = Histogram(
            "sae_request_seconds", "Seconds per request.", ["model"], buckets=SECONDS, registry=registry
        )
        self._tokens = Counter("sae_tokens", "Tokens answered.", ["model"], registry=registry)
        self._not_finite = Counter(
            "sae_not_finite_tokens", "Tokens with NaN or infinity in the input.", ["model"], registry=registry
        )
        self._l0 = _TokensByL0()
        registry.register(self._l0)

    def of(self, model: str) -> Callable[[Observation], None]:
        """Return the argument `observe` of the `Service` of a model.

        Args:
            model: Name of the model, the value of the label.
        """
        for series in (self._seconds, self._tokens, self._not_finite):
            series.labels(model)  # it is 0 from the start, and not missing
        self._requests.labels(model, str(OK))
        return partial(self._add, model)

    def _add(self, model: str, observation: Observation) -> None:
        self._requests.labels(model, str(observation.status)).inc()
        self._seconds.labels(model).observe(observation.seconds)
        self._tokens.labels(model).inc(observation.tokens)
        self._not_finite.labels(model).inc(observation.not_finite)
        if observation.l0 is not None:
            self._l0.add(model, observation.l0)


class _TokensByL0:
    """A histogram that takes an array at once; that of prometheus_client takes one value at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, Array] = {}
        self._sums: dict[str, int] = {}

    def add(self, model: str, l0: Array) -> None:
        counts = np.bincount(np.searchsorted(L0_BOUNDS, l0), minlength=len(L0_BOUNDS) + 1)
        with self._lock:
            self._counts[model] = self._counts.get(model, 0) + counts
            self._sums[model] = self._sums.get(model, 0) + int(l0.sum())

    def collect(self) -> Iterator[Any]:
        family = HistogramMetricFamily("sae_l0", "Features that are on, by token.", labels=["model"])
        with self._lock:
            for model, counts in self._counts.items():
                bounds = (*(str(float(bound)) for bound in L0_BOUNDS), "+Inf")
                buckets = list(zip(bounds, map(int, counts.cumsum()), strict=True))
                family.add_metric([model], buckets, self._sums[model])
        yield family

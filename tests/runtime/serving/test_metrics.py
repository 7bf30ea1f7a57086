"""The metrics of a service, as Prometheus reads them."""

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from runtime import SAEError
from runtime.serving.metrics import L0_BOUNDS, Metrics
from runtime.serving.service import Limits, Service
from tests.support.samples import normal


@pytest.fixture
def registry():
    return CollectorRegistry()


def samples(registry):
    """Return the values of all samples by name and labels, as a scrape reads them."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def test_requests_tokens_rows_with_nan_latency_and_l0_are_counted(session, registry):
    service = Service(session, Limits(tokens=10), Metrics(registry).of("tiny"))
    x = normal(7, 6)
    x[2, 3] = np.nan
    service.answer({"input": x})
    service.answer({"input": x[:2], "k": np.array([1])}, ["l0"])
    service.answer({"input": x[:2]}, ["hook_sae_output"])
    for wrong in (normal(11, 6), normal(3, 5)):
        with pytest.raises(SAEError):
            service.answer({"input": wrong})
    found, model = samples(registry), ("model", "tiny")
    codes = {code: found["sae_requests_total", ("code", code), model] for code in ("200", "400", "413")}
    assert codes == {"200": 3, "400": 1, "413": 1}
    assert found["sae_tokens_total", model] == 11
    assert found["sae_not_finite_tokens_total", model] == 1
    assert found["sae_request_seconds_count", model] == 5
    assert 0 < found["sae_request_seconds_sum", model] < 60
    l0 = np.count_nonzero(session.encode(np.delete(x, 2, axis=0)), axis=1)
    l0 = np.concatenate([l0, l0[:2]])
    assert found["sae_l0_count", model] == len(l0) == 8
    assert found["sae_l0_sum", model] == l0.sum()
    for bound in L0_BOUNDS:
        assert found["sae_l0_bucket", ("le", str(float(bound))), model] == (l0 <= bound).sum()
    assert found["sae_l0_bucket", ("le", "+Inf"), model] == 8


def test_series_are_there_before_the_first_request_and_apart_by_model(session, registry):
    metrics = Metrics(registry)
    observe = {name: metrics.of(name) for name in ("a", "b")}
    assert samples(registry)["sae_requests_total", ("code", "200"), ("model", "b")] == 0
    Service(session, observe=observe["a"]).answer({"input": normal(3, 6)})
    found = samples(registry)
    assert [found["sae_tokens_total", ("model", name)] for name in observe] == [3, 0]
    assert found["sae_l0_count", ("model", "a")] == 3

"""A host on a simulated GPU gives what it gives on the CPU, and asks ONNX Runtime for the GPU."""

import numpy as np
import pytest

from runtime import Clamp, HostSession, ProviderError
from runtime.devices import capabilities
from runtime.devices.start import PROVIDERS
from tests.support.grafted import PRE, Z
from tests.support.simulated_cuda import config_entry, simulate

IDS = {"input_ids": np.array([[5, 11, 3], [2, 7, 9]])}


@pytest.fixture
def machine(monkeypatch):
    return simulate(monkeypatch)


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_a_host_runs_on_a_gpu(machine, grafted, host, device):
    with HostSession(grafted.path, device) as session:
        assert session.device == "cuda:0"
        for saes in ([], [PRE], [PRE, Z]):
            expected = host.run_with_saes(IDS, saes, False).logits
            np.testing.assert_array_equal(session.run_with_saes(IDS, saes, False).logits, expected)
        with host.steering({PRE: {3: Clamp(2.0)}}), session.steering({PRE: {3: Clamp(2.0)}}):
            np.testing.assert_array_equal(session.encode(IDS)[PRE], host.encode(IDS)[PRE])
    started = [
        one for one in machine.sessions if "use_tf32" in one.options and "user_compute_stream" not in one.options
    ]
    assert started
    for one in started:
        assert one.get_providers() == [PROVIDERS["cuda"]]
        assert (one.options["device_id"], one.options["use_tf32"]) == ("0", "0")
        assert config_entry(one.session_options, "session.disable_cpu_ep_fallback") is None  # shapes are computed there


def test_the_saes_of_a_host_run_on_the_same_gpu(machine, grafted, host):
    with HostSession(grafted.path, "cuda") as session:
        staged = session.run_with_hooks_with_saes(IDS, [], [PRE, Z], use_error_term=False)
        assert session.sae(PRE).device == "cuda:0"
    expected = host.run_with_saes(IDS, [PRE, Z], False).logits
    np.testing.assert_allclose(staged.logits, expected, atol=1e-5)


def test_a_gpu_that_does_not_have_the_dtype_is_not_used(machine, grafted, monkeypatch):
    monkeypatch.setattr(capabilities, "missing_capability", lambda capability, dtype: "it is too old")
    with pytest.raises(ProviderError, match="cannot run on cuda:0 .*: it is too old"):
        HostSession(grafted.path, "cuda")
    with HostSession(grafted.path, "auto") as session:
        assert session.device == "cpu"

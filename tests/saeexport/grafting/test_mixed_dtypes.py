"""An SAE and its host may have other dtypes: the values are cast where they meet, and the budgets are those of both."""

import numpy as np
import pytest
import torch

from runtime import Clamp, HostSession, verify
from runtime.artifact.budgets import FLOOR
from runtime.errors import ParityError
from runtime.hosts.rule import ROUNDINGS_OF_SAE, needed_move
from saeexport import export, graft, load
from saeexport.grafting import insert
from tests.saeexport.grafting.test_transcoders import READ, TARGET, make_transcoder
from tests.support.explaining import explaining_sae
from tests.support.tiny_hosts import D_MODEL, TinyHost, value_at

HOOK, Z = "blocks.1.hook_resid_post", "blocks.1.attn.hook_z"
ATOL = {"float16": 2e-2, "bfloat16": 2e-1}
"""Largest difference of logits of sizes up to 10, where a value is rounded by 5e-4 or 4e-3 of its size."""

MOST = {"float16": 5e-3, "bfloat16": 5e-2}
"""Largest budget of a splice."""


def export_sae(folder, host, hook, dtype):
    activations = host.run(host.feeds())[hook].reshape(-1, D_MODEL).astype(np.float32)
    sae = explaining_sae(D_MODEL, hook, explained=0.5, center=np.median(activations, axis=0))
    export(sae, folder / hook, activations=activations, dtype=dtype)
    return folder / hook


@pytest.fixture(params=["float16", "bfloat16"])
def dtype(request):
    return request.param


@pytest.fixture(params=[HOOK, Z], ids=["resid_post", "z"])
def grafted(request, dtype, tmp_path):
    """An SAE in half precision in a float32 host with a cache."""
    host, hook = TinyHost(cache=True), request.param
    sae = export_sae(tmp_path, host, hook, dtype)
    path = host.write(tmp_path / "host.onnx", external=True)
    return host, hook, graft(path, {f"{hook}@{value_at(host, hook)}": sae}, tmp_path / "out", force=True)


def run(host, hook, folder, feeds, edit=None, use_error_term=False):
    """Return the logits of the model in float64 with the SAE in half precision in it."""
    sae = load(folder / "saes" / hook)

    def through(x):
        rows = torch.from_numpy(x.reshape(-1, D_MODEL)).to(sae.W_enc.dtype)
        with torch.no_grad():
            acts = sae.encode(rows)
            clean = sae.decode(acts)
            if edit is not None:
                acts[:, edit] = 8
            y = sae.decode(acts) + ((rows - clean) if use_error_term else 0)
        return y.double().numpy().reshape(x.shape)

    return host.run(feeds, {hook: through})["logits"]


def test_an_sae_in_half_precision_in_a_float32_host_is_proved(grafted, dtype):
    _, hook, folder = grafted
    (sae,) = folder.manifest.saes
    assert (sae.dtype, folder.saes[hook].manifest.sae.dtype) == ("float32", dtype)
    assert verify(folder.folder, "cpu").failures == []
    parity = folder.manifest.parity
    for records in (parity.splice, parity.edited, parity.decoded):  # the SAE rounds, the host does not
        assert FLOOR[dtype] * ROUNDINGS_OF_SAE < records["logits"].budget < MOST[dtype]
        assert parity.moved["logits"] > needed_move([dtype]) * records["logits"].budget
    for records in (parity.tap, parity.detached, parity.inputs):
        assert all(record.budget < 1e-5 for record in records.values())


def test_it_computes_the_model_with_the_sae_in_it(grafted, dtype):
    host, hook, folder = grafted
    feeds = {name: array for name, array in host.feeds().items() if not name.startswith("past")}
    mask = feeds["attention_mask"] != 0
    with HostSession(folder.folder, "cpu") as session:
        np.testing.assert_allclose(session(feeds).logits[mask], host.run(feeds)["logits"][mask], atol=2e-5)
        for use_error_term in (False, True):
            expected = run(host, hook, folder.folder, feeds, use_error_term=use_error_term)
            for found in (
                session.run_with_saes(feeds, hook, use_error_term),
                session.run_with_hooks_with_saes(feeds, [], hook, use_error_term),
            ):
                assert found.logits.dtype == np.float32
                np.testing.assert_allclose(found.logits[mask], expected[mask], atol=ATOL[dtype])
        with session.steering({hook: {3: Clamp(8.0)}}, use_error_term=False):
            edited = session(feeds).logits
        np.testing.assert_allclose(edited[mask], run(host, hook, folder.folder, feeds, edit=3)[mask], atol=ATOL[dtype])
        _, cache = session.run_with_cache(feeds)
        assert cache[hook].dtype == np.float32
        np.testing.assert_allclose(cache[hook][mask], host.run(feeds)[hook][mask], atol=2e-5)  # not rounded
        _, cache = session.run_with_cache_with_saes(feeds, hook)
        assert cache[f"{hook}.hook_sae_acts_post"].dtype == dtype


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_sae_in_a_float16_host_is_proved(tmp_path, dtype):
    host = TinyHost(dtype="float16", cache=True)
    sae = export_sae(tmp_path, host, HOOK, dtype)
    path = host.write(tmp_path / "host.onnx", external=True)
    folder = graft(path, {f"{HOOK}@{value_at(host, HOOK)}": sae}, tmp_path / "out", force=True)
    assert folder.manifest.saes[0].dtype == "float16"
    assert verify(folder.folder, "cpu").failures == []
    with HostSession(folder.folder, "cpu") as session:
        feeds = {"input_ids": np.array([[5, 11, 3]])}
        output, cache = session.run_with_cache_with_saes(feeds, HOOK)
        assert (output.logits.dtype, cache[f"{HOOK}.hook_sae_acts_post"].dtype) == (np.float16, np.dtype(dtype))
        assert cache[f"{HOOK}.hook_sae_input"].dtype == (np.float16 if dtype == "bfloat16" else np.dtype(dtype))
        staged = session.run_with_hooks_with_saes(feeds, [], HOOK)
        np.testing.assert_allclose(staged.logits, output.logits, atol=ATOL["float16"])


def test_a_transcoder_in_half_precision_in_a_float32_host_is_proved(tmp_path, dtype):
    host = TinyHost()
    seen = host.run(host.feeds())
    x, y = (seen[hook].reshape(-1, D_MODEL).astype(np.float32) for hook in (READ, TARGET))
    export(make_transcoder(), tmp_path / "sae", activations=x, targets=y, dtype=dtype)
    places = ",".join(f"{hook}@{value_at(host, hook)}" for hook in (READ, TARGET))
    folder = graft(host.write(tmp_path / "host.onnx"), {places: tmp_path / "sae"}, tmp_path / "out", force=True)
    assert verify(folder.folder, "cpu").failures == []
    with HostSession(folder.folder, "cpu") as session:
        spliced = session.run_with_saes(host.feeds(), READ, use_error_term=True).logits
    mask = host.feeds()["attention_mask"] != 0
    np.testing.assert_allclose(spliced[mask], seen["logits"][mask], atol=ATOL[dtype])


@pytest.mark.parametrize(("dtype", "factor"), [("float16", 1.01), ("bfloat16", 1.1)])
def test_a_value_that_is_off_by_more_than_rounding_is_refused(tmp_path, monkeypatch, dtype, factor):
    def coarse(self, value, dtype):
        if value is self._x:
            name = f"scale.{len(self._nodes)}.{len(self._graph.initializers)}"
            scale = self._initializer(name, insert.ir.tensor(np.array(factor, np.float32), name=name))
            value = self._node("Mul", [value, scale])
        return sound(self, value, dtype)

    sound = insert.Inserted._cast
    monkeypatch.setattr(insert.Inserted, "_cast", coarse)
    host = TinyHost()
    sae = export_sae(tmp_path, host, HOOK, dtype)
    path = host.write(tmp_path / "host.onnx")
    with pytest.raises(ParityError, match="was not written"):
        graft(path, {f"{HOOK}@{value_at(host, HOOK)}": sae}, tmp_path / "out", force=True)


def test_a_splice_with_an_sae_in_bfloat16_that_does_nothing_is_refused(tmp_path, monkeypatch):
    def reads_itself(self):
        self._flag("attach", True)
        self._flag("use_error_term", True)
        return self._x

    monkeypatch.setattr(insert.Inserted, "splice", reads_itself)
    host = TinyHost()
    sae = export_sae(tmp_path, host, HOOK, "bfloat16")
    with pytest.raises(
        ParityError, match="attaching the SAE .* moves the outputs by 0.0 budgets at most, and more than 4"
    ):
        graft(host.write(tmp_path / "host.onnx"), {f"{HOOK}@{value_at(host, HOOK)}": sae}, tmp_path / "out", force=True)

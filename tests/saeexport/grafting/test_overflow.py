"""Activations that an SAE in float16 cannot hold are refused when it is grafted, and warned of when it runs."""

import warnings

import numpy as np
import pytest

from runtime import HostSession
from runtime.errors import GraftError
from saeexport import export, graft
from tests.saeexport.grafting.test_mixed_dtypes import HOOK, Z, export_sae
from tests.saeexport.grafting.test_transcoders import READ, TARGET, make_transcoder
from tests.support.tiny_hosts import D_MODEL, VOCABULARY, TinyHost, value_at

LARGE = VOCABULARY - 1
"""The token whose activations are beyond float16."""

SAYS = f"{HOOK}: the SAE there is in float16, which ends at 65504, and what it computes for 2 of 5 tokens is not finite"


def large_host(tokens=LARGE, factor=1e6, **options):
    """Return a host in whose residual stream some tokens are huge, and one with the same weights in which none is."""
    host, usual = TinyHost(**options), TinyHost(**options)
    host.weights["W_E"][tokens] *= factor
    return host, usual


def write_reference(path, host):
    feeds = host.feeds()
    feeds["input_ids"] = feeds["input_ids"] % LARGE  # without the large one
    np.savez(path, **feeds)
    return path


@pytest.fixture
def folder(tmp_path):
    host, usual = large_host(cache=True)
    sae = export_sae(tmp_path, usual, HOOK, "float16")
    path, reference = host.write(tmp_path / "host.onnx"), write_reference(tmp_path / "feeds.npz", host)
    return graft(
        path, {f"{HOOK}@{value_at(host, HOOK)}": sae}, tmp_path / "out", reference=reference, force=True
    ).folder


@pytest.mark.parametrize("modes", [["tap"], ["features"], ["tap", "splice"]])
def test_an_sae_that_does_not_hold_the_activations_is_not_grafted(tmp_path, modes):
    host, usual = large_host(slice(None), 1e5)
    path = host.write(tmp_path / "host.onnx")
    # A splice would move nothing: the norm at the end of the host undoes what the SAE makes of large values.
    for dtype in ("float16",) if "splice" in modes else ("float16", "bfloat16", "float32"):
        sae = {f"{HOOK}@{value_at(host, HOOK)}": export_sae(tmp_path / dtype, usual, HOOK, dtype)}
        if dtype != "float16":
            assert graft(path, sae, tmp_path / dtype / "out", modes=modes, force=True).manifest.saes
            continue
        says = (
            r"is in float16, which ends at 65504, and the activations of \d+ of \d+ tokens are larger\. Export the SAE"
        )
        with pytest.raises(GraftError, match=says):
            graft(path, sae, tmp_path / "out", modes=modes, force=True)
        assert not (tmp_path / "out").exists()


def test_masked_positions_count_where_they_reach_the_others(tmp_path):
    """In a splice, the attention of later layers multiplies what is not finite at a masked position with 0."""
    host, usual = large_host(0)  # the id of padding
    sae = {f"{HOOK}@{value_at(host, HOOK)}": export_sae(tmp_path, usual, HOOK, "float16")}
    path, reference = host.write(tmp_path / "host.onnx"), tmp_path / "feeds.npz"
    np.savez(reference, **host.feeds())
    with pytest.raises(GraftError, match="the activations of 6 of 21 tokens are larger"):
        graft(path, sae, tmp_path / "out", reference=reference, force=True)
    folder = graft(path, sae, tmp_path / "out", reference=reference, force=True, modes=["tap", "features"])
    with HostSession(folder.folder, "cpu") as session, warnings.catch_warnings():
        warnings.simplefilter("error")
        session.run_with_cache(host.feeds())
        session.top_features(host.feeds())


def test_a_call_warns_of_tokens_that_the_sae_does_not_hold(folder):
    feeds = {"input_ids": np.array([[5, LARGE, 3, LARGE, 8]])}
    with HostSession(folder, "cpu") as session:
        for call in (
            lambda: session.run_with_saes(feeds, HOOK),
            lambda: session.run_with_hooks_with_saes(feeds, [], HOOK),
            lambda: session.run_with_cache_with_saes(feeds, HOOK),
            lambda: session.top_features(feeds),
            lambda: session.encode(feeds),
        ):
            with pytest.warns(RuntimeWarning, match=SAYS) as caught:
                call()
            assert len(caught) == 1
        with session.saes(HOOK), pytest.warns(RuntimeWarning, match=SAYS):
            acts = session.encode(feeds)[HOOK]
        assert not np.isfinite(acts[0, [1, 3]]).all(axis=-1).any()
        assert np.isfinite(acts[0, [0, 2, 4]]).all()


def test_without_an_sae_nothing_is_rounded_and_nothing_is_warned_of(folder):
    feeds = {"input_ids": np.array([[5, LARGE, 3]])}
    with HostSession(folder, "cpu") as session, warnings.catch_warnings():
        warnings.simplefilter("error")
        output, cache = session.run_with_cache(feeds)
        assert np.abs(cache[HOOK]).max() > 65504
        assert np.isfinite(output.logits).all()
        session.run_with_saes({"input_ids": np.array([[5, 4, 3]])}, HOOK)


def test_a_value_with_heads_is_warned_of(tmp_path):
    host, usual = TinyHost(), TinyHost()
    host.weights["1.W_V"] *= 1e5
    path = host.write(tmp_path / "host.onnx")
    sae = {f"{Z}@{value_at(host, Z)}": export_sae(tmp_path, usual, Z, "float16")}
    with pytest.raises(GraftError, match=f"{Z}: the SAE .* ends at 65504"):
        graft(path, sae, tmp_path / "out", force=True)


def test_the_target_of_a_transcoder_is_checked_if_it_is_read(tmp_path):
    host, usual = TinyHost(), TinyHost()
    host.weights["1.W_out"] *= 1e6
    seen = usual.run(usual.feeds())
    x, y = (seen[hook].reshape(-1, D_MODEL).astype(np.float32) for hook in (READ, TARGET))
    export(make_transcoder(), tmp_path / "sae", activations=x, targets=y, dtype="float16")
    places = ",".join(f"{hook}@{value_at(host, hook)}" for hook in (READ, TARGET))
    with pytest.raises(GraftError, match=f"{TARGET}: the SAE .* ends at 65504"):
        graft(host.write(tmp_path / "host.onnx"), {places: tmp_path / "sae"}, tmp_path / "out", force=True)


def test_a_host_whose_own_values_are_infinite_is_refused(tmp_path):
    host, usual = large_host(slice(None), 1.0, dtype="float16")
    for weight in ("1.W_in", "1.W_out"):
        host.weights[weight] = (host.weights[weight].astype(np.float32) * 2e3).astype(np.float16)
    sae = {f"{HOOK}@{value_at(host, HOOK)}": export_sae(tmp_path, usual, HOOK, "float32")}
    with pytest.raises(GraftError, match=r"is not finite for \d+ of \d+ tokens, so that nothing can be compared"):
        graft(host.write(tmp_path / "host.onnx"), sae, tmp_path / "out", force=True)

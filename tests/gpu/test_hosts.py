"""Grafted hosts on a GPU compute what they compute on the CPU, in NumPy and in PyTorch.

Without a GPU, most of these tests are rehearsed on the CPU, so that they keep up with the API.
"""

import json
import threading
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from runtime import Add, Clamp, HostSession, Scale, verify
from saeexport import export, graft, load
from saeexport.grafting.reference import capture, load_model, run, run_spliced
from tests.saeexport.grafting.test_transcoders import READ, TARGET, make_transcoder
from tests.support.devices import why_not_on
from tests.support.explaining import explaining_sae
from tests.support.grafted import POST, PRE, Grafted, Z, assert_near, graft_tiny, small_saes
from tests.support.language_models import WIDTH, save
from tests.support.tiny_hosts import D_MODEL, TinyHost, value_at

pytestmark = pytest.mark.gpu(rehearsed=True)

DEVICE, DEVICE_NAME, PROVIDER = (
    ("cpu", "cpu", "CPUExecutionProvider") if why_not_on("cuda") else ("cuda", "cuda:0", "CUDAExecutionProvider")
)
HOOKS = [POST, PRE, Z]
PROMPT = np.array([5, 11, 3])
EDITS = {3: Clamp(2.0), 5: Scale(3.0), 9: Add(0.5)}

HALF = 0.05
"""Largest difference of logits of sizes up to 10 in float16, whose roundings are 5e-4 of a value."""


def edited(acts):
    acts[:, 3] = 2
    acts[:, 5] *= 3
    acts[:, 9] += 0.5
    return acts


@pytest.fixture(scope="module")
def grafted(tmp_path_factory):
    """A decoder with a cache and three SAEs, two of them at one value."""
    return graft_tiny(tmp_path_factory.mktemp("decoder"), tokenizer=True)


@pytest.fixture(scope="module")
def gpu(grafted):
    with HostSession(grafted.path, DEVICE) as session:
        yield session


@pytest.fixture(scope="module")
def cpu(grafted):
    with HostSession(grafted.path, "cpu") as session:
        yield session


@pytest.fixture(scope="module")
def feeds(grafted):
    return {name: array for name, array in grafted.model.feeds().items() if not name.startswith("past")}


@pytest.fixture(scope="module")
def mask(feeds):
    return feeds["attention_mask"] != 0


def graft_host(model, hooks, folder):
    """Graft SAEs into a small host of any form."""
    paths, saes = small_saes(folder, hooks)
    places = {f"{hook}@{value_at(model, hook)}": path for hook, path in paths.items()}
    graft(model.write(folder / "tiny.onnx", external=True), places, folder / "grafted", force=True)
    return Grafted(folder / "grafted", model, saes)


def test_every_output_of_every_graph_is_proved(grafted):
    report = verify(grafted.path, DEVICE)
    assert report.device == DEVICE_NAME
    assert report.failures == []
    assert {"tap", "features", "splice", "stages", "splice, edited", "splice, token by token"} <= {
        verdict.graph for verdict in report.verdicts
    }


@pytest.mark.parametrize(
    "model",
    [TinyHost(causal=False), TinyHost(fused=True), TinyHost(opset=14), TinyHost(dtype="float16"),
     TinyHost(dtype="float16", fused=True, cache=True)],
    ids=["encoder", "fused", "opset-14", "float16", "float16-fused-cache"],
)  # fmt: skip
def test_hosts_of_every_form_are_proved(model, tmp_path):
    grafted = graft_host(model, [PRE, Z], tmp_path)
    assert verify(grafted.path, DEVICE).failures == []
    feeds = model.feeds()
    mask = feeds["attention_mask"] != 0
    with HostSession(grafted.path, DEVICE) as gpu:
        for attached in ([], [PRE], [PRE, Z]):
            logits = gpu.run_with_saes(feeds, attached, use_error_term=False).logits
            expected = grafted.run(feeds, attached)[0]["logits"]
            assert logits.dtype == model.weights["W_E"].dtype
            difference = np.abs(logits.astype(np.float64) - expected)[mask].max()
            assert difference < (HALF if model.dtype == "float16" else 2e-5), attached


@pytest.mark.parametrize("kind", ["transcoder", "float16"])
def test_transcoders_and_saes_of_another_dtype_are_proved(kind, tmp_path):
    """A transcoder replaces another value than it reads; a float16 SAE rounds what it reads of a float32 host."""
    model = TinyHost(cache=True)
    seen = model.run(model.feeds())
    hooks = (READ, TARGET) if kind == "transcoder" else (PRE,)
    x, y = (seen[hook].reshape(-1, D_MODEL).astype(np.float32) for hook in (hooks[0], hooks[-1]))
    if kind == "transcoder":
        export(make_transcoder(), tmp_path / "sae", activations=x, targets=y)
    else:
        sae = explaining_sae(D_MODEL, PRE, explained=0.5, center=np.median(x, axis=0))
        export(sae, tmp_path / "sae", activations=x, dtype="float16")
    places = ",".join(f"{hook}@{value_at(model, hook)}" for hook in hooks)
    graft(model.write(tmp_path / "tiny.onnx"), {places: tmp_path / "sae"}, tmp_path / "host", force=True)
    assert verify(tmp_path / "host", DEVICE).failures == []
    found = []
    for device in (DEVICE, "cpu"):
        with HostSession(tmp_path / "host", device) as session, session.saes(hooks[0], False):
            found.append(session.generate(PROMPT, 12).tolist())
    assert found[0] == found[1]


@pytest.mark.parametrize("attached", [[], [POST], [PRE], [Z], [POST, PRE], HOOKS])
@pytest.mark.parametrize("use_error_term", [False, True])
def test_attached_saes_are_in_the_host(gpu, grafted, feeds, mask, attached, use_error_term):
    expected = grafted.run(feeds, attached, use_error_term)[0]["logits"]
    assert_near(gpu.run_with_saes(feeds, attached, use_error_term).logits, expected, mask)
    assert_near(gpu.run_with_hooks_with_saes(feeds, [], attached, use_error_term).logits, expected, mask)


def test_the_cache_is_that_of_the_cpu(gpu, cpu, feeds, mask):
    for attached in ([], [PRE], HOOKS):
        _, found = gpu.run_with_cache_with_saes(feeds, attached, use_error_term=True)
        _, expected = cpu.run_with_cache_with_saes(feeds, attached, use_error_term=True)
        assert list(found) == list(expected)
        for name in expected:
            assert_near(found[name], expected[name], mask)


def test_steering_edits_features(gpu, grafted, feeds, mask):
    for use_error_term in (False, True):
        expected, features = grafted.run(feeds, [PRE], use_error_term, {PRE: edited})
        with gpu.steering({PRE: EDITS}, use_error_term):
            assert_near(gpu(feeds).logits, expected["logits"], mask)
            assert_near(gpu.encode(feeds)[PRE], features[PRE], mask)
            assert_near(gpu.run_with_hooks_with_saes(feeds).logits, expected["logits"], mask)


def test_hook_functions_run_between_the_stages(gpu, grafted, feeds, mask):
    def change(acts_post, hook):
        assert hook.name == f"{PRE}.hook_sae_acts_post"
        return edited(acts_post.reshape(-1, 24)).reshape(acts_post.shape)

    def halve(z, hook):
        return z / 2

    fwd_hooks = [(f"{PRE}.hook_sae_acts_post", change), (Z, halve)]
    found = gpu.run_with_hooks_with_saes(feeds, fwd_hooks, PRE, use_error_term=False)
    expected, _ = grafted.run(feeds, [PRE], False, {PRE: edited}, {Z: lambda z: z / 2})
    assert_near(found.logits, expected["logits"], mask)


def test_features_and_text(gpu, cpu, feeds, mask):
    acts, expected = gpu.encode(feeds), cpu.encode(feeds)
    for hook in HOOKS:
        assert_near(acts[hook], expected[hook], mask)
        assert not acts[hook][~mask].any()
    texts = ["w1 w2 w3 w4 w5", "w6 w7"]
    found, wanted = gpu.top_features(texts, PRE, 3), cpu.top_features(texts, PRE, 3)
    assert (found.l0 == wanted.l0).all()
    assert (found.indices == wanted.indices).all()


def test_generation_is_that_of_the_cpu(gpu, cpu):
    """The keys and values in the cache go through the host's memory between the steps."""
    for attached in ([], [PRE], [PRE, Z]):
        for edits in (None, {PRE: {3: Clamp(6.0)}}):
            use_error_term = None if edits is None else False
            with gpu.saes(attached, False), cpu.saes(attached, False):
                found = gpu.generate(PROMPT, 20, edits=edits, use_error_term=use_error_term)
                expected = cpu.generate(PROMPT, 20, edits=edits, use_error_term=use_error_term)
                assert found.tolist() == expected.tolist()
    options = {"do_sample": True, "temperature": 2.0, "top_k": 5, "seed": 1}
    assert gpu.generate(PROMPT, 20, **options).tolist() == cpu.generate(PROMPT, 20, **options).tolist()


def test_threads_share_a_session(gpu, feeds):
    expected = {hook: gpu.run_with_saes(feeds, hook, False).logits for hook in HOOKS}
    wrong = []

    def work(hook):
        for _ in range(10):
            with gpu.saes(hook, False):
                if not np.allclose(gpu(feeds).logits, expected[hook], atol=1e-5):
                    wrong.append(hook)

    threads = [threading.Thread(target=work, args=(hook,)) for hook in HOOKS * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.gpu
@pytest.mark.parametrize("graph", ["tap", "splice", "features"])
def test_nothing_but_shapes_is_computed_on_the_cpu(grafted, mask, tmp_path, graph):
    options = ort.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = ort.InferenceSession(
        grafted.path / f"{graph}.onnx", options, providers=[PROVIDER, "CPUExecutionProvider"]
    )
    taken = {tensor.name for tensor in session.get_inputs()}
    session.run(None, {name: array for name, array in grafted.model.feeds().items() if name in taken})
    events = [event["args"] for event in json.loads(Path(session.end_profiling()).read_text()) if "args" in event]
    ran = [event for event in events if "provider" in event]
    assert any(event["provider"] == PROVIDER and "MatMul" in event["op_name"] for event in ran)
    activation = mask.size * D_MODEL * 4
    large = {(event["op_name"], event["provider"]) for event in ran if int(event["output_size"]) >= activation}
    assert {provider for _, provider in large} == {PROVIDER}, large


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_model_of_transformers_is_that_of_pytorch(name, tmp_path):
    hooks = ["blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"]
    model, paths = load_model(save(name, tmp_path / "model")), {}
    ids = np.random.default_rng(0).integers(3, 90, (4, 20))
    activations = capture(model, {"input_ids": ids, "attention_mask": np.ones_like(ids)}, hooks)
    for seed, hook in enumerate(hooks):
        center = np.median(activations[hook].reshape(-1, WIDTH), axis=0)
        export(explaining_sae(WIDTH, hook, explained=0.7, center=center, seed=seed), tmp_path / hook)
        paths[hook] = tmp_path / hook
    graft(f"hf:{tmp_path / 'model'}", paths, tmp_path / "host")
    assert verify(tmp_path / "host", DEVICE).failures == []
    saes = {hook: load(path) for hook, path in paths.items()}
    with HostSession(tmp_path / "host", DEVICE) as gpu:
        assert gpu.device == DEVICE_NAME
        feeds = gpu.tokenize(["Why do cats land on their feet?", "The ship left."])
        mask = feeds["attention_mask"] != 0
        output = "logits" if name == "llama" else "last_hidden_state"
        for attached in ([], hooks):
            found = gpu.run_with_saes(feeds, attached, use_error_term=False)[output]
            wanted = run_spliced(model, feeds, {hook: saes[hook] for hook in attached}) if attached else \
                run(model, feeds)  # fmt: skip
            size = np.abs(wanted[output][mask]).max()
            np.testing.assert_allclose(found[mask], wanted[output][mask], rtol=0, atol=2e-5 * size)
        if name == "llama":
            ids = torch.from_numpy(PROMPT[None])
            options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
            expected = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
            assert gpu.generate(PROMPT, 12).tolist() == expected.tolist()


@pytest.mark.gpu
def test_memory_is_freed(grafted, feeds):
    def used():
        free, total = torch.cuda.mem_get_info()
        return total - free

    def run():
        with HostSession(grafted.path, DEVICE) as session:
            session.run_with_hooks_with_saes(feeds, [], HOOKS)
            session.encode(feeds)
            session.generate(PROMPT, 4)

    run()  # kernels and workspaces that a process loads once
    before = used()
    for _ in range(5):
        run()
    assert used() - before < 16 << 20

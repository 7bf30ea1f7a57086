"""Models of transformers exported as hosts, and run in PyTorch with SAEs spliced in."""

import hashlib

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from runtime.errors import GraftError
from runtime.session.interventions import Intervention
from saeexport.grafting import huggingface, reference
from saeexport.grafting.host import load_host
from tests.support.explaining import explaining_sae
from tests.support.language_models import HEADS, LAYERS, VOCABULARY, WIDTH, saved

pytestmark = pytest.mark.filterwarnings("ignore")
POST, Z = "blocks.1.hook_resid_post", "blocks.1.attn.hook_z"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory)


@pytest.fixture(scope="module")
def exported(folder, tmp_path_factory):
    made = {}

    def of(name, cache=True):
        if (name, cache) not in made:
            out = tmp_path_factory.mktemp(name)
            made[name, cache] = huggingface.export_host(folder(name), [POST, Z], out, cache)
        return made[name, cache]

    return of


def batch(positions=11):
    ids = np.random.default_rng(0).integers(3, VOCABULARY, (3, positions))
    mask = np.ones_like(ids)
    mask[1, 7:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def run(path, feeds):
    session = ort.InferenceSession(str(path))
    names = [tensor.name for tensor in session.get_outputs()]
    taken = {tensor.name: tensor for tensor in session.get_inputs()}
    given = {name: feed for name, feed in feeds.items() if name in taken}
    for name, tensor in taken.items():
        if name.startswith("past") and name not in given:
            given[name] = np.zeros((len(feeds["input_ids"]), tensor.shape[1], 0, tensor.shape[3]), np.float32)
        elif name == "token_type_ids":
            given[name] = np.zeros_like(feeds["input_ids"])
        elif name == "position_ids" and name not in given:
            given[name] = np.tile(np.arange(feeds["input_ids"].shape[1]), (len(feeds["input_ids"]), 1))
    return dict(zip(names, session.run(None, given), strict=True))


def assert_close(got, expected, mask=None):
    if mask is not None:
        got, expected = got[mask != 0], expected[mask != 0]
    assert np.abs(got - expected).max() <= 5e-6 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2", "llama", "gemma2"])
def test_an_exported_host_computes_what_the_model_computes(folder, exported, name):
    feeds = batch()
    expected = reference.run(reference.load_model(folder(name)), feeds)
    got = run(exported(name), feeds)
    main = next(iter(got))
    assert main == ("last_hidden_state" if "bert" in name else "logits")
    assert_close(got[main], expected[main], feeds["attention_mask"])
    assert len(got) == (1 if "bert" in name else 1 + 2 * LAYERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_decoding_token_by_token_gives_what_the_whole_sequence_gives(exported, name):
    feeds = {"input_ids": batch()["input_ids"], "attention_mask": np.ones((3, 11), np.int64)}
    whole, past, logits = run(exported(name), feeds)["logits"], {}, []
    for i in range(11):
        step = {
            "input_ids": feeds["input_ids"][:, i : i + 1],
            "attention_mask": np.ones((3, i + 1), np.int64),
            "position_ids": np.full((3, 1), i),
        }
        outputs = run(exported(name), step | past)
        past = {key.replace("present", "past_key_values"): value for key, value in outputs.items() if key != "logits"}
        logits.append(outputs["logits"])
    assert_close(np.concatenate(logits, axis=1), whole)


@pytest.mark.slow
def test_a_decoder_can_be_exported_without_past_key_values(folder, exported):
    feeds = batch()
    got = run(exported("gpt2", cache=False), feeds)
    assert list(got) == ["logits"]
    assert_close(
        got["logits"], reference.run(reference.load_model(folder("gpt2")), feeds)["logits"], feeds["attention_mask"]
    )


@pytest.mark.slow
def test_values_at_hooks_are_called_like_the_hooks_and_no_path_is_in_the_file(exported):
    path = exported("gpt2")
    host = load_host(path)
    assert {POST, Z} <= set(host.values())
    assert {POST, Z}.isdisjoint(str(value.name) for value in host.graph.outputs)
    assert len(host.cache) == 2 * LAYERS
    assert b"site-packages" not in path.read_bytes()


@pytest.mark.slow
def test_an_export_repeats_byte_for_byte(folder, exported, tmp_path):
    again = huggingface.export_host(folder("gpt2"), [POST, Z], tmp_path)
    for name in ("model.onnx", "model.onnx.data"):
        first, second = ((path.parent / name).read_bytes() for path in (exported("gpt2"), again))
        assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest()


def test_a_hook_without_a_place_is_refused_before_the_export(folder, tmp_path):
    with pytest.raises(GraftError, match="before the gain"):
        huggingface.export_host(folder("gpt2"), ["blocks.1.ln1.hook_normalized"], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_failing_export_says_why(folder, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        try:
            raise TypeError("the reason.\nmore")
        except TypeError as error:
            raise RuntimeError("wrapped") from error

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(GraftError, match=r"cannot be exported: the reason\. Export the model with another exporter"):
        huggingface.export_host(folder("gpt2"), [POST], tmp_path)


def test_a_host_that_is_a_file_is_opened_as_it_is(tmp_path):
    with huggingface.opened(tmp_path / "host.onnx", None, []) as (path, hf):
        assert (path, hf) == (tmp_path / "host.onnx", None)


def test_an_exported_host_is_compared_with_its_own_model_only(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "export_host", lambda folder, hooks, out: out / "model.onnx")
    model = folder("gpt2")
    with huggingface.opened(f"hf:{model}", None, []) as (path, hf):
        assert hf == model
        assert path.parent.name == model.name
        temporary = path.parent.parent
        assert temporary.exists()
    assert not temporary.exists()
    with (
        pytest.raises(GraftError, match="Leave the second one away"),
        huggingface.opened(f"hf:{model}", tmp_path, []),
    ):
        pass


# --- reference


def test_a_folder_that_is_not_a_model_is_refused(tmp_path):
    with pytest.raises(GraftError, match=r"does not have a config\.json"):
        reference.load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(GraftError, match="cannot be read as a Hugging Face model"):
        reference.load_model(tmp_path)


def test_feeds_that_the_model_does_not_take_are_refused_unless_they_are_empty(folder):
    model = reference.load_model(folder("gpt2"))
    feeds = batch() | {"past_key_values.0.key": np.zeros((3, HEADS, 0, WIDTH // HEADS), np.float32)}
    assert set(reference.run(model, feeds)) >= {"logits", "present.0.key", f"present.{LAYERS - 1}.value"}
    with pytest.raises(GraftError, match="does not take pixel_values"):
        reference.run(model, feeds | {"pixel_values": np.zeros(1)})


def test_a_splice_with_the_error_term_changes_nothing_and_without_it_does(folder):
    model = reference.load_model(folder("llama"))
    clean = reference.run(model, batch())["logits"]
    sae = explaining_sae(WIDTH, POST)
    with_error = reference.run_spliced(model, batch(), {POST: sae}, use_error_term=True)["logits"]
    without = reference.run_spliced(model, batch(), {POST: sae})["logits"]
    assert_close(with_error, clean)
    assert np.abs(without - clean).max() > 0.01 * np.abs(clean).max()
    assert not sae.cfg.use_error_term
    assert_close(reference.run(model, batch())["logits"], clean)


def test_a_splice_of_heads_gets_the_flat_tensor(folder):
    model = reference.load_model(folder("gpt2"))
    z = reference.capture(model, batch(), [Z])[Z]
    assert z.shape == (3, 11, HEADS, WIDTH // HEADS)
    spliced = reference.run_spliced(model, batch(), {Z: explaining_sae(WIDTH, Z)})
    assert not np.allclose(spliced["logits"], reference.run(model, batch())["logits"])


def test_saes_at_one_tensor_read_each_other(folder):
    """The output of block 0 is the input of block 1."""
    model = reference.load_model(folder("gpt2"))
    saes = {
        hook: explaining_sae(WIDTH, hook, seed=i)
        for i, hook in enumerate(("blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"))
    }
    both = reference.run_spliced(model, batch(), saes)["logits"]
    twice = explaining_sae(WIDTH, "", explained=1 - (1 - (1 - 0.1**0.5) ** 2) ** 2)
    assert_close(reference.run_spliced(model, batch(), {"blocks.1.hook_resid_pre": twice})["logits"], both)


def test_an_edit_reaches_the_output(folder):
    model = reference.load_model(folder("gpt2"))
    sae = explaining_sae(WIDTH, POST)
    edit = Intervention(np.array([3]), np.zeros((1, 1), np.float32), np.full((1, 1), 5, np.float32))
    plain = reference.run_spliced(model, batch(), {POST: sae})["logits"]
    edited = reference.run_spliced(model, batch(), {POST: sae}, edits={POST: edit})["logits"]
    assert np.abs(edited - plain).max() > 0.01
    assert_close(reference.run_spliced(model, batch(), {POST: sae})["logits"], plain)


def test_a_saved_model_is_valid_onnx(exported):
    onnx.checker.check_model(exported("gpt2"))

"""An artifact of some features: an SAE of its own, whose features are those of the whole SAE."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from runtime import Add, Clamp, InputError, Label, Labels, ManifestError, ParityError, SAESession, read_artifact
from runtime.artifact.parse import parse_manifest
from runtime.commands.main import main as runtime_main
from runtime.parity.report import Report
from saeexport import ExportError, HookedSAE, export, load, select_features, verify
from saeexport import _export as exporting
from saeexport.cli import main
from tests.support.manifests import sealed
from tests.support.samples import HOOKS, contents, make_sae, normal
from tests.support.zoo import D_IN, D_SAE, NORMALIZED, sae_of, target_of

_, PRE, POST, RECONS, ERROR, OUTPUT = HOOKS
IDS = [30, 2, 47, 11, 19, 5]
APART = ["standard", "jumprelu", "gated", "transcoder", "skip_transcoder", "jumprelu_transcoder"]


@pytest.mark.parametrize("architecture", APART)
def test_its_features_are_those_of_the_whole_sae(tmp_path, architecture):
    sae = sae_of(architecture, use_error_term=True)
    x = normal(200, D_IN)
    artifact = export(sae, tmp_path / "some", x, features=IDS, targets=target_of(sae, 200))
    whole = export(sae, tmp_path / "whole", x, targets=target_of(sae, 200))
    assert artifact.manifest.sae.feature_ids == tuple(IDS)
    target = target_of(sae, 200)
    with SAESession(artifact.path, "cpu") as some, SAESession(whole.path, "cpu") as all_of_it:
        assert some.cfg.d_sae == len(IDS)
        (output, cache), (wanted, wanted_cache) = (s.run_with_cache(x, target=target) for s in (some, all_of_it))
        for hook in (PRE, POST):
            np.testing.assert_allclose(cache[hook], wanted_cache[hook][:, IDS], rtol=1e-5, atol=1e-5)
        assert (cache[POST] != 0).any(axis=0).all()
        np.testing.assert_allclose(output, wanted, atol=1e-5)  # with the error term
        np.testing.assert_allclose(cache[RECONS] + cache[ERROR], output, atol=1e-5)
        edits = {30: Clamp(2.0), 11: Add(0.5)}
        steered = some.steer(x, {IDS.index(j): edit for j, edit in edits.items()}, target=target)[0]
        np.testing.assert_allclose(steered, all_of_it.steer(x, edits, target=target)[0], atol=1e-4)
        written = cache[POST] @ all_of_it.W_dec[IDS] + all_of_it.b_dec
        if "skip" not in architecture:
            np.testing.assert_allclose(cache[RECONS], written, atol=1e-4)


@pytest.mark.parametrize("architecture", NORMALIZED)
@pytest.mark.parametrize("how", ["layer_norm", "constant_norm_rescale"])
def test_in_pytorch(architecture, how):
    sae, x = sae_of(architecture, normalize_activations=how), torch.from_numpy(normal(50, D_IN))
    if "topk" in architecture:
        with pytest.raises(ExportError, match=f"of a {architecture} SAE .* whether one is on depends on all of them"):
            select_features(sae, IDS)
        return
    some = select_features(sae, np.array(IDS))
    torch.testing.assert_close(some.encode(x), sae.encode(x)[:, IDS])
    assert {name: tuple(p.shape) for name, p in some.named_parameters()} == some.parameter_shapes(some.cfg)
    assert some.cfg.device == sae.cfg.device
    some.b_dec.data.add_(1)
    again = select_features(some, [4, 0])
    assert again.feature_ids == (19, 30)
    torch.testing.assert_close(again.encode(x), some.encode(x)[:, [4, 0]])


def test_all_features_in_another_order():
    sae = make_sae(6, 6)
    order = [5, 0, 3, 1, 2, 4]
    some, x = select_features(sae, order), torch.from_numpy(normal(9, 6))
    torch.testing.assert_close(some.encode(x), sae.encode(x)[:, order])
    torch.testing.assert_close(some(x), sae(x))


@pytest.mark.parametrize("ids", [[], [1, 1], [-1], [D_SAE], [1.5], "3", None, 3, [[1]]])
def test_ids_that_are_not_a_set_of_features_are_refused(tmp_path, ids):
    with pytest.raises(InputError):
        select_features(sae_of("standard"), ids)


class Custom(HookedSAE):
    pass


def test_a_custom_class_is_refused(tmp_path):
    with pytest.raises(ExportError, match="Features of a Custom cannot be taken without the others"):
        export(Custom(make_sae().cfg), tmp_path / "sae", normal(40, 6), features=[1])
    assert not (tmp_path / "sae").exists()


def test_features_that_are_never_on_prove_nothing(tmp_path):
    sae = make_sae()
    with torch.no_grad():
        sae.b_enc[3] = -100
    with pytest.raises(ExportError, match="No feature is on"):
        export(sae, tmp_path / "sae", normal(40, 6), features=[3])


def test_labels_are_those_of_the_whole_sae(tmp_path):
    labels = Labels(16, [Label(2, "two"), Label(5, "five"), Label(9, "nine")], "a person")
    artifact = export(make_sae(), tmp_path / "sae", normal(40, 6), features=[9, 4, 2], labels=labels)
    found = artifact.read_labels()
    assert [(label.index, label.text) for label in found] == [(0, "nine"), (2, "two")]
    assert (found.source, found.d_sae) == ("a person", 3)


def test_it_is_loaded_verified_and_exported_again(tmp_path):
    sae, x = make_sae(), normal(60, 6)
    first = export(sae, tmp_path / "first", x, features=[9, 4, 2])
    loaded = load(first.path)
    assert loaded.feature_ids == (9, 4, 2)
    again = export(loaded, tmp_path / "again", x)
    assert contents(first.path) == contents(again.path)
    for original in (None, loaded, sae):
        assert verify(first.path, original).failures == []
    other = make_sae(seed=4)
    assert any("W_enc differs" in failure for failure in verify(first.path, other).failures)
    assert "feature_ids is (9, 4, 2)" in verify(first.path, select_features(sae, [9, 2, 4])).failures[0]


def test_the_manifest_of_a_whole_sae_does_not_have_the_key(exported, tmp_path):
    content = json.loads((exported[1] / "sae.json").read_text())
    assert "feature_ids" not in content["sae"]
    for ids in ([1, 2], [1] * 16, [-1, *range(15)]):
        content["sae"]["feature_ids"] = ids
        with pytest.raises(ManifestError, match="feature_ids is .* 16 distinct ids"):
            parse_manifest(sealed(content))


def test_command(tmp_path, capsys):
    checkpoint = export(make_sae(), tmp_path / "whole", normal(40, 6)).path
    (tmp_path / "ids.json").write_text("[9, 4, 2]")
    arguments = ["export", str(checkpoint), str(tmp_path / "some"), "--features", str(tmp_path / "ids.json")]
    assert main(arguments) == 0
    assert read_artifact(tmp_path / "some").manifest.sae.feature_ids == (9, 4, 2)
    assert load_file(tmp_path / "some" / "weights.safetensors")["W_enc"].shape == (6, 3)
    assert runtime_main(["inspect", str(tmp_path / "some")]) == 0
    assert capsys.readouterr().out.count("of a larger SAE: 9, 4, 2") == 1
    assert main(["verify", str(tmp_path / "some"), "--against", str(checkpoint)]) == 0
    for text, message in (("{}", "does not hold a JSON list"), ("[1", "cannot be read as a JSON list")):
        (tmp_path / "ids.json").write_text(text)
        assert main([*arguments, "--overwrite"]) != 0
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("d_in", [1, 64, 768])
def test_a_single_feature_is_proved_as_well_as_many(tmp_path, d_in):
    """Its preactivations cancel the bias on some tokens, where every program is inexact relative to what is left."""
    for seed in range(6):
        sae = make_sae(d_in, 64, seed=seed)
        on = (sae.encode(torch.from_numpy(x := normal(200, d_in, seed=seed))) != 0).sum(dim=0)
        feature = int(on.argmax())
        artifact = export(sae, tmp_path / f"{d_in}-{seed}", x, features=[feature])
        assert artifact.manifest.sae.feature_ids == (feature,)
        assert artifact.manifest.parity.left_out <= 60


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("d_in", [1, 12])
def test_an_sae_with_one_feature(tmp_path, d_in, dtype):
    for seed in range(4):
        sae = make_sae(d_in, 1, seed=seed)
        with torch.no_grad():
            sae.b_enc.fill_(0.2)
        export(sae, tmp_path / f"{d_in}-{seed}", normal(200, d_in, seed=seed), dtype=dtype)


@pytest.mark.parametrize("name", ["W_enc", "W_dec"])
def test_a_wrong_weight_of_a_single_feature_is_seen(tmp_path, monkeypatch, name):
    write_weights = exporting._write_weights

    def spoilt(state, path):
        wrong = state[name].clone()
        wrong.view(-1)[5] *= 1 + 1e-4
        write_weights({**state, name: wrong}, path)

    monkeypatch.setattr(exporting, "_write_weights", spoilt)
    with pytest.raises(ParityError, match=f"hook_sae_{'acts_pre' if name == 'W_enc' else 'recons'}: the token error"):
        export(make_sae(64, 64), tmp_path / "sae", normal(200, 64), features=[3])
    assert not (tmp_path / "sae").exists()


@pytest.mark.parametrize(("shift", "says"), [(0.0, False), (-3.0, True)])
def test_a_proof_that_fails_on_few_activations_says_so(tmp_path, monkeypatch, shift, says):
    monkeypatch.setattr("saeexport.proof.prove._judge", lambda *_: [Report("", problems=["it is off"])] * 2)
    sae = make_sae(6, 1)
    with torch.no_grad():
        sae.W_enc.fill_(6**-0.5)
        sae.b_enc.fill_(shift)
        sae.b_dec.zero_()
    x = normal(200, 6)
    x[:5] += 2  # on for these, in either case
    with pytest.raises(ParityError, match="it is off") as caught:
        export(sae, tmp_path / "sae", x)
    assert ("too few to tell PyTorch's error by: pass activations on which" in str(caught.value)) == says
    assert not (tmp_path / "sae").exists()

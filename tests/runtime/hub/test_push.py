"""push_to_hub: what is committed, the model card, and what is left alone."""

import dataclasses
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import yaml

from runtime import HubError, IntegrityError, SAESession, SignatureError, read_artifact
from runtime.artifact.card import model_card
from saeexport import export, sign
from tests.support.hub_protocol import TOKEN
from tests.support.keys import make_key
from tests.support.manifests import sealed
from tests.support.samples import TINY, contents, make_sae, normal
from tests.support.zoo import sae_of, target_of

# huggingface_hub 2.4 uploads with an argument that its HTTP library has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

CARD = "README.md"


def head(hub, repo_id, branch="main"):
    repo = hub.repos[repo_id]
    return repo.commits[repo.branches[branch]]


def test_what_is_pushed_can_be_opened(hub):
    url = read_artifact(TINY).push_to_hub("ada/new", token=TOKEN, private=True, license="mit")
    assert url == f"{hub.url}/ada/new/commit/{hub.repos['ada/new'].branches['main']}"
    files = head(hub, "ada/new")
    assert {name: data for name, data in files.items() if name not in (CARD, ".gitattributes")} == contents(TINY)
    assert hub.repos["ada/new"].private
    assert hub.repos["ada/new"].titles[1:] == ["Upload tiny with saeexport"]
    with SAESession.from_pretrained("ada/new", "cpu", token=TOKEN) as session, SAESession(TINY, "cpu") as expected:
        x = normal(3, 6)
        np.testing.assert_array_equal(session(x), expected(x))
        assert session.push_to_hub("ada/copy", token=TOKEN)
    assert set(head(hub, "ada/copy")) == set(files)


def test_a_branch_a_subfolder_and_a_message(hub):
    artifact = read_artifact(TINY)
    artifact.push_to_hub("ada/tiny", token=TOKEN, branch="v2", subfolder="layer_3", commit_message="Layer 3")
    repo = hub.repos["ada/tiny"]
    assert repo.branches["main"] == hub.tiny
    assert repo.titles[-1] == "Layer 3"
    assert {f"layer_3/{name}" for name in (*contents(TINY), CARD)} <= set(head(hub, "ada/tiny", "v2"))
    SAESession.from_pretrained("ada/tiny", "cpu", revision="v2", subfolder="layer_3").close()


def test_files_of_the_artifact_before_are_removed_and_others_stay(hub):
    manifest = json.loads((TINY / "sae.json").read_text())
    manifest["files"]["old.onnx"] = {"sha256": "0" * 64, "bytes": 3}
    hub.add("ada/again", contents(TINY) | {"sae.json": sealed(manifest), "old.onnx": b"old", "notes": b"n"})
    read_artifact(TINY).push_to_hub("ada/again", token=TOKEN)
    assert set(head(hub, "ada/again")) == {*contents(TINY), CARD, "notes"}


def test_a_signed_artifact_is_pushed_and_opened_with_its_signature(hub, artifact, tmp_path):
    private, public = make_key(tmp_path)
    for name in ("ada/signed", "ada/many"):
        sign(artifact, private, overwrite=True)
        subfolder = "layer_3" if name == "ada/many" else ""
        read_artifact(artifact).push_to_hub(name, token=TOKEN, subfolder=subfolder)
        with SAESession.from_pretrained(name, "cpu", token=TOKEN, subfolder=subfolder, public_key=public) as session:
            assert session(normal(2, 6)).shape == (2, 6)
    (artifact / "model.sig").unlink()
    read_artifact(artifact).push_to_hub("ada/signed", token=TOKEN)
    assert "model.sig" not in head(hub, "ada/signed")  # of the artifact before
    SAESession.from_pretrained("ada/signed", "cpu", token=TOKEN).close()
    with pytest.raises(SignatureError, match="is not signed"):
        SAESession.from_pretrained("ada/signed", "cpu", token=TOKEN, public_key=public)


def test_the_working_directory_may_change_before_the_upload(hub, artifact, monkeypatch):
    monkeypatch.chdir(artifact.parent)
    opened = read_artifact(artifact.name)
    monkeypatch.chdir("/")
    opened.push_to_hub("ada/moved", token=TOKEN)
    assert contents(TINY).keys() <= set(head(hub, "ada/moved"))


def test_a_card_that_somebody_wrote_stays(hub):
    hub.add("ada/mine", {CARD: b"# mine\n"})
    with pytest.warns(UserWarning, match=r"hf://ada/mine has a README.md that saeexport did not write"):
        read_artifact(TINY).push_to_hub("ada/mine", token=TOKEN)
    assert head(hub, "ada/mine")[CARD] == b"# mine\n"


def test_its_own_card_is_written_again(hub):
    artifact = read_artifact(TINY)
    artifact.push_to_hub("ada/new", token=TOKEN)
    artifact.push_to_hub("ada/new", token=TOKEN, license="apache-2.0")
    assert b"license: apache-2.0" in head(hub, "ada/new")[CARD]


def test_a_damaged_artifact_is_not_uploaded(hub, artifact):
    (artifact / "steer.onnx").write_bytes(b"")
    with pytest.raises(IntegrityError, match="steer.onnx"):
        read_artifact(artifact).push_to_hub("ada/new", token=TOKEN)
    assert "ada/new" not in hub.repos


@pytest.mark.parametrize("token", [None, "hf_of_another"])
def test_without_the_right_to_write(hub, token):
    for repo_id, message in (("ada/new", "hf://ada/new"), ("ada/tiny", r"hf://ada/tiny.*You need write access")):
        with pytest.raises(HubError, match=rf"{message}.*Check that your token may do this\."):
            read_artifact(TINY).push_to_hub(repo_id, token=token)
    assert hub.repos["ada/tiny"].branches == {"main": hub.tiny}


def test_metadata_that_the_hub_refuses(hub):
    hub.refused_licenses.add("no-licence")
    with pytest.raises(HubError, match=r"hf://ada/new was not written: Invalid metadata in README.md.*license"):
        read_artifact(TINY).push_to_hub("ada/new", token=TOKEN, license="no-licence")


def test_an_upload_that_breaks_off(hub):
    hub.full = True
    with pytest.raises(HubError, match=r"hf://ada/new was not written: Error while uploading"):
        read_artifact(TINY).push_to_hub("ada/new", token=TOKEN)


@pytest.fixture(scope="module", params=["tiny", "transcoder", "int8", "float16", "bfloat16"])
def manifest(request, tmp_path_factory):
    """The manifest of an artifact of each kind that a card has to describe."""
    if request.param == "tiny":
        return read_artifact(TINY).manifest
    path = tmp_path_factory.mktemp("cards") / request.param
    if request.param == "transcoder":
        sae = sae_of("transcoder", use_error_term=True, model_name="ada/language-model")
        return export(sae, path, normal(40, 10), targets=target_of(sae, 40)).manifest
    if request.param == "int8":
        return export(make_sae(d_in=32, d_sae=64), path, normal(40, 32), weights="int8").manifest
    return export(make_sae(model_name="gpt2-small"), path, normal(40, 6), dtype=request.param).manifest


def blocks(card, language):
    return re.findall(rf"```{language}\n(.*?)```", card, re.DOTALL)


def test_the_card_of_every_kind(manifest, tmp_path):
    card = model_card(manifest, "ada/new", license="mit", subfolder="layer_3")
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata == {
        "license": "mit",
        "library_name": "saeexport",
        "tags": ["sparse-autoencoder", "interpretability", "onnx", "saeexport"],
        **({"base_model": "ada/language-model"} if manifest.sae.model_name == "ada/language-model" else {}),
    }
    assert "# layer_3\n" in card
    assert ("## Parity" in card) == (manifest.parity is not None)
    for name, hook in manifest.record.hooks.items():
        assert f"| `{name}` | {hook.original.token:.1e} | {hook.artifact.token:.1e} | {hook.budget.token:.1e} |" in card
    for tensor in manifest.graphs["model"].outputs:
        assert f"| `{tensor.name}` | ({', '.join(map(str, tensor.shape))}) | {tensor.dtype} |" in card
    assert ("stay on" in card) == (manifest.fidelity is not None)
    (python,), (cpp,) = blocks(card, "python"), blocks(card, "cpp")
    compile(python, "card", "exec")
    for tensor in manifest.graphs["model"].inputs:
        assert f'"{tensor.name}"' in cpp
    assert len(blocks(card, "js")) == (manifest.sae.dtype != "bfloat16")


def test_a_text_of_the_manifest_cannot_break_out_of_its_table(hub):
    manifest = read_artifact(TINY).manifest
    sae = dataclasses.replace(manifest.sae, hook_name="a | b\n\n# title <script>", model_name="x: [y")
    card = model_card(dataclasses.replace(manifest, sae=sae), "ada/new")
    assert "| hook | a \\| b  # title &lt;script> |" in card.replace("&gt;", ">")
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "saeexport"


def test_the_base_model_of_the_caller():
    card = model_card(read_artifact(TINY).manifest, "ada/new", base_model="openai-community/gpt2")
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == "openai-community/gpt2"


def test_the_python_of_the_card_runs(hub, capsys):
    read_artifact(TINY).push_to_hub("ada/new", token=TOKEN)
    (python,) = blocks(head(hub, "ada/new")[CARD].decode(), "python")
    exec(python, {})
    assert capsys.readouterr().out == "(10, 16)\n"


def test_the_javascript_of_the_card_is_javascript(tmp_path):
    if shutil.which("node") is None:
        pytest.skip("needs Node.js")
    (script,) = blocks(model_card(read_artifact(TINY).manifest, "ada/new"), "js")
    (tmp_path / "card.mjs").write_text(script)
    subprocess.run(["node", "--check", tmp_path / "card.mjs"], check=True)

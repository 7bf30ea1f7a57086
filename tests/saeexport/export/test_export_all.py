"""export_all and `saeexport export-all`: mixed releases, failures, resuming, changed options, and the Hub."""

import gc
import json
import re
import shutil
import weakref

import numpy as np
import pytest
import torch

import saeexport._export_all as module
from runtime import InputError, read_artifact
from saeexport import CheckpointError, export_all, load
from saeexport.cli import main
from tests.support.equations import write
from tests.support.hub_server import HubServer
from tests.support.samples import TINY, contents, make_sae, normal

SAELENS = {"architecture": "standard", "d_in": 6, "d_sae": 16, "dtype": "float32", "metadata": {"hook_name": "h"}}


def numpy_state(seed):
    return {name: tensor.numpy() for name, tensor in make_sae(seed=seed).state_dict().items()}


@pytest.fixture
def release(tmp_path):
    """Two formats in one tree: two SAELens folders, and a state dict."""
    folder = tmp_path / "release"
    for layer in (2, 10):
        write(folder / f"layer_{layer}" / "res", SAELENS, numpy_state(layer), "cfg.json", "sae_weights.safetensors")
    torch.save(make_sae(seed=5).state_dict(), folder / "mlp.pt")
    (folder / "mlp.json").write_text(json.dumps({"d_sae": 16, "d_in": 6, "hook_name": "blocks.0.hook_mlp_out"}))
    return folder


def states(entries, tree):
    return {entry.path.relative_to(tree).as_posix(): entry.state for entry in entries}


@pytest.fixture
def quick(monkeypatch):
    """Exports that copy an artifact and prove nothing, for tests of what is exported and what is kept.

    Returns a list of the arguments of each export.
    """
    calls = []

    def copy(sae, path, activations, head_shape, *, overwrite, **options):
        calls.append({"activations": activations, "head_shape": head_shape, "hook": sae.cfg.hook_name, **options})
        if overwrite:
            shutil.rmtree(path, ignore_errors=True)
        return read_artifact(shutil.copytree(TINY, path))

    monkeypatch.setattr(module, "export", copy)
    gc.collect()
    gc.freeze()  # each export collects, which would take most of the time of these tests
    return calls


def test_every_checkpoint_at_its_own_path(release, tmp_path):
    tree = tmp_path / "tree"
    entries = export_all(release, tree)
    assert list(states(entries, tree)) == ["layer_2/res", "layer_10/res", "mlp"]
    assert {entry.state for entry in entries} == {"exported"}
    for entry, seed in zip(entries, (2, 10, 5), strict=True):
        assert entry.artifact.manifest.parity is not None
        assert entry.seconds > 0
        for name, tensor in make_sae(seed=seed).state_dict().items():
            assert torch.equal(load(entry.path).state_dict()[name], tensor)


def test_a_damaged_one_does_not_stop_the_others(release, tmp_path, capsys):
    (release / "layer_2" / "res" / "sae_weights.safetensors").write_bytes(b"damaged")
    tree = tmp_path / "tree"
    assert main(["export-all", str(release), str(tree)]) == 1
    out = capsys.readouterr().out
    assert "1 failed, 2 exported" in out
    assert re.search(r"\nlayer_2/res: .*sae_weights.safetensors cannot be read", out)
    assert re.search(r"\nlayer_10/res +exported +standard +6 x 16 +0\.\d +\d\.\de-\d\d +\d+\.\d\n", out)
    assert not (tree / "layer_2").exists()
    write(release / "layer_2" / "res", SAELENS, numpy_state(2), "cfg.json", "sae_weights.safetensors")
    assert main(["export-all", str(release), str(tree)]) == 0
    assert "1 exported, 2 kept" in capsys.readouterr().out


def test_a_fault_of_another_kind_does_not_stop_the_others(release, tmp_path, monkeypatch):
    def fail(sae, *args, **options):
        raise ZeroDivisionError("nothing to divide by")

    monkeypatch.setattr(module, "export", fail)
    entries = export_all(release, tmp_path / "tree")
    assert [entry.error for entry in entries] == ["ZeroDivisionError: nothing to divide by"] * 3


def test_interrupted_and_resumed(release, tmp_path, monkeypatch):
    tree, original, calls = tmp_path / "tree", module.export, []

    def interrupted(sae, path, *args, **options):
        calls.append(path.relative_to(tree).as_posix())
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(sae, path, *args, **options)

    monkeypatch.setattr(module, "export", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_all(release, tree)
    before = contents(tree / "layer_2" / "res")
    entries = export_all(release, tree)
    assert states(entries, tree) == {"layer_2/res": "kept", "layer_10/res": "exported", "mlp": "exported"}
    assert calls == ["layer_2/res", "layer_10/res", "layer_10/res", "mlp"]
    assert contents(tree / "layer_2" / "res") == before
    assert {entry.state for entry in export_all(release, tree)} == {"kept"}
    assert all(entry.artifact.manifest.parity for entry in entries)


@pytest.mark.parametrize("what", ["weights.safetensors", "steer.onnx", "sae.json", "exports.json"])
def test_what_was_changed_is_not_kept(release, tmp_path, quick, what):
    tree = tmp_path / "tree"
    export_all(release, tree)
    file = tree / what if what == "exports.json" else tree / "mlp" / what
    if what == "sae.json":
        text = file.read_text()
        file.write_text(text.replace('"hook_name": "blocks.0', '"hook_name": "blocks.1'))
        assert file.read_text() != text
    else:
        file.write_bytes(file.read_bytes()[:-5])
    entry = export_all(release, tree)[-1]
    assert entry.state == "failed"
    assert "exists. Choose another path, or overwrite it" in entry.error
    assert export_all(release, tree, overwrite=True)[-1].state == "exported"
    assert export_all(release, tree)[-1].state == "kept"


@pytest.mark.parametrize(
    "changed", [{"dtype": "bfloat16"}, {"error_term": True}, {"hook_name": "h2"}, {"heads": 2}, {"weights": "int8"}]
)
def test_options_that_changed(release, tmp_path, quick, changed):
    tree = tmp_path / "tree"
    export_all(release, tree, dtype="float32")
    options = {"dtype": "float32", **changed}
    assert {entry.state for entry in export_all(release, tree, **options)} == {"failed"}
    assert {entry.state for entry in export_all(release, tree, **options, dry_run=True, overwrite=True)} == {"planned"}
    assert {entry.state for entry in export_all(release, tree, dtype=torch.float32)} == {"kept"}
    assert len(quick) == 3
    assert {entry.state for entry in export_all(release, tree, **options, overwrite=True)} == {"exported"}
    assert {entry.state for entry in export_all(release, tree, **options)} == {"kept"}


def test_every_option_reaches_the_export(release, tmp_path):
    options = {"dtype": "float16", "hook_name": "blocks.3.hook_z", "heads": 2, "error_term": True}
    entry = export_all(release / "mlp.pt", tmp_path / "tree", **options)[0]
    sae = entry.artifact.manifest.sae
    found = (sae.dtype, sae.hook_name, sae.head_shape, sae.use_error_term)
    assert found == ("float16", "blocks.3.hook_z", (2, 3), True)


def test_a_checkpoint_that_changed(release, tmp_path, quick):
    tree = tmp_path / "tree"
    export_all(release, tree)
    torch.save(make_sae(seed=6).state_dict(), release / "mlp.pt")
    assert states(export_all(release, tree, overwrite=True), tree) == {
        "layer_2/res": "kept", "layer_10/res": "kept", "mlp": "exported"}  # fmt: skip


def test_activations_of_each(release, tmp_path, quick):
    given, tree = tmp_path / "given", tmp_path / "tree"
    for name in ("layer_2/res.npy", "mlp.npy"):
        (given / name).parent.mkdir(exist_ok=True, parents=True)
        np.save(given / name, normal(50, 6))
    entries = export_all(release, tree, activations=given)
    assert states(entries, tree) == {"layer_2/res": "exported", "layer_10/res": "failed", "mlp": "exported"}
    assert re.match(r"There are no activations for layer_10/res: expected .*res.npy or .*res.npz or", entries[1].error)
    assert [call["activations"].shape for call in quick] == [(50, 6), (50, 6)]
    np.save(given / "mlp.npy", normal(50, 6, seed=9))
    assert states(export_all(release, tree, activations=given, dry_run=True, overwrite=True), tree)["mlp"] == "planned"
    assert {entry.state for entry in export_all(release, tree / "one", activations=given / "mlp.npy")} == {"exported"}
    with pytest.raises(InputError, match="does not exist; activations must be a file, or a folder"):
        export_all(release, tree, activations=tmp_path / "nothing")


def test_a_dry_run_writes_nothing(release, tmp_path, capsys):
    assert main(["export-all", str(release), str(tmp_path / "tree"), "--dry-run"]) == 0
    assert re.search(
        r"\nlayer_2/res +planned\nlayer_10/res +planned\nmlp +planned\n\n3 planned\n", capsys.readouterr().out
    )
    assert not (tmp_path / "tree").exists()


def test_several_sources_and_one_checkpoint(release, tmp_path):
    tree = tmp_path / "tree"
    entries = export_all([release / "layer_2", release / "mlp.pt", release / "layer_10" / "res"], tree, dry_run=True)
    assert list(states(entries, tree)) == ["layer_2/res", "mlp", "res"]
    assert list(states(export_all(release / "layer_2" / "res" / "cfg.json", tree, dry_run=True), tree)) == ["res"]


def test_two_that_would_get_the_same_path(release, tmp_path):
    with pytest.raises(CheckpointError, match=r"layer_2/res and .*layer_10/res would both be exported to res\."):
        export_all([release / "layer_2" / "res", release / "layer_10" / "res"], tmp_path / "tree")


@pytest.mark.parametrize(
    ("source", "message"), [("nothing", "nothing does not exist"), ("empty", "holds no checkpoint")]
)
def test_nothing_to_export(tmp_path, source, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=message):
        export_all(tmp_path / source, tmp_path / "tree")


def test_what_a_killed_command_left_of_the_records_is_removed(release, tmp_path, quick):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / ".exports.json.01234567.saeexport-partial").write_text("{")
    export_all(release, tmp_path / "tree")
    assert sorted(entry.name for entry in (tmp_path / "tree").iterdir()) == [
        "exports.json", "layer_10", "layer_2", "mlp"]  # fmt: skip


def test_a_tree_inside_its_source(release, quick):
    tree = release / "exported"
    first = export_all(release, tree)
    assert len(first) == 3
    assert states(export_all(release, tree), tree) == dict.fromkeys(states(first, tree), "kept")


def test_a_misspelt_option(release, tmp_path):
    with pytest.raises(TypeError, match="hok_name"):
        export_all(release, tmp_path / "tree", hok_name="x")


def test_defaults_are_not_options_and_falsy_values_are():
    assert module._without_defaults({"index": None, "already_folded": False, "ignore_config": ()}) == {}
    assert module._without_defaults({"index": 0, "transcoder": False, "ignore_config": ("a",)}) == {
        "ignore_config": ["a"], "index": 0, "transcoder": False}  # fmt: skip


def test_one_sae_is_in_memory_at_a_time(release, tmp_path, quick, monkeypatch):
    alive, counts, original = [], [], module.load_for_export

    def watched(*args, **options):
        gc.collect()
        counts.append(sum(ref() is not None for ref in alive))
        sae = original(*args, **options)
        alive.append(weakref.ref(sae))
        return sae

    monkeypatch.setattr(module, "load_for_export", watched)
    export_all(release, tmp_path / "tree")
    assert counts == [0, 0, 0]


def test_a_release_on_the_hub(release, tmp_path, monkeypatch, capsys):
    tree = tmp_path / "tree"
    with HubServer() as hub:
        hub.connect(monkeypatch, tmp_path / "cache")
        commit = hub.add_folder("ada/release", release)
        assert main(["export-all", "hf://ada/release", str(tree), "--dry-run"]) == 0
        assert not hub.downloaded
        assert main(["export-all", "hf://ada/release", str(tree)]) == 0
        assert "layer_10/res" in capsys.readouterr().out
        source = read_artifact(tree / "layer_2" / "res").manifest.provenance["source"]
        assert source == f"hf://ada/release@{commit}/layer_2/res"
        hub.log.clear()
        assert {entry.state for entry in export_all(f"hf://ada/release@{commit}", tree)} == {"kept"}
        assert not hub.downloaded
        hub.repos["ada/release"].commit({**hub.repos["ada/release"].commits[commit], "README.md": b""})
        assert {entry.state for entry in export_all("hf://ada/release", tree, dry_run=True)} == {"failed"}

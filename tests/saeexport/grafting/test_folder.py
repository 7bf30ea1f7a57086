"""The folder of a grafted host: the same bytes every time, each weight once, whole or not at all."""

import shutil

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from runtime import verify
from runtime.hosts.names import DATA
from saeexport.grafting import graft as grafting
from saeexport.grafting.host import load_host
from saeexport.grafting.write import ALIGNMENT, move_weights
from tests.support.tiny_hosts import TinyHost

HOOK, OTHER = "blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"
HOST = TinyHost(cache=True)


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_host_and_saes_give_the_same_bytes(graft_into):
    first, second = (files(graft_into(HOST, HOOK, OTHER, out=out).folder) for out in ("first", "second"))
    assert set(first) == set(second)
    assert [name for name in first if first[name] != second[name]] == []


def test_every_sae_is_the_artifact_byte_for_byte(graft_into, tmp_path):
    folder = graft_into(HOST, HOOK, OTHER).folder
    for i, hook in enumerate((HOOK, OTHER)):
        assert files(folder / "saes" / hook) == files(tmp_path / "artifacts" / f"{hook}.{i}")
        verify(folder / "saes" / hook, "cpu").raise_for_failures()


def test_weights_are_stored_once_and_shared_by_the_graphs(graft_into):
    folder = graft_into(HOST, HOOK).folder
    places = {}
    for path in sorted(folder.glob("*.onnx")):
        for value in ir.load(path).graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                assert places.setdefault(value.name, (tensor.location, tensor.offset)) == (
                    tensor.location,
                    tensor.offset,
                )
                assert tensor.location in (DATA, f"saes/{HOOK}/weights.safetensors")
                assert tensor.location != DATA or tensor.offset % ALIGNMENT == 0
            else:
                assert tensor.nbytes <= 1024
    stored = {name: place for name, place in places.items() if place[0] == DATA}
    assert len(set(stored.values())) == len(stored)
    for name, (_, offset) in stored.items():
        expected = HOST.weights[name]
        found = np.fromfile(folder / DATA, expected.dtype, expected.size, offset=offset)
        np.testing.assert_array_equal(found.reshape(expected.shape), expected)


def test_graphs_have_no_trace_of_the_machine(tmp_path, sae_at):
    path = HOST.write(tmp_path / "host.onnx")
    model = onnx.load(path)
    for node in model.graph.node:
        node.doc_string = "/home/me/secret.py"
        node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="/home/me/secret.py")
    onnx.save(model, path)
    folder = grafting.graft(path, {f"{HOOK}@blocks/1/hook_resid_pre": sae_at(HOST, HOOK)}, tmp_path / "out", force=True)
    for name, content in files(folder.folder).items():
        assert b"secret" not in content, name
        assert str(tmp_path).encode() not in content, name


def test_the_folder_can_be_moved(graft_into, tmp_path):
    folder = graft_into(HOST, HOOK).folder
    shutil.move(folder, tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "artifacts")
    (tmp_path / "host.onnx").unlink()
    verify(tmp_path / "elsewhere", "cpu").raise_for_failures()


@pytest.mark.parametrize("name", ["move_weights", "prove", "verify_host"])
def test_nothing_is_left_if_it_is_interrupted(name, graft_into, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    whole = files(graft_into(HOST, HOOK).folder)
    monkeypatch.setattr(grafting, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        graft_into(HOST, HOOK, out="another/out")
    with pytest.raises(KeyboardInterrupt):
        graft_into(HOST, HOOK, overwrite=True)
    assert files(tmp_path / "out") == whole
    assert {path.name for path in tmp_path.iterdir()} == {"out", "artifacts", "host.onnx", "host.onnx.data"}


def test_a_full_disk_is_said(graft_into, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(grafting, "write_graph", full)
    with pytest.raises(grafting.GraftError, match="out was not written: .*No space left"):
        graft_into(HOST, HOOK)
    assert not (tmp_path / "out").exists()


def test_weights_are_copied_without_being_loaded(tmp_path, monkeypatch):
    """A host may be larger than the memory: its weights are never arrays."""
    host = load_host(HOST.write(tmp_path / "host.onnx", external=True))
    sound = ir.ExternalTensor._load

    def load_small(self):
        assert self.nbytes <= 1024, "a weight was read"
        sound(self)

    monkeypatch.setattr(ir.ExternalTensor, "_load", load_small)
    (tmp_path / "out").mkdir()
    move_weights(host.model, tmp_path / "out")
    written = (tmp_path / "out" / DATA).stat().st_size
    assert written > sum(array.nbytes for array in HOST.weights.values() if array.nbytes > 1024)


def test_an_initializer_of_a_subgraph_is_moved(tmp_path, graft_into, sae_at):
    """Its external data would otherwise stay in a file that is not copied."""
    path = HOST.write(tmp_path / "host.onnx")
    model = onnx.load(path)
    big = np.zeros((1, 1, 400), np.float32)
    branches = [
        onnx.helper.make_graph(
            [onnx.helper.make_node("ReduceSum", [f"big.{name}"], [f"zero.{name}"], keepdims=0)], name, [],
            [onnx.helper.make_tensor_value_info(f"zero.{name}", onnx.TensorProto.FLOAT, [])],
            [onnx.numpy_helper.from_array(big, f"big.{name}")],
        )
        for name in ("then", "else")
    ]  # fmt: skip
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "true"))
    model.graph.node[-1].output[0] = "logits.before"
    model.graph.node.append(onnx.helper.make_node("If", ["true"], ["chosen"], then_branch=branches[0],
                                                 else_branch=branches[1]))  # fmt: skip
    model.graph.node.append(onnx.helper.make_node("Add", ["logits.before", "chosen"], ["logits"]))
    onnx.save(model, path)
    folder = grafting.graft(path, {f"{HOOK}@blocks/1/hook_resid_pre": sae_at(HOST, HOOK)}, tmp_path / "out", force=True)
    path.unlink()
    verify(folder.folder, "cpu").raise_for_failures()
    assert (folder.folder / "tap.onnx").stat().st_size < 60_000

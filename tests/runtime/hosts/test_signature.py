"""A grafted host is signed as a whole: its graphs, its SAEs and their weights."""

import shutil

import pytest

from runtime import HostSession, IntegrityError, SignatureError, verify
from saeexport import sign
from tests.support.grafted import Z
from tests.support.keys import make_key


@pytest.fixture(scope="module")
def signed(grafted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("signed")
    private, public = make_key(folder)
    path = shutil.copytree(grafted.path, folder / "host")
    assert sign(path, private).path == path
    return path, private, public


def test_a_signed_host_opens_and_passes(signed):
    path, _, public = signed
    with HostSession(path, "cpu", public_key=public) as host:
        assert host("w1").logits.shape == (1, 1, 40)
    assert verify(path, "cpu", public_key=public).failures == []


@pytest.mark.parametrize(
    "name", ["host.json", "splice.onnx", f"saes/{Z}/weights.safetensors", f"saes/{Z}/golden.safetensors"]
)
def test_a_file_that_was_changed_after_the_signing_is_found(signed, tmp_path, name):
    path, private, public = signed
    copy = shutil.copytree(path, tmp_path / "copy")
    with (copy / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(SignatureError, match="is not what the owner of"):
        HostSession(copy, "cpu", public_key=public)
    (problem,) = verify(copy, "cpu", public_key=public).problems
    assert "is not what the owner of" in problem
    if name != "host.json":
        with pytest.raises(IntegrityError, match=name):
            sign(copy, private, overwrite=True)


def test_an_unsigned_host_is_refused(grafted, signed):
    with pytest.raises(SignatureError, match="is not signed"):
        HostSession(grafted.path, "cpu", public_key=signed[2])

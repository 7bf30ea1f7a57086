"""A signature covers every file of an artifact; whatever was changed after it, or by another hand, is refused."""

import copy
import os
import pickle
import re
import shutil
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

import runtime
import saeexport
from runtime import InputError, SAEError, SAESession, SignatureError
from runtime.artifact import signature
from runtime.artifact.signature import SIGNATURE, check_signature
from runtime.artifact.writing import PARTIAL
from runtime.commands.main import main as runtime_main
from saeexport import ExportError, sign
from saeexport.cli import main
from saeexport.staging import exchange
from tests.support.keys import make_certificate, make_key, private_bytes
from tests.support.samples import ROOT, TINY, contents, make_sae, normal


@pytest.fixture
def keys(tmp_path):
    return make_key(tmp_path)


@pytest.fixture
def signed(artifact, keys):
    sign(artifact, keys[0])
    return artifact


def test_a_signed_artifact_is_accepted(signed, keys):
    assert (signed / SIGNATURE).exists()
    check_signature(signed, keys[1])
    with SAESession(signed, "cpu", public_key=keys[1]) as session:
        assert session(normal(2, 6)).shape == (2, 6)
    assert not runtime.verify(signed, "cpu", public_key=keys[1]).failures
    assert not runtime.verify(signed, "cpu").failures  # a signature is not in the way of those who do not ask


def test_an_artifact_without_a_signature_is_accepted_unless_it_is_asked_for(artifact, keys):
    SAESession(artifact, "cpu").close()
    with pytest.raises(SignatureError, match=r"tiny is not signed: it has no model\.sig"):
        SAESession(artifact, "cpu", public_key=keys[1])


def change(folder):
    (folder / "weights.safetensors").write_bytes(b"!" + (folder / "weights.safetensors").read_bytes()[1:])


def change_manifest(folder):
    (folder / "sae.json").write_text((folder / "sae.json").read_text() + " ")


def add_folder(folder):
    (folder / "more").mkdir()
    (folder / "more" / "file").write_text("new")


def link_to_another(folder):
    (folder / "golden.safetensors").unlink()
    (folder / "golden.safetensors").symlink_to(TINY / "weights.safetensors")


def link_to_a_folder(folder):
    (folder / "more").symlink_to(TINY, target_is_directory=True)


def link_to_a_folder_below(folder):
    (folder / "below").mkdir()
    link_to_a_folder(folder / "below")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change, "Hash mismatch for .{1,3}weights.safetensors"),
        (change_manifest, "Hash mismatch for .{1,3}sae.json"),
        (lambda folder: (folder / "README.md").write_text("new"), "Extra files .*README.md"),
        (lambda folder: (folder / ".gitattributes").write_text("* -text"), "Extra files .*.gitattributes"),
        (add_folder, "Extra files .*more/file"),
        (lambda folder: (folder / "acts.onnx").unlink(), "Missing files .*acts.onnx"),
        (link_to_another, "Hash mismatch for .{1,3}golden.safetensors"),
        (link_to_a_folder, "tiny has more, which a signature does not cover"),
        (link_to_a_folder_below, "tiny/below has more, which a signature does not cover"),
        (lambda folder: os.mkfifo(folder / "fifo"), "tiny has fifo, which a signature does not cover"),
        (lambda folder: (folder / "zeros").symlink_to("/dev/zero"), "tiny has zeros, which a signature does not cover"),
        (lambda folder: (folder / "loop").symlink_to("loop"), "tiny has loop, which a signature does not cover"),
        (lambda folder: (folder / SIGNATURE).write_text(""), "model.sig is damaged"),
        (lambda folder: (folder / SIGNATURE).write_text("[" * 100_000), "model.sig is damaged"),
        (lambda folder: (folder / SIGNATURE).write_text("{}"), "model.sig is damaged"),
        (lambda folder: (folder / SIGNATURE).write_bytes(b"\xff"), "model.sig is damaged"),
        (lambda folder: (folder / SIGNATURE).unlink(), "is not signed"),
    ],
)  # fmt: skip
def test_whatever_was_changed_after_the_signing_is_refused(signed, keys, spoil, message):
    spoil(signed)
    with pytest.raises(SignatureError, match=message):
        check_signature(signed, keys[1])


@pytest.mark.parametrize("place", ["payload", "sig"])
def test_a_changed_signature_is_refused(signed, keys, place):
    text = (signed / SIGNATURE).read_text()
    start = text.index(f'"{place}":"') + len(place) + 40
    (signed / SIGNATURE).write_text(text[:start] + ("A" if text[start] != "A" else "B") + text[start + 1 :])
    with pytest.raises(SignatureError, match="was made with another key, or was changed"):
        check_signature(signed, keys[1])


def test_another_key_is_refused(signed, tmp_path):
    with pytest.raises(SignatureError, match="Key mismatch"):
        check_signature(signed, make_key(tmp_path, "other")[1])


def test_a_claim_to_be_signed_by_a_key_does_not_suffice(signed, keys, tmp_path):
    """The signature names its key by a hash, which anyone can write into a signature of their own."""
    private, _ = make_key(tmp_path, "other")
    theirs = (signed / SIGNATURE).read_text().split('"hint":"')[1][:64]
    sign(signed, private, overwrite=True)
    text = (signed / SIGNATURE).read_text()
    (signed / SIGNATURE).write_text(text.replace(text.split('"hint":"')[1][:64], theirs))
    with pytest.raises(SignatureError, match="was made with another key, or was changed"):
        check_signature(signed, keys[1])


def test_the_signature_of_another_artifact_is_refused(signed, keys, tmp_path):
    other = saeexport.export(make_sae(seed=3), tmp_path / "other", normal(40, 6)).path
    shutil.copy(signed / SIGNATURE, other / SIGNATURE)
    with pytest.raises(SignatureError, match="Hash mismatch"):
        check_signature(other, keys[1])


def test_a_signature_cannot_leave_files_out(artifact, keys):
    """The list of files to ignore that the signature itself carries is not followed."""
    from model_signing import hashing, signing

    (artifact / "more").write_text("left out")
    covered = hashing.Config().set_ignored_paths(paths=["more"])
    config = signing.Config().set_hashing_config(covered).use_elliptic_key_signer(private_key=keys[0])
    config.sign(artifact, artifact / SIGNATURE)
    with pytest.raises(SignatureError, match="Extra files .*more"):
        check_signature(artifact, keys[1])


def test_a_signature_of_the_librarys_own_defaults_is_accepted(artifact, keys):
    from model_signing import signing

    signing.Config().use_elliptic_key_signer(private_key=keys[0]).sign(artifact, artifact / SIGNATURE)
    check_signature(artifact, keys[1])


def test_files_that_are_links_are_read_through_them(signed, keys, tmp_path):
    """As in the cache of the Hugging Face Hub: every file of a snapshot is a link to a blob."""
    (tmp_path / "snapshot").mkdir()
    for file in signed.iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    check_signature(tmp_path / "snapshot", keys[1])


def test_nothing_is_read_before_the_signature_is_checked(artifact, keys, monkeypatch):
    (artifact / "sae.json").write_text("not JSON")
    for module in ("runtime.artifact.held", "runtime.parity.verify"):
        monkeypatch.setattr(f"{module}.read_artifact", lambda *arguments: pytest.fail("the manifest was read"))
    with pytest.raises(SignatureError):
        SAESession(artifact, "cpu", public_key=keys[1])
    for one in (runtime.verify, saeexport.verify):
        assert "is not signed" in one(artifact, device="cpu", public_key=keys[1]).failures[0]


def test_an_artifact_that_takes_its_place_after_the_check_is_refused(signed, keys, tmp_path, monkeypatch):
    """Whoever can write to the folder could exchange it between the check and the reading of the manifest."""
    other = saeexport.export(make_sae(seed=3), tmp_path / "other", normal(40, 6)).path

    def check_and_exchange(path, key, check=check_signature):
        found = check(path, key)
        exchange(signed, other)
        return found

    monkeypatch.setattr(signature, "check_signature", check_and_exchange)
    with pytest.raises(
        SignatureError, match=r"was replaced while its signature was checked: the sha256 of sae\.json is"
    ):
        SAESession(signed, "cpu", public_key=keys[1])
    exchange(signed, other)
    assert "was replaced while" in runtime.verify(signed, "cpu", public_key=keys[1]).failures[0]


@pytest.mark.parametrize("one", [runtime.verify, saeexport.verify])
def test_an_artifact_that_takes_its_place_during_a_verification_is_refused(artifact, tmp_path, monkeypatch, one):
    other = saeexport.export(make_sae(seed=3), tmp_path / "other", normal(40, 6)).path

    def open_another(*arguments, opened=SAESession, **options):
        exchange(artifact, other)
        return opened(*arguments, **options)

    monkeypatch.setattr("runtime.parity.verify.SAESession", open_another)
    with pytest.raises(runtime.IntegrityError, match="was replaced while it was verified. Verify it again"):
        one(artifact, device="cpu")


def test_a_signature_needs_the_checks_of_the_files(signed, keys):
    with pytest.raises(InputError, match="check_integrity is False: the files that are loaded would not be compared"):
        SAESession(signed, "cpu", public_key=keys[1], check_integrity=False)


@pytest.mark.parametrize("make", [copy.deepcopy, lambda session: pickle.loads(pickle.dumps(session))])
def test_a_copy_of_a_session_asks_for_the_same_signature(signed, keys, monkeypatch, make):
    monkeypatch.chdir(keys[1].parent)
    with SAESession(signed, "cpu", public_key=keys[1].name) as session:
        monkeypatch.chdir("/")
        make(session).close()
        (signed / "README.md").write_text("new")
        with pytest.raises(SignatureError, match=r"Extra files .*README\.md"):
            make(session)


def test_both_verify_commands_ask_for_a_signature(signed, keys, tmp_path, capsys):
    other = make_key(tmp_path, "other")[1]
    for command in (runtime_main, main):
        assert command(["verify", str(signed), "--device", "cpu", "--public-key", str(keys[1])]) == 0
        assert command(["verify", str(signed), "--device", "cpu", "--public-key", str(other)]) == 1
        assert re.search("^FAIL: .*Key mismatch", capsys.readouterr().out, re.MULTILINE)
        assert command(["verify", str(signed), "--device", "cpu", "--certificate", str(tmp_path / "no.crt")]) == 2
        assert "cannot be read as a public key or a certificate" in capsys.readouterr().err


def test_a_path_that_is_none_is_an_error_of_ours(signed, keys):
    for wrong in ("\0", 7):
        with pytest.raises(InputError, match="must be the path of a file or folder"):
            SAESession(signed, "cpu", public_key=wrong)
        with pytest.raises(InputError, match="must be the path of a file or folder"):
            SAESession(wrong, "cpu", public_key=keys[1])


def test_certificates(artifact, tmp_path):
    authority = make_certificate(tmp_path, "authority")
    private, certificate, *_ = make_certificate(tmp_path, "signer", authority)
    sign(artifact, private, certificate)
    check_signature(artifact, authority[1])
    for other in (make_certificate(tmp_path, "other")[1], make_key(tmp_path)[1]):
        with pytest.raises(SignatureError, match="is not what the owner of"):
            check_signature(artifact, other)
    change(artifact)
    with pytest.raises(SignatureError, match="Hash mismatch"):
        check_signature(artifact, authority[1])


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_every_curve(artifact, tmp_path, curve):
    private, public = make_key(tmp_path, curve=curve)
    sign(artifact, private)
    check_signature(artifact, public)


@pytest.mark.parametrize("content", [None, b"no key", b"-----BEGIN CERTIFICATE-----\nno\n", b"private", b"rsa"])
def test_a_key_that_cannot_be_used_is_not_a_bad_signature(signed, keys, tmp_path, content):
    wrong = tmp_path / "wrong.pem"
    if content is not None:
        wrong.write_bytes({b"private": keys[0].read_bytes(), b"rsa": rsa_key()}.get(content, content))
    with pytest.raises(InputError, match=r"wrong\.pem cannot be read as a public key or a certificate"):
        check_signature(signed, wrong)


def rsa_key():
    from cryptography.hazmat.primitives import serialization

    key = rsa.generate_private_key(65537, 2048).public_key()
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def test_signing_refuses(artifact, keys, tmp_path):
    with pytest.raises(ExportError, match=r"nothing\.pem cannot be used"):
        sign(artifact, tmp_path / "nothing.pem")
    with pytest.raises(ExportError, match=r"key\.pub cannot be used"):
        sign(artifact, keys[1])
    (tmp_path / "secret.pem").write_bytes(private_bytes(ec.generate_private_key(ec.SECP256R1()), b"password"))
    with pytest.raises(ExportError, match="without a password"):
        sign(artifact, tmp_path / "secret.pem")
    with pytest.raises(ExportError, match="does not match"):
        sign(artifact, keys[0], make_certificate(tmp_path, "signer")[1])
    assert not (artifact / SIGNATURE).exists()
    change(artifact)
    with pytest.raises(runtime.IntegrityError):
        sign(artifact, keys[0])


def test_a_signature_is_replaced_when_asked(signed, keys, tmp_path):
    before = contents(signed)
    private, public = make_key(tmp_path, "other")
    with pytest.raises(ExportError, match="is signed already"):
        sign(signed, private)
    assert contents(signed) == before
    (signed / f".{SIGNATURE}.01234567{PARTIAL}").write_text("of a signing that was killed")
    sign(signed, private, overwrite=True)
    check_signature(signed, public)
    assert contents(signed).keys() == before.keys()


def test_what_a_killed_signing_left_is_not_in_the_way_of_an_export(signed):
    (signed / f".{SIGNATURE}.01234567{PARTIAL}").write_text("of a signing that was killed")
    assert main(["export", str(TINY), str(signed), "--overwrite"]) == 0
    assert contents(signed).keys() == contents(TINY).keys()


def test_a_signature_that_is_a_link_is_replaced_and_not_what_it_leads_to(signed, keys, tmp_path):
    """In the cache of the Hub, model.sig is a link to a blob whose name is its sha256."""
    (signed / SIGNATURE).rename(tmp_path / "blob")
    (signed / SIGNATURE).symlink_to(tmp_path / "blob")
    before = (tmp_path / "blob").read_bytes()
    private, public = make_key(tmp_path, "other")
    sign(signed, private, overwrite=True)
    check_signature(signed, public)
    assert (tmp_path / "blob").read_bytes() == before


def test_what_a_signature_does_not_cover_is_not_signed(artifact, keys):
    os.mkfifo(artifact / "fifo")
    with pytest.raises(SignatureError, match="tiny has fifo, which a signature does not cover"):
        sign(artifact, keys[0])


def test_an_export_replaces_a_signed_artifact_and_says_that_the_signature_is_gone(signed, keys, capsys):
    command = ["export", str(TINY), str(signed), "--overwrite"]
    assert main(command) == 0
    assert not (signed / SIGNATURE).exists()
    assert "the replaced artifact was signed, this one is not: saeexport sign" in capsys.readouterr().out
    assert main(command) == 0
    assert "signed" not in capsys.readouterr().out


def test_without_the_library_the_error_names_the_extra(artifact, keys, monkeypatch):
    for missing in ("model_signing", "OpenSSL"):
        with monkeypatch.context() as patch:
            for name in [name for name in sys.modules if name.split(".")[0] == "model_signing"]:
                patch.delitem(sys.modules, name)
            patch.setitem(sys.modules, missing, None)
            for ask in (lambda: check_signature(artifact, keys[1]), lambda: sign(artifact, keys[0])):
                with pytest.raises(SAEError, match=rf'{missing} is not installed: pip install "saeexport\[signing\]"'):
                    ask()


def test_the_runtime_does_not_import_the_library():
    code = "import runtime, sys; print({'model_signing', 'cryptography', 'OpenSSL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "set()\n"
    assert signature.SIGNATURE == "model.sig"

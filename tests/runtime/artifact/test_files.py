"""Files are opened once, and only ordinary files of the size in the manifest are read."""

import hashlib
import os
import shutil
import socket
import threading

import numpy as np
import pytest

from runtime import ArtifactError, IntegrityError, ManifestError, SAESession, read_artifact, verify
from runtime.artifact import files, folder, held, strict_json
from runtime.artifact.files import OpenedFile, hash_file, open_file
from runtime.artifact.manifest import FileRecord
from saeexport import export
from tests.support.samples import TINY, make_sae, normal

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def path(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    return tmp_path / "file"


@pytest.fixture
def in_time():
    """Fail, instead of waiting for ever, if a file is opened or read that never ends."""
    done = threading.Event()
    timer = threading.Timer(20, lambda: done.is_set() or os._exit(99))
    timer.daemon = True
    timer.start()
    yield
    done.set()
    timer.cancel()


def record(content=CONTENT):
    return FileRecord(hashlib.sha256(content).hexdigest(), len(content))


def as_fifo(path):
    os.mkfifo(path)


def as_socket(path):
    with socket.socket(socket.AF_UNIX) as bound:
        before = os.getcwd()
        os.chdir(path.parent)  # the path of a socket has at most 107 bytes
        bound.bind(path.name)
        os.chdir(before)


UNUSUAL = {
    "fifo": (as_fifo, "is a FIFO; an artifact consists of ordinary files"),
    "link to a fifo": (lambda path: (as_fifo(path.with_name("f")), path.symlink_to("f")), "is a FIFO"),
    "folder": (lambda path: path.mkdir(), "is a folder; an artifact consists of ordinary files"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device; an artifact consists of ordinary files"),
    "socket": (as_socket, "cannot be opened: .*No such device or address"),
    "link to itself": (
        lambda path: path.symlink_to(path.name),
        "cannot be opened: its symbolic links lead in a circle",
    ),
    "link to nothing": (lambda path: path.symlink_to("nothing"), "is missing. Copy the whole folder again"),
    "nothing": (lambda path: None, "is missing. Copy the whole folder again"),
}


@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.parametrize("name", ["weights.safetensors", "golden.safetensors", "model.sparse.onnx"])
def test_a_file_that_is_not_ordinary_is_refused(artifact, kind, name, in_time):
    make, message = UNUSUAL[kind]
    (artifact / name).unlink()
    make(artifact / name)
    with pytest.raises(IntegrityError, match=f"{name} {message}"):
        read_artifact(artifact).file(name)
    assert any(f"{name} " in problem for problem in verify(artifact, "cpu").problems)
    if name != "golden.safetensors":
        with pytest.raises(IntegrityError, match=f"{name} {message}"):
            SAESession(artifact, "cpu")


@pytest.mark.parametrize("kind", sorted(set(UNUSUAL) - {"nothing"}))
def test_a_manifest_that_is_not_an_ordinary_file_is_refused(artifact, kind, in_time):
    make, message = UNUSUAL[kind]
    (artifact / "sae.json").unlink()
    make(artifact / "sae.json")
    with pytest.raises(ArtifactError, match=f"sae.json {message}"):
        read_artifact(artifact)


def test_a_large_manifest_is_not_read(artifact):
    os.truncate(artifact / "sae.json", strict_json.MAX_BYTES + 1)
    with pytest.raises(ManifestError, match="sae.json has more than 1,048,576 bytes"):
        read_artifact(artifact)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 300])
def test_a_name_that_no_file_can_have_is_an_error(tmp_path, name):
    with pytest.raises(IntegrityError, match="cannot be opened"):
        open_file(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(path):
    path.chmod(0)
    with pytest.raises(IntegrityError, match="Permission denied"):
        open_file(path)


def test_the_reason_of_the_system_is_told(path, monkeypatch):
    def refused(*args):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files.os, "open", refused)
    with pytest.raises(IntegrityError, match="cannot be opened: .*Permission denied.*Check its permissions"):
        open_file(path)


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    def refused(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folder.Path, "iterdir", refused)
    with pytest.raises(ArtifactError, match="is not an artifact, a folder with sae.json: it cannot be read"):
        read_artifact(tmp_path)


@pytest.mark.parametrize("more", [-1, 1])
def test_another_size_is_refused_before_anything_is_read(path, more, monkeypatch):
    monkeypatch.setattr(OpenedFile, "_chunks", lambda self: pytest.fail("it was read"))
    expected = FileRecord(record().sha256, len(CONTENT) + more)
    with pytest.raises(IntegrityError, match=f"has {len(CONTENT)} bytes, sae.json says {len(CONTENT) + more}"):
        open_file(path, expected)


def test_what_is_opened_is_read_checked_and_mapped(path):
    with open_file(path, record()) as file:
        file.check()
        assert file.read(check=True) == CONTENT == file.map().tobytes()
        assert not file.map().flags.writeable
        assert hash_file(path) == record()


def test_an_empty_file(path):
    path.write_bytes(b"")
    with open_file(path, record(b"")) as file:
        file.check()
        assert file.read() == b""
        assert file.map().size == 0


def test_another_content_is_refused(path):
    with open_file(path, FileRecord(record(b"other").sha256, len(CONTENT))) as file:
        for look in (file.check, lambda: file.read(check=True)):
            with pytest.raises(IntegrityError, match="it was changed after the export"):
                look()


def append(path):
    with path.open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize("read", [OpenedFile.read, OpenedFile.sha256, OpenedFile.check])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: os.truncate(path, 100), "became shorter while it was read"),
        (append, "became longer while it was read. Wait until it is complete"),
    ],
    ids=["shorter", "longer"],
)
def test_a_size_that_changes_after_the_file_was_opened(path, read, change, message):
    with open_file(path, record()) as file:
        change(path)
        with pytest.raises(IntegrityError, match=message):
            read(file)


def test_a_file_that_grows_for_ever_ends_the_reading(path, monkeypatch, in_time):
    read = os.read

    def growing(descriptor, size):
        with path.open("ab") as file:
            file.write(CONTENT)
        return read(descriptor, size)

    monkeypatch.setattr(files.os, "read", growing)
    with open_file(path) as file, pytest.raises(IntegrityError, match="became longer"):
        file.read()


def test_a_content_that_is_overwritten_in_place(path):
    with open_file(path, record()) as file:
        file.check()
        file.check_unchanged()
        with path.open("r+b") as writer:
            writer.write(b"x")
        os.utime(path, (1, 1))
        with pytest.raises(IntegrityError, match="was changed while it was in use"):
            file.check_unchanged()


def test_the_handle_is_read_and_not_the_path(path):
    with open_file(path, record()) as file:
        path.write_bytes(b"")  # the same file
        path.unlink()
        path.write_bytes(b"another file")
        with pytest.raises(IntegrityError, match="shorter"):
            file.read()
    path.write_bytes(CONTENT)
    with open_file(path, record()) as file:
        path.unlink()
        path.write_bytes(b"another file")
        file.check()
        assert file.read(check=True) == CONTENT


def test_the_memory_of_a_mapping_is_read_again(path):
    with open_file(path) as file:
        array = file.map()
        assert array.sum() == sum(CONTENT)
        file.forget_pages()
        assert array.tobytes() == CONTENT


def test_arrays_outlive_the_file(path):
    with open_file(path) as file:
        array = file.map()
    file.close()
    assert array.tobytes() == CONTENT


def descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="only Linux lists the descriptors of a process")
def test_descriptors_are_given_back(artifact):
    before = descriptors()
    file = open_file(artifact / "sae.json")
    assert descriptors() == before + 1
    del file
    assert descriptors() == before
    for _ in range(3):
        with pytest.raises(IntegrityError):
            open_file(artifact)
    with SAESession(artifact, "cpu") as session:
        session(normal(6))
        assert descriptors() <= before + 2  # the weights, and their mapping
    assert descriptors() == before
    session = SAESession(artifact, "cpu")
    del session
    (artifact / "weights.safetensors").unlink()
    with pytest.raises(IntegrityError):
        SAESession(artifact, "cpu")
    assert descriptors() == before


def test_a_file_is_hashed_again_only_if_it_changed(artifact, monkeypatch):
    opened, hashed, sha256 = read_artifact(artifact), [], OpenedFile.sha256
    monkeypatch.setattr(OpenedFile, "sha256", lambda self: hashed.append(self.path.name) or sha256(self))
    for _ in range(2):
        opened.file("decode.onnx")
    assert hashed == ["decode.onnx"]
    data = (artifact / "decode.onnx").read_bytes()
    (artifact / "decode.onnx").write_bytes(data[:-1] + b"\0")
    with pytest.raises(IntegrityError, match="it was changed after the export"):
        opened.file("decode.onnx")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_cache_of_the_hugging_face_hub_consists_of_links(tmp_path, device, machine):
    snapshot, blobs = tmp_path / "snapshots" / "1234", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in TINY.iterdir():
        if file.is_file():
            blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
            shutil.copy(file, blob)
            (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    with SAESession(snapshot, device) as session, SAESession(TINY, "cpu") as other:
        np.testing.assert_array_equal(session(normal(6)), other(normal(6)))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_weights_alone_may_be_a_link(artifact, tmp_path, device, machine):
    (artifact / "weights.safetensors").rename(tmp_path / "weights")
    (artifact / "weights.safetensors").symlink_to(tmp_path / "weights")
    with SAESession(artifact, device) as session, SAESession(TINY, "cpu") as other:
        np.testing.assert_array_equal(session(normal(6)), other(normal(6)))


def test_a_large_graph_is_not_read(artifact, monkeypatch):
    monkeypatch.setattr(held, "LARGEST_GRAPH", 100)
    with pytest.raises(
        IntegrityError, match=r"model.onnx has [\d,]+ bytes according to sae.json; a graph has at most 100"
    ):
        SAESession(artifact, "cpu")


def test_an_artifact_that_is_replaced_while_it_is_opened_is_opened_again(artifact, tmp_path, monkeypatch):
    other = export(make_sae(seed=5), tmp_path / "other", normal(40, 6)).path
    opened, replaced = folder.Artifact.open, []

    def open_late(self, name):
        if name == "weights.safetensors" and not replaced:
            artifact.rename(tmp_path / "old")
            other.rename(artifact)
            replaced.append(self.sha256)
        return opened(self, name)

    monkeypatch.setattr(folder.Artifact, "open", open_late)
    got, held_files = held.open_artifact(artifact)
    assert replaced != [got.sha256]
    assert got.sha256 == read_artifact(artifact).sha256
    assert held_files.weights.sha256() == got.manifest.files["weights.safetensors"].sha256
    held_files.close()


def test_an_artifact_that_is_always_replaced_is_an_error(artifact, monkeypatch):
    monkeypatch.setattr(folder.Artifact, "is_current", lambda self: False)
    with pytest.raises(IntegrityError, match="is being replaced again and again"):
        SAESession(artifact, "cpu")


def test_a_file_is_mapped_while_it_is_hashed(path, in_time, monkeypatch):
    with open_file(path) as file:
        mapped, chunks = threading.Event(), OpenedFile._chunks

        def wait_and_read(self):
            assert mapped.wait(10)
            yield from chunks(self)

        monkeypatch.setattr(OpenedFile, "_chunks", wait_and_read)
        digests = []
        hashing = threading.Thread(target=lambda: digests.append(file.sha256()))
        hashing.start()
        assert bytes(file.map()) == CONTENT
        mapped.set()
        hashing.join()
        assert digests == [record().sha256]

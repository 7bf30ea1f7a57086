"""Zip archives: checksums are checked, and what they declare is bounded before anything is inflated."""

import io
import os
import time
import zipfile

import numpy as np
import pytest
import torch

from saeexport import CheckpointError, load
from saeexport.checkpoints import archives
from saeexport.checkpoints.files import read_json, read_tensors
from saeexport.checkpoints.pickled import read_pickle
from tests.support.equations import draw


@pytest.mark.parametrize("read", [read_tensors, read_pickle])
def test_a_flipped_bit_in_a_pt_file(tmp_path, read):
    path = tmp_path / "sae.pt"
    torch.save({"W_enc": torch.ones(5, 9), "b_enc": torch.full((9,), 2.0)}, path)
    read(path)
    data = bytearray(path.read_bytes())
    data[data.index(np.full(9, 2, np.float32).tobytes()) + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"cannot be read.*: sae/data/1 does not match its checksum; copy"):
        read(path)


def test_a_compressed_pt_file(tmp_path):
    torch.save({"W_enc": torch.ones(5, 9)}, tmp_path / "sae.pt")
    with zipfile.ZipFile(tmp_path / "sae.pt") as saved, zipfile.ZipFile(tmp_path / "other.pt", "w", 8) as other:
        for member in saved.infolist():
            other.writestr(member.filename, saved.read(member))
    with pytest.raises(CheckpointError, match=r"is compressed, which torch.save does not do"):
        read_tensors(tmp_path / "other.pt")


def npy(shape, data):
    """Return a `.npy` whose header declares `shape`."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue() + data


def archive(path, compression, **members):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return path


def test_a_small_file_that_inflates_to_a_gibibyte(tmp_path, monkeypatch):
    path = tmp_path / "params.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("W_enc.npy", "w") as member:
        member.write(npy((1 << 14, 1 << 14), b""))
        for _ in range(64):
            member.write(bytes(16 << 20))
    assert path.stat().st_size < 2 << 20
    monkeypatch.setattr(zipfile.ZipFile, "testzip", None)  # it would inflate all of it
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match="its members have 1,073,741,.* bytes, more than 16 times"):
        load(tmp_path)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("shape", [(1 << 40, 6), (2, 6), (1 << 62, 1 << 62)])
def test_a_shape_that_does_not_fit_its_bytes(tmp_path, compression, shape):
    path = archive(tmp_path / "params.npz", compression, W_enc=npy(shape, bytes(24)))
    with pytest.raises(CheckpointError, match=r"W_enc.npy has the shape .* it has 24"):
        load(path)


def test_a_compressed_archive_of_ordinary_weights(tmp_path):
    np.savez_compressed(tmp_path / "params.npz", **draw("jumprelu"))
    assert load(tmp_path).W_enc.shape == (6, 16)
    assert archives.MOST_INFLATED >= 16


def test_a_pipe_is_not_waited_for(tmp_path):
    for name in ("cfg.json", "sae.pt", "params.npz"):
        os.mkfifo(tmp_path / name)
    for read, name in ((read_json, "cfg.json"), (read_tensors, "params.npz"), (read_pickle, "sae.pt")):
        with pytest.raises(CheckpointError, match=f"{name} is not an ordinary file"):
            read(tmp_path / name)
    with pytest.raises(
        CheckpointError, match="sae.pt is not an ordinary file. `saeexport formats` lists what can be loaded"
    ):
        load(tmp_path / "sae.pt")

"""W_enc, b_enc, W_dec and b_dec: the parameters of the original, mapped from the file."""

import mmap

import numpy as np
import pytest

from runtime import IntegrityError, SAESession
from saeexport import export
from tests.support.samples import TINY, make_sae, normal
from tests.support.zoo import sae_of

NAMES = ["W_enc", "b_enc", "W_dec", "b_dec"]


def test_they_are_the_parameters_of_the_original(exported):
    sae, path = exported
    with SAESession(path, "cpu") as session:
        for name in NAMES:
            array, expected = getattr(session, name), getattr(sae, name).detach().numpy()
            assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
            np.testing.assert_array_equal(array, expected)


def test_a_row_of_the_decoder_is_the_direction_of_a_feature(session):
    x = normal(3, 6)
    acts = session.encode(x)
    more = acts.copy()
    more[:, 5] += 2
    np.testing.assert_allclose(session.decode(more) - session.decode(acts), 2 * np.tile(session.W_dec[5], (3, 1)),
                               atol=1e-5)  # fmt: skip


def test_they_are_read_only_and_mapped(session):
    for name in NAMES:
        array = getattr(session, name)
        assert type(array) is np.ndarray
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
        base = array
        while isinstance(base, (np.ndarray, memoryview)):
            base = base.base if isinstance(base, np.ndarray) else base.obj
        assert isinstance(base, mmap.mmap)
        with pytest.raises(AttributeError):
            setattr(session, name, array)


def test_they_outlive_the_session():
    with SAESession(TINY, "cpu") as session:
        direction = session.W_dec[3]
    assert np.isfinite(direction).all()


def test_nothing_is_run_for_them(session):
    assert session.W_dec.shape == (16, 6)
    assert not session._graphs.loaded


def test_a_gated_sae_does_not_have_the_encoders_bias(tmp_path):
    export(sae_of("gated"), tmp_path / "gated")
    with SAESession(tmp_path / "gated", "cpu") as session:
        message = "This gated SAE does not have the parameter b_enc; it has W_dec, W_enc, b_dec, b_gate, b_mag, r_mag."
        with pytest.raises(AttributeError, match=message):
            session.b_enc  # noqa: B018
        assert not hasattr(session, "b_enc")
        assert session.W_dec.shape == (48, 10)


def test_a_transcoders_decoder_has_another_width(tmp_path):
    export(sae_of("transcoder"), tmp_path / "transcoder")
    with SAESession(tmp_path / "transcoder", "cpu") as session:
        assert (session.W_dec.shape, session.b_dec.shape) == ((48, 7), (7,))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_in_half_precision(tmp_path, dtype):
    import ml_dtypes

    sae = make_sae()
    path = export(sae, tmp_path / "sae", normal(40, 6), dtype=dtype).path
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    with SAESession(path, "cpu") as session:
        assert session.W_dec.dtype == kind
        np.testing.assert_array_equal(session.W_dec, sae.W_dec.detach().numpy().astype(kind))


def test_matrices_in_int8_are_not_available(tmp_path):
    sae = make_sae(d_in=64, d_sae=64)
    path = export(sae, tmp_path / "sae", normal(40, 64), weights="int8").path
    with SAESession(path, "cpu") as session:
        with pytest.raises(AttributeError, match=r"W_dec is stored as int8 \(.*\); take it from the float32 artifact"):
            session.W_dec  # noqa: B018
        np.testing.assert_array_equal(session.b_dec, sae.b_dec.detach().numpy())


def test_a_file_that_was_changed_is_refused(artifact):
    weights = artifact / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with SAESession(artifact, "cpu") as session, pytest.raises(IntegrityError, match="it was changed after the export"):
        session.W_dec  # noqa: B018
    with SAESession(artifact, "cpu", check_integrity=False) as session:
        assert session.W_dec.shape == (16, 6)

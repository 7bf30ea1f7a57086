"""An artifact in which a file was changed is used with the right numbers or refused, and never makes a reader wait."""

import os
import random
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import SAEError, SAESession, verify
from tests.support import mutations
from tests.support.fuzzing import fuzz
from tests.support.mutations import mutate_folder
from tests.support.samples import HOOKS, TINY, normal
from tests.support.waiting import TooLong, within

X = normal(5, 6)


@pytest.fixture(scope="module")
def right():
    with SAESession(TINY, "cpu") as session:
        return session.compute(X, HOOKS)


def use(path):
    """Use every file of an artifact, and return the hooks of `X`."""
    with SAESession(path, "cpu") as session:
        hooks = session.compute(X, HOOKS)
        session.top_features(X, 3)
        session.decode(hooks["hook_sae_acts_post"])
        assert session.W_dec.shape == (session.cfg.d_sae, session.cfg.d_in)
    verify(path, "cpu").raise_for_failures()
    return hooks


@fuzz(60)
@given(rng=st.randoms(use_true_random=False))
def test_a_changed_file_is_noticed_or_does_no_harm(right, rng):
    with tempfile.TemporaryDirectory() as folder:
        path = shutil.copytree(TINY, Path(folder) / "sae")
        mutate_folder(path, rng)
        try:
            with within(20):
                hooks = use(path)
        except SAEError:
            return
        for name, tensor in right.items():
            np.testing.assert_array_equal(hooks[name], tensor)


@fuzz(60)
@given(rng=st.randoms(use_true_random=False))
def test_a_file_that_was_changed_with_its_checksum_is_used_or_refused(rng):
    with tempfile.TemporaryDirectory() as folder:
        path = shutil.copytree(TINY, Path(folder) / "sae")
        mutate_folder(path, rng, recorded=True)
        try:
            with within(20):
                use(path)
        except SAEError:
            pass


@pytest.mark.parametrize("way", [*mutations.BYTES[1:], *mutations.KINDS])
def test_every_way_is_tried_on_every_kind_of_file(artifact, way):
    """What hypothesis may not draw in a short run."""
    rng = random.Random(0)
    for name in ("sae.json", "weights.safetensors", "golden.safetensors", "model.sparse.onnx"):
        shutil.rmtree(artifact)
        shutil.copytree(TINY, artifact)
        way(artifact / name, rng)
        try:
            with within(20):
                use(artifact)
        except SAEError:
            pass


def test_a_reader_that_waits_is_noticed(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(TooLong), within(0.1):
        (tmp_path / "fifo").read_bytes()

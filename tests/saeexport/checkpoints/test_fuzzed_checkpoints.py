"""A checkpoint in which a file was changed is loaded or refused with an error of the project, whatever the change."""

import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime import SAEError
from saeexport import load
from saeexport.checkpoints.registry import FORMATS, recognise
from tests.support import checkpoints
from tests.support.fuzzing import fuzz
from tests.support.mutations import mutate_folder
from tests.support.waiting import within


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with a checkpoint of every format, and the path of each; not to be changed."""
    root = tmp_path_factory.mktemp("written") / "checkpoints"
    return root, checkpoints.write_checkpoints(root)


def test_every_format_has_a_checkpoint(written):
    root, paths = written
    assert {recognise(root / name / path) for name, path in paths.items()} == set(FORMATS)
    for name, path in paths.items():
        load(root / name / path)


@pytest.mark.parametrize("name", checkpoints.WRITERS)
@fuzz(30)
@given(rng=st.randoms(use_true_random=False))
def test_a_changed_checkpoint_is_loaded_or_refused(written, name, rng):
    root, paths = written
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(root / name, Path(folder) / "copy")
        mutate_folder(copy, rng)
        try:
            with within(20):
                sae = load(copy / paths[name])
        except SAEError:
            return
        assert all(isinstance(parameter, torch.Tensor) for parameter in sae.parameters())

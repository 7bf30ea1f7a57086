"""`HostSession.run_graph` refuses what a caller may pass by mistake, and reads no array as another."""

import numpy as np
import pytest

from runtime import InputError
from runtime.hosts.feeds import complete_feeds


@pytest.mark.parametrize(
    ("feeds", "names", "message"),
    [
        (None, None, "feeds is None; it must be a dict from the names of inputs to arrays"),
        ([1], None, "feeds is .1.; it must be a dict"),
        ({}, "logits", "names is 'logits'; it must be a list of outputs, or None for all"),
        ({}, 3, "names is 3; it must be a list of outputs"),
        ({}, [None], "has no outputs None; it has logits"),
    ],
)
def test_arguments_of_other_types(host, feeds, names, message):
    with pytest.raises(InputError, match=message):
        host.run_graph("splice", feeds, names)


def test_a_mask_of_numpy_is_not_ignored(host, feeds):
    ids = np.ma.masked_array(feeds["input_ids"], feeds["input_ids"] > 3)
    masked = {**complete_feeds(host.host.manifest.host, feeds), "input_ids": ids}
    with pytest.raises(InputError, match="its mask would be ignored"):
        host.run_graph("splice", masked)


def test_names_that_are_read_once(host, feeds):
    with pytest.raises(InputError, match="also needs the inputs"):
        host.run_graph("splice", {}, iter(["logits"]))
    with pytest.raises(InputError, match="has no outputs no; it has logits"):
        host.run_graph("splice", feeds, iter(["no"]))


def test_no_outputs_are_none(host, feeds):
    assert host.run_graph("splice", complete_feeds(host.host.manifest.host, feeds), []) == {}

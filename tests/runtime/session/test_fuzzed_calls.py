"""Arrays of every kind, and hook functions and edits in any combination: the result is right, or an error says why."""

import itertools
from contextlib import ExitStack

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from runtime import Ablate, Add, Clamp, InputError, SAEError, SAESession, Scale
from runtime.session.features import strongest_features
from saeexport import export
from tests.support.bounded import Bounded, encode
from tests.support.fuzzing import fuzz
from tests.support.samples import HOOKS, make_sae, normal

INPUT, PRE, POST, RECONS, ERROR, OUTPUT = HOOKS
D_IN, D_SAE = 6, 16

ACCEPTED = {np.dtype(name) for name in ("f4", "f2", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "bfloat16")}
OTHERS = (*"fgd?FOU", "U3", "S2", "M8[s]", ">f4", ">i2", ">f2")
DTYPES = [*sorted(ACCEPTED, key=str), *map(np.dtype, OTHERS)]


@pytest.fixture(scope="module", params=[True, False], ids=["error_term", "no_error_term"])
def opened(request, tmp_path_factory):
    """An SAE, its weights in float64, and sessions that run different graphs, in blocks and at once."""
    sae = make_sae(use_error_term=request.param)
    path = export(sae, tmp_path_factory.mktemp("fuzzed") / "sae", normal(40, D_IN)).path
    weights = {name: tensor.detach().double().numpy() for name, tensor in sae.named_parameters()}
    options = ({}, {"graphs": "portable"}, {"block_tokens": 3}, {"block_tokens": 2, "graphs": "portable"})
    sessions = [SAESession(path, "cpu", threads=1, **more) for more in options]
    yield request.param, weights, sessions
    for session in sessions:
        session.close()


def laid_out(data, array):
    """Return an array of the same values with another layout in memory, or of another library."""
    kind = data.draw(st.sampled_from(["C", "F", "reversed", "every other", "read-only", "aligned by a byte", "subclass",
                                      "masked", "torch", "torch, transposed", "list", "tuple"]))  # fmt: skip
    if not array.ndim:
        return array
    if kind == "F":
        return np.asfortranarray(array)
    if kind == "reversed":
        return np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    if kind == "every other":
        return np.repeat(array, 2, axis=-1)[..., ::2]
    if kind == "read-only":
        array = array.copy()
        array.setflags(write=False)
    if kind == "aligned by a byte" and array.dtype.kind in "fiu" and array.size:
        raw = np.zeros(array.nbytes + 1, np.uint8)
        raw[1:] = np.frombuffer(array.tobytes(), np.uint8)
        return raw[1:].view(array.dtype).reshape(array.shape)
    if kind == "subclass":
        return array.view(np.matrix if array.ndim == 2 else np.recarray)
    if kind == "masked":
        return np.ma.masked_array(array)
    if kind.startswith("torch"):
        assume(array.dtype in ACCEPTED and array.dtype.kind != "u")
        tensor = torch.from_numpy(array.astype(np.float32 if array.dtype == ml_dtypes.bfloat16 else array.dtype))
        tensor = tensor.bfloat16() if array.dtype == ml_dtypes.bfloat16 else tensor
        return tensor.mT.contiguous().mT if kind.endswith("transposed") and array.ndim > 1 else tensor
    return {"list": array.tolist, "tuple": lambda: tuple(array.tolist())}.get(kind, lambda: array)()


def arrays(data, width):
    lead = data.draw(st.lists(st.integers(0, 4), max_size=3))
    shape = (*lead, data.draw(st.sampled_from([width] * 8 + [0, 1, width - 1, 2 * width])))
    if data.draw(st.integers(0, 20)) == 0:
        shape = ()
    dtype = data.draw(st.sampled_from([np.dtype(np.float32)] * 8 + DTYPES))
    scale = data.draw(st.sampled_from([0.0, 1e-30, 0.1, 1.0, 3.0, 50.0]))
    values = normal(*shape, seed=data.draw(st.integers(0, 50))) * np.float32(scale)
    values = np.abs(values).astype(np.int64) % 100 if dtype.kind in "uSM" else values
    with np.errstate(all="ignore"):
        return np.asarray(values).astype(dtype)


def is_accepted(x):
    """Tell whether the original takes these values, as far as their memory can be read."""
    if isinstance(x, np.ma.MaskedArray):
        return False
    if isinstance(x, torch.Tensor):
        return x.dtype != torch.bfloat16 or x.is_contiguous() or x.numel() == 0
    x = np.asarray(x)
    return x.dtype in ACCEPTED and x.dtype.isnative


@fuzz(400)
@given(data=st.data())
def test_any_array(opened, data):
    use_error_term, weights, sessions = opened
    session = data.draw(st.sampled_from(sessions))
    array = arrays(data, D_IN)
    x = laid_out(data, array)
    # A list has no dtype: numpy chooses one, and none for what it does not know.
    as_array = np.asarray(x.float() if isinstance(x, torch.Tensor) and x.dtype == torch.bfloat16 else x)
    lead, k = as_array.shape[:-1], data.draw(st.integers(1, D_SAE))
    call = data.draw(st.sampled_from(["run_with_cache", "encode", "__call__", "top_features", "compute"]))
    arguments = {"top_features": (k,), "compute": (HOOKS[1:],)}.get(call, ())
    if not (is_accepted(x) and as_array.shape[-1:] == (D_IN,)):
        with pytest.raises(InputError):
            getattr(session, call)(x, *arguments)
        return
    found = getattr(session, call)(x, *arguments)
    flat = as_array.astype(np.float32).astype(np.float64).reshape(-1, D_IN)
    expected = clean_hooks(weights, flat, use_error_term)
    if call == "top_features":
        values = strongest_features(session.encode(x), k)
        for name, own, other in zip(("indices", "values", "l0"), found, values, strict=True):
            np.testing.assert_array_equal(own, other, err_msg=name)
        return
    tensors = {"run_with_cache": lambda: {OUTPUT: found[0], **found[1]}, "encode": lambda: {POST: found},
               "__call__": lambda: {OUTPUT: found}, "compute": lambda: found}[call]()  # fmt: skip
    for name, tensor in tensors.items():
        width = D_SAE if name in (PRE, POST) else D_IN
        assert tensor.shape == (*lead, width), name
        if name != INPUT:
            assert tensor.dtype == np.float32
            expected[name].check(tensor.reshape(-1, width), name)


def clean_hooks(weights, x, use_error_term):
    acts_pre, acts_post = encode(weights, x)
    recons = acts_post.product(weights["W_dec"], weights["b_dec"])
    error = Bounded.exact(x).plus(recons, -1)
    return {PRE: acts_pre, POST: acts_post, RECONS: recons, ERROR: error,
            OUTPUT: recons.plus(error) if use_error_term else recons}  # fmt: skip


NUMBERS = st.sampled_from([0.0, 1.0, -1.0, 2.0, 0.5, -0.25, 3.7])
EDITS = st.one_of(
    st.just(Ablate()), NUMBERS.map(Clamp), NUMBERS.map(Scale), NUMBERS.map(Add),
    st.integers(0, 9).map(lambda seed: Clamp(normal(4, seed=seed))),
    st.integers(0, 9).map(lambda seed: Add(normal(4, seed=seed))),
)  # fmt: skip
BLOCKS = st.lists(
    st.one_of(
        st.dictionaries(st.integers(0, D_SAE - 1), EDITS, max_size=4),
        st.tuples(st.sampled_from(HOOKS[1:]), NUMBERS, NUMBERS, st.booleans()),
    ),
    max_size=3,
)


@fuzz(400)
@given(data=st.data(), blocks=BLOCKS, seed=st.integers(0, 50))
def test_any_hooks_and_edits(opened, data, blocks, seed):
    use_error_term, weights, sessions = opened
    session = data.draw(st.sampled_from(sessions))
    x = normal(4, D_IN, seed=seed)
    with ExitStack() as stack:
        for block in blocks:
            entered = session.steering(block) if isinstance(block, dict) else session.hooks([function(block)])
            stack.enter_context(entered)
        output, cache = session.run_with_cache(x)
        encoded, k = session.encode(x), data.draw(st.integers(1, D_SAE))
        found = session.top_features(x, k)
        computed = session.compute(x, HOOKS)
    check(edited_hooks(weights, x, use_error_term, blocks), {**cache, OUTPUT: output})
    steering = [block for block in blocks if isinstance(block, dict)]  # hook functions are not called by these
    check(edited_hooks(weights, x, use_error_term, steering), {**computed, POST: encoded})
    check(edited_hooks(weights, x, use_error_term, steering), computed)
    for own, other in zip(found, strongest_features(encoded, k), strict=True):
        np.testing.assert_array_equal(own, other)


def function(block):
    name, scale, shift, in_place = block

    def edit(tensor, hook):
        if not in_place:
            return tensor * np.float32(scale) + np.float32(shift)
        tensor *= np.float32(scale)
        tensor += np.float32(shift)
        return None

    return name, edit


def check(expected, tensors):
    for name, tensor in tensors.items():
        if name != INPUT:
            expected[name].check(tensor, name)


def edited_hooks(weights, x, use_error_term, blocks):
    """Return the hooks of a pass with edits and functions, one after the other. The error is that of the clean pass."""

    def fire(name, tensor):
        for block in blocks:
            if isinstance(block, dict) and name == POST:
                for feature, edit in block.items():
                    scale, shift = np.ones((len(x), D_SAE)), np.zeros((len(x), D_SAE))
                    scale[:, feature], shift[:, feature] = np.float32(edit.scale), np.float32(edit.shift)
                    tensor = tensor.scaled(scale, shift)
            elif not isinstance(block, dict) and block[0] == name:
                tensor = tensor.scaled(float(np.float32(block[1])), float(np.float32(block[2])))
        return tensor

    clean = clean_hooks(weights, x.astype(np.float64), use_error_term)
    acts_pre = fire(PRE, clean[PRE])
    acts_post = fire(POST, acts_pre.relu())
    recons = acts_post.product(weights["W_dec"], weights["b_dec"])
    # An edited reconstruction may be the clean one plus an update, whose roundings count as well.
    update = np.abs(acts_post.value) + np.abs(clean[POST].value) + acts_post.error + clean[POST].error
    size = update @ np.abs(weights["W_dec"]) + np.abs(weights["b_dec"])
    if blocks:
        recons = Bounded(recons.value, recons.error + clean[RECONS].error + 2 * D_SAE * 2.0**-24 * size)
    recons = fire(RECONS, recons)
    error = fire(ERROR, clean[ERROR]) if use_error_term else clean[ERROR]
    final = fire(OUTPUT, recons.plus(error) if use_error_term else recons)
    if not use_error_term:  # the output is the same array as recons, as in PyTorch, until a function returns another
        functions = [block for block in blocks if not isinstance(block, dict) and block[0] == OUTPUT]
        for _, scale, shift, _ in itertools.takewhile(lambda block: block[3], functions):
            recons = recons.scaled(float(np.float32(scale)), float(np.float32(shift)))
    return {PRE: acts_pre, POST: acts_post, RECONS: recons, ERROR: error, OUTPUT: final}


@fuzz(150)
@given(data=st.data())
def test_any_feeds_of_a_graph(opened, data):
    """Feeds that the manifest does not describe are refused; all others run."""
    _, _, sessions = opened
    session = data.draw(st.sampled_from(sessions))
    graph = data.draw(st.sampled_from(sorted(session.artifact.manifest.graphs)))
    feeds = {
        spec.name: np.zeros(data.draw(st.lists(st.sampled_from([0, 1, 3, D_IN, D_SAE]), max_size=3)),
                            data.draw(st.sampled_from(["f4", "f4", "i8", "f8", ">f4"])))
        for spec in session.artifact.manifest.graphs[graph].inputs
    }  # fmt: skip
    try:
        outputs = session.run_graph(graph, feeds)
    except SAEError:
        return
    tokens = len(next(iter(feeds.values())))
    assert all(len(array) == tokens for array in outputs.values())

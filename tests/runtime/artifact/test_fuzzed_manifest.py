"""Manifests that are damaged at random: each is read or refused with a ManifestError, soon and in little memory."""

import copy
import json
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import ManifestError
from runtime.artifact.parse import parse_manifest
from tests.support.fuzzing import fuzz
from tests.support.manifests import sealed, sealed_text
from tests.support.samples import MINILM, TINY

TEXTS = [(folder / "sae.json").read_bytes() for folder in (TINY, MINILM)]
TREES = [json.loads(text) for text in TEXTS]
MOST_SECONDS, MOST_BYTES = 5.0, 64 << 20

NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from([0, -1, 1, 2**31, 2**53, 2**63, 10**31, 10**400, 1e-320, 1e308, -0.0, True, False]),
)
WORDS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["", ".", "..", "/", "\x00", "\ud800", "NaN", "sae.json", "int8", "float16", "custom:"])
    | st.just("a" * 5000),
)
LEAVES = st.one_of(st.none(), NUMBERS, WORDS)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3))


def refusal_of(data):
    """Return why a manifest is refused, and None if it is read; any error but a ManifestError fails the test."""
    try:
        manifest = parse_manifest(data)
    except ManifestError as error:
        return str(error)
    assert parse_manifest(manifest.to_json().encode()) == manifest
    return None


def is_read(data):
    """Return whether a manifest is read, and check that this takes little time and that a refusal is short."""
    start = time.process_time()
    refusal = refusal_of(data)
    assert time.process_time() - start < MOST_SECONDS
    assert refusal is None or len(refusal) < 1000
    return refusal is None


def nodes(value, path=()):
    """Yield the path of every value inside of another."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from nodes(inner, (*path, key))


PATHS = [list(nodes(tree)) for tree in TREES]


@st.composite
def mutated_trees(draw):
    """Draw a manifest in which up to three values are replaced, removed, renamed, or exchanged with another."""
    which = draw(st.integers(0, len(TREES) - 1))
    tree = copy.deepcopy(TREES[which])
    for _ in range(draw(st.integers(1, 3))):
        *outer, key = draw(st.sampled_from(PATHS[which]))
        inner = tree
        try:
            for part in outer:
                inner = inner[part]
            value = inner[key]
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change removed it
        how = draw(st.sampled_from(["replace", "remove", "rename", "nudge", "copy"]))
        if how == "replace":
            inner[key] = draw(VALUES)
        elif how == "remove":
            del inner[key]
        elif how == "rename" and isinstance(inner, dict):
            inner[draw(WORDS)] = inner.pop(key)
        elif how == "nudge" and isinstance(value, int | float):
            inner[key] = value * draw(st.sampled_from([0, -1, 0.5, 2, 1 + 2**-52, 10]))
        elif how == "copy":
            inner[key] = copy.deepcopy(tree[draw(st.sampled_from(sorted(tree)))]) if tree else None
    return tree


@given(mutated_trees())
@fuzz(600)
def test_a_mutated_tree(tree):
    """The checksum is right, so that only the other checks can refuse it."""
    is_read(sealed(tree))


def without_space(text):
    return b"".join(text.split())


@given(st.data())
@fuzz(300)
def test_mutated_bytes(data):
    text = bytearray(data.draw(st.sampled_from(TEXTS)))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 20)))
        text[start:end] = data.draw(st.binary(max_size=20) | st.sampled_from([b"[" * 500, b'"', b"9" * 5000, b"1e999"]))
    assert bytes(text) in TEXTS or not is_read(bytes(text)) or without_space(text) in map(without_space, TEXTS)


@given(st.sampled_from(TEXTS), st.integers(0), st.sampled_from('0123456789.eE+-[]{}",:\\ tfn'))
@fuzz(300)
def test_one_character_with_the_checksum_made_again(text, place, character):
    text = text.decode()
    place %= text.index('"checksum"')
    is_read(sealed_text(text[:place] + character + text[place + 1 :]))


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
@fuzz(300)
def test_anything_else_is_refused(data):
    assert not is_read(data)


@given(VALUES)
@fuzz(200)
def test_any_json_is_refused(value):
    assert not is_read(json.dumps(value).encode())
    assert not is_read(sealed({**TREES[0], "sae": value}))


@pytest.mark.parametrize("part", ['{"a":[', '"a",', "[],", '{"a":1},', "1,", '"\\u0000",'])
def test_the_memory_is_bounded(part):
    """The largest texts are refused in less memory than 64 times their size."""
    filler = (part * (1 << 20))[: (1 << 20) - 100_000].rpartition(",")[0]
    later = sealed({**TREES[0], "later": 0}).replace(b'"later": 0', f'"later": [{filler}]'.encode())
    for data in (f"[{filler}]".encode(), later):
        tracemalloc.start()
        try:
            assert refusal_of(data) is not None
            assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
        finally:
            tracemalloc.stop()
        assert not is_read(data)

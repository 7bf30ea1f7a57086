"""A decoder that generates with its cache gives what the whole sequence gives, with SAEs and edits throughout."""

import dataclasses

import numpy as np
import pytest

from runtime import Add, Clamp, HostSession, InputError, SAEError
from tests.support.grafted import PRE, Z, graft_tiny

PROMPT = np.array([5, 11, 3])
EDIT = {PRE: {3: Clamp(6.0)}}


def clamped(acts):
    acts[:, 3] = 6
    return acts


def greedy(grafted, new, attached=(), edits=None):
    """Return the sequence that the model in NumPy continues the prompt with, without a cache."""
    ids = PROMPT.tolist()
    for _ in range(new):
        feeds = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64),
                 "position_ids": np.arange(len(ids))[None]}  # fmt: skip
        ids.append(int(grafted.run(feeds, attached, False, edits)[0]["logits"][0, -1].argmax()))
    return [ids]


@pytest.fixture(scope="module")
def without_cache(tmp_path_factory):
    grafted = graft_tiny(tmp_path_factory.mktemp("no-cache"), [PRE], cache=False)
    with HostSession(grafted.path, "cpu", threads=1) as host:
        yield host


def test_greedy_generation_is_that_of_the_model(host, grafted):
    assert host.generate(PROMPT, 8).tolist() == greedy(grafted, 8)
    with host.saes([PRE, Z], use_error_term=False):
        assert host.generate(PROMPT[None], 8).tolist() == greedy(grafted, 8, [PRE, Z])
    assert host.generate(PROMPT.tolist(), 0).tolist() == [PROMPT.tolist()]


def test_edits_hold_for_the_whole_sequence(host, grafted):
    expected = greedy(grafted, 8, [PRE], {PRE: clamped})
    assert host.generate(PROMPT, 8, edits=EDIT, use_error_term=False).tolist() == expected != greedy(grafted, 8, [PRE])
    with host.steering(EDIT, use_error_term=False):
        assert host.generate(PROMPT, 8).tolist() == expected
    assert host.attached == {}


def test_a_host_without_a_cache_generates_the_same(host, without_cache):
    for edits in (None, EDIT):
        expected = host.generate(PROMPT, 6, edits=edits).tolist()
        assert without_cache.generate(PROMPT, 6, edits=edits).tolist() == expected


def test_draws_depend_on_the_seed_only(host):
    draws = {seed: host.generate(PROMPT, 12, do_sample=True, temperature=2.0, seed=seed).tolist() for seed in (1, 2)}
    assert host.generate(PROMPT, 12, do_sample=True, temperature=2.0, seed=1).tolist() == draws[1] != draws[2]
    assert host.generate(PROMPT, 6, do_sample=True, top_k=1, seed=3).tolist() == host.generate(PROMPT, 6).tolist()


def test_draws_follow_the_probabilities(host, feeds):
    logits = host({"input_ids": PROMPT[None]}).logits[0, -1].astype(np.float64) / 2
    kept = np.argsort(-logits)[:3]
    expected = np.exp(logits[kept]) / np.exp(logits[kept]).sum()
    drawn = [
        host.generate(PROMPT, 1, do_sample=True, temperature=2.0, top_k=3, seed=seed)[0, -1] for seed in range(400)
    ]
    found = np.array([drawn.count(token) for token in kept]) / 400
    assert found.sum() == 1
    np.testing.assert_allclose(found, expected, atol=4 * 0.5 / np.sqrt(400))


def test_generation_ends_after_an_end_token(host):
    sequence = host.generate(PROMPT, 8)[0].tolist()
    end = sequence[5]
    length = sequence.index(end, 3) + 1
    assert host.generate(PROMPT, 8, eos_token_id=[39, end]).tolist() == [sequence[:length]]
    assert host.generate(PROMPT, 8, eos_token_id=end).tolist() == [sequence[:length]]


PROMPTS = [[5, 11, 3], [7], np.array([2, 9, 4, 1, 8])]


@pytest.mark.parametrize("edits", [None, EDIT])
def test_several_prompts_continue_as_each_of_them(host, without_cache, edits):
    for decoder in (host, without_cache):
        expected = [decoder.generate(prompt, 8, edits=edits)[0].tolist() for prompt in PROMPTS]
        assert [ids.tolist() for ids in decoder.generate(PROMPTS, 8, edits=edits)] == expected
    (alone,) = host.generate([[5, 11, 3]], 8, edits=edits)
    assert alone.tolist() == host.generate([5, 11, 3], 8, edits=edits)[0].tolist()


def test_several_texts_continue_as_texts(host):
    texts = ["w5 w11 w3", "w7"]
    assert host.generate(texts, 4) == [host.generate(text, 4) for text in texts]


def test_each_of_several_sequences_ends_after_its_own_end_token(host):
    end = host.generate(PROMPTS, 8)[0].tolist()[5]
    expected = [host.generate(prompt, 8, eos_token_id=end)[0].tolist() for prompt in PROMPTS]
    assert [ids.tolist() for ids in host.generate(PROMPTS, 8, eos_token_id=end)] == expected
    assert len({len(ids) - len(prompt) for ids, prompt in zip(expected, PROMPTS, strict=True)}) > 1


def test_a_sequence_that_ended_takes_no_further_positions(host, without_cache):
    """The tiny host has 64 positions; the first sequence ends at its last but one, and the second one goes on."""
    long = [5, 11, 3] * 20 + [7, 2]
    for decoder in (host, without_cache):
        end = int(decoder.generate(long, 1)[0, -1])
        continued = (decoder.generate([token], 12)[0].tolist() for token in range(1, 40))
        alone = next(ids for ids in continued if end not in ids)
        first, second = decoder.generate([long, alone[:1]], 12, eos_token_id=end)
        assert first.tolist() == [*long, end]
        assert second.tolist() == alone


def test_draws_of_several_sequences_differ(host):
    options = {"do_sample": True, "temperature": 2.0, "seed": 1}
    first, second = host.generate([PROMPT, PROMPT], 12, **options)
    assert first.tolist() == host.generate(PROMPT, 12, **options)[0].tolist() != second.tolist()


def test_padding_needs_a_mask_and_positions(host, monkeypatch):
    manifest = host.host.manifest
    inputs = tuple(tensor for tensor in manifest.host.inputs if tensor.name != "position_ids")
    changed = dataclasses.replace(manifest, host=dataclasses.replace(manifest.host, inputs=inputs))
    monkeypatch.setattr(host, "host", dataclasses.replace(host.host, manifest=changed))
    with pytest.raises(InputError, match="have different numbers of tokens, and tiny takes .* it cannot leave padding"):
        host.generate(PROMPTS, 2)


def test_text_continues_as_text(host):
    text = host.generate("w5 w11 w3", 4)
    assert text.split() == [f"w{token}" if token else "[PAD]" for token in host.generate(PROMPT, 4)[0]]


def test_what_cannot_be_generated_is_refused(host, feeds):
    for options, message in (
        ({"temperature": 0}, "temperature is 0; it must be a positive number"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_k": 0}, "top_k is 0; it must be at least 1"),
        ({"seed": -1}, "seed is -1"),
    ):
        with pytest.raises(InputError, match=message):
            host.generate(PROMPT, 2, do_sample=True, **options)
    for prompt in (np.zeros((2, 3), np.int64), [], [1.5], np.zeros((1, 0), np.int64)):
        with pytest.raises(InputError, match="The prompt is "):
            host.generate(prompt, 2)
    with pytest.raises(InputError, match="use_error_term is True, and there are no edits"):
        host.generate(PROMPT, 2, use_error_term=True)
    with pytest.raises(InputError, match="max_new_tokens is -1"):
        host.generate(PROMPT, -1)
    with pytest.raises(InputError, match="have a value for each token"):
        host.generate(PROMPT, 2, edits={PRE: {3: Add(np.ones((1, 3)))}})


@pytest.mark.parametrize("options", [{"temperature": 0.5}, {"top_k": 3}, {"seed": 0}, {"temperature": 0, "seed": 1}])
def test_options_of_drawing_without_drawing_are_refused(host, options):
    given = ", ".join(f"{name}={value}" for name, value in options.items())
    with pytest.raises(InputError, match=f"^{given} applies to tokens that are drawn, and do_sample is False"):
        host.generate(PROMPT, 2, **options)
    assert host.generate(PROMPT, 2, temperature=1.0, top_k=None, seed=None).shape == (1, len(PROMPT) + 2)


@pytest.mark.parametrize("do_sample", [False, True])
def test_logits_that_are_not_finite_are_an_error(host, do_sample):
    with pytest.raises(SAEError, match="The logits of token 2 are not finite"):
        host.generate([1, 2], 3, edits={PRE: {i: Clamp(3e38) for i in range(24)}}, do_sample=do_sample)


def test_an_encoder_does_not_generate(host, monkeypatch):
    manifest = host.host.manifest
    encoder = dataclasses.replace(manifest, host=dataclasses.replace(manifest.host, kind="encoder"))
    monkeypatch.setattr(host, "host", dataclasses.replace(host.host, manifest=encoder))
    with pytest.raises(InputError, match="tiny is an encoder with the outputs logits, "):
        host.generate(PROMPT, 2)

"""One character in a number of `sae.json`: it is refused by the checksum, and with a right checksum by the ranges."""

import json
import re
from collections import Counter

import pytest

from runtime import ManifestError
from runtime.artifact.parse import parse_manifest
from tests.support.manifests import sealed_text
from tests.support.samples import TINY

TEXT = json.dumps(json.loads((TINY / "sae.json").read_text()), indent=2)
"""The manifest with a key on each line; white space is not part of it."""

NUMBER = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?')


def changes(text):
    """Yield the text with one character of one number replaced: each digit by its neighbours, e-07 by e-00, - by +."""
    for match in NUMBER.finditer(text):
        if not match[0].startswith('"'):
            for i in range(match.start(), match.end()):
                for other in sorted({"0", *neighbours(text[i])} - {text[i]}):
                    yield match.start(), text[:i] + other + text[i + 1 :]


def neighbours(character):
    return [str((int(character) + step) % 10) for step in (1, 9)] if character.isdigit() else ["+", "-", "1"]


def is_read(data):
    try:
        parse_manifest(data)
    except ManifestError:
        return False
    return True


def key_of(text, position):
    """Return the keys around a position: the last key of each indentation before it."""
    keys = {}
    for indent, key in re.findall(r'^( *)"([^"]+)":', text[:position], re.MULTILINE):
        keys = {width: name for width, name in keys.items() if width < len(indent)} | {len(indent): key}
    return tuple(keys.values())


def test_without_a_new_checksum_every_change_is_refused():
    tried = list(changes(TEXT))
    assert len(tried) > 3000
    assert [changed for _, changed in tried if is_read(changed.encode())] == []


def accepted(text, step=1):
    """Return how many changes of a number are read as another manifest, and how many there are, by key.

    Every change is sealed again. Of the numbers that are not budgets, one change out of `step` is tried.
    """
    before, tried, read = parse_manifest(text.encode()), Counter(), Counter()
    for i, (position, changed) in enumerate(changes(text)):
        key, data = key_of(text, position), sealed_text(changed)
        if "budget" in key or i % step == 0:
            tried[key] += 1
            read[key] += is_read(data) and parse_manifest(data) != before
    return tried, read


def test_with_a_new_checksum_every_change_of_a_budget_is_refused():
    tried, read = accepted(TEXT, step=7)
    budgets = [key for key in tried if "budget" in key]
    assert len(budgets) == 2 * 5 * 4
    assert sum(tried[key] for key in budgets) > 1500
    assert [key for key in budgets if read[key]] == []
    # The errors of the original without an intervention calibrate the budgets. A change of their last digit may be lost
    # where a budget is rounded to float64.
    calibrating = [key for key in tried if {"hooks", "tf32"} & set(key) and "original" in key]
    assert sum(read[key] for key in calibrating) < 0.02 * sum(tried[key] for key in calibrating)
    # Nothing else in the manifest depends on these: they are numbers to read, or their files are compared with them.
    passed = {key for key in read if read[key]} - set(calibrating)
    for key in passed:
        free = {"artifact", "original", "requires"} & set(key)
        assert free or key[-1] in ("seed", "tokens", "left_out", "bytes"), key
    errors = [key for key in tried if "artifact" in key]
    assert sum(read[key] for key in errors) < 0.9 * sum(tried[key] for key in errors)


def test_the_example_of_a_budget_that_would_switch_the_proof_off():
    budget = json.loads(TEXT)["parity"]["hooks"]["hook_sae_acts_pre"]["budget"]["element"]
    changed = TEXT.replace(repr(budget), repr(budget).replace("e-06", "e-00"), 1)
    assert changed != TEXT
    with pytest.raises(
        ManifestError, match=r"hooks\['hook_sae_acts_pre'\]: budget: element is 1.03.*, 4 times the error"
    ):
        parse_manifest(sealed_text(changed))

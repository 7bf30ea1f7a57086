"""The JSON of a manifest is read in bounds: of size, of depth, of digits, and without what JSON does not have."""

import re
import time

import pytest

from runtime import ManifestError
from runtime.artifact.strict_json import MAX_BYTES, MAX_DEPTH, MAX_NUMBER, read_json, shown


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[" * 100_000, f"more than {MAX_DEPTH} objects and lists inside each other"),
        (b'{"a":' * 100_000, f"more than {MAX_DEPTH} objects and lists inside each other"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), f"more than {MAX_DEPTH} objects and lists"),
        (b" " * (MAX_BYTES + 1), "has more than 1,048,576 bytes, so it is not a manifest"),
        (b"9" * 5000, f"a number of 5,000 characters, 9999999999999999...; a number has at most {MAX_NUMBER}"),
        (b"-1" + b"0" * 400, "a number of 402 characters"),
        (b"0." + b"1" * 5000, "a number of 5,002 characters"),
        (b"1e400", "has the number 1e400, which is larger than any float64"),
        (b"[-1e999]", "has the number -1e999, which is larger than any float64"),
        (b"NaN", "has the value NaN, which is not JSON"),
        (b'{"a": -Infinity}', "has the value -Infinity, which is not JSON"),
        (b'{"a": 1, "b": {"c": 1, "c": 1}}', "has the key 'c' twice in one object"),
        (b'{"a": 1, "\\u0061": 1}', "has the key 'a' twice in one object"),
        (b"\xef\xbb\xbf{}", "is not JSON .*BOM"),
        (b'"\xed\xa0\x80"', "is not text .invalid continuation byte at byte 1"),
        (b'{"a": 1} {}', "is not JSON .Extra data"),
        (b"{'a': 1}", "is not JSON"),
        (b'"a\nb"', "is not JSON .Invalid control character"),
        (b"01", "is not JSON"),
    ],
)
def test_what_is_not_read(data, message):
    with pytest.raises(ManifestError, match=f"^sae.json .*{message}") as error:
        read_json(data)
    assert "Copy the whole folder again, or export the SAE again." in str(error.value)
    assert len(str(error.value)) < 300
    assert error.value.__cause__ is None


def test_the_bounds_themselves_are_read():
    nested = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert read_json(nested)[0] == nested.decode()
    assert read_json(b'"' + b"[" * 1000 + b'"')[1] == "[" * 1000  # brackets in a string are text
    assert read_json(b'"\\"' + b"[" * 1000 + b'"')[1] == '"' + "[" * 1000
    assert read_json(b"9" * MAX_NUMBER)[1] == int("9" * MAX_NUMBER)
    assert read_json(b"2.2250738585072014e-308")[1] == 2.2250738585072014e-308
    assert read_json(b"1e-999")[1] == 0.0
    assert read_json(b"1" + b" " * (MAX_BYTES - 1))[1] == 1


@pytest.mark.parametrize(
    "part",
    [b'\\"', b'"', b"\\", b'{"', b"[]", b"[],", b'"a":1,', b"1,", b"{}", b"-", b"\\u0000", b'"\\', b" \n"],
)
@pytest.mark.parametrize("first", [b"", b'"', b"[", b"{"])
def test_the_largest_texts_are_refused_or_read_soon(first, part):
    data = (first + part * (MAX_BYTES // len(part)))[:MAX_BYTES]
    start = time.perf_counter()
    with pytest.raises(ManifestError):
        read_json(data)
    assert time.perf_counter() - start < 5  # it is linear: about 0.2 s


def test_a_long_value_is_cut():
    assert shown("a\x1b[31m\ud800") == r"'a\x1b[31m\ud800'"
    assert re.fullmatch(r"\['a{95}\.\.\.", shown(["a" * 10_000]))

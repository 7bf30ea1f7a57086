"""The checksum of a manifest: every changed character is noticed, and white space outside of strings is free."""

import json
import re

import pytest

import runtime
import saeexport
from runtime import ManifestError, SAESession
from runtime.artifact.checksum import checksum_of, with_checksum
from runtime.artifact.parse import parse_manifest
from runtime.commands.main import main
from tests.support.samples import TINY

TEXT = (TINY / "sae.json").read_text()
MANIFEST = parse_manifest(TEXT.encode())


def test_a_changed_character_is_refused():
    """It is a character that is not in a number; `test_one_character.py` changes those."""
    read = []
    for i, character in list(enumerate(TEXT))[::13]:
        changed = TEXT[:i] + ("7" if character != "7" else "8") + TEXT[i + 1 :]
        try:
            parse_manifest(changed.encode())
        except ManifestError:
            continue
        read.append((i, character))
    assert read == []


@pytest.mark.parametrize(
    "rewritten",
    [
        TEXT.replace("\n", "\r\n"),
        TEXT.replace("  ", "\t"),
        json.dumps(json.loads(TEXT), separators=(",", ":")),
        f"\n {TEXT}\n",
    ],
    ids=["CRLF", "tabs", "compact", "around"],
)
def test_white_space_is_free(rewritten):
    assert rewritten != TEXT
    assert parse_manifest(rewritten.encode()) == MANIFEST


def test_the_text_is_for_people():
    rows = [{"e": ["é", [i]]} for i in range(9)]
    content = {
        "a": {"b": [], "c": {}, "long": "x" * 200},
        "d": [1, 2.5e-7, None, True],
        "rows": rows,
        "wide": list(range(99)),
        "pairs": [[i, "y" * 30] for i in range(5)],
    }
    text = with_checksum(content)
    assert {**content, "checksum": checksum_of(text, json.loads(text)["checksum"])} == json.loads(text)
    lines = text.splitlines()
    assert '  "d": [1, 2.5e-07, null, true],' in lines
    assert "  " + json.dumps({"wide": content["wide"]})[1:-1] + "," in lines
    assert '    {"e": ["\\u00e9", [3]]},' in lines
    assert '    "long": "' + "x" * 200 + '"' in lines
    assert f'    [4, "{"y" * 30}"]' in lines
    assert with_checksum({}) == '{"checksum": "' + checksum_of('{"checksum": ""}') + '"}\n'


def test_white_space_in_a_string_is_not():
    changed = TEXT.replace("The whole SAE.", "The  whole SAE.")
    assert changed != TEXT
    with pytest.raises(ManifestError, match="sae.json was changed after the export"):
        parse_manifest(changed.encode())


def test_an_escaped_quote_does_not_end_a_string():
    assert checksum_of(r'{"a": "\" b"}') != checksum_of(r'{"a": "\"b"}')
    assert checksum_of(r'{"a": "\\" , "b": 1}') == checksum_of(r'{"a":"\\","b":1}')


def test_keys_of_a_later_release_are_covered():
    changed = TEXT.replace('"format_version": 1,', '"format_version": 1,\n  "later": 2,')
    with pytest.raises(ManifestError, match="sae.json was changed after the export"):
        parse_manifest(changed.encode())


def without_checksum():
    return re.sub(r',\s*"checksum": "\w+"', "", TEXT)


def test_a_manifest_without_one_says_to_export_again():
    with pytest.raises(ManifestError, match=r"has no checksum of its own content: an older .* Export the SAE"):
        parse_manifest(without_checksum().encode())


@pytest.mark.parametrize("stated", ["", "a", "A" * 64, 7, ["0" * 64], "0" * 63 + "\\n"])
def test_a_checksum_of_another_form(stated):
    text = TEXT.replace(json.dumps(json.loads(TEXT)["checksum"]), json.dumps(stated))
    with pytest.raises(ManifestError, match="sae.json: checksum is .*; it must be 64 hexadecimal digits. Copy the"):
        parse_manifest(text.encode())


def test_every_way_in_checks_it(artifact, capsys):
    path = artifact / "sae.json"
    budget = json.loads(TEXT)["parity"]["hooks"]["hook_sae_recons"]["budget"]["token"]
    path.write_text(TEXT.replace(repr(budget), repr(budget).replace("e-07", "e-00")))
    assert path.read_text() != TEXT
    for use in (
        SAESession,
        runtime.read_artifact,
        runtime.verify,
        runtime.assert_parity,
        saeexport.load,
        saeexport.verify,
    ):
        with pytest.raises(ManifestError, match="was changed after the export: .* Copy the whole folder again"):
            use(artifact)
    for command in ("inspect", "verify"):
        assert main([command, str(artifact)]) != 0
        assert "sae.json was changed after the export" in capsys.readouterr().err

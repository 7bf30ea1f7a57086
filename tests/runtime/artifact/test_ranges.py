"""Every value of a manifest is in the range that its meaning allows, and agrees with the others."""

import dataclasses
import json

import pytest

from runtime import ManifestError
from runtime.artifact.budgets import budget_of, fidelity_budget
from runtime.artifact.manifest import Errors, HookBudget
from runtime.artifact.parse import parse_manifest
from runtime.parity.reference import SteeredReference
from saeexport import ExportError, export
from saeexport.proof import prove
from tests.support.manifests import edited, sealed
from tests.support.samples import TINY, make_sae, normal

TEXT = (TINY / "sae.json").read_bytes()
HASH = "0" * 64
RECONS = "hook_sae_recons"


@pytest.fixture(scope="session")
def int8(tmp_path_factory):
    """An artifact with int8 weights; not to be changed."""
    return export(make_sae(), tmp_path_factory.mktemp("int8") / "sae", normal(40, 6), weights="int8").path


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("sae", "d_in"), 0, "sae: d_in is 0; it must be at least 1"),
        (("sae", "d_sae"), -16, "sae: d_sae is -16; it must be at least 1"),
        (("sae", "d_out"), 0, "sae: d_out is 0; it must be at least 1"),
        (("sae", "seed"), 2**64, "sae: seed is 18446744073709551616; it must be an integer of 64 bits"),
        (("sae", "head_shape"), [2, 4], r"sae: head_shape is \[2, 4\]; it must be n_heads and d_head, whose product"),
        (("sae", "head_shape"), [6], "sae: head_shape"),
        (("sae", "head_shape"), [-2, -3], "sae: head_shape"),
        (("sae", "architecture"), "", "sae: architecture is ''; it must be the name of an architecture"),
        (("sae", "fired_hooks"), ["hook_sae_input"], "sae: fired_hooks is .*; it must be hook_sae_input, hook_sae"),
        (("sae", "use_error_term"), False, "sae: fired_hooks is "),
        (("sae", "options", "k"), 17, r"options\['k'\] is 17; it must be from 1 to d_sae = 16"),
        (("sae", "options", "k"), 0, r"options\['k'\] is 0; it must be from 1"),
        (("sae", "hook_name"), "a" * 4097, "sae: hook_name is 'a{96}...; it must be a text of at most 4096 characters"),
        (("sae", "hook_name"), "a\x00b", r"sae: hook_name is 'a\\x00b'; it must be a text"),
        (("sae", "hook_name"), "\x1b[31m", r"sae: hook_name is '\\x1b\[31m'; it must be a text"),
        (("sae", "hook_name"), "\x9b31m", r"sae: hook_name is '\\x9b31m'; it must be a text"),
        (("sae", "hook_name"), "\ud800", r"sae: hook_name is '\\ud800'; it must be a text .* single surrogates"),
        (("provenance", "a" * 5000), "1", "provenance: a key is 'a{96}...; it must be a text"),
        (("golden", "tokens"), 0, "golden: tokens is 0; it must be from 1 to 16, those of the proof"),
        (("golden", "tokens"), 17, "golden: tokens is 17; it must be from 1 to 16, those"),
        (("golden", "source"), "guessed", "golden: source is 'guessed'; it must be activations or synthetic"),
        (("files", "weights.safetensors", "bytes"), 300, "bytes is 300; it must be at least 384 for d_in = 6"),
        (("files", "golden.safetensors", "bytes"), 99, "bytes is 99; it must be at least"),
        (("files", "acts.onnx", "bytes"), 0, "bytes is 0; it must be at least 1"),
        (("files", "acts.onnx", "bytes"), -1, "bytes is -1; it must be at least 1"),
        (("files", "acts.onnx", "sha256"), "0" * 63, "sha256 is '0{63}'; it must be 64 hexadecimal digits"),
        (("files", "acts.onnx", "sha256"), "A" * 64, "sha256 is 'A{64}'; it must be 64 hexadecimal digits"),
        (("parity", "tokens"), 0, "parity: tokens is 0; it must be at least 1"),
        (("parity", "tokens"), 15, "golden: tokens is 16; it must be from 1 to 15"),
        (("parity", "left_out"), -1, "parity: left_out is -1; it must be at least 0"),
        (("parity", "device"), "", "parity: device is ''; it must be the name of a device"),
        (("parity", "hooks"), {}, "parity: hooks is 'empty'; it must be for the hooks hook_sae_acts_pre"),
        (("parity", "tf32"), {}, "parity: tf32 is 'empty'; it must be for the hooks"),
        (("parity", "hooks", RECONS, "budget", "token"), 1e-9, "budget: token is 1e-09; it must be 4.18.*, 4 times"),
        (("parity", "steered", RECONS, "budget", "element"), 1.0, "budget: element is 1.0; it must be 8.96"),
        (("parity", "tf32", RECONS, "budget", "token"), 1, "budget: token is 1.0; it must be 0.0012"),
        (("parity", "hooks", RECONS, "original", "token"), -1e-9, "original: token is -1e-09; it must be at least 0"),
        (("parity", "hooks", RECONS, "original", "element"), 1e-9, "original: element is 1e-09; it must be from 8.97"),
        (("parity", "hooks", RECONS, "original", "element"), 1e-3, "original: element is 0.001; it must be .* width 6"),
        (("parity", "hooks", RECONS, "artifact"), {"token": 5e-7, "element": 6e-7}, "artifact: token is 5e-07; it must "
                                                                                    "be at most 4.18.*, its budget"),
    ],
)  # fmt: skip
def test_a_value_outside_of_its_range_is_named(keys, value, message):
    with pytest.raises(ManifestError, match=rf"^sae.json.*{message}.* Export the SAE again\.$") as error:
        parse_manifest(edited(TEXT, *keys, value=value))
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "a/b", "/a", "a\\b", "C:a", "a\x00", "a\ud800", "ä", "a" * 256, "sae.json", "Sae.Json"],
)  # fmt: skip
def test_a_name_that_is_not_a_plain_file_name(name):
    with pytest.raises(ManifestError, match="files names .*, which is not a plain file name|files: a key is .* a text"):
        parse_manifest(edited(TEXT, "files", name, value={"sha256": HASH, "bytes": 1}))


@pytest.mark.parametrize("name", ["a", "A-b_c.1", "0", "_", "a" * 255])
def test_a_plain_file_name(name):
    assert name in parse_manifest(edited(TEXT, "files", name, value={"sha256": HASH, "bytes": 1})).files


def raised(original, hook, steered=False):
    """Return a record with this token error of the original, and the budget that the rule gives."""
    errors = Errors(original, original)
    budget = budget_of(errors, hook, "float32", steered)
    return {"original": dataclasses.asdict(errors), "budget": dataclasses.asdict(budget)}


def test_an_original_that_is_inaccurate_does_not_widen_the_budgets():
    """The rule holds for these records, but the exporter would not have proved anything with such an original."""
    data = json.loads(TEXT)
    for name in ("hooks", "steered"):
        data["parity"][name][RECONS].update(raised(2e-3, RECONS, name == "steered"))
    with pytest.raises(
        ManifestError, match=r"hooks\['hook_sae_recons'\]: original: token is 0.002; it must be at most"
    ):
        parse_manifest(sealed(data))
    for name in ("steered", "tf32", "tf32_steered"):
        data = json.loads(TEXT)
        data["parity"][name][RECONS].update(raised(0.3, RECONS, "steered" in name))
        if name == "tf32":
            data["parity"]["tf32_steered"][RECONS].update(raised(0.3, RECONS, True))
        with pytest.raises(
            ManifestError, match=rf"parity: {name}.*budget: token is 1.2.*; it must be below 1, an error as"
        ):
            parse_manifest(sealed(data))


def test_half_precision_has_its_own_rule(half):
    text = (half / "sae.json").read_bytes()
    manifest = parse_manifest(text)
    with pytest.raises(ManifestError, match="parity: tf32 is .*; it must be empty"):
        parse_manifest(edited(text, "parity", "tf32", value=json.loads(TEXT)["parity"]["tf32"]))
    for where in ("parity", "fidelity"):
        budget = getattr(manifest, where).hooks[RECONS].budget.token
        with pytest.raises(ManifestError, match=f"{where}: hooks.*budget: token is .*; it must be"):
            parse_manifest(edited(text, where, "hooks", RECONS, "budget", "token", value=1.5 * budget))
    with pytest.raises(ManifestError, match="dtype is 'bfloat16' and weights_dtype 'int8'; this release reads"):
        parse_manifest(edited(text, "weights_dtype", value="int8"))


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("hooks", RECONS, "budget", "token"), 0.9, "budget: token is 0.9; it must be .*, 2 times the errors"),
        (("steered", RECONS, "budget", "element"), 0.9, "budget: element is 0.9; it must be .*, 2 times the errors"),
        (("steered",), {}, "fidelity: steered is 'empty'; it must be for the hooks"),
        (("features", "kept"), 1.01, "fidelity: features: kept is 1.01; it must be from 0 to 1"),
        (("features", "kept"), -0.01, "fidelity: features: kept is -0.01; it must be from 0 to 1"),
        (("features", "gained"), -0.01, "fidelity: features: gained is -0.01; it must be at least 0"),
        (("features", "l0_original"), 17.0, "l0_original is 17.0; it must be from 0 to d_sae = 16"),
        (("features", "l0"), 1.25, r"features: l0 is 1.25; it must be l0_original \* \(kept \+ gained\) = "),
        (("explained",), 1.5, "fidelity: explained is 1.5; it must be at most 1"),
        (("explained_original",), None, "fidelity: explained is .*; it must be null exactly if explained_original is"),
        (("left_out",), -3, "fidelity: left_out is -3; it must be at least 0"),
    ],
)
def test_the_fidelity_has_ranges(int8, keys, value, message):
    text = (int8 / "sae.json").read_bytes()
    assert parse_manifest(text).to_json().encode() == text
    with pytest.raises(ManifestError, match=message):
        parse_manifest(edited(text, "fidelity", *keys, value=value))


def test_int8_weights_that_lose_too_much(int8):
    data = json.loads((int8 / "sae.json").read_bytes())
    for name in ("hooks", "steered"):
        record = data["fidelity"][name]["hook_sae_acts_pre"]
        record["artifact"] = {"token": 0.06, "element": 0.07}
        record["budget"] = dataclasses.asdict(fidelity_budget(Errors(**record["original"]), Errors(0.06, 0.07)))
    with pytest.raises(ManifestError, match="artifact: token is 0.06; it must be at most 0.05"):
        parse_manifest(sealed(data))


def test_an_export_does_not_write_what_a_reader_refuses(tmp_path):
    sae = make_sae()
    sae.cfg.note = float("inf")
    with pytest.raises(ExportError, match="was not written: sae.json: sae: options: note is inf; it must be finite"):
        export(sae, tmp_path / "sae", normal(40, 6))
    assert list(tmp_path.iterdir()) == []


def test_an_export_whose_budgets_prove_nothing_is_not_written(tmp_path, monkeypatch):
    measured = SteeredReference.own_errors

    def inaccurate(self, hook):
        return Errors(0.25, 0.25) if hook == RECONS else measured(self, hook)

    monkeypatch.setattr(SteeredReference, "own_errors", inaccurate)
    monkeypatch.setattr(prove, "_budgets", lambda reference: {
        hook: HookBudget(reference.own_errors(hook), budget) for hook, budget in reference.budgets.items()
    })  # fmt: skip
    with pytest.raises(ExportError, match="steered.*budget: token is 1.0.*; it must be below 1, an error as large as"):
        export(make_sae(), tmp_path / "sae", normal(40, 6))
    assert list(tmp_path.iterdir()) == []

"""What `verify` writes for CI systems, JSON and JUnit XML, and its exit codes."""

import json
import math
import re
import shutil
import sys
from xml.etree import ElementTree

import pytest

import runtime
from runtime.artifact.manifest import Errors
from runtime.commands import console, reports
from runtime.commands.main import main as run
from runtime.parity import versions
from runtime.parity.report import Report, Verdict
from runtime.parity.verify import judged_outputs, skipped_graphs
from saeexport import export, sign
from saeexport.cli import main as saeexport
from tests.support.breaking import claim_weights, edit_weight, rewrite
from tests.support.keys import make_key
from tests.support.manifests import sealed
from tests.support.samples import ROOT, TINY, make_sae, normal
from tests.support.zoo import sae_of

NUMBERS = ("token_error", "token_budget", "element_error", "element_budget")


def with_versions(folder, **changed):
    text = json.loads((folder / "sae.json").read_text())
    text["provenance"] |= changed
    (folder / "sae.json").write_bytes(sealed(text))


def broken(folder):
    """Give an artifact another weight, which only the proof can notice."""
    rewrite(folder, "weights.safetensors", edit_weight("W_dec", (0, 0), 1.5))
    claim_weights(folder)
    return folder


def written(capsys, format, *arguments, main=run):
    """Run `verify`, and return the exit code and the parsed document."""
    code = main(["verify", *map(str, arguments), "--device", "cpu", "--format", format])
    out = capsys.readouterr().out
    assert out.isascii()
    return code, json.loads(out) if format == "json" else parsed(out) if format == "junit" else out


def parsed(text):
    """Return the suite of a JUnit document, and check what every reader of such documents relies on."""
    suites = ElementTree.fromstring(text)
    (suite,) = suites
    assert (suites.tag, suite.tag, suite[0].tag) == ("testsuites", "testsuite", "properties")
    cases = suite.findall("testcase")
    assert len({(case.get("classname"), case.get("name")) for case in cases}) == len(cases) == int(suite.get("tests"))
    assert [child.tag for child in suite] == ["properties", *["testcase"] * len(cases)]
    for count, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(suite.get(count)) == len(suite.findall(f"testcase/{tag}"))
    totals = {"name", "tests", "failures", "errors", "time"}
    assert set(suites.keys()) == totals  # the schema of Jenkins allows no other attribute, and "skipped" here only:
    assert set(suite.keys()) == {*totals, "skipped"}
    for case in cases:
        assert [child.tag for child in case] in ([], ["system-out"], ["failure"], ["failure", "system-out"], ["error"],
                                                 ["skipped"])  # fmt: skip
    assert float(suite.get("time")) >= 0
    return suite


@pytest.mark.parametrize("main", [run, saeexport])
def test_json_has_every_verdict(capsys, main):
    code, document = written(capsys, "json", TINY, main=main)
    assert (code, document["exit_code"], document["passed"], document["error"]) == (0, 0, True, None)
    manifest = runtime.read_artifact(TINY).manifest
    assert [(v["graph"], v["hook"]) for v in document["verdicts"]] == judged_outputs(manifest)
    assert document["weights_sha256"] == manifest.files["weights.safetensors"].sha256
    assert re.fullmatch("[0-9a-f]{64}", document["manifest_sha256"])
    assert (document["device"], document["tokens"], document["judged_by"]) == ("cpu", 16, "parity")
    assert document["versions"]["artifact"] == manifest.provenance
    for verdict in document["verdicts"]:
        given = [verdict[number] for number in NUMBERS]
        assert given == [None] * 4 or (given[0] <= given[1] and given[2] <= given[3])
        assert verdict["passed"]


def test_a_failure_is_in_every_format_with_its_numbers(capsys, artifact):
    broken(artifact)
    code, table = written(capsys, "table", artifact)
    assert code == 1
    (failure, *_) = re.findall("FAIL: (.*)", table)
    code, document = written(capsys, "json", artifact)
    assert (code, document["exit_code"], document["passed"]) == (1, 1, False)
    failing = [verdict for verdict in document["verdicts"] if not verdict["passed"]]
    assert failing
    assert failure in [text for verdict in failing for text in verdict["failures"]]
    assert any(verdict["token_error"] > verdict["token_budget"] for verdict in failing)
    code, suite = written(capsys, "junit", artifact)
    assert code == 1
    assert int(suite.get("failures")) == len(failing)
    case = next(case for case in suite.findall("testcase") if case.find("failure") is not None)
    assert (case.get("classname"), case.get("name")) == (
        f"sae-artifact.tiny.{failing[0]['graph']}", failing[0]["hook"])  # fmt: skip
    assert case.find("failure").text == "\n".join(failing[0]["failures"])
    assert "its budget" in case.find("failure").get("message")


@pytest.mark.parametrize("main", [run, saeexport])
def test_a_changed_file_fails_and_nothing_runs(capsys, artifact, main):
    (artifact / "model.onnx").write_bytes(b"\0" * (artifact / "model.onnx").stat().st_size)
    code, document = written(capsys, "json", artifact, main=main)
    assert (code, document["verdicts"]) == (1, [])
    assert "it was changed after the export" in document["problems"][0]
    code, suite = written(capsys, "junit", artifact, main=main)
    assert (code, suite.get("tests"), suite.get("failures")) == (1, "1", "1")


@pytest.mark.parametrize("main", [run, saeexport])
@pytest.mark.parametrize("spoil", [shutil.rmtree, lambda folder: (folder / "sae.json").write_text("no")])
def test_an_artifact_that_cannot_be_opened_gives_documents_too(capsys, artifact, spoil, main):
    spoil(artifact)
    code, document = written(capsys, "json", artifact, main=main)
    assert (code, document["exit_code"], document["passed"]) == (2, 2, False)
    assert document["error"]
    assert document.keys() == reports.as_json(reports.Outcome("", None, "", 0.0)).keys()
    code, suite = written(capsys, "junit", artifact, main=main)
    assert (code, suite.get("errors")) == (2, "1")
    assert suite.find("testcase/error").text == document["error"]
    assert main(["verify", str(artifact), "--format", "json"]) == 2
    assert f"error: {document['error']}" in capsys.readouterr().err


def test_an_unusable_device_exits_with_2(capsys):
    assert run(["verify", str(TINY), "--device", "gpu", "--format", "json"]) == 2
    assert "it must be" in json.loads(capsys.readouterr().out)["error"]
    with pytest.raises(SystemExit) as usage:
        run(["verify", str(TINY), "--format", "yaml"])
    assert usage.value.code == 2


@pytest.mark.parametrize(("more", "rows"), [([], 8), (["--all"], 36)])
@pytest.mark.parametrize("format", reports.FORMATS)
def test_a_file_takes_the_document_and_stdout_the_table(capsys, tmp_path, format, more, rows):
    out = tmp_path / "out"
    assert run(["verify", str(TINY), "--device", "cpu", "--format", format, "--output", str(out), *more]) == 0
    assert capsys.readouterr().out.count(" ok") == rows
    text = out.read_text()
    if format == "table":
        assert text.count(" ok") == rows
    else:
        assert json.loads(text)["passed"] if format == "json" else parsed(text).get("failures") == "0"
    assert run(["verify", str(tmp_path), "--format", format, "--output", str(out)]) == 2
    assert capsys.readouterr().out == ""
    assert run(["verify", str(TINY), "--device", "cpu", "--output", str(tmp_path / "no" / "out")]) == 2


def test_a_signature_is_checked_first(capsys, artifact, tmp_path):
    private, public = make_key(tmp_path)
    for option in ("--public-key", "--certificate"):
        code, document = written(capsys, "json", artifact, option, public)
        assert (code, document["device"], document["verdicts"]) == (1, None, [])
        assert "is not signed" in document["problems"][0]
    assert saeexport(["sign", str(artifact), "--private-key", str(private)]) == 0
    assert "is signed" in capsys.readouterr().out
    assert written(capsys, "json", artifact, "--public-key", public)[0] == 0
    assert saeexport(["sign", str(artifact), "--private-key", str(private)]) == 2
    assert written(capsys, "json", artifact, "--public-key", tmp_path / "none")[0] == 2
    (artifact / "README.md").write_text("new")
    assert written(capsys, "junit", artifact, "--public-key", public)[0] == 1


@pytest.mark.parametrize("main", [run, saeexport])
def test_other_versions_are_named_and_do_not_fail(capsys, artifact, main):
    with_versions(
        artifact, torch="2.9.9", onnxruntime="1.2.3", einops=versions.installed_versions(["einops"])["einops"]
    )
    here = versions.installed_versions(["torch", "onnxruntime"])
    code, table = written(capsys, "table", artifact, main=main)
    assert code == 0
    assert table.splitlines()[-1] == (
        f"made with other versions: torch 2.9.9 (here {here['torch']}), onnxruntime 1.2.3 (here {here['onnxruntime']})"
    )
    code, document = written(capsys, "json", artifact, main=main)
    assert (code, document["versions"]["differing"]) == (0, ["torch", "onnxruntime"])
    assert document["versions"]["here"]["torch"] == here["torch"]
    _, suite = written(capsys, "junit", artifact, main=main)
    properties = {each.get("name"): each.get("value") for each in suite[0]}
    assert properties["made with torch"] == f"2.9.9, here {here['torch']}"
    assert ", here " not in properties["made with einops"]


def test_the_failures_of_another_version_name_it(artifact):
    with_versions(artifact, torch="2.9.9")
    with pytest.raises(runtime.ParityError, match=r"made with other versions: torch 2\.9\.9"):
        runtime.assert_parity(broken(artifact), "cpu")


def test_what_is_not_installed_here_does_not_differ():
    assert versions.differing_versions({"no-such-package": "1"}) == []
    own = versions.installed_versions(["onnxruntime"])["onnxruntime"]
    assert versions.differing_versions({"onnxruntime-gpu": own}) == []
    assert versions.differing_versions({"onnxruntime-gpu": "1.0"}) == ["onnxruntime-gpu"]


def test_what_was_not_run_is_said_with_the_reason(capsys, half):
    _, document = written(capsys, "json", half)
    skipped = {each["graph"]: each["reason"] for each in document["skipped"]}
    manifest = runtime.read_artifact(half).manifest
    assert skipped == skipped_graphs(manifest, "cpu")
    assert "a CPU does not compute in bfloat16" in skipped["model"]
    _, suite = written(capsys, "junit", half)
    assert {case.get("name") for case in suite.findall("testcase") if case.find("skipped") is not None} == set(skipped)
    on_gpu = skipped_graphs(runtime.read_artifact(TINY).manifest, "tensorrt:0")
    assert on_gpu.keys() == {
        "features",
        "acts",
        *(f"{graph}.sparse" for graph in ("model", "decode", "steer", "features")),
    }


@pytest.mark.parametrize("more", [{}, {"weights": "int8"}, {"dtype": "float16"}], ids=["float32", "int8", "float16"])
@pytest.mark.parametrize("architecture", ["topk", "transcoder"])
def test_the_outputs_that_are_judged_are_known_before(tmp_path, architecture, more):
    path = export(sae_of(architecture), tmp_path / "sae", **more).path
    report, manifest = runtime.verify(path, "cpu"), runtime.read_artifact(path).manifest
    expected = [(graph, name) for graph, name in judged_outputs(manifest) if graph not in report.skipped]
    assert [(verdict.graph, verdict.hook) for verdict in report.verdicts] == expected


def test_nothing_breaks_a_document():
    nasty = "<&\"'>]]>\x00\x1b\udcff\ufffe\U0001f600\n"
    verdicts = [Verdict("model", "a", Errors(math.inf, math.nan), Errors(1.0, 1.0), (nasty,), "note")]
    outcome = reports.Outcome(f"/models/{nasty[:9]}{nasty[10:]}", Report("title", verdicts, [nasty]), "", 1.0)
    document = json.loads(reports.format_outcome(outcome, "json"))
    assert [document["verdicts"][0][number] for number in NUMBERS] == [None, 1.0, None, 1.0]
    assert document["problems"] == [nasty.replace("\udcff", r"\udcff")]
    text = reports.format_outcome(outcome, "junit")
    assert text.isascii()
    suite = parsed(text)
    assert suite.find("testcase/failure").text == nasty.replace("\x00", r"\x00").replace("\x1b", r"\x1b").replace(
        "\udcff", r"\xdcff"
    ).replace("\ufffe", r"\xfffe")


def test_what_a_library_prints_is_not_in_the_document(capsys, monkeypatch):
    verify = runtime.verify

    def chatty(*arguments, **options):
        sys.stdout.write("WARNING\n")
        return verify(*arguments, **options)

    monkeypatch.setattr("runtime.commands.verify.verify", chatty)
    assert written(capsys, "json", TINY)[0] == 0


def test_the_page_has_the_exit_codes_and_every_key():
    page = (ROOT / "docs" / "verifying.md").read_text()
    codes = re.findall(r"^  (\d+) +(.*)$", console.EXIT_CODES, re.MULTILINE)
    listed_codes = re.findall(r"^\| (\d+) \|", page, re.MULTILINE)
    assert [code for code, _ in codes] == listed_codes == ["0", "1", "2", "130", "141", "143"]
    assert dict(codes)["1"] in page
    document = reports.as_json(reports.Outcome("", Report("", [Verdict("model", "a", None, None)]), "", 0.0))
    listed = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    assert {key for cell in listed for key in re.findall(r"`(\w+)`", cell)} == {*document, *document["verdicts"][0]}


def test_a_report_of_make_sae_names_its_artifact(tmp_path):
    path = export(make_sae(), tmp_path / "sae", normal(40, 6)).path
    sign(path, make_key(tmp_path)[0])
    report = runtime.verify(path, "cpu")
    assert (report.artifact.path, report.device, report.tokens) == (path, "cpu", 40)

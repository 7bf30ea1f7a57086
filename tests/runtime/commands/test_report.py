"""`python -m runtime report`: one HTML file that needs no network, and says what the verification and the SAE say."""

import html.parser
import json
import re
import shutil

import numpy as np
import pytest
import torch

import runtime
from runtime import SAESession
from runtime.artifact.labels import Example, Label, Labels
from runtime.commands.main import main
from runtime.commands.report import charts, markup
from runtime.commands.report.measure import decoder_norms
from saeexport import export
from saeexport.cli import main as saeexport_main
from tests.support.breaking import claim_weights, edit_weight, rewrite
from tests.support.commands import said
from tests.support.grafted import graft_tiny
from tests.support.manifests import sealed
from tests.support.samples import MINILM, TINY, make_sae, normal
from tests.support.zoo import sae_of, target_of

VOID = {"meta", "br", "img", "input", "link", "hr"}
LOADING = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href", "ping", "formaction"}


class Page(html.parser.HTMLParser):
    """A document that was read strictly: every element is closed, in order."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.raw = path.read_text("utf-8")
        self.tags, self.attributes, self.texts, self.open, self.rows = [], [], [], [], []
        self.feed(self.raw)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        assert len({name for name, _ in attributes}) == len(attributes)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.texts.append(data)
        if {"td", "th"} & {*self.open}:
            self.rows[-1][-1] += data

    @property
    def text(self):
        return "".join(self.texts)

    def values(self, name):
        return [value for key, value in self.attributes if key == name]


def report(folder, tmp_path, code=0):
    target = tmp_path / "report.html"
    assert main(["report", str(folder), str(target), "--device", "cpu", "--overwrite"]) == code
    return Page(target)


def check(page):
    """Check what holds for every report."""
    assert page.raw.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert not LOADING & {name for name, _ in page.attributes}
    assert not {"script", "link", "iframe", "object", "embed", "img", "use", "image"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    style = re.search("<style>(.*?)</style>", page.raw, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    assert [value for value in page.values("content") if "default-src" in value] == [markup.POLICY]
    ids = page.values("id")
    assert len(set(ids)) == len(ids)
    for names in page.values("aria-labelledby"):
        assert set(names.split()) <= set(ids)
    assert page.tags.count("h1") == 1
    assert page.values("role").count("img") == page.tags.count("svg") >= 1
    for url in re.findall(r"url\(([^)]*)\)", page.raw):
        assert url == "#arrow"
    assert "nan" not in " ".join(page.values("d") + page.values("cx") + page.values("points"))


@pytest.mark.parametrize("folder", [TINY, MINILM])
def test_the_report_of_a_model_needs_nothing_else_and_is_small(tmp_path, folder):
    page = report(folder, tmp_path)
    check(page)
    assert len(page.raw) < 1 << 16
    manifest = runtime.read_artifact(folder).manifest
    for part in (folder.name, manifest.sae.hook_name, "Passed.", *manifest.sae.hooks):
        assert part in page.text
    assert ("Decoder norms" in page.text) == (folder == TINY)
    assert ("Every decoder row has the norm 1." in page.text) == (folder == MINILM)
    assert str(tmp_path) not in page.raw
    assert page.raw == report(folder, tmp_path).raw


def test_every_verdict_is_in_the_table(tmp_path):
    page = report(TINY, tmp_path)
    verified = runtime.verify(TINY, "cpu")
    for verdict in verified.verdicts:
        numbers = ["exact"] * 4
        if verdict.errors:
            pair = (verdict.errors, verdict.budget)
            numbers = [f"{getattr(one, kind):.2e}" for kind in ("token", "element") for one in pair]
        assert [verdict.graph, verdict.hook, *numbers, "ok"] in page.rows


def test_the_features_are_those_of_the_golden_batch(tmp_path):
    page = report(MINILM, tmp_path)
    with SAESession(MINILM, "cpu") as sae:
        golden = runtime.parity.golden.load_golden(sae.artifact)
        acts = sae.encode(golden.original["hook_sae_input"])
        labels = sae.labels
    on = acts != 0
    l0 = on.sum(-1)
    mean, median = f"{l0.mean():.1f}", f"{np.median(l0):g}"
    assert f"The mean is {mean}, the median {median}, the range {l0.min()} to {l0.max()}." in page.text
    assert f"{(~on.any(0)).sum():,} of 3,072 features are on for none of these tokens." in page.text
    listed = [row for row in page.rows if re.fullmatch(r"\d+ of 64", [*row, *[""] * 4][3])]
    order = np.argsort(-acts.max(0), kind="stable")[: len(listed)]
    assert len(listed) == 24
    for j, row in zip(order, listed, strict=True):
        largest, mean = f"{acts[:, j].max():.3f}", f"{acts[on[:, j], j].mean():.3f}"
        assert row[:4] == [str(j), largest, mean, f"{on[:, j].sum()} of 64"]
        assert row[4] == "".join(example.text for example in labels[int(j)].examples[:2])
    l0_bars = [value for value in page.texts if re.fullmatch(r"\d+ to \d+ features on: \d+ tokens", value)]
    assert sum(int(bar.split()[-2]) for bar in l0_bars) == 64


def test_selected_features_have_their_ids_in_the_whole_sae(tmp_path):
    whole, ids = export(make_sae(), tmp_path / "whole", normal(40, 6)).path, [9, 4, 2]
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    command = ["export", str(whole), str(tmp_path / "some"), "--features", str(tmp_path / "ids.json")]
    assert saeexport_main(command) == 0
    page = report(tmp_path / "some", tmp_path)
    (header,) = [row for row in page.rows if row[:1] == ["feature"]]
    assert header[:3] == ["feature", "in the whole SAE", "largest"]
    listed = [row[:2] for row in page.rows if re.fullmatch(r"\d+ of 64", [*row, *[""] * 5][4])]
    assert listed
    assert all(ids[int(j)] == int(of_whole) for j, of_whole in listed)


def test_labels_are_text_and_never_markup(tmp_path):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)> & \"'</td></table>]]>"
    labels = [Label(j, f"{evil}\0\x1b{j}", (Example(f"the {evil} ship", ((4, 12), (14, 20))),)) for j in range(16)]
    sae = make_sae(hook_name="blocks.0.<b>hook</b>")
    sae.cfg.model_name = evil
    export(sae, tmp_path / "a & <i>", normal(64, 6), labels=Labels(16, labels, evil, evil))
    page = report(tmp_path / "a & <i>", tmp_path)
    check(page)
    harmless = Labels(16, [Label(j, "ships", (Example("the ship", ((4, 8),)),)) for j in range(16)], "me", "mine")
    plain = report(export(make_sae(), tmp_path / "plain", normal(64, 6), labels=harmless).path, tmp_path)
    assert set(page.tags) == set(plain.tags)
    listed = page.tags.count("mark") // 2
    assert listed >= 10
    assert page.text.count(evil) == 2 * listed + 4, "label and example; source, licence, and twice the model's name"
    assert f"{evil}\\x00\\x1b3" in page.text, "HTML cannot hold these characters"


def test_long_examples_are_cut_around_what_is_marked(tmp_path):
    text = "a" * 500 + "ship" + "b" * 500
    spans = ((500, 504), (510, 512), (900, 910))
    labels = [Label(j, None, (Example(text, spans), Example("c" * 500))) for j in range(16)]
    export(make_sae(), tmp_path / "sae", normal(64, 6), labels=Labels(16, labels))
    page = report(tmp_path / "sae", tmp_path)
    shown = f"…{'a' * 160}ship{'b' * 160}…{'c' * 160}…"
    assert {row[-1] for row in page.rows if row[3:4] and row[3].endswith("of 64")} == {shown}
    assert page.tags.count("mark") == 2 * page.text.count(shown), "the third one is out of sight"


def test_what_fails_is_said_and_drawn(tmp_path, capsys):
    folder = export(make_sae(), tmp_path / "sae", normal(64, 6)).path
    rewrite(folder, "weights.safetensors", edit_weight("W_dec", (0, 0), 1.5))
    claim_weights(folder)
    page = report(folder, tmp_path, 1)
    check(page)
    assert "Failed. This machine does not compute what PyTorch computed" in page.text
    failures = runtime.verify(folder, "cpu").failures
    assert all(f"FAIL: {failure}\n" in capsys.readouterr().err for failure in failures[:1])
    assert all(failure in page.text for failure in failures)
    crosses = page.values("class").count("cross")
    assert crosses == len([failure for failure in failures if " error is " in failure])
    assert page.values("class").count("box bad") == 3, "recons, error and output"
    assert [row[-1] for row in page.rows if row[:2] == ["decode", "hook_sae_recons"]] == ["FAIL"]


@pytest.mark.parametrize("code", ["int8", "bfloat16", "float16", "transcoder", "transcoder with its error", "heads",
                                  "synthetic", "abstopk"])  # fmt: skip
def test_every_kind_of_sae_has_a_report(tmp_path, code):
    path, options, more = tmp_path / "sae", {}, {}
    sae, x = make_sae(d_in=64, d_sae=128), normal(64, 64)
    if code in ("bfloat16", "float16"):
        options["dtype"] = code
    elif code == "int8":
        options["weights"] = "int8"
    elif code == "heads":
        sae, x, options = make_sae(d_in=12, hook_name="blocks.0.attn.hook_z"), normal(64, 3, 4), {"head_shape": (3, 4)}
    elif code == "synthetic":
        x = None
    elif code != "abstopk":
        sae, x = sae_of("transcoder", use_error_term="error" in code), normal(64, 10)
        more["targets"] = target_of(sae, 64)
    else:
        sae, x = sae_of("abstopk"), normal(64, 10)
    export(sae, path, x, **options, **more)
    page = report(path, tmp_path)
    check(page)
    assert ("so that this is not how features fire" in page.text) == (code == "synthetic")
    assert ("its recorded fidelity" in page.text) == (code == "int8")
    assert ("The reconstruction explains" in page.text) == (code != "transcoder")
    if code == "transcoder":
        assert "There is no error" not in page.text
        assert "error = " not in page.text
    if code == "transcoder with its error":
        assert "error = target - recons, output = recons + error." in page.text
    if code == "heads":
        assert "3 \N{MULTIPLICATION SIGN} 4 inputs" in page.text


def test_decoder_norms_are_those_of_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("runtime.commands.report.measure.ROWS", 7)
    sae = make_sae(d_in=130, d_sae=40)  # 130 is not a multiple of a block of int8 weights
    exact = torch.linalg.vector_norm(sae.W_dec.detach(), dim=1).numpy()
    plain = export(sae, tmp_path / "plain", normal(64, 130))
    np.testing.assert_allclose(decoder_norms(plain), exact, rtol=1e-6)
    int8 = export(sae, tmp_path / "int8", normal(64, 130), weights="int8")
    np.testing.assert_allclose(decoder_norms(int8), exact, rtol=1e-2)


def test_a_decoder_of_another_name_has_no_norms(tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "sae")
    artifact = runtime.read_artifact(folder)
    assert decoder_norms(artifact) is not None
    from runtime.commands.report import measure

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "DECODER", "W_other")
        assert decoder_norms(artifact) is None
        page = report(folder, tmp_path)
    check(page)
    assert "norm" not in page.rows[[row[0] for row in page.rows].index("feature")]


def test_other_versions_are_named(tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "sae")
    text = json.loads((folder / "sae.json").read_text())
    text["provenance"]["numpy"] = "1.0"
    (folder / "sae.json").write_bytes(sealed(text))
    differing = f"The artifact was made with other versions: numpy 1.0 (here {np.__version__})."
    assert differing in report(folder, tmp_path).text
    assert "other versions: numpy" not in report(TINY, tmp_path).text


def test_an_existing_file_is_kept(tmp_path, capsys):
    target = tmp_path / "report.html"
    target.write_text("mine")
    err = said(capsys, 2, "report", TINY, target)
    assert err == f"error: {target} exists. Choose another file, or overwrite it (overwrite=True, --overwrite).\n"
    assert target.read_text() == "mine"
    assert "is not a folder" in said(capsys, 2, "report", TINY, tmp_path / "none" / "report.html")
    said(capsys, 0, "report", TINY, target, "--overwrite")
    assert "Passed." in target.read_text()


def test_a_damaged_artifact_has_no_report(tmp_path, capsys):
    target = tmp_path / "report.html"
    assert "is not an artifact" in said(capsys, 2, "report", tmp_path, target)
    folder = shutil.copytree(TINY, tmp_path / "sae")
    for name in ("weights.safetensors", "model.onnx"):
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(content)
    err = said(capsys, 2, "report", folder, target)
    assert "weights.safetensors has sha256" in err
    assert "model.onnx has sha256" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sae"]


def test_a_grafted_host_names_the_folders_of_its_saes(tmp_path, capsys):
    grafted = graft_tiny(tmp_path)
    err = said(capsys, 2, "report", grafted.path, tmp_path / "report.html")
    assert "is a grafted host, and a report is about one SAE. Give the folder of one of its SAEs:\n" in err
    folders = [line.strip() for line in err.splitlines()[1:]]
    assert len(folders) == 3
    for i, folder in enumerate(folders):
        said(capsys, 0, "report", folder, tmp_path / f"{i}.html")


@pytest.mark.parametrize("values", [[3], [0, 0], [0.25, 0.75], [1, 1000], [-3, 2, 7], [1e-9, 2e-9], [5, 6, 7, 1e6]])
def test_bars_count_every_value_once(values):
    bars = charts.bars_of(np.array(values), "tokens", "features on")
    assert sum(bar.height for bar in bars) == len(values)
    assert 1 <= len(bars) <= charts.BINS + 2
    assert all(bar.height for bar in (bars[0], bars[-1]))


@pytest.mark.parametrize("tokens", [1, 2, 3, 16, 63, 64])
def test_frequencies_are_counted_once(tokens):
    frequency = np.arange(tokens + 1)
    bars = charts.frequency_bars(frequency, tokens)
    assert sum(bar.height for bar in bars) == tokens + 1
    assert all(bar.height for bar in bars)
    assert bars[0].label == "0"


def test_an_element_holds_texts_and_elements_in_order():
    made = markup.element("p", "a", None, markup.element("b", "<"), "c", "d", class_="x", aria_label='"', id=None)
    assert markup.ElementTree.tostring(made, "unicode", method="html") == (
        '<p class="x" aria-label="&quot;">a<b>&lt;</b>cd</p>'
    )

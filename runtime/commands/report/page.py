"""The content of a report, from its heading to the list of files."""

from collections.abc import Iterable
from xml.etree.ElementTree import Element

import numpy as np

from ...artifact.folder import Artifact
from ...artifact.labels import Example, Label, Labels
from ...artifact.manifest import Errors, HookParity
from ...parity.fidelity import describe_fidelity
from ...parity.report import Report, Verdict
from ..inspect import describe_signature, facts
from .charts import Share, bars_of, budget_chart, frequency_bars, histogram
from .diagram import hook_diagram
from .markup import TIMES, Content, document, element, table
from .measure import Measured

FEATURES, EXAMPLES = 24, 2
"""Features that are listed, and examples of each that are shown."""

AROUND = 160
"""Characters of an example before the first token that is marked, and after it."""

REASONS = 4
"""Reasons for a failure that are visible at first."""

KINDS = ("token", "element")


def report_page(artifact: Artifact, report: Report, measured: Measured, labels: Labels) -> bytes:
    """Return the report of an artifact as an HTML document in UTF-8.

    Args:
        artifact: The artifact.
        report: The verdicts on this machine.
        measured: What was measured of its features.
        labels: The labels of its features.
    """
    sae = artifact.manifest.sae
    name = artifact.folder.name
    return document(
        f"{name}: SAE on {sae.hook_name}",
        element(
            "header",
            element("h1", element("bdi", name)),
            element("p", f"{_title(artifact)} on ", element("code", sae.hook_name),
                    *((" of ", element("bdi", sae.model_name)) if sae.model_name else ()), ".", class_="lead"),
            _verdict(report),
        ),
        element(
            "main",
            _hooks(artifact, report),
            _errors(artifact, report),
            _features(artifact, measured),
            _strongest(measured, labels, sae.feature_ids),
            _files(artifact, report),
        ),
        element("footer", element("p", "Made by ", element("code", "python -m runtime report"), f" on {report.device}.",
                                  f" The artifact was {other}." if (other := report.differing_versions) else None)),
    )  # fmt: skip


def _title(artifact: Artifact) -> str:
    sae = artifact.manifest.sae
    size = f" {TIMES} ".join(map(str, sae.input_shape)) if sae.head_shape else f"{sae.d_in:,}"
    predicted = "" if sae.d_out is None else f", which predicts an activation of width {sae.d_out:,}"
    return f"A {sae.architecture} SAE, {size} inputs to {sae.d_sae:,} features{predicted}, in {sae.dtype},"


def _verdict(report: Report) -> Element:
    """Return the outcome of the verification."""
    graphs = len({verdict.graph for verdict in report.verdicts})
    tried = f"{graphs} graphs on {report.tokens} tokens of the golden batch, on {report.device}"
    at_parity = report.artifact is None or report.artifact.manifest.parity is not None
    if not report.failures:
        said = f" Every output is within its {'budget' if at_parity else 'recorded fidelity'}: {tried}."
        return element("p", element("strong", "Passed."), said, class_="verdict")
    more = report.failures[REASONS:]
    expected = "PyTorch computed" if at_parity else "the machine computed that exported it"
    return element(
        "div",
        element("p", element("strong", "Failed."), f" This machine does not compute what {expected}: {tried}."),
        element("ul", *(element("li", failure) for failure in report.failures[:REASONS])),
        *([element("details", element("summary", f"{len(more)} more reasons"),
                   element("ul", *(element("li", failure) for failure in more)))] if more else ()),
        class_="verdict bad", role="alert",
    )  # fmt: skip


def _hooks(artifact: Artifact, report: Report) -> Element:
    notes = {}
    for hook in artifact.manifest.sae.hooks:
        shares = [share.value for found in _shares(report, hook) for share in found]
        notes[hook] = f"≤ {max(shares):.0%} of budget" if shares else "exact"
    failed = {verdict.hook for verdict in report.verdicts if verdict.failures}
    notes |= dict.fromkeys(failed, "fails")
    return _section(
        "Hooks",
        _figure(
            hook_diagram(artifact.manifest, notes, failed),
            "Each box is a hook, ", element("code", "hook_sae_…"), ", with the shape of its tensor and the largest "
            "error of any graph on this machine. The arrows are the stages, each of which is proved by itself.",
        ),
    )  # fmt: skip


def _errors(artifact: Artifact, report: Report) -> Element:
    computed = [hook for hook in artifact.manifest.sae.hooks[1:] if any(_shares(report, hook))]
    recorded = artifact.manifest.record.hooks
    own = {hook: _own_shares(recorded[hook]) for hook in computed if hook in recorded}
    rows: list[list[Content]] = [
        [verdict.graph, element("code", verdict.hook), *_numbers(verdict), "FAIL" if verdict.failures else "ok"]
        for verdict in report.verdicts
    ]
    header = ["graph", "output", "token error", "budget", "element error", "budget", "verdict"]
    numbers = table(header, rows, caption="Errors against the same weights in float64", numbers={2, 3, 4, 5})
    summary = element("summary", f"All {len(rows)} verdicts in numbers")
    chart = [_figure(
        budget_chart({hook: _shares(report, hook) for hook in computed}, own),
        "Each dot is a graph; the grey marks are PyTorch's own error at export, from which the budgets are made. The "
        "token error is that of a token's norm, the element error that of a single number.",
    )] if computed else []  # fmt: skip
    skipped = [element("p", f"Not run here: {graph}, because {reason}.") for graph, reason in report.skipped.items()]
    return _section("Errors and budgets", *chart, *skipped, element("details", summary, numbers))


def _features(artifact: Artifact, measured: Measured) -> Element:
    golden = artifact.manifest.golden
    said = [f"Measured on this machine on {measured.tokens} tokens of the golden batch."]
    if golden.source != "activations":
        said.append("Its inputs are random, so that this is not how features fire in a language model.")
    if measured.left_out:
        said.append(f"{measured.left_out} tokens with activations that are not finite are left out.")
    if measured.explained is not None:
        said.append(f"The reconstruction explains {measured.explained:.1%} of the variance.")
    if artifact.manifest.fidelity is not None:
        said.append(f"At export: {describe_fidelity(artifact.manifest.fidelity)}.")
    charts = []
    if measured.tokens:
        l0 = measured.l0
        charts.append(_figure(
            histogram("l0", "L0 of the tokens", bars_of(l0, "tokens", "features on"), "features on (L0)", "tokens"),
            element("b", "L0. "), f"The mean is {l0.mean():.1f}, the median {np.median(l0):g}, the range {l0.min()} to "
            f"{l0.max()}.",
        ))  # fmt: skip
        never = int((measured.frequency == 0).sum())
        charts.append(_figure(
            histogram("frequency", "Firing frequencies", frequency_bars(measured.frequency, measured.tokens),
                      "tokens for which a feature is on", "features"),
            element("b", "Firing frequencies. "), f"{never:,} of {len(measured.frequency):,} features are on for none "
            "of these tokens.",
        ))  # fmt: skip
    if (norms := measured.decoder_norms) is not None and measured.equal_norms:
        said.append(f"Every decoder row has the norm {np.median(norms):.3g}.")
    elif norms is not None:
        charts.append(_figure(
            histogram("norms", "Decoder norms", bars_of(norms, "features", "as norm"), "norm of the decoder row",
                      "features"),
            element("b", "Decoder norms. "), f"The median is {np.median(norms):.3g}, the range {norms.min():.3g} to "
            f"{norms.max():.3g}.",
        ))  # fmt: skip
    return _section("Features", element("p", " ".join(said)), element("div", *charts, class_="charts"))


def _strongest(measured: Measured, labels: Labels, whole: tuple[int, ...] | None) -> Element:
    """Return a table of the strongest features; `whole` has their ids in the SAE that they were taken from."""
    strongest = measured.strongest(FEATURES)
    if not strongest:
        return _section("Strongest features", element("p", "No feature is on for any token of the golden batch."))
    norms = None if measured.equal_norms else measured.decoder_norms
    with_norm, with_label = norms is not None, any(j in labels for j in strongest)
    header = ["feature", *(["in the whole SAE"] * (whole is not None)), "largest", "mean", "tokens",
              *(["norm"] * with_norm), *(["label"] * with_label)]  # fmt: skip
    rows: list[list[Content]] = []
    for j in strongest:
        row: list[Content] = [str(j), *([] if whole is None else [str(whole[j])]), f"{measured.largest[j]:.3f}",
                              f"{measured.mean[j]:.3f}", f"{measured.frequency[j]} of {measured.tokens}"]  # fmt: skip
        if norms is not None:
            row.append(f"{norms[j]:.3f}")
        rows.append([*row, *([_label(labels[j])] * with_label)])
    caption = "Features by their largest activation on the golden batch; the mean is over the tokens where they are on"
    said = f"{len(labels):,} of {labels.d_sae:,} features have a label." if len(labels) else "No feature has a label."
    known = (("Source: ", labels.source), ("Licence: ", labels.license))
    about = [element("span", f" {name}", element("bdi", value), ".") for name, value in known if value]
    numbers = set(range(len(header) - with_label))
    return _section(
        "Strongest features", table(header, rows, caption=caption, numbers=numbers), element("p", said, *about)
    )


def _label(label: Label) -> Element:
    """Return the label of a feature with some of its examples."""
    text = None if label.text is None else element("strong", element("bdi", label.text))
    examples = [element("div", _example(example), class_="example") for example in label.examples[:EXAMPLES]]
    return element("div", text, *examples)


def _example(example: Example) -> Element:
    """Return a text around the first token on which a feature is strong, with such tokens marked."""
    first = min(example.spans, default=(0, 0))
    begin, last = max(0, first[0] - AROUND), min(len(example.text), first[1] + AROUND)
    parts: list[Content] = ["…"] if begin else []
    end = begin
    for start, stop in sorted(span for span in example.spans if span[1] <= last):
        parts += [example.text[end:start], element("mark", example.text[start:stop])]
        end = stop
    return element("bdi", *parts, example.text[end:last], "…" if last < len(example.text) else None)


def _files(artifact: Artifact, report: Report) -> Element:
    manifest = artifact.manifest
    about = [*facts(manifest), ("manifest", f"sha256 {artifact.sha256}")]
    described = element("dl", *(part for name, value in about for part in (element("dt", name), element("dd", value))))
    rows: list[list[Content]] = [
        [element("code", graph.file), f"{manifest.files[graph.file].bytes:,}",
         describe_signature(graph, manifest.sae.hooks)]
        for graph in manifest.graphs.values()
    ]  # fmt: skip
    return _section(
        "Artifact", described, table(["graph", "bytes", "inputs and outputs"], rows, caption="Graphs", numbers={1})
    )


def _shares(report: Report, hook: str) -> list[list[Share]]:
    """Return the shares of its token budget and of its element budget that each graph uses at a hook."""
    return [
        [
            Share(verdict.graph, _ratio(getattr(verdict.errors, kind), getattr(verdict.budget, kind)),
                  getattr(verdict.errors, kind) > getattr(verdict.budget, kind))
            for verdict in report.verdicts
            if verdict.hook == hook and verdict.errors and verdict.budget
        ]
        for kind in KINDS
    ]  # fmt: skip


def _own_shares(record: HookParity) -> list[float]:
    return [_ratio(getattr(record.original, kind), getattr(record.budget, kind)) for kind in KINDS]


def _ratio(error: float, budget: float) -> float:
    return error / budget if budget else float("inf") if error else 0.0


def _numbers(verdict: Verdict) -> Iterable[str]:
    if not verdict.errors or not verdict.budget:
        return ["-" if verdict.failures else "exact"] * 4
    pair: tuple[Errors, Errors] = (verdict.errors, verdict.budget)
    return [f"{getattr(errors, kind):.2e}" for kind in KINDS for errors in pair]


def _section(title: str, *content: Content) -> Element:
    return element("section", element("h2", title), *content)


def _figure(image: Element, *caption: Content) -> Element:
    return element("figure", element("div", image, class_="scroll"), element("figcaption", *caption))

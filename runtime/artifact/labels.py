"""`labels.json`: what people say about the features of an artifact, and examples of texts on which they are strong.

    {
      "format": "saeexport.labels", "format_version": 1, "source": "...", "license": "...",
      "labels": [
        {"index": 1460, "text": "ships", "examples": [
          {"text": "the ship left the harbor", "spans": [[4, 8]], "activation": 5.2}
        ]}
      ]
    }

`index` ascends. Features without a label are left out, and so is what is not known of `text`, `examples`, `spans` and
`activation`; `source` and `license` may be null. A span is a pair of positions in `text`, counted in Unicode code
points: the start of the token on which the feature is strong, and the position behind its end. Labels have no part in
the proof of parity.
"""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..arrays.arguments import as_integer
from ..errors import ArtifactError, InputError

LABELS = "labels.json"
FORMAT = "saeexport.labels"
VERSION = 1
LARGEST = 1 << 28
"""Largest size of the file in bytes."""

BRIEF = 3
"""Tokens of the examples that stand for a label without a text."""


@dataclass(frozen=True)
class Example:
    """A text on which a feature is on.

    Attributes:
        text: The text.
        spans: Start and end of the tokens on which the feature is strong, in code points of `text`.
        activation: Activation of the feature there; None if it is not known.
    """

    text: str
    spans: tuple[tuple[int, int], ...] = ()
    activation: float | None = None

    def __str__(self) -> str:
        """Return the text with the tokens between arrows: "the »ship« left"."""
        parts, end = [], 0
        for start, stop in sorted(self.spans):
            parts += [self.text[end:start], "»", self.text[start:stop], "«"]
            end = stop
        return "".join([*parts, self.text[end:]])


@dataclass(frozen=True)
class Label:
    """What is known about a feature.

    Attributes:
        index: Id of the feature.
        text: What a person or a model says about it; None if nobody has.
        examples: Texts on which it is on, the strongest first.
    """

    index: int
    text: str | None = None
    examples: tuple[Example, ...] = ()

    def __str__(self) -> str:
        """Return the text, or else the tokens of the examples, or else nothing."""
        if self.text is not None:
            return self.text
        tokens = Counter(each.text[start:stop].strip() for each in self.examples for start, stop in each.spans)
        return " / ".join(token for token, _ in tokens.most_common(BRIEF))


class Labels:
    """The labels of an SAE's features. `labels[j]` is the label of feature `j`, which is empty if it has none.

    `len(labels)` is the number of features that have one, and iterating yields those.

    Args:
        d_sae: Number of features.
        labels: The labels, in any order, at most one for a feature.
        source: Where they come from, such as an address; None if it is not known.
        license: Licence of their texts, such as "CC BY 4.0"; None if it is not known.

    Raises:
        InputError: A label does not fit.
    """

    def __init__(
        self, d_sae: int, labels: Iterable[Label] = (), source: str | None = None, license: str | None = None
    ) -> None:
        self.d_sae = as_integer("d_sae", d_sae, 0)
        self.source, self.license = source, license
        self._labels: dict[int, Label] = {}
        for label in sorted(labels, key=lambda label: label.index):
            _check(label, self.d_sae)
            if label.index in self._labels:
                raise InputError(f"Feature {label.index} has two labels. Give one, with all of its examples.")
            self._labels[label.index] = label

    def __getitem__(self, index: int) -> Label:
        index = as_integer("index", index, 0, self.d_sae - 1, most_is="d_sae - 1 = ")
        return self._labels.get(index) or Label(index)

    def __contains__(self, index: object) -> bool:
        """Tell whether a feature has a label."""
        return index in self._labels

    def __iter__(self) -> Iterator[Label]:
        return iter(self._labels.values())

    def __len__(self) -> int:
        return len(self._labels)

    def __repr__(self) -> str:
        return f"Labels of {len(self)} of {self.d_sae} features, from {self.source or 'an unknown source'}"

    def to_json(self) -> str:
        """Return the text of `labels.json`, the same for the same labels."""
        head = {"format": FORMAT, "format_version": VERSION, "source": self.source, "license": self.license}
        rows = ",\n".join(_to_json(label) for label in self)
        return json.dumps(head, ensure_ascii=False)[:-1] + f', "labels": [\n{rows}\n]}}\n'


def check_labels_size(size: int, where: str = LABELS) -> None:
    """Check the size of `labels.json` in bytes, which is known before it is read.

    Raises:
        ArtifactError: It is larger than `LARGEST`.
    """
    if size > LARGEST:
        raise ArtifactError(f"{where} has {size:,} bytes; labels have at most {LARGEST:,}.")


def read_labels(content: bytes, d_sae: int, where: str = LABELS) -> Labels:
    """Return the labels in the content of `labels.json`.

    Args:
        content: The content.
        d_sae: Number of features of the SAE.
        where: Name of the file, for errors.

    Raises:
        ArtifactError: The content is not in this format, or does not fit the SAE.
    """
    check_labels_size(len(content), where)
    try:
        data = json.loads(content.decode("utf-8"))
        if data["format"] != FORMAT or data["format_version"] != VERSION:
            raise ValueError(f"its format is {data['format']!r} {data['format_version']!r}")
        labels = [_label(entry) for entry in data["labels"]]
        return Labels(d_sae, labels, _text(data.get("source")), _text(data.get("license")))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, InputError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ArtifactError(f"{where} does not hold labels of {d_sae} features ({FORMAT} {VERSION}): {what}") from error


def _to_json(label: Label) -> str:
    """Return a label as JSON on one line, without what is not known."""
    record = _known(label)
    if label.examples:
        record["examples"] = list(map(_known, label.examples))
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"))


def _known(record: Label | Example) -> dict[str, Any]:
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {name: value for name, value in values.items() if value not in (None, ())}


def _label(entry: Mapping[str, Any]) -> Label:
    examples = (
        Example(each["text"], tuple((start, end) for start, end in each.get("spans", ())), each.get("activation"))
        for each in entry.get("examples", ())
    )
    return Label(entry["index"], _text(entry.get("text")), tuple(examples))


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _check(label: Label, d_sae: int) -> None:
    as_integer("index", label.index, 0, d_sae - 1, most_is="d_sae - 1 = ")
    for example in label.examples:
        if not isinstance(example.text, str):
            raise InputError(f"An example of feature {label.index} is {example.text!r}; it must be a text.")
        end = 0
        for span in sorted(example.spans):
            start, stop = (as_integer("a position of a span", each, 0, len(example.text)) for each in span)
            if not end <= start < stop:
                raise InputError(
                    f"Feature {label.index} has the spans {list(example.spans)} in {example.text!r}; they must not be "
                    "empty and must not overlap."
                )
            end = stop
        strength = example.activation
        if strength is not None and not (isinstance(strength, int | float) and math.isfinite(strength)):
            raise InputError(f"An activation of feature {label.index} is {strength!r}; it must be a finite number.")

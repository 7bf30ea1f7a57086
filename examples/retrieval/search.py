"""Finds texts by the features of an SAE with Qdrant, and compares recall and size with dense embeddings.

    python examples/retrieval/search.py build/host [--check]

Needs the host of `make host`, and the packages of `saeexport[cpu,text]` and requirements.txt, without PyTorch.
"""

import argparse
import json
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models
from vectors import Rows, Vectors, embed, keep, weigh

from runtime import HostSession, Labels

HERE = Path(__file__).parent
FOUND = 10
TOLERANCE = 0.02
"""Largest difference of a recall to the README: another processor may decide near ties of 200 queries differently."""


@dataclass(frozen=True)
class Kind:
    """A kind of vectors in a collection of Qdrant.

    Attributes:
        name: What the table calls it.
        texts: Vectors of the texts, `(texts, width)`.
        queries: Vectors of the queries, `(queries, width)`.
        sparse: Whether only the elements that are not zero are stored.
        idf: Whether the engine multiplies the query by the inverse document frequency of each feature.
    """

    name: str
    texts: Rows
    queries: Rows
    sparse: bool = True
    idf: bool = False

    @property
    def bytes_per_text(self) -> float:
        """Mean size of a text's vector: 4 bytes for an element, and 4 more for its index if it is sparse."""
        return 8 * float((self.texts != 0).sum(axis=1).mean()) if self.sparse else 4.0 * self.texts.shape[1]

    def exact_scores(self) -> Rows:
        """Return the dot products that the engine must find the largest of, `(queries, texts)`."""
        queries = self.queries * self.frequency_weights() if self.idf else self.queries
        return queries @ self.texts.T

    def frequency_weights(self) -> Rows:
        """Return the inverse document frequency of each feature, `(width,)`.

        Source: Qdrant's `Modifier.IDF`, `ln(1 + (n - df + 0.5) / (df + 0.5))`.
        """
        df = (self.texts != 0).sum(axis=0)
        return np.log1p((len(self.texts) - df + 0.5) / (df + 0.5)).astype(np.float32)


def kinds_of(texts: Vectors, queries: Vectors) -> list[Kind]:
    """Return the kinds of vectors that the table compares."""
    return [
        Kind("dense embedding", texts.dense, queries.dense, sparse=False),
        Kind("64 features, as they are", keep(texts.features, 64), keep(queries.features, 64)),
        *(
            Kind(f"{kept} features, weighted", *(weigh(keep(of.features, kept)) for of in (texts, queries)), idf=True)
            for kept in (128, 64, 32)
        ),
    ]


def as_vector(row: Rows, sparse: bool) -> list[float] | models.SparseVector:
    """Return a row as Qdrant takes it."""
    if not sparse:
        return row.tolist()
    (on,) = np.nonzero(row)
    return models.SparseVector(indices=on.tolist(), values=row[on].tolist())


def search(client: QdrantClient, kind: Kind) -> tuple[NDArray[np.int64], Rows]:
    """Return the indices of the texts that the engine finds for each query, and their scores, `(queries, FOUND)`."""
    dense = {} if kind.sparse else {"v": models.VectorParams(size=kind.texts.shape[1], distance=models.Distance.DOT)}
    modifier = models.Modifier.IDF if kind.idf else None
    sparse = {"v": models.SparseVectorParams(modifier=modifier)} if kind.sparse else {}
    client.create_collection(kind.name, vectors_config=dense, sparse_vectors_config=sparse)
    points = [models.PointStruct(id=i, vector={"v": as_vector(row, kind.sparse)}) for i, row in enumerate(kind.texts)]
    client.upload_points(kind.name, points)
    answers = [
        client.query_points(kind.name, query=as_vector(row, kind.sparse), using="v", limit=FOUND).points
        for row in kind.queries
    ]
    indices = np.array([[point.id for point in points] for points in answers])
    return indices, np.array([[point.score for point in points] for points in answers], np.float32)


def difference_from_exact(kind: Kind, indices: NDArray[np.int64], scores: Rows) -> float:
    """Return the largest difference between the engine's scores and the largest dot products, relative to the largest.

    Texts with nearly equal scores may be in another order, so that scores are compared and not indices.
    """
    exact = kind.exact_scores()
    largest = -np.sort(-exact, axis=1)[:, :FOUND]
    own = np.take_along_axis(exact, indices, axis=1)
    return float(max(np.abs(scores - largest).max(), np.abs(own - largest).max()) / np.abs(largest).max())


def row_of(kind: Kind, indices: NDArray[np.int64], dense: NDArray[np.int64]) -> list[str]:
    """Return the cells of a kind: query `i` has to find text `i`."""
    hits = indices == np.arange(len(indices))[:, None]
    shared = np.mean([len(set(a) & set(b)) / FOUND for a, b in zip(indices, dense, strict=True)])
    return [kind.name, f"{kind.bytes_per_text:.0f}", f"{hits[:, 0].mean():.2f}", f"{hits.any(axis=1).mean():.2f}",
            f"{shared:.2f}"]  # fmt: skip


def explain(kind: Kind, query: int, text: int, labels: Labels, most: int = 3) -> list[str]:
    """Return lines on the features that contribute most to the score of a text."""
    parts = kind.queries[query] * kind.frequency_weights() * kind.texts[text]
    return [
        f"    {parts[j] / parts.sum():4.0%} from feature {j}, as in: {' | '.join(map(str, labels[j].examples[:2]))}"
        for j in np.argsort(-parts)[:most].tolist()
    ]


def print_table(rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    print(f"| vectors | bytes per text | recall@1 | recall@{FOUND} | of the dense {FOUND} |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def differences_from_readme(rows: list[list[str]]) -> list[str]:
    """Return what differs between the table and that of the README."""
    shown = dict(re.findall(r"^\| ([^|]+?) \| (.+) \|$", (HERE / "README.md").read_text("utf-8"), re.MULTILINE))
    found = []
    for name, *cells in rows:
        wanted = shown.get(name, "nothing").split(" | ")
        near = len(wanted) == len(cells) and all(
            abs(float(a) - float(b)) <= (TOLERANCE if "." in b else 0.01 * float(b))
            for a, b in zip(cells, wanted, strict=True)
        )
        if not near:
            found.append(f"{name}: the table has {' | '.join(cells)}, README.md {' | '.join(wanted)}.")
    return found


def main() -> int:
    """Index the texts, answer the queries and print; return 1 if a check fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("host", type=Path, help="folder that `make host` wrote")
    parser.add_argument("--check", action="store_true", help="fail if the table is not that of README.md")
    options = parser.parse_args()
    entries = [json.loads(line) for line in (HERE / "texts.jsonl").read_text("utf-8").splitlines()]
    texts, queries = [entry["text"] for entry in entries], [entry["query"] for entry in entries if "query" in entry]
    start = time.perf_counter()
    with HostSession(options.host, "cpu") as host:
        kinds = kinds_of(embed(host, texts), embed(host, queries))
        labels = host.sae(host.hook_names[0]).labels
    print(f"{len(texts)} texts and {len(queries)} queries became vectors in {time.perf_counter() - start:.0f} s.\n")
    client, answers, failures = QdrantClient(":memory:"), {}, []
    for kind in kinds:
        answers[kind.name], scores = search(client, kind)
        if not (difference := difference_from_exact(kind, answers[kind.name], scores)) <= 1e-5:
            failures.append(f"{kind.name}: the engine's scores differ from the dot products by {difference:.1e}.")
    rows = [row_of(kind, answers[kind.name], answers[kinds[0].name]) for kind in kinds]
    print_table(rows)
    kind = kinds[3]
    print(f"\nWhy a text was found, with {kind.name}:")
    for query in range(3):
        text = int(answers[kind.name][query, 0])
        print(f"\n  {queries[query]}\n  -> {texts[text]}", *explain(kind, query, text, labels), sep="\n")
    failures += differences_from_readme(rows) if options.check else []
    print(*failures, sep="\n", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

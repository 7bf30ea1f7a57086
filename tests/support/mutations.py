"""Changes files at random, as accidents and attackers do. Every choice comes from a random generator."""

import functools
import json
import os
import shutil
import string

from tests.support.breaking import rewrite

NUMBERS = (0, 1, -1, 2, 0.5, 1e-30, 1e30, 1e308, 2**31, 2**63, 2**64, float("nan"), float("inf"))
VALUES = (
    None,
    True,
    False,
    "",
    "a",
    "../x",
    "/etc/hostname",
    "sae.json",
    "\x00",
    "\ud800",
    [],
    {},
    [[]],
    "float32",
    "x" * 999,
)


def mutate_file(path, rng):
    """Change one file in a random way. Return the name of the way."""
    ways = [*BYTES, *KINDS, *((mutate_json,) if path.suffix == ".json" else ()) * len(BYTES)]
    way = rng.choice(ways)
    way(path, rng)
    return way.__name__


def mutate_folder(folder, rng, recorded=False):
    """Change one file of a folder in a random way. Return the name of the file and of the way.

    Args:
        folder: Folder of an artifact or a checkpoint.
        rng: Random generator.
        recorded: Whether to record the new size and checksum in the manifest, as somebody would who means it.
    """
    path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    if not recorded or path.name == "sae.json":
        return path.name, mutate_file(path, rng)
    way = rng.choice(BYTES)
    rewrite(folder, path.name, functools.partial(way, rng=rng))
    return path.name, way.__name__


def flip(path, rng):
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 1, 8])):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def flip_in_the_header(path, rng):
    data = bytearray(path.read_bytes())
    if data:
        data[rng.randrange(min(len(data), 64))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncate(path, rng):
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data) or 1)])


def extend(path, rng):
    with path.open("ab") as file:
        file.write(rng.choice([b"\0", b"\n", b"x" * 1000]))


def clear(path, rng):
    path.write_bytes(b"")


def wipe(path, rng):
    data = path.read_bytes()
    start = rng.randrange(len(data) or 1)
    path.write_bytes(data[:start] + bytes(min(512, len(data) - start)) + data[start + 512 :])


def randomize(path, rng):
    path.write_bytes(bytes(rng.randrange(256) for _ in range(rng.randrange(400))))


def remove(path, rng):
    path.unlink()


def become_a_folder(path, rng):
    path.unlink()
    path.mkdir()


def become_a_fifo(path, rng):
    path.unlink()
    os.mkfifo(path)


def become_a_link_to_itself(path, rng):
    path.unlink()
    path.symlink_to(path.name)


def become_a_link_to_nothing(path, rng):
    path.unlink()
    path.symlink_to("missing")


def become_a_link_to_another(path, rng):
    other = rng.choice(sorted(path.parent.iterdir()))
    if other != path:
        path.unlink()
        path.symlink_to(other.name)


def become_a_copy_of_another(path, rng):
    other = rng.choice(sorted(path.parent.iterdir()))
    if other != path and other.is_file():
        path.unlink()
        shutil.copy(other, path)


def mutate_json(path, rng):
    """Change the text of a JSON file so that it is JSON still, or nearly."""
    text = path.read_text()
    way = rng.randrange(4)
    if way == 0:  # a digit, so that only the meaning changes
        digits = [i for i, character in enumerate(text) if character in string.digits]
        i = rng.choice(digits or [0])
        text = text[:i] + rng.choice(string.digits) + text[i + 1 :]
    elif way == 1:
        deep = rng.choice([10, 1000, 100_000])
        text = rng.choice(["[" * deep, '{"a":' * deep, "9" * deep, "[" * deep + "]" * deep])
    else:
        data = json.loads(text)
        _mutate_value(data, rng)
        text = json.dumps(data)
    path.write_text(text)


def _mutate_value(data, rng):
    """Change a random value inside a JSON value, in place."""
    while True:
        keys = list(data) if isinstance(data, dict) else range(len(data))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(data[key], (dict, list)) and data[key] and rng.random() < 0.8:
            data = data[key]
            continue
        way = rng.randrange(4)
        if way == 0:
            del data[key]
        elif way == 1:
            data[key] = rng.choice(NUMBERS)
        elif way == 2:
            data[key] = rng.choice(VALUES)
        else:
            other = rng.choice(keys)
            data[key], data[other] = data[other], data[key]
        return


BYTES = (flip, flip, flip_in_the_header, truncate, extend, clear, wipe, randomize)
"""Ways that leave an ordinary file."""

KINDS = (
    remove,
    become_a_folder,
    become_a_fifo,
    become_a_link_to_itself,
    become_a_link_to_nothing,
    become_a_link_to_another,
    become_a_copy_of_another,
)

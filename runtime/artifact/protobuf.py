"""Reads and writes the fields of protobuf messages, for ONNX files.

The package `onnx`, which an installation without PyTorch does not have, is not needed for the few fields that
`runtime` reads.

Source: https://protobuf.dev/programming-guides/encoding/.
"""

from collections.abc import Iterable, Iterator

VARINT, BYTES, FIXED = 0, 2, {1: 8, 5: 4}
"""Wire types; those with a fixed size, and that size in bytes."""

LONGEST_VARINT = 10

UNREADABLE = (ValueError, IndexError, KeyError)
"""The errors that reading a damaged message raises: a field is not what it must be, ends too early, or is missing."""


def fields(message: memoryview) -> Iterator[tuple[int, "int | memoryview"]]:
    """Yield the number and the value of each field of a message.

    Raises:
        ValueError: It is not a message.
        IndexError: It ends in the middle of a field.
    """
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        if kind == VARINT:
            value, position = _varint(message, position)
            yield key >> 3, value
            continue
        if kind == BYTES:
            size, position = _varint(message, position)
        elif kind in FIXED:
            size = FIXED[kind]
        else:
            raise ValueError(f"a field has the unknown wire type {kind}")
        if position + size > len(message):
            raise ValueError("a field ends outside of its message")
        yield key >> 3, message[position : position + size]
        position += size


def submessages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """Yield the messages, or strings, of the field with the number `wanted`."""
    return (value for field, value in fields(message) if field == wanted and not isinstance(value, int))


def integers(message: memoryview) -> list[int]:
    """Return the integers of a packed field."""
    values, position = [], 0
    while position < len(message):
        value, position = _varint(message, position)
        values.append(value)
    return values


def text(value: "int | memoryview") -> str:
    """Return a string; "" for an integer."""
    return "" if isinstance(value, int) else bytes(value).decode()


def encode(values: Iterable[tuple[int, "int | bytes | memoryview"]]) -> bytes:
    """Return the message of fields: integers, and strings or messages as bytes."""
    parts: list[bytes | memoryview] = []
    for field, value in values:
        if isinstance(value, int):
            parts += [_as_varint(field << 3 | VARINT), _as_varint(value)]
        else:
            parts += [_as_varint(field << 3 | BYTES), _as_varint(len(value)), value]
    return b"".join(parts)


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return an integer of seven bits in each byte, and the position after it."""
    value = 0
    for i in range(LONGEST_VARINT):
        byte = message[position + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, position + i + 1
    raise ValueError("a number has more than ten bytes")


def _as_varint(value: int) -> bytes:
    """Return a number that is not negative as seven bits in each byte."""
    content = bytearray()
    while value > 0x7F:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    content.append(value)
    return bytes(content)

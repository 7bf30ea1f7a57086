"""The limit on the bodies of HTTP requests."""

import asyncio
import json

import pytest

from runtime import InputError
from runtime.serving.asgi import BodyLimit

MOST = 10


async def echo(scope, receive, send):
    """Answer with the body that was received, or pass another kind of connection on."""
    if scope["type"] != "http":
        await send({"type": "other"})
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
    assert (await receive())["type"] == "http.disconnect"


def ask(parts, headers=(), kind="http", end="http.request"):
    """Return the messages that a client gets for a body in parts, and how many parts were read."""
    sent, read = [], []

    async def receive():
        number = len(read)
        read.append(number)
        if number >= len(parts):
            return {"type": "http.disconnect"}
        last = number == len(parts) - 1
        return {"type": end if last else "http.request", "body": parts[number], "more_body": not last}

    async def send(message):
        sent.append(message)

    asyncio.run(BodyLimit(echo, MOST)({"type": kind, "headers": list(headers)}, receive, send))
    return sent, len(read)


@pytest.mark.parametrize("parts", [[b""], [b"0123456789"], [b"0123", b"456789"], [b"", b"1", b""]])
def test_a_body_at_the_limit_reaches_the_application_whole(parts):
    (start, body), read = ask(parts, [(b"content-length", str(len(b"".join(parts))).encode())])
    assert start["status"] == 200
    assert body["body"] == b"".join(parts)
    assert read == len(parts) + 1  # the message after the body reaches the application, too


@pytest.mark.parametrize(
    ("parts", "n_read"),
    [
        ([b"0123456789a"], 1),
        ([b"01234", b"56789", b"a"], 3),
        ([b"01234"] * 4, 4),
        ([b"01234"] * 9, 5),
        ([b"0" * 99], 1),
    ],
)
@pytest.mark.parametrize("declared", [True, False])
def test_a_larger_body_is_refused_and_read_up_to_twice_the_limit(parts, n_read, declared):
    headers = [(b"content-length", str(sum(map(len, parts))).encode())] if declared else []
    (start, body), read = ask(parts, headers)
    assert start["status"] == 413
    assert (b"connection", b"close") in start["headers"]
    error = "The body of the request is larger than 10 bytes. Send fewer tokens at a time."
    assert json.loads(body["body"]) == {"error": error}
    assert read == n_read


def test_a_length_that_is_a_lie_does_not_help():
    for length in (b"3", b"-1", b"x", b""):
        (start, _), _ = ask([b"0" * 11], [(b"content-length", length)])
        assert start["status"] == 413


def test_a_client_that_leaves_and_other_connections():
    assert ask([b"0", b"1"], end="http.disconnect") == ([], 2)
    assert ask([], kind="lifespan") == ([{"type": "other"}], 0)


def test_the_limit_is_a_whole_number():
    with pytest.raises(InputError, match="most_bytes is 'x'"):
        BodyLimit(echo, "x")


def test_a_length_of_thousands_of_digits_is_too_large():
    (start, _), _ = ask([b""], [(b"content-length", b"9" * 5000)])
    assert start["status"] == 413

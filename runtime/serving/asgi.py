"""Limits the size of HTTP requests, for servers that do not: FastAPI, Starlette, MLServer and KServe."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from ..arrays.arguments import as_integer
from .service import TOO_LARGE

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

MOST_DIGITS = 19
"""Most digits of a size that may be in order; Python does not read a number of thousands of them."""


class BodyLimit:
    """ASGI middleware that answers a request whose body is too large with 413.

    The body is collected before the application sees it; servers of JSON collect it in any case. Of a body that is too
    large, nothing is kept and no more than twice the limit is read: many clients read an answer only when they have
    sent their request, and would otherwise find the connection closed.

    Source: https://asgi.readthedocs.io/en/latest/specs/www.html.

    Args:
        app: The application.
        most_bytes: Size of the largest body.
    """

    def __init__(self, app: App, most_bytes: int) -> None:
        self._app = app
        self._most = as_integer("most_bytes", most_bytes, 0)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI calls an application."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        declared = dict(scope["headers"]).get(b"content-length", b"")
        refused = declared.isdigit() and (len(declared) > MOST_DIGITS or int(declared) > self._most)
        body, size, more = bytearray(), 0, True
        while more and size <= 2 * self._most:
            message = await receive()
            if message["type"] != "http.request":  # the client has gone
                return None
            part = message.get("body", b"")
            size, more = size + len(part), message.get("more_body", False)
            refused = refused or size > self._most
            if not refused:
                body += part
        if refused:
            return await self._refuse(send)
        messages: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def receive_again() -> Message:
            return messages.pop() if messages else await receive()

        return await self._app(scope, receive_again, send)

    async def _refuse(self, send: Send) -> None:
        text = {"error": f"The body of the request is larger than {self._most:,} bytes. Send fewer tokens at a time."}
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": TOO_LARGE, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(text).encode()})

"""What an ASGI application is, and how JSON is sent to its clients."""

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


async def whole_body(receive: Receive) -> bytes | None:
    """The body of a request; None if the client leaves before it is there."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body


def error(reason: str, *, parameter: str | None = None, status: int = 400) -> dict[str, Any]:
    """A refusal in the form of the OpenAI interface."""
    kind = "BadRequestError" if status == 400 else "ServiceUnavailableError"
    return {"error": {"message": reason, "type": kind, "param": parameter, "code": status}}


async def send_json(send: Send, status: int, content: Mapping[str, Any] | bytes) -> None:
    """A whole reply; bytes are JSON already."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

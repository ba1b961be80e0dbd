"""Refuses requests that name what is not offered before vLLM's front end looks at their pictures.

vLLM checks a request's arguments after it has taken in its pictures, and then believes that its engine has them: the
next request with such a picture would be answered with an error. So the name is looked at first (`--middleware`). Here
clients also read what may be named (`OFFERS`).
"""

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from vlm_guard.serving.vllm.declaration import KEY, Declaration

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
_NAMED = KEY.encode()
OFFERS = "/v1/vlm_guard"
"""Where a server says what it offers, to whoever asks."""


class FrontDoor:
    """An ASGI application around the server's.

    Args:
        app: the server's.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._declared = Declaration.of_environment()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request, or hand it on."""
        if self._declared is None or scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "GET" and scope["path"] == OFFERS:
            await _send_json(send, 200, self._declared.describe())
            return
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has left
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        reason = self._refusal(body)
        if reason:
            await _answer(send, reason)
            return
        given: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return given.pop() if given else await receive()

        await self._app(scope, again, send)

    def _refusal(self, body: bytes) -> str:
        """Why a request is refused; empty where it is not, or where the server itself will say so."""
        if self._declared is None or _NAMED not in body:
            return ""
        try:
            asked = json.loads(body)
            extra = asked.get("vllm_xargs") if isinstance(asked, dict) else None
            if isinstance(extra, dict):
                self._declared.check(extra)
        except (json.JSONDecodeError, UnicodeDecodeError):
            return ""
        except ValueError as error:
            return str(error)
        return ""


async def _answer(send: Send, reason: str) -> None:
    """HTTP 400 in the form of the OpenAI interface."""
    error = {"message": reason, "type": "BadRequestError", "param": "vllm_xargs", "code": 400}
    await _send_json(send, 400, {"error": error})


async def _send_json(send: Send, status: int, content: Mapping[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

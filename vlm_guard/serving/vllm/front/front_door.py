"""Refuses requests that name what is not offered before vLLM's front end looks at their pictures.

vLLM checks a request's arguments after it has taken in its pictures, and then believes that its engine has them: the
next request with such a picture would be answered with an error. So the name is looked at first (`--middleware`). Here
clients also read what may be named (`OFFERS`), and have answers scored (`MENTIONS`).
"""

import json
from collections.abc import MutableMapping
from typing import Any

from vlm_guard.serving.vllm.declaration import KEY, SERVED_PARTS, Declaration
from vlm_guard.serving.vllm.front.asgi import App, Message, Receive, Send, error, send_json, whole_body
from vlm_guard.serving.vllm.front.mentions_endpoint import MENTIONS, MentionsEndpoint

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
        self._mentions = MentionsEndpoint(app, () if self._declared is None else self._declared.grounding)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request, or hand it on."""
        if self._declared is None or scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "GET" and scope["path"] == OFFERS:
            await send_json(send, 200, self._declared.describe())
            return
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        body = await whole_body(receive)
        if body is None:
            return
        if scope["path"] == MENTIONS:
            if not self._declared.grounding:
                reason = f"this server scores no mentions; start it with --grounding {','.join(SERVED_PARTS)}"
                await send_json(send, 400, error(reason))
                return
            await self._mentions(scope, body, receive, send)
            return
        reason = self._refusal(body)
        if reason:
            await send_json(send, 400, error(reason, parameter="vllm_xargs"))
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

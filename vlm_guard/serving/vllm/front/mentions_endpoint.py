"""`POST /v1/vlm_guard/mentions`: a score for everything that the answer of a conversation mentions.

    {"model": "...", "messages": [..., {"role": "assistant", "content": "The image shows a dog."}]}

The questions are asked at the server's own chat interface, one token each, with the client's key and the plain model.
The first of them is read from its first token on, and its picture's hidden states are kept for the lens; the others
find its keys in the prefix cache.
"""

import asyncio
import json
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from vlm_guard.grounding.grounded_answer import GroundedAnswer
from vlm_guard.grounding.settings import Part
from vlm_guard.serving.vllm.declaration import KEY, PLAIN
from vlm_guard.serving.vllm.front.asgi import App, Message, Receive, Send, error, send_json
from vlm_guard.serving.vllm.front.mentions_request import MentionsRequest
from vlm_guard.serving.vllm.grounding.asked_mentions import AskedMentions, MentionReader
from vlm_guard.serving.vllm.grounding.lens_keys import LENS, lens_key
from vlm_guard.untrusted.json_files import parse_json

MENTIONS = "/v1/vlm_guard/mentions"
_CHAT = "/v1/chat/completions"
AT_ONCE = 16
"""So many answers are scored at once by a process of the server; an engine keeps several times that for the lens."""


class _Refused(Exception):
    """A request that is not answered, with the reply that its client gets: the chat interface's own, or the reason."""

    def __init__(self, status: int, body: Mapping[str, Any] | bytes) -> None:
        super().__init__(status)
        self.status, self.body = status, body


@dataclass(frozen=True, eq=False)
class _Client:
    """One client, who may leave.

    Attributes:
        scope: of its request.
        gone: set when it has left.
    """

    scope: MutableMapping[str, Any]
    gone: asyncio.Event


class MentionsEndpoint:
    """Scores answers.

    Args:
        app: the server's own application.
        offered: the parts of a score that its engine measures.
    """

    def __init__(self, app: App, offered: tuple[Part, ...]) -> None:
        self._app = app
        self._offered = offered
        self._reader: MentionReader | None = None
        self._places = asyncio.Semaphore(AT_ONCE)

    async def __call__(self, scope: MutableMapping[str, Any], body: bytes, receive: Receive, send: Send) -> None:
        """Answer one request.

        Args:
            scope: of the request.
            body: its whole body.
            receive: says when the client leaves.
            send: to the client.
        """
        client = _Client(scope, asyncio.Event())
        work = asyncio.ensure_future(self._answer(client, body))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():  # nobody waits for it any more
                return
            status, reply = 200, work.result()
        except _Refused as refused:
            status, reply = refused.status, refused.body
        except ValueError as wrong:
            status, reply = 400, error(str(wrong))
        finally:
            client.gone.set()
            work.cancel()
            leaving.cancel()
            await asyncio.gather(work, leaving, return_exceptions=True)
        await send_json(send, status, reply)

    async def _answer(self, client: _Client, body: bytes) -> Mapping[str, Any] | bytes:
        """What the client is told.

        Raises:
            ValueError: the request is not one.
            _Refused: the chat interface refuses a question.
        """
        given = parse_json(body.decode(errors="replace"), "the request")
        request = MentionsRequest.of(given, self._offered)
        async with self._places:
            engine = client.scope["app"].state.engine_client
            if self._reader is None:
                self._reader = await asyncio.to_thread(
                    MentionReader.of_engine, engine.vllm_config.model_config, self._offered
                )
            asked = self._reader.read(request.conversation, request.settings, request.token_ids)
            answer = await self._score(client, engine, asked, request.handed_on)
        return {
            "object": "vlm_guard.mentions",
            **answer.to_dict(),
            "parts": list(asked.settings.parts),
            "threshold": asked.settings.threshold,
            "measured": asked.weights is not None,
        }

    async def _score(
        self, client: _Client, engine: Any, asked: AskedMentions, handed_on: Mapping[str, Any]
    ) -> GroundedAnswer:
        if not asked.requests:
            return asked.result([], None)
        bodies = [{**handed_on, **_one_token(asked), "messages": messages} for messages in asked.requests]
        lens = None
        with lens_key() as key:
            if asked.reads_lens:
                bodies[0]["vllm_xargs"][LENS] = key
            try:
                replies = [await self._ask(client, bodies[0])]
                if asked.reads_lens:
                    lens = await _from_workers(engine, "vlm_guard_lens", key, asked.words)
            finally:
                if asked.reads_lens and lens is None:
                    await asyncio.shield(_from_workers(engine, "vlm_guard_forget", key))
        if asked.reads_lens and lens is None:
            raise _Refused(503, error("the lens has lost this picture among many others; ask again", status=503))
        replies += await asyncio.gather(*(self._ask(client, body) for body in bodies[1:]))
        if "self_check" not in asked.settings.parts:
            return asked.result([], lens)
        return asked.result([asked.value(_log_probs(reply)) for reply in replies], lens)

    async def _ask(self, client: _Client, body: Mapping[str, Any]) -> Any:
        """The chat interface's reply.

        Raises:
            _Refused: it gives none.
        """
        content = json.dumps(body).encode()
        dropped = (b"content-length", b"content-type", b"transfer-encoding", b"accept-encoding", b"expect")
        headers = [pair for pair in client.scope["headers"] if pair[0].lower() not in dropped]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        scope = {**client.scope, "path": _CHAT, "raw_path": _CHAT.encode(), "query_string": b"", "headers": headers}
        given: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]
        status, found = 0, b""

        async def receive() -> Message:
            if given:
                return given.pop()
            await client.gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            nonlocal status, found
            status = message.get("status", status)
            found += message.get("body", b"")

        await self._app(scope, receive, send)
        if status != 200:
            raise _Refused(status or 500, found)
        return json.loads(found)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _from_workers(engine: Any, method: str, *arguments: Any) -> Any:
    """What the worker answers that has something to say; engines and workers that have not say None."""
    found = await engine.engine_core.call_utility_all_async("collective_rpc", method, None, arguments, None)
    return next((said for workers in found for said in workers if said is not None), None)


def _one_token(asked: AskedMentions) -> dict[str, Any]:
    """The settings of a question: one greedy token of the plain model, and the log-probabilities of Yes and No."""
    settings: dict[str, Any] = {"max_tokens": 1, "temperature": 0, "vllm_xargs": {KEY: PLAIN}}
    if "self_check" in asked.settings.parts:
        ids = [token for answers in asked.reader.yes_and_no for token in answers]
        settings |= {"logprobs": True, "logprob_token_ids": ids, "return_tokens_as_token_ids": True}
    return settings


def _log_probs(reply: Any) -> dict[int, float]:
    """By token id, the log-probabilities of a reply's only token."""
    first = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return {int(entry["token"].rpartition(":")[2]): entry["logprob"] for entry in first}

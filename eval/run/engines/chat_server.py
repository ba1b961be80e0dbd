"""A server with the chat interface of OpenAI: requests, repeated where that may help, and what its refusals mean.

The standard library's client is enough: a request is one POST and one answer of a few hundred bytes, and what a new
connection costs cannot be measured beside the generation of an answer.
"""

import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from vlm_guard.untrusted.json_files import parse_json
from vlm_guard.untrusted.printed_text import one_line

KEY_VARIABLE = "VLM_GUARD_API_KEY"
"""The environment variable that holds the key. It is of its own, so that no other service's key goes to a server."""

FIRST_WAIT = 1.0
"""Seconds before a request is sent a second time; each further wait is twice as long, up to `LONGEST_WAIT`."""

LONGEST_WAIT = 60.0
TRIES = 8
_MAX_ANSWER = 16 * 2**20
_AGAIN = frozenset((408, 409, 425, 429, *range(500, 600)))
_SHOWN = 300


class ServerLost(OSError):
    """A server did not answer, however often it was asked; the message says what it said last."""


class Refused(ValueError):
    """A server refused a request.

    Args:
        message: for people.
        status: of HTTP.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Stopped(Exception):
    """Nobody waits for this answer any more."""


class _Again(Exception):
    """The request may be sent again, after so many seconds if the server has said when."""

    def __init__(self, said: str, after: float | None = None) -> None:
        super().__init__(said)
        self.after = after


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    # The key belongs to the address that was given, and a redirected POST would arrive without its body.
    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        return None


class ChatServer:
    """One server. Requests may be made from several threads.

    Args:
        base: from `base_address`.
        key: sent as a bearer token; None for none. It never gets into messages.
        timeout: seconds to wait for the server.
    """

    def __init__(self, base: str, key: str | None, timeout: float) -> None:
        self.base = base
        self._key = key
        self._timeout = timeout
        self._stopped = threading.Event()
        handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
        if urlsplit(base).hostname in ("localhost", "127.0.0.1", "::1"):
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def stop(self) -> None:
        """Repeat nothing from now on."""
        self._stopped.set()

    def get(self, path: str) -> Any:
        """The JSON at an address below the base.

        Raises:
            Refused: the server does not give it.
            ConnectionError: there is no server.
        """
        try:
            return self._once(path, None, f"the request for {path}")[0]
        except _Again as error:
            raise ConnectionError(f"{self.base}{path} cannot be read: {error}; is the server running?") from None

    def post(self, path: str, body: Mapping[str, Any], about: str) -> tuple[Any, float]:
        """The JSON that a request is answered with, and the seconds from sending it to having the answer.

        What a busy or absent server answers (429, 5xx, a lost connection, nothing in time) is no answer: the request is
        sent again after a wait that grows, or for as long as the server says.

        Args:
            path: below the base.
            body: of the request.
            about: the request in words, for refusals.

        Raises:
            Refused: the server will never answer this request.
            ServerLost: it did not answer this request, however often it was asked.
            Stopped: `stop` was called.
        """
        data, said = json.dumps(body).encode(), ""
        for tried in range(TRIES):
            try:
                return self._once(path, data, about)
            except _Again as error:
                said, after = str(error), error.after
            if tried + 1 < TRIES:
                wait = FIRST_WAIT * 2**tried * random.uniform(0.8, 1.2)  # so that not all come back at once
                if self._stopped.wait(min(after if after is not None else wait, LONGEST_WAIT)):
                    raise Stopped
        raise ServerLost(f"{self.base} did not answer {about} in {TRIES} tries; the last time: {said}")

    def _once(self, path: str, data: bytes | None, about: str) -> tuple[Any, float]:
        if self._stopped.is_set():
            raise Stopped
        headers = {"Accept": "application/json", "User-Agent": "vlm-guard"}
        if data is not None:
            headers["Content-Type"] = "application/json"
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.base + path, data, headers)
        begin = time.perf_counter()
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                content = answer.read(_MAX_ANSWER + 1)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error, about) from None
        except TimeoutError:
            raise _Again(f"nothing came for {self._timeout:g} seconds (--request-timeout)") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise _Again(self._clean(str(reason) or type(error).__name__)) from None
        seconds = time.perf_counter() - begin
        if len(content) > _MAX_ANSWER:
            raise Refused(f"{self.base}{path} answered with more than {_MAX_ANSWER >> 20} MiB", 200)
        try:
            return parse_json(content.decode("utf-8"), "the answer"), seconds
        except ValueError as error:
            raise _Again(self._clean(f"no JSON came: {error}")) from None

    def _refusal(self, error: urllib.error.HTTPError, about: str) -> Exception:
        """What a status other than 200 means."""
        status = error.code
        try:
            said = self._clean(_said(error.read(_MAX_ANSWER)))
        except (OSError, http.client.HTTPException):
            said = ""
        said = f": {said}" if said else ""
        if status in _AGAIN:
            return _Again(f"HTTP {status}{said}", _seconds(error.headers.get("Retry-After")))
        if 300 <= status < 400:
            place = self._clean(error.headers.get("Location") or "nowhere")
            return Refused(f"{self.base} sends {about} on to {place}; give that server's address as --endpoint", status)
        advice = "see what it asks for"
        if status in (401, 403):
            sent = "the key in it was not accepted" if self._key is not None else "it is not set"
            advice = f"the key is read from the environment variable {KEY_VARIABLE}: {sent}"
        elif status == 404:
            advice = "check --endpoint (it usually ends in /v1) and --endpoint-model"
        elif status in (400, 413, 422):
            advice = (
                "change what was sent (--max-new-tokens, --set TASK.max_new_tokens, --method), or what the server "
                "allows (--max-model-len)"
            )
        return Refused(f"{self.base} refused {about} with HTTP {status}{said}; {advice}", status)

    def _clean(self, text: str) -> str:
        """A server's words in one line, without the key: some repeat it when they refuse it."""
        if self._key:
            text = text.replace(self._key, "(the key)")
        return one_line(text, _SHOWN).rstrip(". ")


def _said(content: bytes) -> str:
    """The message in the body of a refusal, in the forms that servers write it; else the body."""
    text = content.decode("utf-8", errors="replace")
    try:
        found = parse_json(text, "it")
    except ValueError:
        return text
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and found.get(name):
            found = found[name]
    return found if isinstance(found, str) else json.dumps(found)


def _seconds(text: str | None) -> float | None:
    """The seconds of a Retry-After; None for a date or nothing, which leaves it to our own waits."""
    return float(text) if text is not None and text.strip().isdecimal() else None

"""Requests that name what is not offered are turned away before the server sees them; all others pass unchanged."""

import asyncio
import json

import pytest

from vlm_guard import __version__
from vlm_guard.serving.vllm.declaration import ENVIRONMENT, Declaration
from vlm_guard.serving.vllm.front.front_door import OFFERS, FrontDoor


@pytest.fixture
def pass_through(monkeypatch):
    """`pass_through(pieces)`: what the server behind the door was given, and what the client was answered."""

    def run(pieces, declared="pai;m3id", scope_type="http", method="POST", path="/v1/chat/completions", default=None):
        environment = {}
        if declared:
            Declaration.read(declared, default).write(environment)
        monkeypatch.setenv(ENVIRONMENT, environment.get(ENVIRONMENT, ""))
        messages = [
            {"type": "http.request", "body": piece, "more_body": number + 1 < len(pieces)}
            for number, piece in enumerate(pieces)
        ]
        got, sent = [], []

        async def receive():
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        async def server(scope, receive, send):
            while (message := await receive())["type"] == "http.request":
                got.append(message["body"])
                if not message["more_body"]:
                    break

        asyncio.run(FrontDoor(server)({"type": scope_type, "method": method, "path": path}, receive, send))
        return b"".join(got), sent

    return run


@pytest.mark.parametrize("extra", [{"vlm_guard": "vcd"}, {"vlm_guard": None}, {"vlm_guard_pair": "x"}])
def test_what_is_not_offered_is_answered_400(pass_through, extra):
    body = json.dumps({"vllm_xargs": extra}).encode()
    got, (start, answer) = pass_through([body[:7], body[7:]])
    assert got == b"" and start["status"] == 400
    assert json.loads(answer["body"])["error"]["code"] == 400


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"vllm_xargs": {"vlm_guard": "pai"}}).encode(),
        json.dumps({"messages": "about vlm_guard"}).encode(),
        json.dumps({"vllm_xargs": "vlm_guard"}).encode(),
        json.dumps(["vlm_guard"]).encode(),
        b'{"vlm_guard": broken',
        b"\xff\xfe vlm_guard",
        b"",
    ],
)
def test_everything_else_passes_byte_by_byte(pass_through, body):
    assert pass_through([body[:3], body[3:]]) == (body, [])


def test_nothing_is_looked_at_without_a_declaration_or_a_body(pass_through):
    body = json.dumps({"vllm_xargs": {"vlm_guard": "vcd"}}).encode()
    assert pass_through([body], declared="") == (body, [])
    assert pass_through([body], method="GET") == (body, [])
    assert pass_through([body], scope_type="websocket") == (body, [])


def test_clients_are_told_what_is_offered_with_all_settings(pass_through):
    asked = {"method": "GET", "path": OFFERS}
    got, (start, answer) = pass_through([b""], declared="m3id;strict=pai:gain=0.25", default="strict", **asked)
    said = json.loads(answer["body"])
    assert got == b"" and start["status"] == 200 and said["default"] == "strict"
    assert list(said["offers"]) == ["m3id", "strict"]
    (strict,) = said["offers"]["strict"]
    assert strict["method"] == "pai" and strict["options"]["gain"] == 0.25
    assert said["versions"]["vlm_guard"] == __version__
    assert pass_through([b"x"], declared="", **asked) == (b"x", [])

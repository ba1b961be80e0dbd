"""`POST /v1/vlm_guard/mentions` in front of a stand-in for vLLM's server and engine."""

import asyncio
import json
import math
from types import SimpleNamespace

import pytest

from vlm_guard.builtin_model import BUILTIN_DIR
from vlm_guard.serving.vllm.declaration import ENVIRONMENT, Declaration
from vlm_guard.serving.vllm.front.front_door import FrontDoor
from vlm_guard.serving.vllm.front.mentions_endpoint import MENTIONS
from vlm_guard.serving.vllm.grounding.lens_keys import LENS, is_issued

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
MESSAGES = [
    {"role": "user", "content": [PICTURE, {"type": "text", "text": "Describe it."}]},
    {"role": "assistant", "content": "There is a dog. There is a cat."},
]


class StandIn:
    """The chat interface and the workers of a server; `asked` has what they were asked."""

    def __init__(self, keeps=True, status=200, hangs=False):
        self.keeps, self.status, self.hangs = keeps, status, hangs
        self.asked, self.called, self.keys = [], [], []
        config = SimpleNamespace(model=str(BUILTIN_DIR), revision=None, trust_remote_code=False)
        self.vllm_config = SimpleNamespace(model_config=config)
        self.engine_core = self

    async def __call__(self, scope, receive, send):
        body = json.loads((await receive())["body"])
        key = body["vllm_xargs"].get(LENS)
        self.asked.append((scope["path"], dict(scope["headers"]), body))
        self.keys.append((key, is_issued(key)))
        if self.hangs:
            assert (await receive())["type"] == "http.disconnect"
            return
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        if self.status != 200:
            await send({"type": "http.response.body", "body": b'{"error": "no"}'})
            return
        tops = [
            {"token": f"token_id:{token}", "logprob": math.log(0.01)} for token in body.get("logprob_token_ids", [])
        ]
        content = [{"token": "x", "logprob": -1.0, "top_logprobs": tops}]
        reply = json.dumps({"choices": [{"logprobs": {"content": content}}]}).encode()
        await send({"type": "http.response.body", "body": reply[:9], "more_body": True})
        await send({"type": "http.response.body", "body": reply[9:]})

    async def call_utility_all_async(self, utility, method, timeout, arguments, named):
        self.called.append((utility, method, arguments))
        if method != "vlm_guard_lens":
            return [[None], [None]]
        found = {"log_probs": [-0.5 for _ in arguments[1]], "boxes": [None for _ in arguments[1]]}
        return [[None, None], [found if self.keeps else None, None]]


@pytest.fixture
def post(monkeypatch):
    """`post(stand_in, given)`: the status and the reply; None where the client had left."""

    def run(server, given, grounding="lens,self_check", leaves=False):
        environment = {}
        Declaration.read("pai", None, grounding).write(environment)
        monkeypatch.setenv(ENVIRONMENT, environment[ENVIRONMENT])
        content = given if isinstance(given, bytes) else json.dumps(given).encode()
        sent = []

        async def go():
            waiting = [{"type": "http.request", "body": content, "more_body": False}]

            async def receive():
                if waiting:
                    return waiting.pop()
                while leaves and not server.asked:
                    await asyncio.sleep(0.01)
                if leaves:
                    return {"type": "http.disconnect"}
                await asyncio.Event().wait()

            async def send(message):
                sent.append(message)

            app = SimpleNamespace(state=SimpleNamespace(engine_client=server))
            scope = {"type": "http", "method": "POST", "path": MENTIONS, "headers": [(b"authorization", b"Bearer x")]}
            await asyncio.wait_for(FrontDoor(server)({**scope, "app": app}, receive, send), 60)

        asyncio.run(go())
        return (sent[0]["status"], json.loads(sent[1]["body"])) if sent else None

    return run


def test_every_thing_is_a_question_with_the_clients_key_and_the_first_keeps_its_picture(post):
    server = StandIn()
    status, reply = post(server, {"model": "m", "messages": MESSAGES, "repair": "drop"})
    assert status == 200 and [mention["noun"] for mention in reply["mentions"]] == ["dog", "cat"]
    assert reply["measured"] and reply["parts"] == ["lens", "self_check"] and "repaired" in reply
    for path, headers, body in server.asked:
        assert path == "/v1/chat/completions" and headers[b"authorization"] == b"Bearer x"
        assert body["model"] == "m" and body["max_tokens"] == 1 and body["vllm_xargs"]["vlm_guard"] == "none"
        assert int(headers[b"content-length"]) > 0 and body["messages"][0]["content"][0] == PICTURE
    (first, issued), (second, _) = server.keys
    assert issued and second is None and not is_issued(first)
    assert server.called == [("collective_rpc", "vlm_guard_lens", (first, server.called[0][2][1]))]


def test_without_the_lens_nothing_is_kept(post):
    server = StandIn()
    status, reply = post(server, {"messages": MESSAGES}, grounding="self_check")
    assert status == 200 and reply["parts"] == ["self_check"] and not server.called
    assert [key for key, _ in server.keys] == [None, None]


def test_the_lens_alone_asks_nothing_but_the_prompt(post):
    server = StandIn()
    status, reply = post(server, {"messages": MESSAGES, "parts": ["lens"], "words": ["dog"]})
    ((_, _, body),) = server.asked
    assert status == 200 and body["messages"] == MESSAGES[:1] and "logprobs" not in body
    assert [list(mention["parts"]) for mention in reply["mentions"]] == [["lens"]]


def test_an_answer_without_a_thing_costs_nothing(post):
    server = StandIn()
    nothing = [MESSAGES[0], {"role": "assistant", "content": "Nothing."}]
    assert post(server, {"messages": nothing})[1]["mentions"] == [] and not server.asked


def test_the_chat_interfaces_refusal_is_the_clients(post):
    server = StandIn(status=401)
    assert post(server, {"messages": MESSAGES}) == (401, {"error": "no"})
    assert [method for _, method, _ in server.called] == ["vlm_guard_forget"], "whatever was kept is forgotten"


def test_a_picture_that_gave_way_to_others_is_said(post):
    status, reply = post(StandIn(keeps=False), {"messages": MESSAGES})
    assert status == 503 and "ask again" in reply["error"]["message"]


def test_a_client_that_leaves_is_left(post):
    server = StandIn(hangs=True)
    assert post(server, {"messages": MESSAGES}, leaves=True) is None
    assert [method for _, method, _ in server.called] == ["vlm_guard_forget"]


def test_a_server_that_scores_nothing_says_how_to_start_it(post):
    status, reply = post(StandIn(), {"messages": MESSAGES}, grounding="")
    assert status == 400 and "--grounding lens,self_check" in reply["error"]["message"]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (b"\xff{", "the request"),
        (b"[]", "it must be an object with"),
        ({}, "messages: given None"),
        ({"messages": MESSAGES, "nosuch": 1}, "'nosuch' is not known here; allowed: "),
        ({"messages": MESSAGES, "parts": "lens"}, "parts: given 'lens'"),
        ({"messages": MESSAGES, "parts": ["sight"]}, "grounding parts are ['sight']"),
        ({"messages": MESSAGES, "parts": ["logp"]}, "logp is not measured by this engine"),
        ({"messages": MESSAGES, "words": []}, "words: given []"),
        ({"messages": MESSAGES, "words": ["a"] * 1001}, "a list of 1 to 1000 texts"),
        ({"messages": MESSAGES, "words": [" "]}, "is empty"),
        ({"messages": MESSAGES, "question": "Is it?"}, "question: given 'Is it?'; allowed: text with {noun}"),
        ({"messages": MESSAGES, "threshold": True}, "threshold: given True; allowed: a number, 0 to 1"),
        ({"messages": MESSAGES, "threshold": 2}, "the threshold of grounding is 2"),
        ({"messages": MESSAGES, "repair": "rewrite"}, "allowed: drop"),
        ({"messages": MESSAGES, "repair_below": -1}, "repair_below is -1"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_line(post, given, reason):
    server = StandIn()
    status, reply = post(server, given)
    assert status == 400 and reason in reply["error"]["message"] and not server.asked

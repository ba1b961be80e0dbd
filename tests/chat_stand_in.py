"""A chat server for tests: it answers what a function says, remembers what it was asked, and fails when told to."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

OFFERS = {
    "offers": {"strict": [{"method": "pai", "options": {"gain": 0.5}}]},
    "default": "none",
    "versions": {"vllm": "0.32.0"},
}


def scripted(picture, prompt, method, limit):
    """Text, tokens and reason for the end; the method changes the text, as a guard would."""
    number = hashlib.sha256(picture + prompt.encode() + method.encode()).digest()[0]
    text = ("Yes" if number % 2 else "No") if prompt.startswith("Is there") else f"A dog, a car and {number} cups."
    return text, min(len(text.split()) + 1, limit), "stop"


class ChatStandIn:
    """What the server is told, and what it was asked: `bodies` of requests, `keys` that came with anything."""

    def __init__(self):
        self.answer, self.models, self.offers = scripted, ["small"], None
        self.scores = {}  # what is said of mentions beside what is right
        self.key = None
        self.failures = []  # for the next requests: (status, body, headers), or "hang up"
        self.bodies, self.keys = [], []
        self.most_at_once = self._at_once = 0
        self.gate = None  # a barrier that requests wait at
        self._lock = threading.Lock()

    def get(self, path):
        if path == "/v1/models" and self.models is not None:
            return 200, {"object": "list", "data": [{"id": name} for name in self.models]}
        if path == "/v1/vlm_guard" and self.offers is not None:
            return 200, self.offers
        return 404, {"detail": "Not Found"}

    def post(self, body):
        with self._lock:
            self.bodies.append(body)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if self.gate is not None:
                self.gate.wait(20)
            return 200, self._completion(body)
        finally:
            with self._lock:
                self._at_once -= 1

    def _completion(self, body):
        if body["messages"][-1]["role"] == "assistant":
            return self._mentions(body)
        (message,) = body["messages"]
        picture, prompt = message["content"]
        method = body.get("vllm_xargs", {}).get("vlm_guard", "none")
        text, tokens, ended = self.answer(shown_bytes(picture), prompt["text"], method, body["max_tokens"])
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": ended}
        if body.get("return_token_ids"):
            choice["token_ids"] = [7, 8]
        return {"choices": [choice], "usage": {"completion_tokens": tokens}}

    def _mentions(self, body):
        """Every mention has a quarter, and the first goes."""
        text = body["messages"][-1]["content"]
        box = {"image": 0, "left": 0.0, "top": 0.0, "right": 0.5, "bottom": 1.0}
        mentions = [
            {**one, "text": text[one["start"] : one["end"]], "token_span": [0, 1], "score": 0.25, "verdict": "doubtful"}
            | {"parts": {"lens": -1.0, "self_check": -1.0}, "box": box}
            for one in body["mentions"]
        ]
        removed = [{"text": "a dog", "start": 0, "end": 5, "nouns": ["dog"], "how": "item"}]
        repaired = {"text": "A car.", "removed": removed, "below": 0.06}
        return {"answer": text, "mentions": mentions, "repaired": repaired, **self.scores}

    def next_failure(self):
        with self._lock:
            return self.failures.pop(0) if self.failures else None


def shown_bytes(part):
    head, _, data = part["image_url"]["url"].partition(";base64,")
    assert part["type"] == "image_url" and head.startswith("data:image/")
    return base64.b64decode(data, validate=True)


@contextmanager
def serving(stand_in):
    """The address of a server that does what the stand-in says."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def _send(self, status, content, headers=()):
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _refused(self):
            key = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            stand_in.keys.append(key)
            if stand_in.key is not None and key != stand_in.key:
                self._send(401, {"error": {"message": f"Incorrect API key provided: {key}"}})
                return True
            return False

        def do_GET(self):
            if not self._refused():
                self._send(*stand_in.get(self.path))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            failure = stand_in.next_failure()
            if failure == "hang up":
                self.close_connection = True
            elif failure is not None:
                self._send(*failure)
            elif not self._refused():
                known = self.path in ("/v1/chat/completions", "/v1/vlm_guard/mentions")
                self._send(*(stand_in.post(body) if known else (404, {})))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()

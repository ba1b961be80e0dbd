"""Random load on a server of the built-in model, for as long as one likes:

python tests/serving/random_load.py OUT.json --minutes 60

Clients ask with methods, lengths, stop strings and pictures drawn at random, and have answers scored. Some leave in the
middle of an answer or of its scores, some ask for what is not offered. Every whole answer and every score is held
against transformers'. At the end nothing may be left in the server, and its memory must have stopped growing.
"""

import argparse
import json
import random
import shlex
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.error import HTTPError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from PIL import Image
from served_answers import ROUNDING, grounded_in_transformers
from server_process import CHAT, body, in_transformers, opened, running, served

from vlm_guard.eval.scenes.dataset import write_scenes
from vlm_guard.kernels.benchmark.measure import describe_machine
from vlm_guard.serving.vllm.versions import installed_version
from vlm_guard.whole_files import write_atomically

METHODS = {
    "none": None,
    "attention": "pai:gain=0.5,guidance=1",
    "rows": "zerotuning",
    "sinks": "var:sink_dimensions=72,sink_threshold=4,min_visual_mass=0,min_content_share=0,move_fraction=1",
    "act": "act:move_fraction=1,threshold=0.05",
    "heads": "vhr",
    "outputs": "spin",
    "scores": "hgai",
    "gaze": "gift:strength=20,saliency_layer=1",
    "pai": "pai",
    "m3id": "m3id",
    "vcd": "vcd",
    "softpag": "softpag",
}
KINDS = {"whole": 6, "short": 3, "stopped": 2, "leaves": 3, "bad": 1, "scored": 3, "leaves_scores": 1}
MENTIONS = "/v1/vlm_guard/mentions"
STOPS = (" with", ".", " and")
SAMPLE_SECONDS = 20


class Load:
    """Clients of a server, and what became of their requests.

    Args:
        address: of the server.
        pictures: paths.
        expected: by method and picture, the token ids of the whole answer. text_of: makes them a text.
        scores: by method and picture, what transformers says of its mentions.
        seconds: how long.
        seed: of the draws.
    """

    def __init__(self, address, pictures, expected, text_of, scores, seconds, seed):
        self.address, self.pictures, self.expected, self.text_of = address, pictures, expected, text_of
        self.scores = scores
        self.end, self.seed = time.monotonic() + seconds, seed
        self.counts, self.wrong, self.slowest = Counter(), [], 0.0
        self.lock = threading.Lock()

    def client(self, number):
        """One request after the other until the time is up."""
        draw = random.Random(f"{self.seed} {number}")
        while time.monotonic() < self.end:
            kind = draw.choices(list(KINDS), list(KINDS.values()))[0]
            method, picture = draw.choice(list(METHODS)), draw.choice(self.pictures)
            begin = time.monotonic()
            try:
                getattr(self, kind)(draw, method, picture)
            except OSError as error:
                self.note_wrong(kind, method, picture, "an answer", repr(error))
            with self.lock:
                self.counts[kind] += 1
                self.counts[f"method {method}"] += kind != "bad"
                self.slowest = max(self.slowest, time.monotonic() - begin)
            time.sleep(draw.choice((0, 0, 0.05, 0.5)))

    def whole(self, draw, method, picture):
        """An answer as long as the model makes it."""
        self.check("whole", method, picture, self.asked(body(picture, method)), self.answer(method, picture))

    def short(self, draw, method, picture):
        """An answer that a limit ends."""
        limit = draw.randint(1, 30)
        found = self.asked(body(picture, method, max_tokens=limit))
        self.check("short", method, picture, found, self.answer(method, picture, limit))

    def stopped(self, draw, method, picture):
        """An answer that a stop string ends."""
        stop = draw.choice(STOPS)
        found = self.asked(body(picture, method, stop=[stop]))
        whole = self.answer(method, picture)
        self.check("stopped", method, picture, found, whole.partition(stop)[0].strip())

    def leaves(self, draw, method, picture):
        """A client that reads a few words of a stream and closes it."""
        with self.sent(body(picture, method, stream=True, max_tokens=150, ignore_eos=True)) as stream:
            for _ in range(draw.randint(0, 20)):
                stream.readline()

    def bad(self, draw, method, picture):
        """A request for what is not offered."""
        given = draw.choice(({"vlm_guard": "nosuch"}, {"vlm_guard": 3}, {"vlm_guard_pair": "x"}))
        try:
            with opened(self.address, body(picture, None, vllm_xargs=given)):
                self.note_wrong("bad", method, picture, "HTTP 400", "HTTP 200")
        except HTTPError as error:
            if error.code != 400:
                self.note_wrong("bad", method, picture, "HTTP 400", f"HTTP {error.code}")

    def scored(self, draw, method, picture):
        """The scores of an answer that somebody has had."""
        with self.sent(self.about(method, picture), MENTIONS) as reply:
            found = [(one["noun"], one["score"]) for one in json.load(reply)["mentions"]]
        expected = self.scores[method, picture]
        close = [abs(score - wanted) < ROUNDING for (_, score), (_, wanted) in zip(found, expected)]
        if [noun for noun, _ in found] != [noun for noun, _ in expected] or not all(close):
            self.note_wrong("scored", method, picture, expected, found)

    def leaves_scores(self, draw, method, picture):
        """A client that asks for scores and does not wait for them."""
        host, _, port = self.address.rpartition("//")[2].partition(":")
        content = json.dumps(self.about(method, picture)).encode()
        head = f"POST {MENTIONS} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(content)}\r\n\r\n"
        with socket.create_connection((host, int(port)), timeout=600) as stream:
            stream.sendall(head.encode() + content)
            time.sleep(draw.choice((0, 0.01, 0.1, 0.5)))

    def about(self, method, picture):
        """The request that has an answer scored."""
        messages = [*body(picture, None)["messages"], {"role": "assistant", "content": self.answer(method, picture)}]
        return {"model": "builtin", "messages": messages}

    def answer(self, method, picture, limit=None):
        """What transformers answers, up to a number of tokens."""
        return self.text_of(self.expected[method, picture][:limit])

    def asked(self, given):
        """The text of an answer."""
        with self.sent(given) as found:
            return json.load(found)["choices"][0]["message"]["content"].strip()

    def sent(self, given, path=CHAT):
        """An open answer. What the server says to send again is sent again, up to three times.

        vLLM's front end takes a picture for known that a client had sent who left before the engine saw it.
        """
        for _ in range(3):
            try:
                return opened(self.address, given, timeout=600, path=path)
            except HTTPError as error:
                if error.code < 500:
                    raise
                with self.lock:
                    self.counts["sent again"] += 1
        return opened(self.address, given, timeout=600, path=path)

    def check(self, kind, method, picture, found, expected):
        """Note an answer that is not the expected one."""
        if found != expected:
            self.note_wrong(kind, method, picture, expected, found)

    def note_wrong(self, kind, method, picture, expected, found):
        """Keep what went wrong, for the result."""
        with self.lock:
            item = {"kind": kind, "method": method, "picture": picture.name, "expected": expected, "found": found}
            self.wrong.append(item)


def memory_mib(process):
    """Resident memory of a process and of all that it has started."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    family, grown = {process.pid}, True
    while grown:
        grown = {pid for pid, parent in parents.items() if parent in family} - family
        family |= grown
    pages = 0
    for pid in family:
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            continue
    return round(pages * 4096 / 2**20)


def settle(address, seconds=60):
    """How many requests the server still has after a while of quiet."""
    end = time.monotonic() + seconds
    while running(address) and time.monotonic() < end:
        time.sleep(0.5)
    return running(address)


def run(minutes, clients, seed, folder):
    """The result of a load, as JSON can hold it."""
    pictures = sorted(write_scenes(folder / "scenes", "common", 6).rglob("*.png"))[:6]
    expected, text_of = in_transformers("builtin", METHODS, pictures)
    shown = {path: [Image.open(path).convert("RGB")] for path in pictures}
    answers = grounded_in_transformers([(shown[path], text_of(ids)) for (_, path), ids in expected.items()])
    scores = {
        key: [(mention.noun, mention.score) for mention in answer.mentions]
        for key, answer in zip(expected, answers, strict=True)
    }
    declared = ";".join(f"{name}={methods}" for name, methods in METHODS.items() if methods)
    scoring = "--grounding", "lens,self_check"
    with served("builtin", declared, folder / "server.log", *scoring) as (address, process):
        load = Load(address, pictures, expected, text_of, scores, 60 * minutes, seed)
        threads = [threading.Thread(target=load.client, args=(number,)) for number in range(clients)]
        memory = [memory_mib(process)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(min(SAMPLE_SECONDS, max(1, 60 * minutes / 20)))
            memory.append(memory_mib(process))
        left, alive = settle(address), process.poll() is None
    machine = describe_machine(torch.device("cpu"))
    machine["versions"]["vllm"] = installed_version()
    return {
        "machine": machine,
        "minutes": minutes,
        "methods": [name for name in METHODS if name != "none"],
        "clients": clients,
        "seed": seed,
        "requests": sum(load.counts[kind] for kind in KINDS),
        "counts": dict(sorted(load.counts.items())),
        "wrong": load.wrong,
        "left_in_the_server": left,
        "server_lives": alive,
        "slowest_seconds": round(load.slowest, 1),
        "memory_mib": memory,
        "command": shlex.join(["python", "tests/serving/random_load.py", *(Path(part).name for part in sys.argv[1:])]),
    }


def main():
    """Run, write the result, and end with 1 where anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(given.minutes, given.clients, given.seed, Path(folder))
    write_atomically(given.out, json.dumps(found, indent=1) + "\n")
    print(
        f"{found['requests']} requests in {given.minutes:g} minutes, {len(found['wrong'])} wrong, "
        f"{found['left_in_the_server']:g} left; memory {found['memory_mib'][1]} to {found['memory_mib'][-1]} MiB; "
        f"slowest {found['slowest_seconds']} s"
    )
    return 1 if found["wrong"] or found["left_in_the_server"] or not found["server_lives"] else 0


if __name__ == "__main__":
    sys.exit(main())

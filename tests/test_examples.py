"""The scripts in examples/ run as they stand, on the built-in model."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from chat_stand_in import OFFERS, ChatStandIn, serving

from vlm_guard.eval.run.runner import evaluate
from vlm_guard.eval.run.settings import RunSettings
from vlm_guard.eval.scenes import load_scenes

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
LONGEST = 75
TESTED = {
    "generate", "batch_and_stream", "own_pictures", "own_method", "read_results", "score_mentions", "serve", "service",
    "evaluate_server",
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(monkeypatch, capsys):
    """`run("generate", ...)`: run a script as Python runs it from the command line; what it printed."""

    def start(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return start


def picture(number):
    return load_scenes("common", count=8) / "images" / f"{number:012d}.png"


def test_every_example_is_tested_and_short():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == TESTED
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in EXAMPLES.glob("*.py")}
    assert max(lengths.values()) <= LONGEST, lengths


def test_generate_prints_the_plain_and_the_guarded_answer(run):
    plain, guarded = run("generate").splitlines()
    assert plain.startswith("[none] The image") and guarded.startswith("[pai:gain=0.4] The image")
    assert plain.partition("]")[2] != guarded.partition("]")[2]
    assert "savanna" in run("generate", picture(1))


def test_a_batch_is_answered_and_one_answer_is_streamed(run):
    answers, streamed = run("batch_and_stream").split("\nstreamed:\n")
    lines = [line.partition(": ") for line in answers.splitlines()]
    assert [name for name, _, _ in lines] == [picture(number).name for number in (1, 2, 3)]
    assert all(answer for _, _, answer in lines)
    assert streamed.strip() == lines[0][2], "alone and in a padded batch a picture gets one answer"


def test_mentions_are_scored_and_doubtful_ones_taken_out(run):
    answer, *scores, repaired = run("score_mentions").splitlines()
    read = [line.strip().partition(": ") for line in scores]
    assert read and all(name in answer for name, _, _ in read)
    unlikely = [name for name, _, verdict in read if float(verdict.partition(",")[0]) < 0.06]
    assert unlikely and not any(name in repaired for name in unlikely)
    assert repaired.startswith("repaired: The image shows") and repaired.endswith(".")


def test_own_pictures_are_scored(run, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in (1, 2, 3):
        (folder / f"my {number}.png").write_bytes(picture(number).read_bytes())
    listed = {"my 1.png": ["zebra", "giraffe"], "my 2.png": ["person", "bird"], "my 3.png": ["cat", "tv", "couch"]}
    (folder / "objects.json").write_text(json.dumps(listed), encoding="utf-8")
    printed = run("own_pictures", folder, tmp_path / "out").splitlines()
    assert [line.split()[:2] for line in printed[:-1]] == [
        [method, rate] for method in ("none", "pai:gain=0.4") for rate in ("chair_i", "recall")
    ]
    # The model names both animals of the first picture, the person of the second, cat and tv of the third: 5 of 7.
    assert printed[1].split()[2] == "71.4%"
    page = Path(printed[-1].partition(": ")[2]).read_text(encoding="utf-8")
    assert "savanna" in page and "data:image" in page


def test_a_finished_run_is_read(run, tmp_path):
    methods = ["none", "pai:gain=0.4"]
    settings = RunSettings(data="scenes:common", count=8, tasks=["chair"], methods=methods, device="cpu", resamples=100)
    evaluate(settings, tmp_path)
    printed = run("read_results", tmp_path)
    assert printed.startswith("scenes:common, 8 pictures, builtin")
    assert "pai:gain=0.4 chair_i" in printed and "of 8 captions name fewer absent objects" in printed


def outside(*arguments):
    """In a process of its own, since a method that is registered stays so."""
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_method_of_ones_own():
    answers = outside("examples/own_method.py").splitlines()
    assert [line.partition("]")[0] for line in answers] == ["[strength 0.0", "[strength 0.5", "[strength 1.0"]
    command = ("-m", "vlm_guard", "generate", picture(4), "--method", "examples/own_method.py:strength=1")
    same = outside(*command)
    assert same.strip() == answers[2].partition("] ")[2].strip()
    assert answers[0].partition("]")[2] != answers[2].partition("]")[2]


def test_the_service_answers_two_users_at_once_each_with_a_method_of_his_own():
    pytest.importorskip("fastapi", reason="the extra demo brings FastAPI")
    from concurrent.futures import ThreadPoolExecutor

    from fastapi.testclient import TestClient

    service = runpy.run_path(str(EXAMPLES / "service.py"))
    client = TestClient(service["app"])

    def ask(method, data=None, question="What is in this picture?"):
        files = {"picture": ("scene.png", data or picture(1).read_bytes(), "image/png")}
        return client.post("/answer", files=files, data={"question": question, "method": method})

    try:
        methods = ["none", "pai:gain=0.4", "m3id:forgetting=0.2"] * 2
        alone = {method: ask(method).text for method in methods}
        assert len(set(alone.values())) > 1, "the methods answer differently"
        with ThreadPoolExecutor(len(methods)) as pool:
            together = list(pool.map(ask, methods))
        assert [answer.text for answer in together] == [alone[method] for method in methods]
        assert "unknown method" in ask("pay").json()["detail"]
        assert "not from a file or module" in ask("os:system").json()["detail"]
        assert ask("none", b"no picture").status_code == 422
        marked = ask("none", question="What is <image> in it?")
        assert marked.status_code == 422 and "<image>" in marked.json()["detail"]
        assert ask("none").text == alone["none"], "it lives on"
    finally:
        service["guard"].remove()


def test_a_server_is_asked_with_every_method_at_once(monkeypatch, capsys):
    pytest.importorskip("openai", reason="the openai client is not installed")
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    class Server(BaseHTTPRequestHandler):
        """Answers as vLLM's server does, with the method that was asked for."""

        def do_GET(self):
            self.answer({"object": "list", "data": [{"id": "builtin", "object": "model"}]})

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            (picture, _) = asked["messages"][0]["content"]
            assert picture["image_url"]["url"].startswith("data:image/png;base64,") and asked["temperature"] == 0
            message = {"role": "assistant", "content": f" {asked['vllm_xargs']['vlm_guard']} for {asked['model']}"}
            self.answer({"id": "1", "object": "chat.completion", "choices": [{"index": 0, "message": message}]})

        def answer(self, body):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("VLM_GUARD_SERVER", f"http://127.0.0.1:{server.server_port}/v1")
        monkeypatch.setattr(sys, "argv", ["serve.py", str(picture(1)), "pai", "m3id"])
        runpy.run_path(str(EXAMPLES / "serve.py"), run_name="__main__")
        server.shutdown()
    assert capsys.readouterr().out.splitlines() == [f"[{name}] {name} for builtin" for name in ("none", "pai", "m3id")]


def test_a_server_is_measured(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stand_in = ChatStandIn()
    stand_in.offers = OFFERS
    with serving(stand_in) as address:
        lines = run("evaluate_server", address, "none", "strict").splitlines()
    assert [line.split()[0] for line in lines] == ["none", "strict"]
    assert all("chair_i=" in line and "pope.mean.f1=" in line for line in lines) and lines[0] != lines[1]
    assert (tmp_path / "runs" / "served" / "results.json").is_file()

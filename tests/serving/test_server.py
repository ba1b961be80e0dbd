"""The server that `vlm-guard serve` starts, asked by many at once, by the wrong ones, and by those who leave."""

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from vlm_guard import builtin, wrap
from vlm_guard.eval.run.records import read_records
from vlm_guard.eval.run.results import read_results
from vlm_guard.eval.run.runner import evaluate
from vlm_guard.eval.run.settings import RunSettings
from vlm_guard.eval.scenes.dataset import write_scenes

pytest.importorskip("vllm", reason="vLLM is not installed; docs/serving.md says how to make an environment with it")
pytest.importorskip("uvicorn", reason="vLLM's server needs uvicorn")

pytestmark = pytest.mark.slow
OFFERS = ["none", "pai", "m3id", "zerotuning", "strict"]
DECLARED = "pai;m3id;zerotuning;strict=pai:gain=0.5,guidance=1"
ASK = "Please describe this image in detail."
PATIENCE = 600


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = write_scenes(tmp_path_factory.mktemp("scenes") / "s", "common", 4)
    return sorted(folder.rglob("*.png"))[:4]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a running server."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    settings |= {"VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
    flags = [
        "--dtype",
        "float32",
        "--enforce-eager",
        "--max-model-len",
        "256",
        "--max-num-seqs",
        "16",
        "--block-size",
        "32",
    ]
    command = [
        sys.executable,
        "-m",
        "vlm_guard",
        "serve",
        "builtin",
        "--methods",
        DECLARED,
        "--port",
        str(port),
        *flags,
    ]
    log = tmp_path_factory.mktemp("log") / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1"], env=os.environ | settings, stdout=output, stderr=output
        )
        address, end = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
        try:
            while not answers(f"{address}/health"):
                assert process.poll() is None and time.monotonic() < end, log.read_text()[-4000:]
                time.sleep(0.5)
            yield address
        finally:
            process.terminate()
            process.wait(30)


def answers(address):
    try:
        with urllib.request.urlopen(address, timeout=5) as found:
            return found.status == 200
    except OSError:
        return False


def body(picture, offer, **options):
    data = base64.b64encode(picture.read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "text", "text": ASK},
    ]
    given = {"model": "builtin", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 48}
    return given | ({} if offer is None else {"vllm_xargs": {"vlm_guard": offer}}) | options


def opened(server, given, timeout=120):
    data, headers = json.dumps(given).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server}/v1/chat/completions", data, headers)
    return urllib.request.urlopen(request, timeout=timeout)


def ask(server, given):
    """The answer's text, or the status of a refusal with its reason."""
    try:
        with opened(server, given) as answer:
            return json.load(answer)["choices"][0]["message"]["content"].strip()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture(scope="module")
def expected(pictures):
    """By offer and picture, what transformers answers."""
    model, processor = builtin()
    found = {}
    for offer in OFFERS:
        guard = (
            None
            if offer == "none"
            else wrap(model, processor, "pai:gain=0.5,guidance=1" if offer == "strict" else offer)
        )
        for path in pictures:
            content = [{"type": "image", "image": Image.open(path).convert("RGB")}, {"type": "text", "text": ASK}]
            options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
            inputs = processor.apply_chat_template([{"role": "user", "content": content}], **options)
            with torch.inference_mode():
                output = model.generate(**inputs, max_new_tokens=48, do_sample=False)
            text = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            found[offer, path] = text.strip()
        if guard is not None:
            guard.remove()
    return found


def everybody(server, pictures):
    jobs = [(offer, path) for path in pictures for offer in OFFERS]
    with ThreadPoolExecutor(len(jobs)) as pool:
        return dict(zip(jobs, pool.map(lambda job: ask(server, body(job[1], job[0])), jobs)))


def test_twenty_at_once_each_with_a_method_of_his_own(server, pictures, expected):
    assert everybody(server, pictures) == expected


def test_whoever_names_no_method_gets_the_plain_answer(server, pictures, expected):
    assert ask(server, body(pictures[0], None)) == expected["none", pictures[0]]


@pytest.mark.parametrize("wrong", [{"vlm_guard": "vcd"}, {"vlm_guard": 3}, {"vlm_guard_pair": "x"}])
def test_a_bad_request_is_answered_400_and_the_server_lives(server, pictures, expected, tmp_path, wrong):
    new = tmp_path / "new.png"
    Image.open(pictures[0]).rotate(len(json.dumps(wrong))).save(new)
    status, reason = ask(server, body(new, None, vllm_xargs=wrong))
    assert status == 400 and ("is not offered" in reason or "is not an argument" in reason)
    assert isinstance(ask(server, body(new, "m3id")), str), "a picture that was only refused so far"
    assert ask(server, body(pictures[0], "m3id")) == expected["m3id", pictures[0]]


def test_clients_that_leave_take_both_halves_along(server, pictures, expected):
    """Streams are closed after a few words; nothing may wait for the rest, and nobody's answer changes."""
    for offer in ["m3id", "pai", "strict"] * 3:
        stream = opened(server, body(pictures[1], offer, stream=True, max_tokens=150, ignore_eos=True))
        stream.readline()
        stream.close()
    assert everybody(server, pictures) == expected
    end = time.monotonic() + 30
    while running(server) and time.monotonic() < end:
        time.sleep(0.2)
    assert running(server) == 0


def running(server):
    """How many requests the engine still has."""
    with urllib.request.urlopen(f"{server}/metrics", timeout=10) as found:
        lines = found.read().decode().splitlines()
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting{")
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(names))


def test_an_evaluation_through_the_server_has_the_records_of_one_in_transformers(server, tmp_path):
    """CHAIR and POPE, plain and guarded; what takes time, and what only logits show, is left out."""
    common = {"data": "scenes:common", "count": 4, "max_new_tokens": 48, "resamples": 100}
    evaluate(RunSettings(**common, methods=["none", "strict"], endpoint=f"{server}/v1"), tmp_path / "served")
    here = ["none", "pai:gain=0.5,guidance=1"]
    evaluate(RunSettings(**common, methods=here, device="cpu"), tmp_path / "here")
    served, expected = (read_results(tmp_path / name).methods for name in ("served", "here"))
    for left, right in zip(served, expected, strict=True):
        assert answered(tmp_path / "served" / left.directory) == answered(tmp_path / "here" / right.directory)
        assert left.chair == right.chair and left.pope == right.pope
    assert served[1].methods[0]["options"] == expected[1].methods[0]["options"]


def answered(folder):
    records = read_records(folder / "samples.jsonl")[0]
    fields = ("prompt", "text", "tokens", "finished", "score")
    return {key: [record[name] for name in fields] for key, record in records.items()}

"""A server that `vlm-guard serve` starts, as its clients see it, and what transformers answers to the same requests."""

import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import torch
from PIL import Image

from vlm_guard import builtin, wrap

ASK = "Please describe this image in detail."
TOKENS = 48
CHAT = "/v1/chat/completions"
PATIENCE = 600


@contextlib.contextmanager
def served(model, declared, log, *more):
    """The address of a running server, and its process.

    Args:
        model: as the command takes it.
        declared: its methods.
        log: a file for what it says. more: flags of vLLM's.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    settings |= {"VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
    flags = "--dtype float32 --enforce-eager --max-model-len 256 --max-num-seqs 16 --block-size 32 --host 127.0.0.1"
    command = [sys.executable, "-m", "vlm_guard", "serve", model, "--methods", declared, "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *flags.split(), *more], env=os.environ | settings, stdout=output, stderr=output
        )
        address, end = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
        try:
            while not answers(f"{address}/health"):
                assert process.poll() is None and time.monotonic() < end, log.read_text()[-4000:]
                time.sleep(0.5)
            yield address, process
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


def opened(server, given, timeout=120, path=CHAT):
    data, headers = json.dumps(given).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server}{path}", data, headers)
    return urllib.request.urlopen(request, timeout=timeout)


def ask(server, given):
    """The answer's text, or the status of a refusal with its reason."""
    try:
        with opened(server, given) as answer:
            return json.load(answer)["choices"][0]["message"]["content"].strip()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def in_transformers(name, declared, pictures):
    """By offer and picture, the token ids that transformers answers with, and the function that makes them a text.

    Args:
        name: of a model that comes with the package.
        declared: methods by offer; None for the plain model.
        pictures: paths.
    """
    model, processor = builtin(name)
    found = {}
    for offer, methods in declared.items():
        guard = None if methods is None else wrap(model, processor, methods)
        for path in pictures:
            content = [{"type": "image", "image": Image.open(path).convert("RGB")}, {"type": "text", "text": ASK}]
            options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
            inputs = processor.apply_chat_template([{"role": "user", "content": content}], **options)
            with torch.inference_mode():
                output = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
            found[offer, path] = output[0, inputs["input_ids"].shape[1] :].tolist()
        if guard is not None:
            guard.remove()
    return found, lambda ids: processor.decode(ids, skip_special_tokens=True).strip()


def running(server):
    """How many requests the engine still has."""
    with urllib.request.urlopen(f"{server}/metrics", timeout=10) as found:
        lines = found.read().decode().splitlines()
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting{")
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(names))

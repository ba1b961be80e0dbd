"""Ask a server with guards: the same question plainly and with every method it offers, all at once.

    vlm-guard serve builtin --methods "pai;m3id;strict=pai:gain=0.5" --dtype float32      (one shell; docs/serving.md)
    python examples/serve.py scene.png pai m3id strict                                      (another; needs openai)

The server is vLLM's, so any client of the OpenAI interface will do; a request names its method in `vllm_xargs`. If it
was started with `--grounding lens,self_check`, every answer is followed by how sure the model is of what it mentions.
"""

import base64
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI

client = OpenAI(base_url=os.environ.get("VLM_GUARD_SERVER", "http://127.0.0.1:8000/v1"), api_key="none")


def question(picture: Path) -> Any:
    """The user's message."""
    data = base64.b64encode(picture.read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "text", "text": "Please describe this image in detail."},
    ]
    return {"role": "user", "content": content}


def ask(model: str, picture: Path, method: str) -> str:
    """The answer of one request with its own method."""
    done = client.chat.completions.create(
        model=model,
        messages=[question(picture)],
        temperature=0,
        max_tokens=64,
        extra_body={"vllm_xargs": {"vlm_guard": method}},
    )
    return (done.choices[0].message.content or "").strip()


def mentions(model: str, picture: Path, answer: str) -> str:
    """What the answer mentions, with scores from 0 (not in the picture) to 1."""
    body = {"model": model, "messages": [question(picture), {"role": "assistant", "content": answer}]}
    found = client.post("/vlm_guard/mentions", body=body, cast_to=httpx.Response).json()["mentions"]
    return ", ".join(f"{mention['text']} {mention['score']:.2f}" for mention in found)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} PICTURE.png [METHOD ...]")
    served = client.models.list().data[0].id
    scores = client.get("/vlm_guard", cast_to=httpx.Response).json()["grounding"]
    methods = ["none", *sys.argv[2:]]
    with ThreadPoolExecutor(len(methods)) as pool:
        answers = pool.map(lambda method: ask(served, Path(sys.argv[1]), method), methods)
        for method, answer in zip(methods, answers):
            print(f"[{method}] {answer}")
            if scores:
                print(f"    {mentions(served, Path(sys.argv[1]), answer)}")

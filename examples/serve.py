"""Ask a server with guards: the same question plainly and with every method it offers, all at once.

    vlm-guard serve builtin --methods "pai;m3id;strict=pai:gain=0.5" --dtype float32      (one shell; docs/serving.md)
    python examples/serve.py scene.png pai m3id strict                                      (another; needs openai)

The server is vLLM's, so any client of the OpenAI interface will do; a request names its method in `vllm_xargs`.
"""

import base64
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("VLM_GUARD_SERVER", "http://127.0.0.1:8000/v1"), api_key="none")


def ask(model: str, picture: Path, method: str) -> str:
    """The answer of one request with its own method."""
    data = base64.b64encode(picture.read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "text", "text": "Please describe this image in detail."},
    ]
    done = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": content}],
        temperature=0,
        max_tokens=64,
        extra_body={"vllm_xargs": {"vlm_guard": method}},
    )
    return (done.choices[0].message.content or "").strip()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} PICTURE.png [METHOD ...]")
    served = client.models.list().data[0].id
    methods = ["none", *sys.argv[2:]]
    with ThreadPoolExecutor(len(methods)) as pool:
        answers = pool.map(lambda method: ask(served, Path(sys.argv[1]), method), methods)
        for method, answer in zip(methods, answers):
            print(f"[{method}] {answer}")

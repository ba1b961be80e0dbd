"""What methods cost: reading the prompt, and each generated token, as ratios to plain `generate`.

A random LLaVA of a realistic shape is used, because time depends on shapes and not on weights. Every round runs plain
generation and each method once, in turn, so that a machine that slows down slows all of them; a ratio is taken within
a round, and the median over the rounds is reported.

    python -m vlm_guard.eval.method_cost --methods m3id,vcd --batch 1 --out cost.json

On a CPU the clock counts the process's own seconds (of one thread), which other processes disturb less than the wall
clock; on a GPU it is the wall clock behind a synchronisation.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from vlm_guard import wrap
from vlm_guard.kernels.measure import describe_machine, write_json
from vlm_guard.random_models import DecoderShape, random_inputs, random_llava

PLAIN = "plain"


class TokenClock(BaseStreamer):
    """Notes the time of every token that `generate` hands on."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.times = [now()]

    def put(self, value: Tensor) -> None:
        """One more token (the first call brings the prompt)."""
        self.times.append(self.now())

    def end(self) -> None:
        """Nothing is left to note."""

    @property
    def prefill(self) -> float:
        """Seconds from the call to the first token."""
        return self.times[2] - self.times[0]

    @property
    def per_token(self) -> float:
        """Median seconds of a later token."""
        return statistics.median(later - earlier for earlier, later in zip(self.times[2:], self.times[3:]))


def measure_methods(
    methods: Sequence[str],
    *,
    shape: str | DecoderShape = "llava-0.3b",
    batch: int = 1,
    prompt_tokens: int = 40,
    new_tokens: int = 12,
    rounds: int = 3,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Time methods against plain generation in one interleaved run.

    Args:
        methods: names that `wrap` understands without a processor, combinations included.
        shape: a shape of `vlm_guard.random_models`, or its name.
        batch: rows of equal length.
        prompt_tokens: text tokens of a row, beside its image.
        new_tokens: generated tokens, at least 3.
        rounds: measured rounds after one that warms up.
        device: "cpu" or "cuda".
        dtype: of the model.
        options: options for `wrap`, as "method.option".

    Returns:
        JSON-able settings, and per method the seconds of every round and the median ratios to plain generation.
    """
    if new_tokens < 3 or rounds < 1:
        raise ValueError(f"need at least 3 new tokens and 1 round, given {new_tokens} and {rounds}")
    model = random_llava(shape, device=device, dtype=dtype)
    inputs = random_inputs(model, batch=batch, prompt_tokens=prompt_tokens)
    now = time.process_time if device == "cpu" else _synchronised_clock
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in (PLAIN, *methods)}
    for number in range(rounds + 1):
        for name, kept in seconds.items():
            own = {key: value for key, value in (options or {}).items() if key.split(".")[0] in name.split("+")}
            with nullcontext() if name == PLAIN else wrap(model, None, name, **own):
                clock = TokenClock(now)
                model.generate(**inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, streamer=clock)
            if number:
                kept.append((clock.prefill, clock.per_token))
    return {
        "shape": shape if isinstance(shape, str) else asdict(shape),
        "batch": batch,
        "prompt_tokens": int(inputs["input_ids"].shape[1]),
        "new_tokens": new_tokens,
        "rounds": rounds,
        "device": device,
        "dtype": str(dtype),
        "clock": "process time" if device == "cpu" else "wall clock",
        "machine": describe_machine(torch.device(device)),
        "methods": {name: _summary(times, seconds[PLAIN]) for name, times in seconds.items()},
    }


def _summary(times: list[tuple[float, float]], plain: list[tuple[float, float]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for index, part in enumerate(("prefill", "per_token")):
        own = [time[index] for time in times]
        result[f"{part}_seconds"] = [round(value, 5) for value in own]
        result[f"{part}_ratio"] = round(statistics.median(a / b[index] for a, b in zip(own, plain)), 3)
    return result


def _synchronised_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; prints one row per method and writes JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", required=True, help="names separated by commas")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=12)
    parser.add_argument("--shape", default="llava-0.3b")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    result = measure_methods(
        given.methods.split(","),
        shape=given.shape,
        batch=given.batch,
        rounds=given.rounds,
        new_tokens=given.new_tokens,
        device=given.device,
    )
    for name, row in result["methods"].items():
        print(f"{name:16} prefill x {row['prefill_ratio']:.2f}   token x {row['per_token_ratio']:.2f}")
    if given.out is not None:
        write_json(given.out, result)


if __name__ == "__main__":
    main()

"""One to four rows of a matrix product on the CPU: what do packed weights gain?

Decoding one answer multiplies one row with every weight, decoding with a contrast branch two. Which library and layout
is faster there depends on the processor, so it is measured and not assumed. `python -m
vlm_guard.kernels.benchmark.linear OUT` times, in turn, torch's own way in float32 (MKL on x86) and in bfloat16, and
both with packed weights (`kernels/packed_linear.py`).
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from vlm_guard.kernels.benchmark.measure import (
    describe_machine,
    note_on_load,
    quantiles,
    ratio_quantiles,
    time_interleaved,
    write_json,
)
from vlm_guard.kernels.packed_linear import PackedForward, packable_types

SHAPES = ((1024, 1024), (2816, 1024), (4096, 4096), (11008, 4096))
"""[outputs, inputs] of the products of a 0.3 B and a 7 B decoder."""

ROWS = (1, 2, 3, 4)
BASELINE = "float32"


def products(outputs: int, inputs: int, rows: int) -> dict[str, Callable[[], Any]]:
    """The calls to time, by name, each computing [rows, inputs] x [inputs, outputs]."""
    weight, given = torch.randn(outputs, inputs), torch.randn(rows, inputs)
    narrow_weight, narrow = weight.bfloat16(), given.bfloat16()
    calls: dict[str, Callable[[], Any]] = {
        BASELINE: lambda: linear(given, weight),
        "bfloat16": lambda: linear(narrow, narrow_weight),
    }
    for dtype in packable_types():
        layer = nn.Linear(inputs, outputs, bias=False, dtype=dtype).requires_grad_(False)
        layer.weight.copy_(weight)
        forward, rows_given = PackedForward(layer), given.to(dtype)
        calls[f"{str(dtype).removeprefix('torch.')} packed"] = partial(forward, rows_given)
    return calls


def benchmark_linear(rounds: int = 60, seconds: float = 6.0, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Time every shape and number of rows; the content of a result file.

    Args:
        rounds: calls of each at most.
        seconds: no further round of a shape is begun after this long.
        report: called with a line per shape and number of rows.
    """
    entries = []
    device = torch.device("cpu")
    for outputs, inputs in SHAPES:
        for rows in ROWS:
            calls = products(outputs, inputs, rows)
            for call in calls.values():
                call()
            times = time_interleaved(calls, device, rounds, seconds)
            entry: dict[str, Any] = {"outputs": outputs, "inputs": inputs, "rows": rows}
            for name, found in times.items():
                entry[name] = quantiles(found) | {"ratio_to_float32": ratio_quantiles(found, times[BASELINE])}
            entries.append(entry)
            ratios = ", ".join(f"{name} {entry[name]['ratio_to_float32']['median']:.2f}x" for name in times)
            report(f"{outputs} x {inputs}, {rows} rows: {entry[BASELINE]['median_s'] * 1e6:.0f} us; {ratios}")
    machine = describe_machine(device)
    return {"machine": machine, "note": note_on_load(machine), "rounds": rounds, "entries": entries}


def speed_up(dtype: torch.dtype, rows: int, *, outputs: int = 4096, inputs: int = 4096, calls: int = 15) -> float:
    """How many times faster a product with packed weights is on this processor: the ratio of two medians.

    Args:
        dtype: of the weights.
        rows: that are multiplied with them.
        outputs: of the layer.
        inputs: of the layer.
        calls: timed of each, in turn.

    Raises:
        ValueError: weights of this type cannot be packed here.
    """
    if dtype not in packable_types():
        raise ValueError(f"{dtype} weights cannot be packed on this processor")
    layer = nn.Linear(inputs, outputs, bias=False, dtype=dtype)
    given, forward = torch.randn(rows, inputs, dtype=dtype), PackedForward(layer)
    both: dict[str, Callable[[], Any]] = {"packed": partial(forward, given), "as it is": partial(layer, given)}
    with torch.no_grad():
        for product in (*both.values(), *both.values()):
            product()  # The first calls set things up.
        times = time_interleaved(both, torch.device("cpu"), calls, math.inf)
    return median(times["as it is"]) / median(times["packed"])


def main() -> None:
    """Measure and write a result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(max(1, options.threads))
    write_json(options.out, benchmark_linear())


if __name__ == "__main__":
    main()

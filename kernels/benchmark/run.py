"""Time the edited attention against plain attention and against the published way, on shapes of real models.

One cell is (model shape, scenario, batch, keys). In a cell every provider is called in turn, round after round, so
ratios to `sdpa`, which is the plain attention of the model without any edit, come from the same seconds of the same
machine. `python -m vlm_guard.kernels.benchmark --gpu-check FOLDER` runs correctness, races and timings on a GPU in one
call; `vlm-guard bench kernels` runs the timings alone.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from vlm_guard.kernels.attention_edit import AttentionEdit, Segments
from vlm_guard.kernels.benchmark.cases import whole_grid
from vlm_guard.kernels.benchmark.correctness import DTYPES, find_races
from vlm_guard.kernels.benchmark.measure import (
    describe_machine,
    measure_ceilings,
    peak_memory,
    quantiles,
    ratio_quantiles,
    time_interleaved,
    write_json,
)
from vlm_guard.kernels.edited_attention import AttentionProblem, load_backend
from vlm_guard.kernels.policies import MoveSinksToContent
from vlm_guard.kernels.reference import reference_attention

# Query heads, key-value heads and head dimension, from the published configurations.
MODEL_SHAPES = {
    "LLaVA-1.5-7B": (32, 32, 128),
    "Qwen2.5-VL-7B": (28, 4, 128),
    "Qwen3-VL-8B": (32, 8, 128),
    "InternVL3-8B": (28, 4, 128),
}
SCENARIOS = ("decode", "prefill last rows", "prefill text rows")
PROVIDERS = ("sdpa", "flex", "eager", "torch", "triton")
VISUAL_TOKENS, TEXT_BEFORE, LAST_ROWS = 576, 35, 32


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measured problem: model shape by name, scenario, batch and number of keys."""

    model: str
    scenario: str
    batch: int
    keys: int

    @property
    def rows(self) -> int:
        """Edited rows: the new token, the end of a question, or all text after the picture."""
        if self.scenario == "decode":
            return 1
        return LAST_ROWS if self.scenario == "prefill last rows" else self.keys - VISUAL_TOKENS - TEXT_BEFORE


def build_cell(cell: Cell, dtype: torch.dtype, device: torch.device) -> AttentionProblem:
    """VAR's edit on a prompt of text, 576 visual tokens and text, with eight visual sinks and one text sink."""
    heads, groups, head_dim = MODEL_SHAPES[cell.model]
    random = torch.Generator(device).manual_seed(0)

    def draw(heads: int, count: int) -> Tensor:
        # As a model's projection leaves it: [B, tokens, heads, D], seen as [B, heads, tokens, D].
        shape = (cell.batch, count, heads, head_dim)
        return torch.randn(shape, generator=random, device=device, dtype=dtype).transpose(1, 2)

    visual = torch.zeros(cell.batch, cell.keys, dtype=torch.bool, device=device)
    visual[:, TEXT_BEFORE : TEXT_BEFORE + VISUAL_TOKENS] = True
    sinks = torch.zeros_like(visual)
    sinks[:, 0] = True
    sinks[:, TEXT_BEFORE + 40 : TEXT_BEFORE + VISUAL_TOKENS : 70] = True
    policy = MoveSinksToContent(move_fraction=0.6, min_content_share=0.5, min_visual_mass=0.1)
    positions = torch.arange(cell.keys - cell.rows, cell.keys, device=device)[None] if cell.rows > 1 else None
    return AttentionProblem(
        query=draw(heads, cell.rows),
        key=draw(groups, cell.keys),
        value=draw(groups, cell.keys),
        edit=AttentionEdit(segments=Segments.build(visual, sinks), policy=policy),
        scaling=head_dim**-0.5,
        row_positions=positions,
    )


def traffic(problem: AttentionProblem) -> dict[str, float]:
    """Bytes that have to be moved (K and V once, queries, outputs) and floating-point operations of two products."""
    query, key, value = problem.query, problem.key, problem.value
    batch, heads, rows, head_dim = query.shape
    keys, value_dim = key.shape[2], value.shape[3]
    elements = key.numel() + value.numel() + query.numel() + batch * heads * rows * value_dim
    seen = rows * keys if rows == 1 else rows * (2 * keys - rows + 1) / 2
    return {
        "bytes": float(elements * query.element_size()),
        "flop": 2.0 * batch * heads * seen * (head_dim + value_dim),
    }


def build_provider(name: str, problem: AttentionProblem) -> Callable[[], Any]:
    """A function that computes the cell once, with everything that a model would prepare beforehand prepared."""
    query, key, value = problem.query, problem.key, problem.value
    rows, keys = query.shape[2], key.shape[2]
    if name == "sdpa":
        mask: Tensor | None = causal_lower_right(rows, keys) if rows > 1 else None
        if rows > 1 and problem.row_positions is not None and query.device.type != "cuda":
            mask = torch.arange(keys, device=query.device) <= problem.row_positions[0, :, None]
        attention = torch.nn.functional.scaled_dot_product_attention
        return lambda: attention(query, key, value, attn_mask=mask, scale=problem.scaling, enable_gqa=True)
    if name == "flex":
        return _flex_provider(problem)
    if name == "eager":
        return lambda: reference_attention(problem)
    backend = load_backend(name)
    return lambda: backend(problem)


def _flex_provider(problem: AttentionProblem) -> Callable[[], Any]:
    """FlexAttention with a per-key score edit: the nearest it can do, since it cannot redistribute weights."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    query, key, value = problem.query, problem.key, problem.value
    rows, keys = query.shape[2], key.shape[2]
    bias = torch.zeros(keys, device=query.device)
    offset = keys - rows

    def add_bias(score: Tensor, _batch: Tensor, _head: Tensor, _row: Tensor, index: Tensor) -> Tensor:
        return score + bias[index]

    def is_causal(_batch: Tensor, _head: Tensor, row: Tensor, index: Tensor) -> Tensor:
        return index <= row + offset

    mask = create_block_mask(is_causal, None, None, rows, keys, device=query.device.type) if rows > 1 else None
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(
        query, key, value, score_mod=add_bias, block_mask=mask, scale=problem.scaling, enable_gqa=True
    )


def eager_bytes(problem: AttentionProblem) -> int:
    """Bytes of the Q x K maps that the published way holds at once: scores, float32 weights, edited weights."""
    batch, heads, rows, _ = problem.query.shape
    return batch * heads * rows * problem.key.shape[2] * (2 * problem.query.element_size() + 3 * 4)


def measure_cell(
    cell: Cell, providers: Sequence[str], dtype: torch.dtype, device: torch.device, rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """One entry per provider; a provider that cannot run has `skipped` with the reason instead of times."""
    problem = build_cell(cell, dtype, device)
    room = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 4 * 1024**3
    head = asdict(cell) | {"rows": cell.rows}
    calls, entries = {}, []
    for name in providers:
        if name == "eager" and eager_bytes(problem) > room // 2:
            entries.append(head | {"provider": name, "skipped": f"its maps take {eager_bytes(problem)} bytes"})
            continue
        try:
            call = build_provider(name, problem)
            for _ in range(2):
                call()
            calls[name] = call
        except Exception as error:
            entries.append(head | {"provider": name, "skipped": f"{type(error).__name__}: {error}"[:300]})
    times = time_interleaved(calls, device, rounds, seconds)
    floor = traffic(problem)
    for name, series in times.items():
        entry = head | {"provider": name} | quantiles(series)
        entry["bytes_per_s"] = floor["bytes"] / entry["median_s"]
        entry["flop_per_s"] = floor["flop"] / entry["median_s"]
        entry["peak_memory_bytes"] = peak_memory(calls[name], device)
        for baseline in ("sdpa", "eager"):
            if baseline in times and baseline != name:
                entry[f"ratio_to_{baseline}"] = ratio_quantiles(series, times[baseline])
        entries.append(entry)
    return entries


@torch.no_grad()
def run_benchmark(
    *,
    device: str = "cpu",
    dtype: str | None = None,
    models: Sequence[str] | None = None,
    keys: Sequence[int] | None = None,
    batches: Sequence[int] | None = None,
    providers: Sequence[str] | None = None,
    rounds: int = 50,
    seconds: float = 1.0,
    time_limit: float = 400.0,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure every cell and return the content of a result file.

    On the CPU the defaults are smaller (two model shapes, 640 and 2,048 keys, batch 1, no text-rows prefill, no Triton)
    and the result says so. Cells that would begin after `time_limit` seconds are listed as not measured.

    Raises:
        ValueError: a name that is not known.
    """
    where = torch.device(device)
    on_gpu = where.type == "cuda"
    models = list(models or (MODEL_SHAPES if on_gpu else ("LLaVA-1.5-7B", "Qwen2.5-VL-7B")))
    providers = list(providers or (PROVIDERS if on_gpu else ("sdpa", "eager", "torch")))
    keys = list(keys or ((640, 2048, 8192, 32768) if on_gpu else (640, 2048)))
    batches = list(batches or ((1, 16) if on_gpu else (1,)))
    dtype = dtype or ("bfloat16" if on_gpu else "float32")
    for kind, given, known in (("model", models, MODEL_SHAPES), ("provider", providers, PROVIDERS)):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(f"unknown {kind} {unknown[0]!r}; available: {', '.join(known)}")
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; available: {', '.join(DTYPES)}")
    if min(keys) <= VISUAL_TOKENS + TEXT_BEFORE:
        raise ValueError(f"keys must be more than {VISUAL_TOKENS + TEXT_BEFORE} (the picture and the text before it)")
    scenarios = SCENARIOS if on_gpu else SCENARIOS[:2]
    # Small and cheap cells first: what a time limit cuts off is the most expensive.
    cells = [
        Cell(model=model, scenario=scenario, batch=batch, keys=count)
        for batch in sorted(batches)
        for count in sorted(keys)
        for scenario in scenarios
        for model in models
    ]
    begun, entries, missed = time.perf_counter(), [], []
    ceilings = measure_ceilings(where, DTYPES[dtype])
    for cell in cells:
        if time.perf_counter() - begun > time_limit:
            missed.append(asdict(cell))
            continue
        fresh = measure_cell(cell, providers, DTYPES[dtype], where, rounds, seconds)
        entries += fresh
        report(_line(cell, fresh))
    notes = [] if on_gpu else ["CPU: smaller sizes by default; figures of the fused kernels need a GPU"]
    return {
        "machine": describe_machine(where),
        "dtype": dtype,
        "ceilings": ceilings,
        "edit": "VAR (sinks to content), 576 visual tokens, 9 sinks",
        "notes": notes,
        "entries": entries,
        "not_measured": missed,
    }


def _line(cell: Cell, entries: list[dict[str, Any]]) -> str:
    parts = [
        f"{entry['provider']} {entry['median_s'] * 1e6:.0f} us" if "median_s" in entry else f"{entry['provider']} -"
        for entry in entries
    ]
    return f"{cell.model} {cell.scenario} B={cell.batch} K={cell.keys}: " + ", ".join(parts)


def check_in_parallel(
    seconds: float,
    backend: str = "triton",
    cases: str = "grid",
    device: str = "cuda",
    block_size: int | None = None,
) -> list[dict[str, Any]]:
    """Check a list of cases split over processes: on a GPU nearly all the time goes into compiling variants.

    Cases that are not done after `seconds` are left out. With a `block_size` keys and values lie in blocks.
    """
    workers = max(1, min(14, (os.cpu_count() or 2) - 2))
    command = [sys.executable, "-m", "vlm_guard.kernels.benchmark.correctness", "--backend", backend, "--cases", cases]
    command += [] if block_size is None else ["--block-size", str(block_size)]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / f"part{number}.jsonl" for number in range(workers)]
        running = []
        for number, output in enumerate(outputs):
            with output.open("w") as file:
                part = [*command, "--device", device, "--part", f"{number}/{workers}"]
                running.append(subprocess.Popen(part, stdout=file))
        end = time.perf_counter() + seconds
        for process in running:
            try:
                process.wait(max(0.1, end - time.perf_counter()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        # A process that was stopped may leave half a line.
        lines = [line for output in outputs for line in output.read_text().splitlines(keepends=True)]
        return [json.loads(line) for line in lines if line.endswith("}\n")]


def gpu_check(folder: Path) -> bool:
    """Correctness grid, race check and timings on the GPU in under nine minutes; writes four JSON files.

    Returns:
        Whether every checked case was within its budget and no repeated run differed.

    Raises:
        RuntimeError: there is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("the GPU check needs a CUDA device; on the CPU run the tests")
    device, begun = torch.device("cuda"), time.perf_counter()
    machine, grid = describe_machine(device), whole_grid()
    checked = check_in_parallel(seconds=150)
    in_blocks = check_in_parallel(seconds=40, cases="random", block_size=16)
    failed = [result for result in (*checked, *in_blocks) if not result["passed"]]
    result = {"machine": machine, "cases": len(grid), "checked": len(checked), "failed": failed, "results": checked}
    write_json(folder / "correctness.json", result | {"results_in_blocks": in_blocks})
    print(
        f"correctness: {len(checked)} of {len(grid)} cases checked, and {len(in_blocks)} with keys in blocks, "
        f"{len(failed)} failed",
        flush=True,
    )
    races = find_races(device, "triton")
    write_json(folder / "races.json", {"machine": machine, "differing": races})
    print(f"races: {len(races)} cases differ between repeated runs", flush=True)

    def bench(name: str, end: float, **arguments: Any) -> None:
        limit = max(20.0, end - (time.perf_counter() - begun))
        report = run_benchmark(
            device="cuda", seconds=0.4, time_limit=limit, report=lambda line: print(line, flush=True), **arguments
        )
        write_json(folder / name, report)

    bench("kernels.json", 440, providers=("sdpa", "eager", "torch", "triton"))
    # FlexAttention compiles anew for every shape, so it gets one length.
    flex = {"models": ("LLaVA-1.5-7B", "Qwen2.5-VL-7B"), "keys": (2048,), "batches": (1,)}
    bench("kernels_flex.json", 500, providers=("sdpa", "flex", "triton"), **flex)
    return bool(checked) and not failed and not races


def main() -> None:
    """Run the GPU check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu-check", type=Path, required=True, metavar="FOLDER", help="where the JSON files go")
    sys.exit(0 if gpu_check(parser.parse_args().gpu_check) else 1)


if __name__ == "__main__":
    main()

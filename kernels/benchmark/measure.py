"""Measuring: interleaved timings with quantiles, the machine's ceilings, its description, atomic JSON."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vlm_guard.environment import bfloat16_instructions, processor_name, version_of
from vlm_guard.whole_files import write_atomically


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader never sees half a file."""
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def time_interleaved(
    calls: dict[str, Callable[[], Any]], device: torch.device, rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Seconds per call of every provider, one call of each in turn, so that drift hits all of them alike.

    Args:
        calls: what to time, already warmed up.
        device: CUDA calls are timed by events, after the second-level cache has been overwritten.
        rounds: at most this many calls of each.
        seconds: no new round is begun after this long; at least three rounds are made.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    flush = torch.empty(256 * 1024 * 1024 // 4, device=device) if device.type == "cuda" else None
    begun = time.perf_counter()
    for number in range(rounds):
        for name, call in calls.items():
            times[name].append(_time_once(call, flush))
        if number >= 2 and time.perf_counter() - begun > seconds:
            break
    return times


def _time_once(call: Callable[[], Any], flush: torch.Tensor | None) -> float:
    if flush is None:
        begun = time.perf_counter()
        call()
        return time.perf_counter() - begun
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    flush.zero_()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def quantiles(times: list[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile of seconds, and how many there are."""
    ordered = sorted(times)
    last = len(ordered) - 1
    return {
        "median_s": statistics.median(ordered),
        "p20_s": ordered[round(0.2 * last)],
        "p80_s": ordered[round(0.8 * last)],
        "calls": len(ordered),
    }


def ratio_quantiles(times: list[float], baseline: list[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile of the ratios of two interleaved series, round by round."""
    ratios = sorted(time / base for time, base in zip(times, baseline))
    last = len(ratios) - 1
    return {"median": statistics.median(ratios), "p20": ratios[round(0.2 * last)], "p80": ratios[round(0.8 * last)]}


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """What the machine reaches in this run: bytes/s of a copy (read plus write) and FLOP/s of a square matmul."""
    on_gpu = device.type == "cuda"
    elements = (512 if on_gpu else 64) * 1024 * 1024 // dtype.itemsize
    source, target = torch.ones(elements, dtype=dtype, device=device), torch.empty(elements, dtype=dtype, device=device)
    size = 8192 if on_gpu else 1024
    left = torch.ones(size, size, dtype=dtype, device=device)
    calls = {"copy": lambda: target.copy_(source), "matmul": lambda: left @ left}
    for call in calls.values():
        call()
    times = time_interleaved(calls, device, rounds=15, seconds=5)
    return {
        "copy_bytes_per_s": 2 * elements * dtype.itemsize / statistics.median(times["copy"]),
        "matmul_flop_per_s": 2 * size**3 / statistics.median(times["matmul"]),
    }


def peak_memory(call: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes a call allocates on the GPU beyond what was there before; None on the CPU, where torch does not say."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def note_on_load(machine: dict[str, Any]) -> str:
    """What a result file says where other work ran beside the measurement; empty on an idle machine."""
    load, processors = machine.get("load_average_1min"), machine.get("logical_processors") or 1
    if load is None or load < 1.5 * processors:
        return ""
    return (
        f"measured while other work ran (load average {load:.1f} on {processors} logical processors): ratios are of "
        "calls in turn and bear that, seconds do not"
    )


def tell_machine(device: torch.device, report: Callable[[str], None]) -> dict[str, Any]:
    """`describe_machine`, which is also reported in a line, and whether other work runs there."""
    machine = describe_machine(device)
    report(f"{machine.get('gpu', machine['processor'])}, {machine['torch_threads']} CPU threads")
    if note := note_on_load(machine):
        report(note)
    return machine


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Hardware, threads and versions, for the head of a result file."""
    machine: dict[str, Any] = {
        "device": device.type,
        "processor": processor_name(),
        "logical_processors": os.cpu_count(),
        "bfloat16_instructions": bfloat16_instructions(),
        "torch_threads": torch.get_num_threads(),
        # Other work on the machine shows here; ratios of interleaved calls bear it, times do not.
        "load_average_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": {name: version_of(name) for name in ("torch", "triton", "transformers", "vlm-guard-hf")},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {
            "gpu": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "gpu_memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
        }
    return machine

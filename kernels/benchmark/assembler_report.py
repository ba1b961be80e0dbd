"""What the assembler says about the Triton kernels: registers, spills and shared memory, without a GPU.

Triton can compile for a GPU that is not there; NVIDIA's assembler, which comes with it, then tells whether a tile fits.
It proves that the kernels compile and do not spill; it says nothing about speed. `python -m
vlm_guard.kernels.benchmark.assembler_report OUT.json` writes the table of `kernels/README.md`.
"""

import argparse
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from vlm_guard.kernels import triton_backend, triton_launch
from vlm_guard.kernels.attention_edit import AttentionEdit, Segments
from vlm_guard.kernels.benchmark.measure import write_json
from vlm_guard.kernels.edited_attention import AttentionProblem, KeyBlocks
from vlm_guard.kernels.launch_parameters import DeviceLimits
from vlm_guard.kernels.policies import MoveSinksToContent

DEVICES = {
    "A100": DeviceLimits(multiprocessors=108, shared_memory=163 * 1024, capability=(8, 0)),
    "H200": DeviceLimits(multiprocessors=132, shared_memory=227 * 1024, capability=(9, 0)),
}
# (name, query heads, key-value heads, head dimension)
MODELS = (
    ("LLaVA-1.5-7B", 32, 32, 128),
    ("Qwen2.5-VL-7B", 28, 4, 128),
    ("Qwen3-VL-8B", 32, 8, 128),
    ("head dimension 64", 16, 16, 64),
    ("head dimension 256", 8, 4, 256),
)
# (query rows, whether the edit has segments, keys of a block where they lie in blocks)
CALLS = (
    (1, True, None),
    (1, False, None),
    (1, True, 16),
    (1, False, 16),
    (1024, True, None),
    (1024, False, None),
)


class AbsentGpu:
    """A Triton driver for a GPU that is not there: it answers what the compiler asks and launches nothing."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self.target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)

    def get_current_target(self) -> GPUTarget:
        """The GPU compiled for."""
        return self.target

    def get_current_device(self) -> int:
        """Device number, used as a key of the kernel cache."""
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        """No stream is used."""
        return 0


@dataclass(frozen=True, kw_only=True)
class CompiledKernel:
    """What the assembler reports for one launch; `registers` per thread, the rest in bytes per thread or block."""

    kernel: str
    registers: int
    stack: int
    local: int
    shared: int
    warps: int
    stages: int


@contextmanager
def compile_only(device: DeviceLimits) -> Iterator[list[CompiledKernel]]:
    """Compile the backend's launches for a GPU with these limits instead of running them; not with the interpreter.

    Yields the list that fills with one entry per launch.
    """
    launched: list[CompiledKernel] = []

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            def record(*arguments: Any, **options: Any) -> None:
                compiled = self.kernel.warmup(*arguments, grid=grid, **options)
                launched.append(_read_usage(self.kernel.__name__, compiled))

            return record

    names = [name for name in vars(triton_launch) if name.endswith("_kernel")]
    recorders = {name: Recorder(getattr(triton_launch, name)) for name in names}
    before = dict(vars(driver))
    driver.set_active(AbsentGpu(device.capability))
    try:
        with ExitStack() as patched:
            patched.enter_context(mock.patch.object(triton_launch, "_device_limits", lambda index: device))
            for name, recorder in recorders.items():
                patched.enter_context(mock.patch.object(triton_launch, name, recorder))
            yield launched
    finally:
        vars(driver).update(before)


def _read_usage(name: str, compiled: Any) -> CompiledKernel:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        report = subprocess.run(
            [os.fspath(tool), "-res-usage", os.fspath(binary)], capture_output=True, text=True, check=True
        ).stdout
    usage = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}
    return CompiledKernel(
        kernel=name,
        registers=usage["REG"],
        stack=usage["STACK"],
        local=usage["LOCAL"],
        shared=compiled.metadata.shared,
        warps=compiled.metadata.num_warps,
        stages=compiled.metadata.num_stages,
    )


def compile_model(
    device: DeviceLimits,
    heads: int,
    groups: int,
    head_dim: int,
    rows: int,
    keys: int,
    segmented: bool,
    dtype: torch.dtype = torch.bfloat16,
    block_size: int | None = None,
) -> list[CompiledKernel]:
    """Compile what one call with VAR's policy (or without segments) launches; with a `block_size` over blocks."""
    ids = torch.zeros(1, keys, dtype=torch.uint8)
    policy = MoveSinksToContent(move_fraction=0.6, min_content_share=0.8, min_visual_mass=0.2)
    edit = AttentionEdit(segments=Segments(ids), policy=policy) if segmented else AttentionEdit()
    blocks, shape = None, (1, groups, keys, head_dim)
    if block_size is not None:
        count = keys // block_size
        blocks = KeyBlocks(table=torch.zeros(1, count, dtype=torch.int32), keys=keys)
        shape = (count, groups, block_size, head_dim)
    problem = AttentionProblem(
        query=torch.empty(1, heads, rows, head_dim, dtype=dtype),
        key=torch.empty(shape, dtype=dtype),
        value=torch.empty(shape, dtype=dtype),
        blocks=blocks,
        edit=edit,
        scaling=head_dim**-0.5,
        row_positions=torch.arange(keys - rows, keys)[None] if rows > 1 else None,
    )
    with compile_only(device) as launched, mock.patch.object(triton_backend, "unsupported_reason", lambda _: None):
        triton_backend.triton_attention(problem)
    return launched


def main() -> None:
    """Compile decode and prefill of every model shape for every device and write what the assembler reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="JSON file to write")
    entries: list[dict[str, object]] = []
    spilling = 0
    for device_name, device in DEVICES.items():
        for model, heads, groups, head_dim in MODELS:
            for rows, segmented, block_size in CALLS:
                compiled = compile_model(device, heads, groups, head_dim, rows, 2048, segmented, block_size=block_size)
                spilling += sum(kernel.stack > 0 for kernel in compiled)
                call = {"device": device_name, "model": model, "rows": rows, "segmented": segmented}
                call |= {} if block_size is None else {"block_size": block_size}
                entries += [call | asdict(kernel) for kernel in compiled]
    out = parser.parse_args().out
    write_json(out, {"triton": triton.__version__, "keys": 2048, "dtype": "bfloat16", "kernels": entries})
    print(f"{len(entries)} launches compiled, {spilling} of them spill: {out}")


if __name__ == "__main__":
    main()

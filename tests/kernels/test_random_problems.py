"""Problems drawn at random stay within the error budget: one head, one group, one row, odd everything."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch

from vlm_guard.kernels.benchmark.cases import EDITS, MASKS, OUTPUT_EDITS
from vlm_guard.kernels.benchmark.correctness import DTYPES, check_case
from vlm_guard.kernels.benchmark.random_cases import random_cases

CPU = torch.device("cpu")
ONE_HEAD = [case for case, _ in random_cases(400) if case.heads == 1]


def test_the_draw_is_the_same_every_time_and_reaches_the_corners():
    cases = [case for case, _ in random_cases(400)]
    assert cases == [case for case, _ in random_cases(400)] and cases != [case for case, _ in random_cases(400, seed=1)]
    assert len({case.name for case in cases}) == 400
    for corner in ("heads", "groups", "rows", "batch", "keys"):
        assert sum(getattr(case, corner) == 1 for case in cases) >= 20, corner
    assert Counter(case.edit for case in cases).keys() == set(EDITS)
    assert {case.mask for case in cases} == set(MASKS)
    assert {case.output_edit for case in ONE_HEAD if case.rows > 1} == set(OUTPUT_EDITS)
    assert all(case.heads % case.groups == 0 and case.rows <= case.keys for case in cases)


def test_torch_backend():
    comparisons = [check_case(case, DTYPES[name], CPU, "torch") for case, name in random_cases(400)]
    failed = [one for one in comparisons if not one.passed]
    assert not failed, failed[:3]
    tied, rows = sum(one.tied_rows for one in comparisons), sum(one.rows for one in comparisons)
    assert tied <= 0.2 * rows


def run_interpreted(*arguments):
    command = [sys.executable, "-m", "vlm_guard.kernels.benchmark.correctness", "--backend", "triton", *arguments]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_fused_kernels_interpreted():
    lines = run_interpreted("--cases", "random", "--count", "36")
    assert len(lines) == 36
    failed = [line for line in lines if not line["passed"]]
    assert not failed, failed[:3]


@pytest.mark.parametrize("size", [1, 7, 64])
def test_torch_backend_with_keys_in_blocks(size):
    comparisons = [check_case(case, DTYPES[name], CPU, "torch", size) for case, name in random_cases(60)]
    failed = [one for one in comparisons if not one.passed]
    assert not failed, failed[:3]


@pytest.mark.parametrize("size", [16, 24])
def test_fused_kernels_interpreted_with_keys_in_blocks(size):
    """Decode steps and prompts; the blocks lie in any order among blocks of noise."""
    lines = run_interpreted("--cases", "random", "--count", "14", "--block-size", str(size))
    assert len(lines) == 14
    failed = [line for line in lines if not line["passed"]]
    assert not failed, failed[:3]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fused_kernels_on_a_gpu():
    cases = random_cases(400, largest_rows=200, largest_keys=700)
    checked = (check_case(case, DTYPES[name], torch.device("cuda"), "triton") for case, name in cases)
    failed = [comparison for comparison in checked if not comparison.passed]
    assert not failed, failed[:3]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fused_kernels_on_a_gpu_with_keys_in_blocks():
    cases = random_cases(200, largest_rows=200, largest_keys=700)
    checked = (check_case(case, DTYPES[name], torch.device("cuda"), "triton", 16) for case, name in cases)
    failed = [comparison for comparison in checked if not comparison.passed]
    assert not failed, failed[:3]

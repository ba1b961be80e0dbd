"""Every backend stays within its derived error budget against float64; the fused kernels run in the interpreter."""

import json
import os
import subprocess
import sys

import pytest
import torch

from vlm_guard.kernels.benchmark.cases import EDITS, interpreter_cases, torch_cases, whole_grid
from vlm_guard.kernels.benchmark.correctness import DTYPES, check_case, find_races

CPU = torch.device("cpu")


def assert_within_budget(comparison):
    over = {
        name: (error, comparison.budgets[name])
        for name, error in comparison.errors.items()
        if not error <= comparison.budgets[name]
    }
    assert not over, f"{comparison.case} {comparison.dtype}: (error, budget) {over}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("edit", EDITS)
def test_torch_backend(edit, dtype):
    chosen = [case for case, name in torch_cases() if name == dtype and case.edit == edit]
    assert chosen
    comparisons = [check_case(case, DTYPES[dtype], CPU, "torch") for case in chosen]
    for comparison in comparisons:
        assert_within_budget(comparison)
    # Rows at a threshold of the policy are left out of the comparison; they must stay the exception.
    rows, tied = sum(one.rows for one in comparisons), sum(one.tied_rows for one in comparisons)
    assert tied <= 0.1 * rows, f"{tied} of {rows} rows tie"


@pytest.fixture(scope="module")
def interpreted():
    """Results of the fused kernels in a process where the interpreter is on before Triton is imported."""
    command = [
        sys.executable,
        "-m",
        "vlm_guard.kernels.benchmark.correctness",
        "--backend",
        "triton",
        "--cases",
        "interpreter",
    ]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {(line["case"], line["dtype"]): line for line in lines}


@pytest.mark.parametrize(("case", "dtype"), interpreter_cases(), ids=lambda value: getattr(value, "name", value))
def test_fused_kernels_interpreted(interpreted, case, dtype):
    result = interpreted[case.name, dtype]
    assert set(result["errors"]) >= {"output", "weights", "logsumexp"}
    assert result["passed"], f"errors {result['errors']}, budgets {result['budgets']}"
    assert result["tied_rows"] < result["rows"]


def test_the_budget_notices_a_lost_key():
    """A backend that forgets one key of 70 must not pass: the budget is far smaller than any real mistake."""
    from vlm_guard.kernels import edited_attention

    def forgetful(problem):
        first = torch.zeros_like(problem.query[:, :1, :, :1]).expand(-1, -1, -1, problem.key.shape[2]).clone()
        first[..., 3] = float("-inf")
        fields = {name: getattr(problem, name) for name in problem.__dataclass_fields__} | {"mask": first}
        return edited_attention.load_backend("torch")(edited_attention.AttentionProblem(**fields))

    case = next(case for case, _ in interpreter_cases() if case.edit == "var" and case.keys == 70)
    known = edited_attention._LOADED
    known["forgetful"] = forgetful
    try:
        for dtype in DTYPES.values():
            assert not check_case(case, dtype, CPU, "forgetful").passed
    finally:
        del known["forgetful"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnGpu:
    def test_whole_grid(self):
        device = torch.device("cuda")
        failed = [
            comparison
            for comparison in (check_case(case, DTYPES[name], device, "triton") for case, name in whole_grid())
            if not comparison.passed
        ]
        assert not failed, failed[:5]

    def test_repeated_runs_are_equal(self):
        assert find_races(torch.device("cuda"), "triton") == []
